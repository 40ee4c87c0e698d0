"""Model directories of TouchTTS and of its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from audio_llm import hub
from audio_llm.codec.mel import log_mel
from audio_llm.codec.vocoder import Vocoder, VocoderConfig, load_vocoder
from audio_llm.errors import ConfigError, DataError, ModelFormatError
from audio_llm.lm.causal import build_inside
from audio_llm.onnx_file import ONNX_SUFFIX
from audio_llm.tokenizer.base import SemanticTokenizer
from audio_llm.tokenizer.load import load_tokenizer
from audio_llm.tokenizer.onnx_s3 import OnnxS3Tokenizer
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.flow import FlowConfig, FlowNetwork
from audio_llm.touchtts.speaker_vectors import CamPlusPlus
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, SpeechTextLmConfig
from audio_llm.training.config import config_from_dict

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)

SPEECH_TEXT_LM, FLOW, TOUCHTTS = "touchtts-lm", "touchtts-flow", "touchtts"
_MEASURED = 200  # utterances at most that a voice is embedded from


@dataclass(frozen=True)
class TouchModel:
    """All parts of a TouchTTS model.

    Attributes:
        lm: Text to speech tokens, and back.
        flow: Tokens to mel spectra.
        vocoder: Mel spectra to waveforms.
        tokenizer: Speech tokenizer.
        voices: Embeddings of the learned voices, (1, width) float32 by name; each is also a voice of `lm`.
        speaker: Speaker encoder that the flow was trained with, if it was and the file is present.
    """

    lm: SpeechTextLm
    flow: FlowNetwork
    vocoder: Vocoder
    tokenizer: SemanticTokenizer
    voices: dict[str, Tensor]
    speaker: CamPlusPlus | None = None


def load_touchtts(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TouchModel:
    """Return the model of a directory, with the tokenizer that it names.

    Raises:
        ModelNotFoundError: The model is missing, or its tokenizer, both next to the model and by name.
        MissingDependencyError: Its tokenizer is an ONNX file, and onnxruntime is not installed.
        ModelFormatError: It is damaged, of another kind, or was trained with another tokenizer.
    """
    loaded = hub.load_model(name_or_dir, TOUCHTTS, device)
    settings = loaded.path / hub.CONFIG_NAME
    try:
        tokenizer = _needed_tokenizer(loaded.config["tokenizer"], loaded.path, device)
        vectors = speech_vectors(tokenizer)
        lm = _build_speech_text_lm(
            config_from_dict(SpeechTextLmConfig, loaded.config["lm"], settings), vectors, loaded.path
        )
        flow = FlowNetwork(config_from_dict(FlowConfig, loaded.config["flow"], settings), vectors)
        vocoder = Vocoder(config_from_dict(VocoderConfig, loaded.config["vocoder"], settings))
        parts = {"lm": lm, "flow": flow, "vocoder": vocoder}
        for name, part in parts.items():
            part.load_state_dict(_below(name, loaded.tensors))
            part.to(device).eval().requires_grad_(False)
        speaker = _needed_speaker(flow.config, loaded.path)
        return TouchModel(lm, flow, vocoder, tokenizer, _below("voices", loaded.tensors), speaker)
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFormatError(f"its settings or weights do not fit: {error}", path=loaded.path) from None


def _needed_tokenizer(needed: Mapping[str, Any], folder: Path, device: str) -> SemanticTokenizer:
    """Return the tokenizer that a model directory names: a model, or an ONNX file next to the directory."""
    name, variant = str(needed["name"]), needed.get("variant")
    is_file = Path(name).suffix == ONNX_SUFFIX
    tokenizer = load_tokenizer(
        folder.parent / name if is_file else hub.find_companion(folder, name), device, None, variant
    )
    _check_companion(tokenizer.fingerprint, needed["fingerprint"], name, folder)
    return tokenizer


def _needed_speaker(config: FlowConfig, folder: Path) -> CamPlusPlus | None:
    """Return the speaker encoder of a flow if its file lies next to the model directory; else None."""
    path = folder.parent / config.speaker_file
    if not config.speaker_file or not path.is_file():
        return None
    speaker = CamPlusPlus(path)
    _check_companion(speaker.fingerprint, config.speaker_sha256, config.speaker_file, folder)
    return speaker


def _check_companion(actual: str, needed: str, name: str, folder: Path) -> None:
    if actual != needed:
        remedy = "get both again, or train the model with this one"
        raise ModelFormatError(f"was trained with another {name!r}", path=folder, remedy=remedy)


def assemble(
    lm: str | os.PathLike[str],
    flow: str | os.PathLike[str],
    vocoder: str | os.PathLike[str],
    tokenizer: SemanticTokenizer,
    utterances: UtterancePack,
    *voices: str,
) -> tuple[TouchModel, dict[str, Any]]:
    """Return a model of separately trained parts, and their provenance.

    Args:
        lm: Model directory of `train_speech_text_lm`.
        flow: Model directory of `train_flow`.
        vocoder: Model directory of `train_vocoder`.
        tokenizer: Tokenizer of all parts.
        utterances: Utterances that the voices are embedded from.
        voices: Names of the language model's voices to include.

    Raises:
        DataError: A voice has no recorded utterance, or the pack has not the flow's speaker encoder.
        ModelNotFoundError, ModelFormatError: As `load_speech_text_lm`.
    """
    parts = load_speech_text_lm(lm, tokenizer), load_flow(flow, tokenizer), load_vocoder(vocoder)
    sounds = {}
    check_speaker(parts[1].config, utterances)
    for voice in voices:
        parts[0].voice(voice)
        rows = [row for row, name in enumerate(utterances.voices) if name == voice and utterances.samples[row]]
        if not rows:
            raise DataError(f"no recorded utterance of the voice {voice!r}", remedy="pack some, or leave the voice out")
        some = rows[:: -(-len(rows) // _MEASURED)]
        each = [voice_of(parts[1], utterances.pcm(row), utterances.vector(row)) for row in some]
        sounds[voice] = torch.cat(each).mean(0, keepdim=True)
    provenance = {str(name): hub.load_model(name).provenance for name in (lm, flow, vocoder)}
    return TouchModel(*parts, tokenizer, sounds), provenance


def check_speaker(flow: FlowConfig, utterances: UtterancePack) -> None:
    """Raise `DataError` where a flow was trained with another speaker encoder than the utterances were packed with."""
    if flow.speaker_file and utterances.speaker[1] != flow.speaker_sha256:
        remedy = f"pack them with the {flow.speaker_file} that the flow was trained with"
        raise DataError("the utterances were packed without the speaker encoder of this flow", remedy=remedy)


@torch.inference_mode()
def voice_of(flow: FlowNetwork, pcm: np.ndarray, vector: np.ndarray | None = None) -> Tensor:
    """Return the embedding of a voice, (1, width).

    Args:
        flow: Flow that the embedding is for.
        pcm: Speech (T,) int16 at 16 kHz at the level of packed utterances.
        vector: (192,) float32, its speaker vector by `CamPlusPlus`, for a flow that was trained with such vectors.
    """
    if flow.config.speaker_file:
        assert vector is not None
        reference = torch.from_numpy(vector)[None, None].to(flow.mean.device)
        return flow.voice(reference, torch.ones(1, dtype=torch.int64))
    waveform = torch.from_numpy(pcm.astype(np.float32) / 32768.0).to(flow.mean.device)
    mel = flow.normalize(log_mel(waveform[None]))
    return flow.voice(mel, torch.tensor([mel.shape[1]], device=mel.device))


def save_touchtts(
    folder: str | os.PathLike[str],
    model: TouchModel,
    tokenizer_name: str,
    card: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory, its weights in half precision."""
    parts: dict[str, nn.Module] = {"lm": model.lm, "flow": model.flow, "vocoder": model.vocoder}
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    tensors |= {f"voices.{name}": value for name, value in model.voices.items()}
    config: dict[str, Any] = {
        "lm": asdict(model.lm.config),
        "flow": asdict(model.flow.config),
        "vocoder": asdict(model.vocoder.config),
    }
    config["tokenizer"] = tokenizer_entry(model.tokenizer, tokenizer_name)
    half = {name: value.half().contiguous() for name, value in tensors.items()}
    hub.save_model(folder, config, half, TOUCHTTS, card, provenance, model.lm.assets())


