"""Cut timed words into subtitles of limited width in every script, and write them as srt or vtt."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal, get_args

import regex

from audio_llm.errors import UsageError
from audio_llm.nbest import Word

Style = Literal["lines", "words", "karaoke"]

_CUE_S = 7.0  # longest cue
_PAUSE_S = 1.0  # silence that ends a cue
_READABLE_S = 0.3  # shorter cues are joined to a neighbor or extended where possible
_LEAST_MS = 100  # shortest cue of lines
_LEAST_WORD_MS = 20  # shortest cue of one word
NARROWEST = 10  # columns of a line

# UAX 14 in brief. Scripts that are written without spaces may break between any two characters, except that a line
# neither begins with closing punctuation, a small kana, a prolonged sound mark or a vowel that belongs to the consonant
# before it, nor ends with opening punctuation, a currency sign or a vowel that belongs to the consonant after it.
_NO_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3000-\u30ff\uff01-\uff65]"
)
_NOT_FIRST = regex.compile(
    r"[\p{Pe}\p{Pf}\p{Po}\p{Lm}\p{M}\u2013\u2014\u301c\uff5e"
    r"ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶㇰ-ㇿ"
    r"\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3]"
    r"|.*\u103a"  # the consonant that closes a Burmese syllable
)
_NOT_LAST = regex.compile(r"[\p{Ps}\p{Pi}\p{Sc}\u0e40-\u0e44\u0ec0-\u0ec4\u1039\u17d2]$")
_CLUSTER = regex.compile(r"\X")
_SEAMS = "/?&=_-."  # where a word wider than a line is best divided


@dataclass(frozen=True)
class SubtitleOptions:
    """Layout of srt and vtt subtitles.

    Attributes:
        style: `lines` (whole lines), `words` (one cue per word) or `karaoke` (lines with a vtt time mark for
            every word; srt shows them as `lines`).
        line_width: Maximum columns of a line; East Asian wide characters take two.
        max_lines: Maximum lines of a cue.

    Raises:
        UsageError: A value is out of range.
    """

    style: Style = "lines"
    line_width: int = 42
    max_lines: int = 2

    def __post_init__(self) -> None:
        if self.style not in get_args(Style):
            raise UsageError(f"unknown subtitle style {self.style!r}", remedy=f"use {', '.join(get_args(Style))}")
        if self.line_width < NARROWEST:
            raise UsageError(
                f"a subtitle line of {self.line_width} columns is too narrow",
                remedy=f"use a line width of at least {NARROWEST}",
            )
        if self.max_lines < 1:
            raise UsageError(f"subtitles of {self.max_lines} lines show nothing", remedy="use at least 1 line")


DEFAULT_SUBTITLES = SubtitleOptions()


@dataclass(frozen=True)
class CueWord:
    """A word of a cue, or a part of the text where words are not separated by spaces.

    Attributes:
        text: Displayed text, with the space before it.
        start_ms: Start in milliseconds.
    """

    text: str
    start_ms: int


@dataclass(frozen=True)
class Cue:
    """One subtitle.

    Attributes:
        start_ms: Start in milliseconds.
        end_ms: End, after `start_ms`, not after the start of the next.
        lines: Displayed lines.
        words: The words of each line with the times at which they begin.
    """

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    words: tuple[tuple[CueWord, ...], ...] = ()

    def labeled(self, label: str) -> Cue:
        """Return the cue with a label before its text."""
        first, *rest = self.words or ((),)
        words = ((CueWord(f"{label} ", self.start_ms), *first), *rest)
        return replace(self, lines=(f"{label} {self.lines[0]}", *self.lines[1:]), words=words)


@dataclass(frozen=True)
class _Unit:
    """Text that is not divided between lines."""

    text: str
    start_s: float
    end_s: float
    space: bool  # a space before it unless it begins a line
    width: int  # columns


def cut_cues(
    segments: Iterable[tuple[str, Sequence[Word]]],
    limit_s: float,
    options: SubtitleOptions = DEFAULT_SUBTITLES,
) -> list[Cue]:
    """Cut segments of speech into subtitles.

    Args:
        segments: Text and words of each, in order of time. Spaces aside, the words joined are the text.
        limit_s: End of the recording, the upper limit of all times.
        options: Layout of the subtitles.

    Returns:
        Cues of at most 7 s in order, never overlapping, within the recording. A cue ends with its segment and at
        a pause of a second, unless it would be shown for less than 0.3 s.
    """
    groups: list[list[_Unit]] = []
    for text, words in segments:
        units = _units(text, words, options)
        groups += [[unit] for unit in units] if options.style == "words" else _groups(units, options)
    if options.style != "words":
        groups = _merge_short(groups, limit_s, options)
    times = _times(groups, limit_s, options)
    return [_cue(group, *span, options.line_width) for group, span in zip(groups, times, strict=True)]


def columns(text: str) -> int:
    """Return the number of columns of a text: two per wide character or emoji, none per combining mark."""
    return sum(map(_columns, _CLUSTER.findall(text)))


def render_srt(cues: Sequence[Cue]) -> str:
    """Return cues as the content of a SubRip file."""
    blocks = (
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues, 1)
    )
    return "\n".join(blocks)


def render_vtt(cues: Sequence[Cue], word_times: bool = False) -> str:
    """Return cues as the content of a WebVTT file.

    Args:
        cues: The subtitles.
        word_times: Mark the start of every word within the text.
    """
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = _marked(cue) if word_times else _escaped("\n".join(cue.lines))
        blocks.append(f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{text}\n")
    return "\n".join(blocks)


def _units(text: str, words: Sequence[Word], options: SubtitleOptions) -> list[_Unit]:
    """Divide a text where lines may break; every part has the time of its characters."""
    times = _character_times(words)
    borders = set(accumulate(len(_squeezed(word.text)) for word in words))
    units: list[_Unit] = []
    done = 0
    for token in text.split():
        space = bool(units) or not _NO_SPACES.match(token)
        for piece in _pieces(token, borders, done, options):
            units.append(_Unit(piece, times[done][0], times[done + len(piece) - 1][1], space, columns(piece)))
            done, space = done + len(piece), False
    return units


def _pieces(token: str, borders: set[int], first: int, options: SubtitleOptions) -> Iterator[str]:
    """Divide the text between two spaces; `first` is the index of its first character, `borders` are the word ends."""
    parts: list[str] = []
    before = ""
    for cluster in _CLUSTER.findall(token):
        if before and _may_break(before, cluster):
            parts.append(cluster)
        else:
            parts[-1:] = ["".join(parts[-1:]) + cluster]
        before = cluster
    if options.style == "words" and borders.intersection(range(first + 1, first + len(token))):
        joined: list[str] = []  # at the recognizer's word boundaries, if the token has any
        for part in parts:
            if joined and first not in borders:
                joined[-1] += part
            else:
                joined.append(part)
            first += len(part)
        parts = joined
    for part in parts:
        yield from _divided(part, options.line_width)


def _may_break(before: str, after: str) -> bool:
    """Return whether a line may end between two grapheme clusters that no space separates."""
    if not (_NO_SPACES.search(before) or _NO_SPACES.search(after)):
        return False
    return not (_NOT_FIRST.match(after) or _NOT_LAST.search(before))


def _divided(word: str, width: int) -> Iterator[str]:
    """Divide a word wider than a line, for example a URL after a slash."""
    while columns(word) > width:
        clusters = _CLUSTER.findall(word)
        count = sum(total <= width for total in accumulate(map(_columns, clusters)))
        seam = max((n for n in range(count // 2, count + 1) if clusters[n - 1] in _SEAMS), default=count)
        head = "".join(clusters[: max(1, seam)])
        yield head
        word = word[len(head) :]
    yield word


def _columns(cluster: str) -> int:
    if "\ufe0f" in cluster or any(unicodedata.east_asian_width(character) in "WF" for character in cluster):
        return 2
    return max(1, sum(unicodedata.category(character) not in ("Mn", "Me", "Cf") for character in cluster))


def _character_times(words: Sequence[Word]) -> list[tuple[float, float]]:
    """Return start and end of every character except spaces; the characters of a word share its time evenly."""
    times: list[tuple[float, float]] = []
    for word in words:
        count = len(_squeezed(word.text))
        step_s = (word.end_s - word.start_s) / max(1, count)
        bounds = [word.start_s + n * step_s for n in range(count)] + [word.end_s]
        times += pairwise(bounds)
    return times


def _groups(units: Sequence[_Unit], options: SubtitleOptions) -> list[list[_Unit]]:
    """Divide the units of a segment into cues."""
    groups: list[list[_Unit]] = []
    for unit in units:
        if groups and _together(groups[-1], [unit], options):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _merge_short(groups: Sequence[list[_Unit]], limit_s: float, options: SubtitleOptions) -> list[list[_Unit]]:
    """Join a cue that would be too short to its neighbor, where both fit into one."""
    merged: list[list[_Unit]] = []
    was_short = False
    ends = [*(group[0].start_s for group in groups[1:]), limit_s]
    for group, end_s in zip(groups, ends, strict=False):
        short = end_s - group[0].start_s < _READABLE_S
        if merged and (short or was_short) and _together(merged[-1], group, options):
            merged[-1] = [*merged[-1], *group]
        else:
            merged.append(group)
        was_short = end_s - merged[-1][0].start_s < _READABLE_S
    return merged


def _together(before: Sequence[_Unit], after: Sequence[_Unit], options: SubtitleOptions) -> bool:
    """Return whether units may follow others within a cue."""
    if after[0].start_s - before[-1].end_s > _PAUSE_S or after[-1].end_s - before[0].start_s > _CUE_S:
        return False
    return len(_wrap([*before, *after], options.line_width)) <= options.max_lines


def _wrap(units: Sequence[_Unit], width: int) -> list[list[_Unit]]:
    """Divide units into lines."""
    lines: list[list[_Unit]] = []
    used = 0
    for unit in units:
        if lines and used + unit.space + unit.width <= width:
            lines[-1].append(unit)
            used += unit.space + unit.width
        else:
            lines.append([unit])
            used = unit.width
    return lines


def _times(groups: Sequence[list[_Unit]], limit_s: float, options: SubtitleOptions) -> list[tuple[int, int]]:
    """Return start and end of each cue in milliseconds: ordered, disjoint, not too short, within the recording."""
    limit = max(_ms(limit_s), len(groups))
    shortest = _LEAST_WORD_MS if options.style == "words" else _LEAST_MS
    least = max(1, min(shortest, limit // max(1, len(groups))))
    spans: list[tuple[int, int]] = []
    for group in groups:
        start = max(_ms(group[0].start_s), spans[-1][1] if spans else 0)
        end = min(_ms(group[-1].end_s), start + _ms(_CUE_S))
        spans.append((start, max(end, start + least)))
    readable = 0 if options.style == "words" else _ms(_READABLE_S)
    for index in reversed(range(len(spans))):  # cues pushed beyond the end move back
        start, end = spans[index]
        end = min(max(end, start + readable), limit)
        spans[index] = (min(start, end - least), end)
        limit = spans[index][0]
    return spans


def _cue(group: Sequence[_Unit], start_ms: int, end_ms: int, width: int) -> Cue:
    lines = _wrap(group, width)
    words = tuple(
        tuple(CueWord(" " * (unit.space and n > 0) + unit.text, _ms(unit.start_s)) for n, unit in enumerate(line))
        for line in lines
    )
    return Cue(start_ms, end_ms, tuple("".join(word.text for word in line) for line in words), words)


def _marked(cue: Cue) -> str:
    """Return the text of a cue with time marks before the words that start later than the previous one."""
    now_ms = cue.start_ms
    lines = []
    for line in cue.words:
        text = ""
        for word in line:
            if now_ms < word.start_ms < cue.end_ms:
                now_ms = word.start_ms
                text += f"<{_clock(now_ms, '.')}>"
            text += _escaped(word.text)
        lines.append(text)
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"


SUBTITLE_FORMATS: dict[str, Callable[[Sequence[Cue], SubtitleOptions], str]] = {
    "srt": lambda cues, options: render_srt(cues),
    "vtt": lambda cues, options: render_vtt(cues, word_times=options.style == "karaoke"),
}
