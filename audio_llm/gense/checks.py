"""What is asked of a generated stretch before it may be heard: no other words, no other voice, no invented speech."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from audio_llm.gense import measures

_NEAR = 3  # frames of 20 ms by which two sounds may be apart
_FAR_DB = 10.0  # above everything near in the mask network's sound: not a louder voice but another


@dataclass(frozen=True)
class Limits:
    """From where on a stretch is refused. The defaults are first guesses; a model directory may hold others, `limits`.

    Attributes:
        good_db: Estimated signal-to-noise ratio from which the input is left as it is in mode `generative`.
        level_distance: Between the tokens that were meant and those of what came out, mean over the tokens' numbers.
        input_distance: The same between what was meant and the tokens of the input, or those of the mask network's
            sound of it, whichever are nearer.
        least_confidence: Mean log-probability of the clean tokens, in nats.
        longest_run: Of one token, as a share of the stretch.
        tone_db: Difference of the long-term spectra.
        pitch_octaves: Difference of the median pitch.
        invented: Share of frames with speech where the mask network leaves none, or something far quieter.
        lost: Share of the mask network's speech that is missing.
    """

    good_db: float = 20.0
    level_distance: float = 0.6
    input_distance: float = 0.9
    least_confidence: float = -4.0
    longest_run: float = 0.5
    tone_db: float = 8.0
    pitch_octaves: float = 0.35
    invented: float = 0.2
    lost: float = 0.35


@dataclass(frozen=True)
class Evidence:
    """What is known of a generated stretch; names as in `Limits`.

    NaN where something cannot be told; a pitch that has gone is infinitely far.
    """

    snr_db: float
    level_distance: float
    input_distance: float
    confidence: float
    longest_run: float
    tone_db: float
    pitch_octaves: float
    invented: float
    lost: float

    def rounded(self) -> dict[str, float | None]:
        """Return plain values for a report."""
        return {name: round(value, 3) if np.isfinite(value) else None for name, value in asdict(self).items()}


# What N2S is refused for, which no other drawing of the codes changes.
TOKEN_REASONS = ("it says something else than the input", "the clean tokens are guesses", "a token is repeated")


def rejection_reasons(evidence: Evidence, limits: Limits) -> tuple[str, ...]:
    """Return why a stretch may not be heard, one phrase each; none: it may."""
    failed = {
        "its tokens are not those that were meant": evidence.level_distance > limits.level_distance,
        TOKEN_REASONS[0]: evidence.input_distance > limits.input_distance,
        TOKEN_REASONS[1]: evidence.confidence < limits.least_confidence,
        TOKEN_REASONS[2]: evidence.longest_run > limits.longest_run,
        "the voice has another tone": evidence.tone_db > limits.tone_db,
        "the voice has another pitch": evidence.pitch_octaves > limits.pitch_octaves,
        "there is speech where there was none": evidence.invented > limits.invented,
        "speech is missing": evidence.lost > limits.lost,
    }
    return tuple(phrase for phrase, is_failed in failed.items() if is_failed)  # NaN breaks nothing


def sound_evidence(generated: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    """Return what comparing with the mask network's sound tells: tone, pitch, invented and lost speech.

    Args:
        generated: (T,) float32 at 16 kHz.
        masked: (T,) float32 at 16 kHz, the same stretch by the mask network.
    """
    from scipy.ndimage import binary_dilation, maximum_filter1d

    active, reference_active = measures.active_frames(generated), measures.active_frames(masked)
    near_reference, near_active = (binary_dilation(frames, iterations=_NEAR) for frames in (reference_active, active))
    # a steady residue is as loud as its own loudest frames all the time, and would pass for speech
    nearby_db = maximum_filter1d(measures.levels_db(masked), 2 * _NEAR + 1) if len(reference_active) else np.zeros(0)
    near_reference &= measures.levels_db(generated) < nearby_db + _FAR_DB
    pitch_hz, reference_hz = measures.pitch_hz(generated), measures.pitch_hz(masked)
    octaves = abs(float(np.log2(pitch_hz / reference_hz)))
    if np.isnan(pitch_hz) and not np.isnan(reference_hz):
        octaves = float("inf")
    return {
        "tone_db": measures.tone_distance_db(generated, masked),
        "pitch_octaves": octaves,
        "invented": float((active & ~near_reference).sum() / max(1, len(active))),
        "lost": float((reference_active & ~near_active).sum() / max(1, reference_active.sum())),
    }


def longest_run(tokens: np.ndarray) -> float:
    """Return the longest run of one token over the number of tokens (N,) int64."""
    if not len(tokens):
        return 0.0
    ends = np.flatnonzero(np.diff(tokens, append=tokens[-1] + 1))
    return float(np.diff(ends, prepend=-1).max() / len(tokens))
