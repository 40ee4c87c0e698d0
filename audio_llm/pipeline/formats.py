"""Write a finished transcript as text, subtitles, table, JSON or N-best lists; carry word times over a correction."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from audio_llm.align import edits
from audio_llm.correction import Correction
from audio_llm.errors import UsageError
from audio_llm.nbest import NBest, Word, nbest_to_dict, write_nbest
from audio_llm.pipeline.subtitles import (
    DEFAULT_SUBTITLES,
    NARROWEST,
    SUBTITLE_FORMATS,
    Cue,
    SubtitleOptions,
    columns,
    cut_cues,
)
from audio_llm.text import NORMALIZERS

SCHEMA_VERSION = 1  # of the JSON form; raised when a key changes its meaning or is removed

_SLIVER_S = 0.05  # duration of an inserted word before the first or after the last word
_MOST_SLIVER_S = 0.2  # total duration of such words: less than the context of a stretch of speech


@dataclass(frozen=True)
class TranscriptSegment:
    """One speech segment.

    Attributes:
        start_s: Start in seconds from the beginning of the recording.
        end_s: End in seconds.
        text: Text, corrected where a corrector ran.
        words: The words of `text` with times in the recording; empty where the recognizer gives none.
        nbest: Hypotheses of the recognizer.
        correction: Correction of the text; None where no corrector ran.
        channel: Name of its channel, where channels were transcribed separately: `left`, `channel 3`.
        language: Language code; empty where the recognizer does not detect languages.
        language_probability: Probability of the detected language, 0 to 1; None where it was not detected.
        notes: What the recognizer's checks changed, one line each.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...]
    nbest: NBest
    correction: Correction | None = None
    channel: str | None = None
    language: str = ""
    language_probability: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RejectedText:
    """Recognized text that is not part of the transcript: most likely there was no speech.

    Attributes:
        start_s: Start of its stretch in seconds from the beginning of the recording.
        end_s: End in seconds.
        text: The text.
        reason: Reason of the rejection.
    """

    start_s: float
    end_s: float
    text: str
    reason: str


