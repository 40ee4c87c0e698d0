"""A recording of any length, stretch by stretch: what is done to each, why, and how the stretches are joined.

Stretches are cut where it is quiet. Each is decided by itself, on a ladder: left as it is where it is good enough,
spoken anew and looked at by the guards, drawn again, spoken with the likeliest codes, at last the mask network's sound.
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
TOKEN = 640  # samples of a semantic token; stretches are cut between tokens
SHORTEST, LONGEST = 75 * TOKEN, 150 * TOKEN  # samples of a stretch: 3 and 6 s
CONTEXT, AHEAD = 25 * TOKEN, 6 * TOKEN  # samples before and after it that are looked at as well
FADE = TOKEN  # samples over which two stretches are joined, 40 ms
_MIN_GENERATED = 10 * TOKEN  # samples of a stretch that is worth speaking
_DRAWS = 3  # of a stretch, the last takes the likeliest codes; one where nothing is drawn at random
_SILENT_DB = -100.0  # level that stands for silence
_NO_SPEECH_DB = -60.0  # level of the mask network's loudest frames below which nobody speaks

Mode = Literal["safe", "balanced", "generative"]


@dataclass(frozen=True)
class ChunkReport:
    """What was done to a stretch of one channel.

    Attributes:
        channel: From 0.
        start_s: Where it begins.
        end_s: Where it ends.
        action: `mask`: noise was taken away; `generated`: it was spoken anew, plausibly but not provably as it was;
            `bypass`: it was good and is left as it is; `silent`: nobody speaks, what there is was taken away.
        input_db: Level before at 16 kHz, below full scale.
        output_db: Level after.
        draws: How often it was spoken.
        reasons: Why a drawing was refused, or what was decided.
        evidence: What is known of the last drawing.
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
    """How much may be spoken anew.

    Attributes:
        mode: `safe`: nothing; `balanced`: what is too noisy for the mask network, all else is the mask network's;
            `generative`: everything but what is good already, which is left as it is.
        guards: Whether what was spoken is looked at before it may be heard.
        limits: Of the guards.
        balanced_below_db: Estimated signal-to-noise ratio below which `balanced` speaks anew; None: nowhere.
        seed: Of all draws.
    """

    mode: Mode = "safe"
    checks: bool = True
    limits: Limits = field(default_factory=Limits)
    balanced_below_db: float | None = None
    seed: int = 0


class ChunkedEnhancement:
    """Decides and joins the stretches of one recording.

    Args:
        policy: How much may be spoken anew.
        generator: Speaks; None in mode `safe`.
        report: Takes what was done to each stretch.
    """

    def __init__(self, policy: Policy, generator: Resynthesizer | None, report: Callable[[ChunkReport], None]) -> None:
        self._policy, self._generator, self._report = policy, generator, report
        self._done = 0  # samples of the stretches before

    def run(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yield the recording as it shall be heard.

        Args:
            pairs: Blocks of the recording, and of the mask network's sound of it: (T, C) float32 at 16 kHz each.

        Yields:
            (T', C) float32, in all as many samples.
        """
        noisy = masked = np.zeros((0, 0), np.float32)
        context = 0  # samples at the front that belong to the stretch before
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
        """Return the sound of all channels from a fade before the stretch to its end, and what was spoken."""
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
        """Return the sound of one channel's window, and how its stretch was spoken, if it was."""
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
    """Return what was spoken up to a place of the window, its last context at most."""
    tokens = generated.tokens[: size // TOKEN]
    ratio = max(1, round(len(generated.codes) / max(1, len(generated.tokens))))
    codes = generated.codes[: len(tokens) * ratio]
    count = CONTEXT // TOKEN
    return GeneratedContext(tokens[-count:], codes[-count * ratio :], generated.gain)


def _cut(masked: np.ndarray) -> int:
    """Return how long the next stretch is: up to where all channels are quietest, of (LONGEST + AHEAD, C)."""
    powers = np.sum([10.0 ** (measures.levels_db(channel) / 10.0) for channel in masked.T], axis=0)
    smooth = np.convolve(powers, np.ones(9), "same")  # 180 ms
    first, step = SHORTEST // measures.FRAME, TOKEN // measures.FRAME
    candidates = np.arange(first, LONGEST // measures.FRAME, step)
    return int(candidates[smooth[candidates].argmin()]) * measures.FRAME


def _cross_fade(held: np.ndarray, out: np.ndarray, fade: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is ready to be heard, and what waits to be joined to the next stretch.

    Args:
        held: (F, C) the end of the stretch before, or nothing.
        out: (T, C) the next, from where `held` begins on.
        fade: Samples to hold.
    """
    if len(held):
        size = min(len(held), len(out))
        out = out.copy()
        out[:size] = _blend(held[:size], out[:size])
    cut = max(0, len(out) - fade)
    return out[:cut], out[cut:]


def _blend(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (F, C): one sound fading into another, as loud all the way whether they are alike or not."""
    rise = np.linspace(0.0, 1.0, len(one), dtype=np.float64)[:, None]
    product = (one.astype(np.float64) * other).sum(axis=0)
    size = np.sqrt((one.astype(np.float64) ** 2).sum(axis=0) * (other.astype(np.float64) ** 2).sum(axis=0))
    alike = np.clip(np.divide(product, size, out=np.ones_like(size), where=size > 1e-12), 0.0, 1.0)
    power = rise**2 + (1.0 - rise) ** 2 + 2.0 * alike * rise * (1.0 - rise)
    return (((1.0 - rise) * one + rise * other) / np.sqrt(power)).astype(np.float32)


def _level_db(waveform: np.ndarray) -> float:
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return round(max(_SILENT_DB, 10.0 * np.log10(power + 1e-30)), 1)
