"""A noisy stretch to a newly spoken one: tokens, clean tokens, clean codes, sound; with what is known of the result."""

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
_MOST_CHANGE_DB = 6.0  # of the input's level, beyond which what was spoken before is no context
_MOST_GAIN_DB = 6.0  # by which speech is brought to the level of the mask network's
_LEVEL_FRAMES = 49  # over which the levels are compared, 0.98 s
_PAUSE = 1e-3  # of the greatest power, below which levels say nothing


@dataclass(frozen=True)
class GeneratedContext:
    """The end of what was spoken before.

    Attributes:
        tokens: (N,) int64, its clean semantic tokens.
        codes: (A,) int64, its clean acoustic codes.
        gain: That the input was given.
    """

    tokens: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)
    gain: float


@dataclass(frozen=True)
class Generated:
    """A stretch spoken anew.

    Attributes:
        waveform: (T,) float32 at 16 kHz, as long as the noisy one.
        tokens: (N,) int64, clean semantic tokens that were meant.
        codes: (A,) int64, clean acoustic codes.
        gain: That the input was given before it was cut into tokens.
        evidence: What is known of it.
    """

    waveform: np.ndarray = field(repr=False)
    tokens: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)
    gain: float
    evidence: Evidence


class Resynthesizer:
    """Speaks noisy speech anew.

    Args:
        model: Language models, tokenizer and codec.
        semantic: How clean semantic tokens are drawn; not at random, for content must not be creative. None: the
            model's own way.
        acoustic: How clean acoustic codes are drawn. None: the model's own way.
        heard_share: What the noisy and the mask network's tokens each have to say in these. None: the model's own.
        chain: What S2S is told; less than everything is for measuring what each part does. None: the model's own.

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
                f"what is said would be drawn: {self.semantic}", remedy="take the likeliest or the median"
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
        """Speak a stretch anew.

        Args:
            noisy: (T,) float32 at 16 kHz, some seconds.
            masked: (T,) float32 at 16 kHz, the mask network's.
            seed: Of the draws.
            greedy: Take the likeliest codes instead of drawing.
            before: What the beginning of the stretch was spoken as already, so that voice and words go on; left out
                where the level has changed since.
            force: (N,) int64 semantic tokens to speak in place of N2S's, to try what the guards notice.
            stretch: Samples that the evidence is about, whole tokens but for the end; what is around them is context.
                None: all.
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
        known = clean.shape[1] - continuation.log_probs.shape[1]  # of what was spoken before, and not drawn
        chunk_log_probs = continuation.log_probs[:, max(0, part.start - known) : max(0, part.stop - known)]
        evidence = Evidence(
            snr_db=snr_db(noisy[chunk], masked[chunk]),
            level_distance=self._distance(reencoded[:, part], intended),
            input_distance=min(self._distance(intended, tokens[:, part]) for tokens in (semantic, of_masked)),
            confidence=float(chunk_log_probs.mean()) if chunk_log_probs.numel() else 0.0,
            longest_run=longest_run(intended[0].cpu().numpy()),
            **sound_evidence(
                raw[chunk], masked[chunk]
            ),  # speech that was made up must not be hidden by matching its level
        )
        return Generated(
            _match_level(raw, masked), clean[0].cpu().numpy(), codes[0].cpu().numpy(), float(gain), evidence
        )

    def _distance(self, one: Tensor, other: Tensor) -> float:
        """Return how far tokens (1, N) differ: the mean over their numbers, in levels."""
        if not one.shape[1]:
            return 0.0
        return float(self.model.parts.tokenizer.network.quantizer.distance(one, other).mean())


def _match_level(waveform: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return a sound brought to the level of the mask network's, moment by moment, within some decibels; (T,) both.

    Where neither says anything the gain goes to 1; what the mask network has nothing of becomes quieter.
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
