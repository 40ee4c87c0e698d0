"""Word times of Whisper on CTranslate2: attention aligned to the sound, made into words with plausible lengths.

By the times of its words the text of a packed window is divided among the stretches of the recording it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Stretch
from audio_llm.asr.whisper_decode import Candidate
from audio_llm.asr.whisper_tokens import WhisperTokens
from audio_llm.asr.windows import Piece, Window
from audio_llm.nbest import Hypothesis, NBest, Word

FRAME_S = 0.02  # one frame of the encoder
_LEAST_FRAMES = 4  # feature frames of 10 ms; the native aligner ends the process on windows of one encoder frame
_MIN_WORD_S = 0.02
_MAX_WORD_S = 2.0  # longer ones hold a pause


@dataclass(frozen=True)
class AlignedText:
    """A text with its place in a window.

    Attributes:
        words: Words in order, times in seconds of the window, confidence the geometric mean of the tokens'.
        log_probs: (N,) float64, natural-log probability of each token of the text among all text tokens.
    """

    words: tuple[Word, ...]
    log_probs: np.ndarray


def align_texts(
    model: Any,
    tokens: WhisperTokens,
    encoded: np.ndarray,
    start: Sequence[int],
    texts: Sequence[Sequence[int]],
    durations_s: Sequence[float],
    language: str,
) -> list[AlignedText]:
    """Align texts with their windows.

    Args:
        model: A `ctranslate2.models.Whisper`.
        tokens: Its tokenizer.
        encoded: (B, 1500, D) float32, the encoder's output.
        start: Ids before every text, without a context and without the mark for no timestamps, which the aligner adds.
        texts: Text ids of each window, not empty.
        durations_s: Length of the sound of each window, at most 30.
        language: Code of the language, for the division into words.
    """
    import ctranslate2

    frames = [min(3000, max(_LEAST_FRAMES, round(seconds * 100))) for seconds in durations_s]
    sound = ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded))
    results = model.align(sound, list(start), [list(ids) for ids in texts], frames)
    return [
        _words(tokens, result, ids, duration_s, language)
        for result, ids, duration_s in zip(results, texts, durations_s, strict=True)
    ]


def by_piece(
    window: Window, candidates: Sequence[Candidate], words: Sequence[Word], about: dict[str, Any]
) -> Iterator[Stretch]:
    """Divide the text of a window among its pieces by the times of its words, which become those of the recording."""
    if len(window.pieces) == 1:
        hypotheses = tuple(Hypothesis(each.text, each.score) for each in candidates)
        groups = [(window.pieces[0], list(words), hypotheses)]
    else:
        of_piece: dict[int, list[Word]] = {}
        for word in words:
            index = max(window.piece_at((word.start_s + word.end_s) / 2), *of_piece, 0)
            of_piece.setdefault(index, []).append(word)
        texts = _divided(candidates[0].text, list(of_piece.values()))
        groups = [
            (window.pieces[index], own, (Hypothesis(text),))
            for (index, own), text in zip(of_piece.items(), texts, strict=True)
        ]
    for piece, own, hypotheses in groups:
        placed = _placed(own, piece)
        first = max(0, round(piece.offset_s * SAMPLE_RATE))
        waveform = window.waveform[first : first + round(piece.duration_s * SAMPLE_RATE)]
        nbest = NBest("", hypotheses, words=placed)
        yield Stretch(start_s=piece.start_s, end_s=piece.end_s, nbest=nbest, waveform=waveform, **about)


def _divided(text: str, groups: Sequence[Sequence[Word]]) -> list[str]:
    """Return the parts of a text that consist of the words of each group, with the text's own spaces or none."""
    starts: list[int] = []
    at = 0
    for words in groups:
        for number, word in enumerate(words):
            found = text.find(word.text, at)
            if found < 0:  # bytes that are no character
                return [" ".join(each.text for each in own) for own in groups]
            if number == 0:
                starts.append(found)
            at = found + len(word.text)
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip([0, *starts[1:]], ends, strict=True)]


def _placed(words: Sequence[Word], piece: Piece) -> tuple[Word, ...]:
    """Return words of a window at their times in the recording, within their piece."""
    offset_s, start_s = piece.offset_s, piece.start_s
    inside = [replace(word, start_s=word.start_s - offset_s, end_s=word.end_s - offset_s) for word in words]
    return tuple(
        replace(word, start_s=start_s + word.start_s, end_s=min(start_s + word.end_s, piece.end_s))
        for word in in_order(inside, piece.duration_s)
    )


def _words(tokens: WhisperTokens, result: Any, ids: Sequence[int], duration_s: float, language: str) -> AlignedText:
    starts_s = _token_starts(result.alignments, len(ids) + 1) * FRAME_S
    probabilities = np.maximum(np.asarray(result.text_token_probs[: len(ids)], dtype=np.float64), 1e-10)
    log_probs = np.log(probabilities)
    words: list[Word] = []
    for text, positions in tokens.words(ids, language):
        start_s = min(float(starts_s[positions[0]]), max(0.0, duration_s - _MIN_WORD_S))
        end_s = min(float(starts_s[positions[-1] + 1]), duration_s)
        end_s = min(max(end_s, start_s + _MIN_WORD_S), start_s + _MAX_WORD_S)
        confidence = float(np.exp(log_probs[positions].mean()))
        words.append(Word(text, start_s, end_s, confidence))
    return AlignedText(in_order(words, duration_s), log_probs)


def _token_starts(alignments: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Return the first frame of each token, (count,), of (token, frame) pairs along a monotone path."""
    starts = np.zeros(count)
    if alignments:
        path = np.asarray(alignments)
        first = np.searchsorted(path[:, 0], np.arange(count))
        starts = path[np.minimum(first, len(path) - 1), 1].astype(np.float64)
    return np.maximum.accumulate(starts)


def in_order(words: Sequence[Word], duration_s: float) -> tuple[Word, ...]:
    """Let no word begin before the one before it ends, nor end after the sound; crowded words share what is left.

    Args:
        words: In the order of the text.
        duration_s: Length of the sound, more than 0.

    Returns:
        The words with 0 <= start < end <= duration, none begins before the end of the one before.
    """
    result: list[Word] = []
    at_s = 0.0
    for number, word in enumerate(words):
        rest_s = max(0.0, duration_s - at_s)
        least_s = min(_MIN_WORD_S, rest_s / (len(words) - number))
        later_s = least_s * (len(words) - number - 1)  # what the words after this one need
        start_s = max(at_s, min(word.start_s, duration_s - later_s - least_s))
        end_s = min(max(word.end_s, start_s + least_s), duration_s - later_s)
        result.append(Word(word.text, start_s, end_s, word.confidence))
        at_s = end_s
    return tuple(result)
