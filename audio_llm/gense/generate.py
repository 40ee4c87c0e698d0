"""Resynthesis of a noisy chunk: noisy tokens, clean tokens, clean codes, waveform; with evidence about the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from audio_llm.codec.codec import Codes, to_level
from audio_llm.errors import ConfigError
from audio_llm.gense.checks import Evidence, longest_run, sound_evidence
from audio_llm.gense.measures import FRAME, levels_db, snr_db
from audio_llm.gense.models import GenseModel
from audio_llm.gense.network import Chain
from audio_llm.gense.prompts import s2s_prompt
from audio_llm.lm.sampling import GREEDY, Sampling

SAMPLE_RATE = 16_000  # Hz
_MOST_CHANGE_DB = 6.0  # of the input's level; after a larger change the context is dropped
_MOST_GAIN_DB = 6.0  # by which the level is matched to the mask network's
_LEVEL_FRAMES = 49  # over which the levels are compared, 0.98 s
_PAUSE = 1e-3  # of the greatest power; lower powers do not count in the level


@dataclass(frozen=True)
class GeneratedContext:
    """The end of the chunk generated before, with which the next one starts.

    Attributes:
        tokens: (N,) int64, its clean semantic tokens.
        codes: (A,) int64, its clean acoustic codes.
        gain: Gain that was applied to the input.
    """

    tokens: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)
    gain: float


@dataclass(frozen=True)
class Generated:
    """A resynthesized chunk.

    Attributes:
        waveform: (T,) float32 at 16 kHz, as long as the noisy one.
        tokens: (N,) int64, the clean semantic tokens that it was generated from.
        codes: (A,) int64, the clean acoustic codes.
        gain: Gain that was applied to the input before it was tokenized.
        evidence: Measurements for the quality checks.
    """

    waveform: np.ndarray = field(repr=False)
    tokens: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)
    gain: float
    evidence: Evidence


class Resynthesizer:
    """Resynthesizes noisy speech.

    Args:
        model: Language models, tokenizer and codec.
        semantic: Decoding of the clean semantic tokens; never random, since content must not be invented. None: as the
            model says.
        acoustic: Decoding of the clean acoustic codes. None: as the model says.
        chain: Parts of the prompt of S2S; fewer than all are for ablations. None: as the model says.
        copy_weight: Weight of the noisy speech's token in the probabilities at each position, and of the token of the
            mask network's output likewise. None: as the model says.

    Raises:
        ConfigError: Semantic tokens would be drawn at random.
    """

    def __init__(
        self,
        model: GenseModel,
        semantic: Sampling | None = None,
        acoustic: Sampling | None = None,
        chain: Chain | None = None,
        copy_weight: float | None = None,
    ) -> None:
        self.model, self.semantic = model, semantic or model.semantic_sampling
        if self.semantic.is_random:
            raise ConfigError(
                f"semantic tokens would be drawn at random: {self.semantic}", remedy="take the likeliest or the median"
            )
        self.acoustic = acoustic or model.sampling
        self.chain = chain or model.chain
        self.copy_weight = model.copy_weight if copy_weight is None else copy_weight

    @torch.inference_mode()
    def generate(
        self,
        noisy: np.ndarray,
        masked: np.ndarray,
        seed: int,
        greedy: bool = False,
        before: GeneratedContext | None = None,
        force: np.ndarray | None = None,
        chunk: slice | None = None,
    ) -> Generated:
        """Resynthesize a window.

        Args:
            noisy: (T,) float32 at 16 kHz, some seconds.
            masked: (T,) float32 at 16 kHz, the mask network's output for it.
            seed: Random seed of the draws.
            greedy: Take the most likely codes instead of drawing.
            before: Tokens and codes already generated for the start of the window, so that voice and words continue;
                ignored where the level has changed since.
            force: (N,) int64 semantic tokens that replace those of N2S, to test the quality checks.
            chunk: Samples that the evidence is about, whole tokens except at the end; the rest is context. None: all.
        """
        parts, network, chain = self.model.parts, self.model.network, self.chain
        device = network.s2s.segments.weight.device
        gain = np.float32(to_level(noisy))
        if before is not None and abs(20.0 * np.log10(before.gain / gain)) > _MOST_CHANGE_DB:
            before = None
        gain = gain if before is None else np.float32(before.gain)
        chunk = chunk or slice(0, len(noisy))
        lengths = torch.tensor([len(noisy)] * 2, device=device)
        waveforms = torch.from_numpy(np.stack([noisy, masked]) * gain).to(device)
        semantic, of_masked = parts.tokenizer.encode(waveforms, lengths).tokens.split(1)
        acoustic_input = waveforms[1:] if chain.acoustic == "masked" else waveforms[:1]
        acoustic = parts.codec.encode(acoustic_input, lengths[:1]).codes
        generator = torch.Generator().manual_seed(seed)
        given = None if before is None else torch.from_numpy(before.tokens)[None].to(device)
        copied = ((semantic, of_masked), self.copy_weight)
        continuation = network.clean_tokens(semantic, given, self.semantic, generator, *copied)
        clean = continuation.ids if force is None else torch.from_numpy(force)[None].to(device)
        prompt = s2s_prompt(
            semantic if chain.noisy_semantic else None,
            clean if chain.clean_semantic != "none" else None,
            acoustic if chain.acoustic != "none" else None,
            network.s2s.vocabulary,
            network.config.ratio,
            chain.acoustic == "masked",
        )
        sampling = GREEDY if greedy else self.acoustic
        given = None if before is None else torch.from_numpy(before.codes)[None].to(device)
        codes = network.clean_codes(prompt, acoustic.shape[1], sampling, given, generator).ids
        sound = parts.codec.decode(Codes(codes, torch.tensor([codes.shape[1]], device=device)), lengths[:1])
        reencoded = parts.tokenizer.encode(sound, lengths[:1]).tokens
        raw = sound[0].cpu().numpy() / gain
        part = slice(chunk.start * clean.shape[1] // len(noisy), -(-chunk.stop * clean.shape[1] // len(noisy)))
        intended = clean[:, part]
        known = clean.shape[1] - continuation.log_probs.shape[1]  # tokens of the context, which were not drawn
        chunk_log_probs = continuation.log_probs[:, max(0, part.start - known) : max(0, part.stop - known)]
        evidence = Evidence(
            snr_db=snr_db(noisy[chunk], masked[chunk]),
            level_distance=self._distance(reencoded[:, part], intended),
            input_distance=min(self._distance(intended, tokens[:, part]) for tokens in (semantic, of_masked)),
            confidence=float(chunk_log_probs.mean()) if chunk_log_probs.numel() else 0.0,
            longest_run=longest_run(intended[0].cpu().numpy()),
            # before the level is matched, which would hide invented speech
            **sound_evidence(raw[chunk], masked[chunk]),
        )
        return Generated(
            _match_level(raw, masked), clean[0].cpu().numpy(), codes[0].cpu().numpy(), float(gain), evidence
        )

    def _distance(self, one: Tensor, other: Tensor) -> float:
        """Return the distance of tokens (1, N): the mean over their quantized dimensions, in levels."""
        if not one.shape[1]:
            return 0.0
        return float(self.model.parts.tokenizer.network.quantizer.distance(one, other).mean())


def _match_level(waveform: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return a waveform (T,) whose level follows that of the mask network's output (T,), within some decibels.

    In pauses of both the gain goes to 1; where only the mask network's output is silent the level is lowered.
    """
    count = len(waveform) // FRAME
    if not count:
        return waveform.astype(np.float32)
    window = np.hanning(_LEVEL_FRAMES + 2)[1:-1]
    powers = [10.0 ** (levels_db(sound) / 10.0) for sound in (waveform, masked)]
    actual, target = (np.convolve(power, window)[_LEVEL_FRAMES // 2 :][:count] for power in powers)
    floor = _PAUSE * target.max()
    most = 10.0 ** (_MOST_GAIN_DB / 20.0)
    gains = np.clip(np.sqrt((target + floor) / (actual + floor)), 1.0 / most, most)
    times = (np.arange(count) + 0.5) * FRAME
    return (waveform * np.interp(np.arange(len(waveform)), times, gains)).astype(np.float32)
