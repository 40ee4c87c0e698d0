"""Write a finished transcript as text, subtitles, table, JSON or N-best lists; carry word times over a correction."""

from __future__ import annotations

import io
import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audio_llm.align import edits
from audio_llm.correction import Correction
from audio_llm.errors import UsageError
from audio_llm.nbest import NBest, Word, nbest_to_dict, write_nbest
from audio_llm.text import NORMALIZERS

SCHEMA_VERSION = 1  # of the JSON form; goes up when a key changes its meaning or goes away

_LINE = 42  # characters of a subtitle line
_LINES = 2  # lines of a cue
_CUE_S = 7.0  # longest cue
_PAUSE_S = 1.0  # silence that ends a cue
_LEAST_MS = 100  # shortest cue
_SLIVER_S = 0.05  # what an inserted word may take in front of the first and behind the last word
_MOST_SLIVER_S = 0.2  # all of them together: less than the context around a stretch of speech


@dataclass(frozen=True)
class TranscriptSegment:
    """One stretch of speech.

    Attributes:
        start_s: Start in seconds from the beginning of the recording.
        end_s: End in seconds.
        text: What was said, corrected where a corrector ran.
        words: The words of `text` with times in the recording; empty where the recogniser gives none.
        nbest: What the recogniser considered.
        correction: How `text` came out of it; None where no corrector ran.
        channel: Name of its channel, where each channel was transcribed for itself: `left`, `channel 3`.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...]
    nbest: NBest
    correction: Correction | None = None
    channel: str | None = None


@dataclass(frozen=True)
class Transcript:
    """All that was said in one recording.

    Attributes:
        name: Name of the recording, most often its path.
        duration_s: Seconds that were read.
        text: What was said, corrected where a corrector ran; empty for silence.
        recognized: The recogniser's own text.
        segments: Stretches of speech in order of time.
        corrections: What the corrector did, in the same order; empty where none ran.
        warnings: What was amiss with the sound.
    """

    name: str
    duration_s: float
    text: str
    recognized: str
    segments: tuple[TranscriptSegment, ...]
    corrections: tuple[Correction, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cue:
    """One subtitle.

    Attributes:
        start_ms: Start in milliseconds.
        end_ms: End, after `start_ms`, not after the start of the next.
        lines: What is shown.
    """

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def render(transcript: Transcript, format: str) -> str:
    """Return the transcript as the content of a file; a transcript without words is valid in every format.

    Args:
        transcript: What was said.
        format: `txt` (one line, or nothing; a line per turn of a channel where each was transcribed), `srt`, `vtt`,
            `tsv` (start_ms, end_ms, text, and the channel if there is one; a row per stretch of speech), `json`
            (everything, on one line), `nbest` (JSON lines that `audio_llm.nbest` reads back).

    Raises:
        UsageError: No format has that name.
    """
    if format not in FORMATS:
        raise UsageError(f"no output format is named {format!r}", remedy=f"use one of {', '.join(FORMATS)}")
    return FORMATS[format](transcript)


def align_words(recognized: Sequence[Word], corrected_text: str) -> tuple[Word, ...]:
    """Give the words of a corrected text the times of the words that they replace.

    A word that stays (letter case and punctuation aside) keeps its time and confidence. Words that replace others
    share their time in proportion to letters. Inserted words take the gap between their neighbours, and no time
    at all where there is none; before the first word and behind the last they take a sliver.

    Args:
        recognized: The recogniser's words in order of time.
        corrected_text: The text that was made of them.

    Returns:
        One word for every word of the text, in order, no time going backwards; empty where `recognized` is empty.
    """
    texts = corrected_text.split()
    if not recognized or not texts:
        return ()
    words: list[Word] = []
    source = 0  # the words before it are done
    for step in edits([_key(word.text) for word in recognized], [_key(text) for text in texts]):
        words += _kept(recognized[source : step.source_start], texts[len(words) :])
        new = texts[step.target_start : step.target_end]
        if step.source_start < step.source_end:
            start_s, end_s = recognized[step.source_start].start_s, recognized[step.source_end - 1].end_s
        else:
            start_s, end_s = _gap(recognized, step.source_start, len(new))
        words += _share(new, start_s, end_s)
        source = step.source_end
    words += _kept(recognized[source:], texts[len(words) :])
    return tuple(words)


def cues(transcript: Transcript) -> list[Cue]:
    """Cut the transcript into subtitles.

    Returns:
        At most two lines of 42 characters (a longer word stays whole) and 7 s each, in order, never overlapping
        but for those of different channels.
    """
    channels = dict.fromkeys(segment.channel for segment in transcript.segments)
    each = (cue for channel in channels for cue in _cues(transcript, channel))
    return sorted(each, key=lambda cue: cue.start_ms)


def labeled_text(transcript: Transcript) -> str:
    """Return the text, or where each channel was transcribed a line for every turn: `LEFT: good morning`."""
    return "\n".join(_turns(transcript))


def _turns(transcript: Transcript) -> list[str]:
    segments = [segment for segment in transcript.segments if segment.text.strip()]
    if not any(segment.channel for segment in segments):
        return [transcript.text]
    turns = itertools.groupby(segments, key=lambda segment: segment.channel)
    return [" ".join([_label(channel), *(part.text for part in parts)]) for channel, parts in turns]


def _label(channel: str | None) -> str:
    return f"{channel.upper()}:" if channel else ""


def _cues(transcript: Transcript, channel: str | None) -> list[Cue]:
    """Cut the segments of one channel into subtitles, its name in front of each."""
    result: list[Cue] = []
    for segment in transcript.segments:
        if segment.channel != channel:
            continue
        for group in _groups(_timed_words(segment), _label(channel)):
            start_ms = max(_ms(group[0].start_s), result[-1].end_ms if result else 0)
            end_ms = min(_ms(group[-1].end_s), start_ms + _ms(_CUE_S))
            lines = tuple(_wrap([_label(channel), *(word.text for word in group)]))
            result.append(Cue(start_ms, max(end_ms, start_ms + _LEAST_MS), lines))
    return result


def _key(text: str) -> str:
    return NORMALIZERS["basic"](text) or text


def _kept(old: Sequence[Word], texts: Sequence[str]) -> list[Word]:
    return [Word(text, word.start_s, word.end_s, word.confidence) for word, text in zip(old, texts, strict=False)]


def _gap(words: Sequence[Word], index: int, count: int) -> tuple[float, float]:
    """Return the time free in front of the word of that index for `count` inserted words."""
    sliver_s = min(count * _SLIVER_S, _MOST_SLIVER_S)
    if index == 0:
        return max(0.0, words[0].start_s - sliver_s), words[0].start_s
    before_s = words[index - 1].end_s
    if index == len(words):
        return before_s, before_s + sliver_s
    return before_s, max(before_s, words[index].start_s)


def _share(texts: Sequence[str], start_s: float, end_s: float) -> Iterator[Word]:
    """Divide a stretch of time among words in proportion to their letters."""
    total = sum(map(len, texts))
    letters = 0
    for text in texts:
        word_start_s = start_s + (end_s - start_s) * letters / total
        letters += len(text)
        yield Word(text, word_start_s, end_s if letters == total else start_s + (end_s - start_s) * letters / total)


def _timed_words(segment: TranscriptSegment) -> list[Word]:
    texts = segment.text.split()
    if len(segment.words) == len(texts):
        return _kept(segment.words, texts)
    return list(align_words(segment.words, segment.text) or _share(texts, segment.start_s, segment.end_s))


def _groups(words: Sequence[Word], label: str = "") -> Iterator[list[Word]]:
    """Divide the words of a segment into cues that begin with a label."""
    group: list[Word] = []
    for word in words:
        if group and (
            word.start_s - group[-1].end_s > _PAUSE_S
            or word.end_s - group[0].start_s > _CUE_S
            or len(_wrap([label, *(w.text for w in [*group, word])])) > _LINES
        ):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _wrap(texts: Iterable[str]) -> list[str]:
    return textwrap.wrap(" ".join(texts).strip(), _LINE, break_long_words=False, break_on_hyphens=False)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"


def _txt(transcript: Transcript) -> str:
    lines = (" ".join(line.split()) for line in _turns(transcript))
    return "".join(f"{line}\n" for line in lines if line)


def _srt(transcript: Transcript) -> str:
    blocks = (
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript), 1)
    )
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript):
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{text}\n")
    return "\n".join(blocks)


def _tsv(transcript: Transcript) -> str:
    channels = any(segment.channel for segment in transcript.segments)
    rows = [["start_ms", "end_ms", "text", "channel"]]
    for segment in transcript.segments:
        times = [str(_ms(segment.start_s)), str(_ms(segment.end_s))]
        rows.append([*times, " ".join(segment.text.split()), segment.channel or ""])
    return "".join("\t".join(row if channels else row[:3]) + "\n" for row in rows)


def _json(transcript: Transcript) -> str:
    segments = [
        {
            "start_s": segment.start_s,
            "end_s": segment.end_s,
            "text": segment.text,
            "words": [asdict(word) for word in segment.words],
            "nbest": nbest_to_dict(segment.nbest),
            "correction": asdict(segment.correction) if segment.correction else None,
            "channel": segment.channel,
        }
        for segment in transcript.segments
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": transcript.name,
        "duration_s": transcript.duration_s,
        "text": transcript.text,
        "recognized": transcript.recognized,
        "segments": segments,
        "corrections": [asdict(correction) for correction in transcript.corrections],
        "warnings": list(transcript.warnings),
    }
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def _nbest(transcript: Transcript) -> str:
    buffer = io.StringIO()
    write_nbest((segment.nbest for segment in transcript.segments), buffer)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    """Replace NaN and infinite numbers, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "json": _json,
    "nbest": _nbest,
}
