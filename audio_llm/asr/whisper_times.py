"""Word times from Whisper's cross-attention by dynamic time warping of tokens and frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audio_llm.nbest import Word

_MEDIAN_WIDTH = 7  # frames of 20 ms over which the attention is smoothed, as in openai/whisper


def token_starts(attention: np.ndarray, prompt_length: int) -> np.ndarray:
    """Return the first frame of each token after the prompt.

    Args:
        attention: (heads, tokens, frames) float, cross-attention weights of the alignment heads, cropped to the sound.
        prompt_length: Number of tokens before the text.

    Returns:
        (tokens - prompt_length,) int64, non-decreasing.
    """
    weights = attention.astype(np.float64)
    spread = weights.std(axis=1, keepdims=True)
    weights = (weights - weights.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)
    weights = _median_filter(weights, _MEDIAN_WIDTH)
    return warp(-weights.mean(axis=0)[prompt_length:])


def warp(cost: np.ndarray) -> np.ndarray:
    """Return the first frame of each token on the cheapest monotone path through all tokens and frames.

    Args:
        cost: (N, M) float, cost of token n at frame m.

    Returns:
        (N,) int64, non-decreasing, from 0.
    """
    tokens, frames = cost.shape
    total = np.full((tokens + 1, frames + 1), np.inf)
    total[0, 0] = 0.0
    came_from = np.zeros(
        (tokens + 1, frames + 1), dtype=np.int8
    )  # 0 diagonal, 1 from the token, 2 from the frame before
    for diagonal in range(2, tokens + frames + 1):  # cells of one diagonal depend on earlier diagonals only
        n = np.arange(max(1, diagonal - frames), min(tokens, diagonal - 1) + 1)
        m = diagonal - n
        before = np.stack([total[n - 1, m - 1], total[n - 1, m], total[n, m - 1]])
        cheapest = before.argmin(axis=0)
        total[n, m] = cost[n - 1, m - 1] + before[cheapest, np.arange(len(n))]
        came_from[n, m] = cheapest
    starts = np.zeros(tokens, dtype=np.int64)
    n, m = tokens, frames
    while n > 0 and m > 0:
        starts[n - 1] = m - 1
        step = came_from[n, m]
        n, m = (n - 1, m - 1) if step == 0 else (n - 1, m) if step == 1 else (n, m - 1)
    return starts


def words_of_tokens(
    prefixes: Sequence[str], starts_s: Sequence[float], log_probs: Sequence[float], duration_s: float
) -> tuple[Word, ...]:
    """Join tokens to words.

    Args:
        prefixes: For each token, the text up to and with it; words are what spaces separate in the last one.
        starts_s: Start of each token and, as one more, of the end mark; seconds, non-decreasing.
        log_probs: Natural-log probability of each token.
        duration_s: Duration of the sound, the upper limit of all times.

    Returns:
        The words in order; a word's confidence is the geometric mean of its tokens' probabilities.
    """
    texts = prefixes[-1].split() if prefixes else []
    owners = [max(len(prefix.split()), 1) - 1 for prefix in prefixes]
    words = []
    for index, text in enumerate(texts):
        indices = [token for token, owner in enumerate(owners) if owner == index]
        first = indices[0] if indices else 0
        last = indices[-1] if indices else first
        start_s, end_s = min(starts_s[first], duration_s), min(starts_s[last + 1], duration_s)
        confidence = float(np.exp(np.mean([log_probs[token] for token in indices]))) if indices else None
        words.append(Word(text, float(start_s), float(max(start_s, end_s)), confidence))
    return tuple(words)


def _median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """Smooth along the last axis; a signal that is too short stays unchanged."""
    if values.shape[-1] <= width // 2:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(width // 2, width // 2)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)