@dataclass(frozen=True)
class Transcript:
    """Transcript of one recording.

    Attributes:
        name: Name of the recording, usually its path.
        duration_s: Duration read, in seconds.
        text: Full text, corrected if a corrector ran; empty for silence.
        recognized: The recognizer's text before correction.
        segments: Speech segments in order of time.
        corrections: Corrections in the same order; empty if no corrector ran.
        warnings: Problems with the sound file, one line each.
        rejected: Rejected text, with reasons.
        about: Recognizer, options, corrector and version.
    """

    name: str
    duration_s: float
    text: str
    recognized: str
    segments: tuple[TranscriptSegment, ...]
    corrections: tuple[Correction, ...] = ()
    warnings: tuple[str, ...] = ()
    rejected: tuple[RejectedText, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def languages(self) -> dict[str, float | None]:
        """Languages of the segments, with the highest probability where they were detected."""
        probabilities: dict[str, float | None] = {}
        for segment in self.segments:
            if segment.language:
                known = probabilities.get(segment.language)
                given = segment.language_probability
                probabilities[segment.language] = given if known is None else max(known, given or 0.0)
        return probabilities


def render(transcript: Transcript, format: str, subtitles: SubtitleOptions = DEFAULT_SUBTITLES) -> str:
    """Return the transcript as the content of a file; a transcript without words is valid in every format.

    Args:
        transcript: The transcript.
        format: `txt` (one line, or nothing; a line per turn of a channel where each was transcribed), `srt`, `vtt`,
            `tsv` (start_ms, end_ms, text, and the channel if there is one; a row per stretch of speech), `json`
            (everything, on one line), `nbest` (JSON lines that `audio_llm.nbest` reads back).
        subtitles: Layout of `srt` and `vtt`; other formats do not depend on it.

    Raises:
        UsageError: No format has that name.
    """
    if format in SUBTITLE_FORMATS:
        return SUBTITLE_FORMATS[format](cues(transcript, subtitles), subtitles)
    if format not in FORMATS:
        raise UsageError(f"no output format is named {format!r}", remedy=f"use one of {', '.join(FORMATS)}")
    return _RENDERERS[format](transcript)


def align_words(recognized: Sequence[Word], corrected_text: str) -> tuple[Word, ...]:
    """Return the words of a corrected text with the times of the words that they replace.

    An equal word (ignoring case and punctuation) keeps its time and confidence. Words that replace others
    share their time in proportion to their characters. Inserted words get the gap between their neighbors, and no time
    where there is none; before the first word and after the last one they get a short time.

    Args:
        recognized: The recognizer's words in order of time.
        corrected_text: The corrected text.

    Returns:
        One word for every word of the text, in order, no time going backwards; empty where `recognized` is empty.
    """
    texts = corrected_text.split()
    if not recognized or not texts:
        return ()
    words: list[Word] = []
    source = 0  # the words before it are done
    for step in edits([_key(word.text) for word in recognized], [_key(text) for text in texts]):
        words += _with_times(recognized[source : step.source_start], texts[len(words) :])
        new = texts[step.target_start : step.target_end]
        if step.source_start < step.source_end:
            start_s, end_s = recognized[step.source_start].start_s, recognized[step.source_end - 1].end_s
        else:
            start_s, end_s = _gap(recognized, step.source_start, len(new))
        words += _divide_time(new, start_s, end_s)
        source = step.source_end
    words += _with_times(recognized[source:], texts[len(words) :])
    return tuple(words)


def cues(transcript: Transcript, options: SubtitleOptions = DEFAULT_SUBTITLES) -> list[Cue]:
    """Cut the transcript into subtitles (see `subtitles.cut_cues`); those of different channels may overlap."""
    channels = dict.fromkeys(segment.channel for segment in transcript.segments)
    each = (cue for channel in channels for cue in _cues(transcript, channel, options))
    return sorted(each, key=lambda cue: cue.start_ms)


def labeled_text(transcript: Transcript) -> str:
    """Return the text; of separate channels one line per turn: `LEFT: good morning`."""
    return "\n".join(_turns(transcript))


def _turns(transcript: Transcript) -> list[str]:
    segments = [segment for segment in transcript.segments if segment.text.strip()]
    if not any(segment.channel for segment in segments):
        return [transcript.text]
    turns = itertools.groupby(segments, key=lambda segment: segment.channel)
    return [" ".join([_label(channel), *(part.text for part in parts)]) for channel, parts in turns]


def _label(channel: str | None) -> str:
    return f"{channel.upper()}:" if channel else ""


def _cues(transcript: Transcript, channel: str | None, options: SubtitleOptions) -> list[Cue]:
    """Cut the segments of one channel into subtitles that begin with its name."""
    segments = [segment for segment in transcript.segments if segment.channel == channel]
    limit_s = max([transcript.duration_s, *(segment.end_s for segment in segments)])
    texts = ((segment.text, _timed_words(segment)) for segment in segments)
    label = _label(channel)
    if not label:
        return cut_cues(texts, limit_s, options)
    width = max(NARROWEST, options.line_width - columns(label) - 1)
    return [cue.labeled(label) for cue in cut_cues(texts, limit_s, replace(options, line_width=width))]


def _key(text: str) -> str:
    return NORMALIZERS["basic"](text) or text


def _with_times(old: Sequence[Word], texts: Sequence[str]) -> list[Word]:
    return [Word(text, word.start_s, word.end_s, word.confidence) for word, text in zip(old, texts, strict=False)]


def _gap(words: Sequence[Word], index: int, count: int) -> tuple[float, float]:
    """Return start and end of the gap before the word of an index, for `count` inserted words."""
    sliver_s = min(count * _SLIVER_S, _MOST_SLIVER_S)
    if index == 0:
        return max(0.0, words[0].start_s - sliver_s), words[0].start_s
    before_s = words[index - 1].end_s
    if index == len(words):
        return before_s, before_s + sliver_s
    return before_s, max(before_s, words[index].start_s)


def _divide_time(texts: Sequence[str], start_s: float, end_s: float) -> Iterator[Word]:
    """Divide a span of time among words in proportion to their characters."""
    total = sum(map(len, texts))
    letters = 0
    for text in texts:
        word_start_s = start_s + (end_s - start_s) * letters / total
        letters += len(text)
        yield Word(text, word_start_s, end_s if letters == total else start_s + (end_s - start_s) * letters / total)


def _timed_words(segment: TranscriptSegment) -> Sequence[Word]:
    """Return timed words that join to the text; scripts without spaces have several words between two spaces."""
    if "".join("".join(word.text for word in segment.words).split()) == "".join(segment.text.split()):
        return segment.words
    texts = segment.text.split()
    if len(segment.words) == len(texts):
        return _with_times(segment.words, texts)
    return align_words(segment.words, segment.text) or list(_divide_time(texts, segment.start_s, segment.end_s))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _txt(transcript: Transcript) -> str:
    lines = (" ".join(line.split()) for line in _turns(transcript))
    return "".join(f"{line}\n" for line in lines if line)


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
            "correction": _correction_values(segment.correction) if segment.correction else None,
            **({"language": segment.language} if segment.language else {}),
            **({"notes": list(segment.notes)} if segment.notes else {}),
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
        "corrections": [_correction_values(correction) for correction in transcript.corrections],
        "warnings": list(transcript.warnings),
        "rejected": [asdict(text) for text in transcript.rejected],
        "about": dict(transcript.about),
    }
    if languages := transcript.languages:
        content["languages"] = languages
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def _correction_values(correction: Correction) -> dict[str, Any]:
    """Return a correction as plain values; `unchanged` has the key `kept` in the JSON form."""
    return {"kept" if key == "unchanged" else key: value for key, value in asdict(correction).items()}


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


_RENDERERS: dict[str, Callable[[Transcript], str]] = {"txt": _txt, "tsv": _tsv, "json": _json, "nbest": _nbest}
FORMATS = ("txt", *SUBTITLE_FORMATS, "tsv", "json", "nbest")
