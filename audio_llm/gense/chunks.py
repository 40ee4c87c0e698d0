"""Enhances a recording of any length chunk by chunk, and joins the chunks.

Chunks are cut where it is quiet. For each chunk the first option that applies is taken: bypassed if it is good enough;
resynthesized if the quality checks accept it, with further draws and finally the most likely codes if they do not; else
the output of the mask network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from audio_llm.gense import measures
from audio_llm.gense.checks import TOKEN_REASONS, Limits, rejection_reasons
from audio_llm.gense.generate import Generated, GeneratedContext, Resynthesizer

SAMPLE_RATE = 16_000  # Hz
TOKEN = 640  # samples of a semantic token; chunks are cut between tokens
SHORTEST, LONGEST = 75 * TOKEN, 150 * TOKEN  # samples of a chunk: 3 and 6 s
CONTEXT, AHEAD = 25 * TOKEN, 6 * TOKEN  # samples before and after it that are processed with it
FADE = TOKEN  # samples of the cross-fade between two chunks, 40 ms
_MIN_GENERATED = 10 * TOKEN  # samples; shorter chunks are not resynthesized
_DRAWS = 3  # per chunk, the last with the most likely codes; one where nothing is drawn at random
_SILENT_DB = -100.0  # level of silence
_NO_SPEECH_DB = -60.0  # level of the mask network's loudest frames below which there is no speech

Mode = Literal["safe", "balanced", "generative"]


@dataclass(frozen=True)
class ChunkReport:
    """What was done to a chunk of one channel.

    Attributes:
        channel: Index of the channel, from 0.
        start_s: Start time in seconds.
        end_s: End time in seconds.
        action: `mask`: noise was suppressed; `generated`: resynthesized, with plausible but not proven content;
            `bypass`: the input was good and is unchanged; `silent`: no speech, and what sound there was is suppressed.
        input_db: Level of the input at 16 kHz, in dB relative to full scale.
        output_db: Level of the output, likewise.
        draws: Number of resyntheses.
        reasons: Why draws were rejected, or why the chunk was bypassed.
        evidence: Measurements of the last draw.
    """

    channel: int
    start_s: float
    end_s: float
    action: str
    input_db: float
    output_db: float
    draws: int = 0
    reasons: tuple[str, ...] = ()
    evidence: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Which chunks are resynthesized.

    Attributes:
        mode: `safe`: none; `balanced`: those too noisy for the mask network, which enhances the others;
            `generative`: all but those that are good already, which are bypassed.
        checks: Whether generated chunks have to pass the quality checks.
        limits: Limits of the quality checks.
        balanced_below_db: Estimated signal-to-noise ratio below which `balanced` resynthesizes; None: never.
        seed: Random seed of all draws.
    """

    mode: Mode = "safe"
    checks: bool = True
    limits: Limits = field(default_factory=Limits)
    balanced_below_db: float | None = None
    seed: int = 0


