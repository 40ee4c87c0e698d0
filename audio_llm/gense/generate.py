"""A noisy stretch to a newly spoken one: tokens, clean tokens, clean codes, sound; with what is known of the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from audio_llm.codec.codec import Codes
from audio_llm.gense.guards import Evidence, longest_run, sound_evidence
from audio_llm.gense.measures import snr_db
from audio_llm.gense.models import GenseModel
from audio_llm.gense.network import Chain
from audio_llm.gense.prompts import s2s_prompt
from audio_llm.gense.train import to_level
from audio_llm.lm.sampling import GREEDY, Sampling

SAMPLE_RATE = 16_000  # Hz
_MOST_GAIN_DB = 6.0  # by which a stretch is brought to the level of the mask network's


@dataclass(frozen=True)
class Spoken:
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


class SpeechGenerator:
    """Speaks noisy speech anew.

    Args:
        model: Language models, tokenizer and codec.
        semantic: How clean semantic tokens are drawn; the likeliest, for content must not be creative.
        acoustic: How clean acoustic codes are drawn.
        chain: What S2S is told; less than everything is for measuring what each part does.
    """

    def __init__(
        self,
        model: GenseModel,
        semantic: Sampling = GREEDY,
        acoustic: Sampling | None = None,
        chain: Chain | None = None,
    ) -> None:
        self.model, self.semantic = model, semantic
        self.acoustic = acoustic or Sampling(temperature=0.8, top_k=50, top_p=0.95)
        self.chain = chain or Chain()

    @torch.inference_mode()
    def speak(
        self,
        noisy: np.ndarray,
        masked: np.ndarray,
        seed: int,
        greedy: bool = False,
        before: Spoken | None = None,
        force: np.ndarray | None = None,
    ) -> Generated:
        """Speak a stretch anew.

        Args:
            noisy: (T,) float32 at 16 kHz, some seconds.
            masked: (T,) float32 at 16 kHz, the mask network's.
            seed: Of the draws.
            greedy: Take the likeliest codes instead of drawing.
            before: What the beginning of the stretch was spoken as already, so that voice and words go on.
            force: (N,) int64 semantic tokens to speak in place of N2S's, to try what the guards notice.
        """
        parts, network, chain = self.model.parts, self.model.network, self.chain
        gain = np.float32(to_level(noisy) if before is None else before.gain)
        waveform = torch.from_numpy(noisy * gain)[None]
        lengths = torch.tensor([len(noisy)])
        semantic = parts.tokenizer.encode(waveform, lengths).tokens
        heard = torch.from_numpy(masked * gain)[None] if chain.acoustic == "masked" else waveform
        acoustic = parts.codec.encode(heard, lengths).codes
        generator = torch.Generator().manual_seed(seed)
        given = (
            (None, None) if before is None else tuple(torch.from_numpy(p)[None] for p in (before.tokens, before.codes))
        )
        found = network.clean_tokens(semantic, given[0], self.semantic, generator)
        clean = found.ids if force is None else torch.from_numpy(force)[None]
        prompt = s2s_prompt(
            semantic if chain.noisy_semantic else None,
            clean if chain.clean_semantic != "none" else None,
            acoustic if chain.acoustic != "none" else None,
            network.s2s.vocabulary,
            network.config.ratio,
            chain.acoustic == "masked",
        )
        sampling = GREEDY if greedy else self.acoustic
        codes = network.clean_codes(prompt, acoustic.shape[1], sampling, given[1], generator).ids
        sound = parts.codec.decode(Codes(codes, torch.tensor([codes.shape[1]])), lengths)
        again = parts.tokenizer.encode(sound, lengths).tokens
        spoken = _matched(sound[0].numpy() / gain, masked)
        evidence = Evidence(
            snr_db=snr_db(noisy, masked),
            level_distance=self._distance(again, clean),
            input_distance=self._distance(clean, semantic),
            confidence=float(found.log_probs.mean()) if found.log_probs.numel() else 0.0,
            longest_run=longest_run(clean[0].numpy()),
            **sound_evidence(spoken, masked),
        )
        return Generated(spoken, clean[0].numpy(), codes[0].numpy(), float(gain), evidence)

    def _distance(self, one: Tensor, other: Tensor) -> float:
        """Return how far tokens (1, N) differ: the mean over their numbers, in levels."""
        size = min(one.shape[1], other.shape[1])
        one, other = one[:, :size], other[:, :size]
        if not size:
            return 0.0
        digits = self.model.parts.tokenizer.network.quantizer.digits
        return float((digits(one) - digits(other)).abs().float().mean())


def _matched(waveform: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return a stretch brought to the level of the mask network's, within some decibels."""
    own, wanted = (float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))) for part in (waveform, masked))
    if own == 0.0 or wanted == 0.0:
        return waveform.astype(np.float32)
    most = 10.0 ** (_MOST_GAIN_DB / 20.0)
    return (waveform * np.clip(wanted / own, 1.0 / most, most)).astype(np.float32)
