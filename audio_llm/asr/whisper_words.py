"""Word times of Whisper on CTranslate2: aligned attention, converted to words of plausible lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audio_llm.asr.whisper_tokens import WhisperTokens
from audio_llm.nbest import Word

FRAME_S = 0.02  # one frame of the encoder
_LEAST_FRAMES = 4  # feature frames of 10 ms; the native aligner ends the process on windows of one encoder frame
_MIN_WORD_S = 0.02
_MAX_WORD_S = 2.0  # longer ones hold a pause


@dataclass(frozen=True)
class AlignedText:
    """A text that is aligned with a window.

    Attributes:
        words: Words in order, times in seconds of the window, confidence the geometric mean of the tokens'.
        scores: Natural-log probability of each word, the sum over its tokens.
        log_probs: (N,) float64, natural-log probability of each token of the text among all text tokens.
    """

    words: tuple[Word, ...]
    scores: tuple[float, ...]
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
        tokens: Tokenizer of the model.
        encoded: (B, 1500, D) float32, the encoder's output.
        start: Ids before every text, without context and without the no-timestamps token, which the aligner adds.
        texts: Text ids of each window, not empty.
        durations_s: Duration of each window in seconds, at most 30.
        language: Language code, for the division into words.
    """
    import ctranslate2

    frames = [min(3000, max(_LEAST_FRAMES, round(seconds * 100))) for seconds in durations_s]
    sound = ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded))
    results = model.align(sound, list(start), [list(ids) for ids in texts], frames)
    return [
        _words(tokens, result, ids, duration_s, language)
        for result, ids, duration_s in zip(results, texts, durations_s, strict=True)
    ]


def _words(tokens: WhisperTokens, result: Any, ids: Sequence[int], duration_s: float, language: str) -> AlignedText:
    starts_s = _token_starts(result.alignments, len(ids) + 1) * FRAME_S
    probabilities = np.maximum(np.asarray(result.text_token_probs[: len(ids)], dtype=np.float64), 1e-10)
    log_probs = np.log(probabilities)
    words: list[Word] = []
    scores: list[float] = []
    for text, positions in tokens.words(ids, language):
        start_s = min(float(starts_s[positions[0]]), max(0.0, duration_s - _MIN_WORD_S))
        end_s = min(float(starts_s[positions[-1] + 1]), duration_s)
        end_s = min(max(end_s, start_s + _MIN_WORD_S), start_s + _MAX_WORD_S)
        confidence = float(np.exp(log_probs[positions].mean()))
        words.append(Word(text, start_s, end_s, confidence))
        scores.append(float(log_probs[positions].sum()))
    return AlignedText(in_order(words, duration_s), tuple(scores), log_probs)


def _token_starts(alignments: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Return the first frame of each token, (count,), of (token, frame) pairs along a monotone path."""
    starts = np.zeros(count)
    if alignments:
        path = np.asarray(alignments)
        first = np.searchsorted(path[:, 0], np.arange(count))
        starts = path[np.minimum(first, len(path) - 1), 1].astype(np.float64)
    return np.maximum.accumulate(starts)


def in_order(words: Sequence[Word], duration_s: float) -> tuple[Word, ...]:
    """Let every word begin after the previous one and end within the sound; crowded words share the remaining time.

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
        later_s = least_s * (len(words) - number - 1)  # time that the following words need
        start_s = max(at_s, min(word.start_s, duration_s - later_s - least_s))
        end_s = min(max(word.end_s, start_s + least_s), duration_s - later_s)
        result.append(Word(word.text, start_s, end_s, word.confidence))
        at_s = end_s
    return tuple(result)
