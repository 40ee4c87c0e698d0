"""Quality checks of generated chunks: no other words, no other voice, no invented or missing speech."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from audio_llm.gense import measures

_NEAR = 3  # frames of 20 ms by which the activity of two sounds may differ
_FAR_DB = 10.0  # above everything nearby in the mask network's output: not a louder voice but another


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a chunk is rejected. A model directory may hold others than these defaults, as `limits`.

    Attributes:
        good_db: Estimated signal-to-noise ratio from which the input is bypassed in mode `generative`.
        level_distance: Largest distance between the intended tokens and those of the output, mean over the tokens'
            quantized dimensions, in levels.
        input_distance: Largest distance, likewise, between the intended tokens and those of the input or of the mask
            network's output, whichever are nearer.
        least_confidence: Smallest mean log-probability of the clean tokens, in nats.
        longest_run: Longest run of one token, as a fraction of the chunk.
        tone_db: Largest difference of the long-term spectra, in dB.
        pitch_octaves: Largest difference of the median pitch.
        invented: Largest fraction of frames with speech where the mask network's output has none or far quieter sound.
        lost: Largest fraction of the speech in the mask network's output that is missing.
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
    """Measurements of a generated chunk, named as in `Limits`.

    NaN where something cannot be measured; infinite where the pitch is missing.
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


# Reasons that concern N2S's tokens: no other draw of the codes changes them.
TOKEN_REASONS = ("content differs from the input", "the clean tokens are uncertain", "a token is repeated")


def rejection_reasons(evidence: Evidence, limits: Limits) -> tuple[str, ...]:
    """Return why a chunk is rejected, one phrase per failed check; empty: it is accepted."""
    failed = {
        "the output has other tokens than intended": evidence.level_distance > limits.level_distance,
        TOKEN_REASONS[0]: evidence.input_distance > limits.input_distance,
        TOKEN_REASONS[1]: evidence.confidence < limits.least_confidence,
        TOKEN_REASONS[2]: evidence.longest_run > limits.longest_run,
        "the voice has another tone": evidence.tone_db > limits.tone_db,
        "the voice has another pitch": evidence.pitch_octaves > limits.pitch_octaves,
        "there is speech where there was none": evidence.invented > limits.invented,
        "speech is missing": evidence.lost > limits.lost,
    }
    return tuple(phrase for phrase, is_failed in failed.items() if is_failed)  # NaN fails no check


def sound_evidence(generated: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    """Return tone, pitch, invented and lost speech, compared with the mask network's output.

    Args:
        generated: (T,) float32 at 16 kHz.
        masked: (T,) float32 at 16 kHz, the mask network's output for the same chunk.
    """
    from scipy.ndimage import binary_dilation, maximum_filter1d

    active, reference_active = measures.active_frames(generated), measures.active_frames(masked)
    near_reference, near_active = (binary_dilation(frames, iterations=_NEAR) for frames in (reference_active, active))
    # steady residual noise is as loud as its own loudest frames all the time, and would count as speech
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
