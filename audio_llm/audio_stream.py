"""Streaming helpers: process blocks at another sample rate, or in whole chunks with a delay, aligned to the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def process_at_rate(
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    model_rate: int,
    process: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]],
    mix: float = 0.0,
) -> Iterator[np.ndarray]:
    """Process a recording at another sample rate.

    Args:
        blocks: (T, C) float32 of any lengths.
        sample_rate: Sample rate of the blocks, Hz.
        model_rate: Sample rate of the input and output of `process`, Hz.
        process: Blocks (T, C) to blocks (T', C) with the same total length, aligned with the input.
        mix: Fraction of the input in the output: 0 only the processed sound, 1 only the input.

    Yields:
        (T', C) float32 with the same total length, aligned with the input.
    """
    dry: list[np.ndarray] = []

    def remembered() -> Iterator[np.ndarray]:
        for block in blocks:
            dry.append(block)
            yield block

    at_model = resampled(remembered(), sample_rate, model_rate)
    for wet in resampled(process(at_model), model_rate, sample_rate):
        waiting = np.concatenate(dry) if dry else wet[:0]
        count = min(len(wet), len(waiting))  # other rates can give one more sample at the end
        dry[:] = [waiting[count:]]
        yield (1.0 - mix) * wet[:count] + mix * waiting[:count]
    if dry and len(rest := np.concatenate(dry)):  # or one less
        yield mix * rest


def process_in_chunks(
    blocks: Iterable[np.ndarray], chunk: int, delay: int, step: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """Process whole chunks with a step whose output is delayed.

    Args:
        blocks: (T, C) float32 of any lengths.
        chunk: Chunk size in samples; the input of a step is a multiple of it.
        delay: Delay of the output in samples.
        step: Stateful (T, C) -> (T, C).

    Yields:
        (T', C) float32 with the same total length, aligned with the input.
    """
    skip, came, gone = delay, 0, 0
    waiting: np.ndarray | None = None
    for block in with_sentinel(blocks):
        last = block is None
        if block is None:  # flush the delay, up to a whole chunk
            if waiting is None:
                return
            block = np.zeros((-(came + delay) % chunk + delay, waiting.shape[1]), np.float32)
        else:
            came += len(block)
        waiting = block if waiting is None else np.concatenate([waiting, block])
        whole = len(waiting) // chunk * chunk
        if not whole:
            continue
        output = step(waiting[:whole])
        waiting = waiting[whole:]
        output, skip = output[skip:], max(0, skip - len(output))
        output = output[: came - gone] if last else output
        gone += len(output)
        if len(output):
            yield output


def resampled(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Yield blocks (T, C) float32 at another rate, none of them empty."""
    if from_rate == to_rate:
        yield from blocks
        return
    import soxr

    stream = None
    rest = None
    for block in with_sentinel(blocks):
        if block is not None and stream is None:
            stream = soxr.ResampleStream(from_rate, to_rate, block.shape[1], dtype="float32")
            rest = block[:0]
        if stream is None:
            return
        output = stream.resample_chunk(np.ascontiguousarray(rest if block is None else block), last=block is None)
        if len(output):
            yield output


def with_sentinel(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
    """Yield the blocks, then None."""
    yield from blocks
    yield None