def tokenizer_name(name_or_dir: str | os.PathLike[str]) -> str:
    """Return the name of a tokenizer in model directories: that of its directory, or of its ONNX file."""
    path = Path(name_or_dir)
    return path.name if path.suffix == ONNX_SUFFIX else hub.find_model(name_or_dir).resolve().name


def tokenizer_entry(tokenizer: SemanticTokenizer, name: str) -> dict[str, str]:
    """Return the tokenizer's entry in a model directory."""
    entry = {"name": name, "fingerprint": tokenizer.fingerprint}
    return {**entry, "variant": tokenizer.variant} if isinstance(tokenizer, OnnxS3Tokenizer) else entry


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a point, without this prefix."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def load_speech_text_lm(
    name_or_dir: str | os.PathLike[str], tokenizer: SemanticTokenizer, device: str = "cpu"
) -> SpeechTextLm:
    """Return the language model of a training in eval mode.

    Raises:
        ModelNotFoundError: No such model.
        ModelFormatError: It is damaged, of another kind, or of another tokenizer.
    """
    return _load(name_or_dir, SPEECH_TEXT_LM, SpeechTextLmConfig, _build_speech_text_lm, tokenizer, device)


def load_flow(name_or_dir: str | os.PathLike[str], tokenizer: SemanticTokenizer, device: str = "cpu") -> FlowNetwork:
    """Return the flow of a training in eval mode; raises as `load_speech_text_lm`."""
    return _load(name_or_dir, FLOW, FlowConfig, _build_flow, tokenizer, device)