class ChunkedEnhancement:
    """Enhances and joins the chunks of one recording.

    Args:
        policy: Which chunks are resynthesized.
        generator: The resynthesizer; None in mode `safe`.
        report: Called with the report of each chunk.
    """

    def __init__(self, policy: Policy, generator: Resynthesizer | None, report: Callable[[ChunkReport], None]) -> None:
        self._policy, self._generator, self._report = policy, generator, report
        self._done = 0  # samples of the chunks before

    def run(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yield the enhanced recording.

        Args:
            pairs: Blocks of the recording and of the mask network's output for it: (T, C) float32 at 16 kHz each.

        Yields:
            (T', C) float32; the total length is that of the input.
        """
        noisy = masked = np.zeros((0, 0), np.float32)
        context = 0  # samples at the start that belong to the chunk before
        before: list[GeneratedContext | None] = []
        held = np.zeros((0, 0), np.float32)
        for block, other in pairs:
            noisy = np.concatenate([noisy.reshape(-1, block.shape[1]), block])
            masked = np.concatenate([masked.reshape(-1, block.shape[1]), other])
            while len(noisy) - context >= LONGEST + AHEAD:
                size = _cut(masked[context : context + LONGEST + AHEAD])
                out, before = self._enhance_chunk(noisy, masked, context, size, before)
                ready, held = _cross_fade(held, out, FADE)
                yield ready
                drop = max(0, context + size - CONTEXT)
                noisy, masked, context = noisy[drop:], masked[drop:], context + size - drop
        if len(noisy) > context:
            out, _ = self._enhance_chunk(noisy, masked, context, len(noisy) - context, before)
            ready, held = _cross_fade(held, out, FADE)
            yield ready
        if len(held):
            yield held

    def _enhance_chunk(
        self, noisy: np.ndarray, masked: np.ndarray, context: int, size: int, before: list[GeneratedContext | None]
    ) -> tuple[np.ndarray, list[GeneratedContext | None]]:
        """Return the output of all channels from one fade before the chunk to its end, and the contexts at its end."""
        window = slice(0, min(len(noisy), context + size + AHEAD))
        rows, contexts = [], []
        for channel in range(noisy.shape[1]):
            previous = before[channel] if before else None
            row, context_at_end = self._decide(
                noisy[window, channel], masked[window, channel], context, size, previous, channel
            )
            rows.append(row[max(0, context - FADE) : context + size])
            contexts.append(context_at_end)
        self._done += size
        return np.stack(rows, axis=1), contexts

    def _decide(
        self,
        noisy: np.ndarray,
        masked: np.ndarray,
        context: int,
        size: int,
        before: GeneratedContext | None,
        channel: int,
    ) -> tuple[np.ndarray, GeneratedContext | None]:
        """Return one channel's output over the window, and the context at the chunk's end if it was generated."""
        chunk = slice(context, context + size)
        policy, draws, reasons = self._policy, 0, []
        evidence: dict[str, float | None] = {}
        sound, action, context_at_end = masked, "mask", None
        loudest = max(measures.levels_db(masked[chunk]), default=_level_db(masked[chunk]))
        snr_db = measures.snr_db(noisy[chunk], masked[chunk])
        if loudest < _NO_SPEECH_DB:
            action = "silent"
        elif policy.mode == "generative" and snr_db >= policy.limits.good_db:
            sound, action, reasons = noisy, "bypass", [f"good already, about {snr_db:.0f} dB"]
        elif self._should_generate(snr_db, size):
            assert self._generator is not None
            max_draws = _DRAWS if self._generator.acoustic.is_random else 1
            for draws in range(1, max_draws + 1):
                generated = self._generate(noisy, masked, chunk, before, channel, draws)
                evidence = generated.evidence.rounded()
                rejected = rejection_reasons(generated.evidence, policy.limits) if policy.checks else ()
                if not rejected:
                    sound, action = generated.waveform, "generated"
                    context_at_end = _context_at(generated, context + size)
                    break
                reasons += [f"draw {draws}: {reason}" for reason in rejected]
                if any(reason in TOKEN_REASONS for reason in rejected):
                    break
        report = (_level_db(noisy[chunk]), _level_db(sound[chunk]), draws, tuple(reasons), evidence)
        start_s, end_s = self._done / SAMPLE_RATE, (self._done + size) / SAMPLE_RATE
        self._report(ChunkReport(channel, start_s, end_s, action, *report))
        return sound, context_at_end

    def _should_generate(self, snr_db: float, size: int) -> bool:
        policy = self._policy
        if self._generator is None or size < _MIN_GENERATED or policy.mode == "safe":
            return False
        below_db = policy.balanced_below_db
        return policy.mode == "generative" or (below_db is not None and snr_db < below_db)

    def _generate(
        self,
        noisy: np.ndarray,
        masked: np.ndarray,
        chunk: slice,
        before: GeneratedContext | None,
        channel: int,
        draw: int,
    ) -> Generated:
        assert self._generator is not None
        seed = int(np.random.SeedSequence([self._policy.seed, self._done, channel, draw]).generate_state(1)[0])
        if before is not None:
            count = chunk.start // TOKEN
            ratio = len(before.codes) // max(1, len(before.tokens))
            before = (
                GeneratedContext(before.tokens[-count:], before.codes[-count * ratio :], before.gain) if count else None
            )
        return self._generator.generate(noisy, masked, seed, draw == _DRAWS, before, chunk=chunk)


def _context_at(generated: Generated, size: int) -> GeneratedContext:
    """Return tokens and codes generated up to a sample of the window: the last `CONTEXT` samples at most."""
    tokens = generated.tokens[: size // TOKEN]
    ratio = max(1, round(len(generated.codes) / max(1, len(generated.tokens))))
    codes = generated.codes[: len(tokens) * ratio]
    count = CONTEXT // TOKEN
    return GeneratedContext(tokens[-count:], codes[-count * ratio :], generated.gain)


def _cut(masked: np.ndarray) -> int:
    """Return the length of the next chunk: up to where all channels are quietest, in (LONGEST + AHEAD, C)."""
    powers = np.sum([10.0 ** (measures.levels_db(channel) / 10.0) for channel in masked.T], axis=0)
    smooth = np.convolve(powers, np.ones(9), "same")  # 180 ms
    first, step = SHORTEST // measures.FRAME, TOKEN // measures.FRAME
    candidates = np.arange(first, LONGEST // measures.FRAME, step)
    return int(candidates[smooth[candidates].argmin()]) * measures.FRAME


def _cross_fade(held: np.ndarray, out: np.ndarray, fade: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is complete, and the end that is cross-faded with the next chunk.

    Args:
        held: (F, C) the end of the chunk before, or empty.
        out: (T, C) the next output, from the start of `held` on.
        fade: Samples to hold back.
    """
    if len(held):
        size = min(len(held), len(out))
        out = out.copy()
        out[:size] = _blend(held[:size], out[:size])
    cut = max(0, len(out) - fade)
    return out[:cut], out[cut:]


def _blend(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (F, C): a cross-fade of constant power, whatever the correlation of the two sounds."""
    rise = np.linspace(0.0, 1.0, len(one), dtype=np.float64)[:, None]
    product = (one.astype(np.float64) * other).sum(axis=0)
    size = np.sqrt((one.astype(np.float64) ** 2).sum(axis=0) * (other.astype(np.float64) ** 2).sum(axis=0))
    alike = np.clip(np.divide(product, size, out=np.ones_like(size), where=size > 1e-12), 0.0, 1.0)
    power = rise**2 + (1.0 - rise) ** 2 + 2.0 * alike * rise * (1.0 - rise)
    return (((1.0 - rise) * one + rise * other) / np.sqrt(power)).astype(np.float32)


def _level_db(waveform: np.ndarray) -> float:
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return round(max(_SILENT_DB, 10.0 * np.log10(power + 1e-30)), 1)
