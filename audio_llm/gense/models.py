"""Model directories of speech enhancement: the mask network; GenSE's language models with tokenizer and codec."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.codec.codec import SpeechCodec
from audio_llm.errors import ModelFormatError
from audio_llm.gense.checks import Limits
from audio_llm.gense.mask_model import MaskConfig, MaskNetwork
from audio_llm.gense.network import Chain, GenseConfig, GenseNetwork
from audio_llm.gense.prompts import ACOUSTIC, SEMANTIC
from audio_llm.lm.sampling import GREEDY, Sampling
from audio_llm.quantizers.fsq import FSQ
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.training.config import config_from_dict

MASK, GENSE = "mask", "gense"
DEFAULT_MASK = "mask-small"
ACOUSTIC_SAMPLING = Sampling(temperature=0.8, top_k=50, top_p=0.95)  # of clean codes, where the model names no other


@dataclass(frozen=True)
class Parts:
    """Tokenizer and codec of the language models.

    Attributes:
        tokenizer: Tokenizer that gives semantic tokens.
        codec: Codec that gives acoustic codes.
        tokenizer_name: Name of its model.
        codec_name: Name of its model.
    """

    tokenizer: S3Tokenizer
    codec: SpeechCodec
    tokenizer_name: str
    codec_name: str

    @property
    def ratio(self) -> int:
        """Acoustic codes per semantic token.

        Raises:
            ModelFormatError: The ratio is not a whole number.
        """
        ratio = self.codec.frame_rate / self.tokenizer.frame_rate
        if ratio != round(ratio):
            remedy = "choose a codec whose rate is a multiple of the tokenizer's"
            raise ModelFormatError(f"{ratio:.3f} codes of {self.codec_name} to a token", remedy=remedy)
        return round(ratio)

    def vectors(self) -> dict[str, Tensor]:
        """Return the quantized vectors of the tokens, by range, (R, D) float32."""
        quantizers = {SEMANTIC: self.tokenizer.network.quantizer, ACOUSTIC: self.codec.network.quantizer}
        scalar = {name: q for name, q in quantizers.items() if isinstance(q, FSQ)}
        return {name: q.decode(torch.arange(q.size, device=q.steps.device)).float() for name, q in scalar.items()}

    def names(self) -> dict[str, dict[str, str]]:
        """Return names and fingerprints, as a model directory stores them."""
        return {
            "tokenizer": {"name": self.tokenizer_name, "fingerprint": self.tokenizer.fingerprint},
            "codec": {"name": self.codec_name, "fingerprint": self.codec.fingerprint},
        }


@dataclass(frozen=True)
class GenseModel:
    """GenSE; the settings after `mask` were tuned on validation data.

    Attributes:
        network: The language models, in eval mode.
        parts: Their tokenizer and codec.
        mask: Folder or name of their mask network.
        chain: Parts of the prompt of S2S.
        sampling: Decoding of S2S's codes.
        limits: Limits of the quality checks.
        balanced_below_db: Estimated signal-to-noise ratio below which the mode `balanced` resynthesizes; None: never.
        semantic_sampling: Decoding of N2S's tokens.
        copy_weight: Weight of the noisy speech's token in the probabilities of N2S, and of the token of the mask
            network's output likewise; stored as `heard_share`.
    """

    network: GenseNetwork
    parts: Parts
    mask: str
    chain: Chain
    sampling: Sampling
    limits: Limits
    balanced_below_db: float | None
    semantic_sampling: Sampling = GREEDY
    copy_weight: float = 0.0


def load_mask(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> MaskNetwork:
    """Return a mask network in eval mode; raises as `hub.load_network`."""
    return hub.load_network(name_or_dir, MASK, MaskConfig, MaskNetwork, device)


def load_parts(tokenizer: str | os.PathLike[str], codec: str | os.PathLike[str], device: str = "cpu") -> Parts:
    """Return tokenizer and codec of two model directories; raises as `hub.load_network`."""
    names = [hub.find_model(name).resolve().name for name in (tokenizer, codec)]
    return Parts(S3Tokenizer.load(tokenizer, device), SpeechCodec.load(codec, device), *names)


def load_gense(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> GenseModel:
    """Return the language models of a directory, with their tokenizer and codec.

    Raises:
        ModelNotFoundError: It does not exist, or a part of it is neither next to it nor found by name.
        ModelFormatError: It is damaged, or a part is not the one that it was trained with.
    """
    loaded = hub.load_model(name_or_dir, GENSE, device)
    try:
        needed = [(loaded.config[key]["name"], loaded.config[key]["fingerprint"]) for key in ("tokenizer", "codec")]
        config = config_from_dict(GenseConfig, loaded.config["network"], loaded.path / hub.CONFIG_NAME)
    except (KeyError, TypeError) as error:
        raise ModelFormatError(f"its settings are not GenSE's: {error}", path=loaded.path) from None
    folders = [hub.find_companion(loaded.path, name) for name, _ in needed]
    parts = load_parts(folders[0], folders[1], device)
    for (name, needs), has in zip(needed, (parts.tokenizer.fingerprint, parts.codec.fingerprint), strict=True):
        if has != needs:
            remedy = "get both again, or train the language models for this one"
            raise ModelFormatError(f"was trained with another model {name!r}", path=loaded.path, remedy=remedy)
    network = GenseNetwork(config, parts.vectors())
    try:
        network.load_state_dict(loaded.tensors)
    except RuntimeError as error:
        raise ModelFormatError(f"its weights do not fit its settings: {error}", path=loaded.path) from None
    settings = loaded.path / hub.CONFIG_NAME
    chain = config_from_dict(Chain, loaded.config.get("chain", {}), settings)
    semantic, acoustic = (
        config_from_dict(Sampling, loaded.config[key], settings) if key in loaded.config else default
        for key, default in (("semantic_sampling", GREEDY), ("sampling", ACOUSTIC_SAMPLING))
    )
    limits = config_from_dict(Limits, loaded.config.get("limits", {}), settings)
    mask = DEFAULT_MASK
    if (mask_settings := loaded.config.get("mask")) is not None:
        mask = str(hub.find_companion(loaded.path, mask_settings["name"], mask_settings["fingerprint"]))
    below_db = loaded.config.get("balanced_below_db")
    drawing = (semantic, float(loaded.config.get("heard_share", 0.0)))
    return GenseModel(network.to(device).eval(), parts, mask, chain, acoustic, limits, below_db, *drawing)