def _build_speech_text_lm(config: SpeechTextLmConfig, vectors: Tensor | None, folder: Path) -> SpeechTextLm:
    """Return a network without its weights; the files of its pretrained LLM, if any, lie in the folder."""
    return SpeechTextLm(config, vectors, build_inside(folder) if config.pieces else None)


def _build_flow(config: FlowConfig, vectors: Tensor | None, folder: Path) -> FlowNetwork:
    return FlowNetwork(config, vectors)


def _load(
    name_or_dir: str | os.PathLike[str],
    kind: str,
    config_class: type[C],
    build: Callable[[C, Tensor | None, Path], N],
    tokenizer: SemanticTokenizer,
    device: str,
) -> N:
    loaded = hub.load_model(name_or_dir, kind, device)
    try:
        needed = loaded.config["tokenizer"]["fingerprint"]
        config = config_from_dict(config_class, loaded.config["network"], loaded.path / hub.CONFIG_NAME)
    except (ConfigError, KeyError, TypeError) as error:
        raise ModelFormatError(f"its settings are not those of a {kind}: {error}", path=loaded.path) from None
    if needed != tokenizer.fingerprint:
        remedy = "give the tokenizer that it was trained with"
        raise ModelFormatError("was trained with another tokenizer", path=loaded.path, remedy=remedy)
    try:
        network = build(config, speech_vectors(tokenizer), loaded.path)
        network.load_state_dict(loaded.tensors)
    except (ConfigError, RuntimeError) as error:
        raise ModelFormatError(f"its weights do not fit its settings: {error}", path=loaded.path) from None
    return network.to(device).eval()


def speech_vectors(tokenizer: SemanticTokenizer) -> Tensor | None:
    """Return the codebook vectors of the speech tokens, (R, D) float32; None where the tokenizer has none."""
    if not isinstance(tokenizer, S3Tokenizer):
        return None
    quantizer = tokenizer.network.quantizer
    return quantizer.decode(torch.arange(quantizer.size, device=quantizer.steps.device)).float()
