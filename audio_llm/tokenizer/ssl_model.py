"""Waveforms to a hidden layer of a self-supervised speech model: wav2vec2, XLS-R, HuBERT or WavLM of a local folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.features import valid_mask
from audio_llm.tokenizer.base import SAMPLE_RATE

LAYER = 6  # of 24 in XLS-R 300M

_NETWORKS = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}  # XLS-R is a wav2vec2
_CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _SHARDS = "model.safetensors", "model.safetensors.index.json"
_TRAINING_ONLY = {"masked_spec_embed"}  # what masked frames become; some published files lack it
_VARIANCE_FLOOR = 1e-7  # as Wav2Vec2FeatureExtractor adds it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SslModelStamp:
    """Which model the centers belong to.

    Attributes:
        name: Name of its folder.
        fingerprint: SHA-256 of its weights.
        normalize: Whether waveforms are normalized to mean 0 and variance 1.
    """

    name: str
    fingerprint: str
    normalize: bool


class SslEncoder:
    """Waveforms to the hidden states of one layer.

    Layer L is the output of the L-th transformer layer, counted from 1, before the layer norm with which models such as
    XLS-R end; the layers above it are not loaded. With transformers that is `hidden_states[L]`, of which
    `hidden_states[0]` is the input of the first layer; with fairseq, which GenSE uses, `output_layer` L - 1.

    Args:
        network: Wav2Vec2Model, HubertModel or WavLMModel that ends after the layer; it is put into eval mode.
        layer: L.
        stamp: Identity of the model.

    Attributes:
        width: Width of a hidden state.
        frame_rate: Hidden states per second.
        one_by_one: Whether padding would change the hidden states of an utterance, because a group norm in the first
            convolution includes it in its statistics.
    """

    def __init__(self, network: Any, layer: int, stamp: SslModelStamp) -> None:
        self.network, self.layer, self.stamp = network.eval(), layer, stamp
        config = network.config
        self.width = int(config.hidden_size)
        self.frame_rate = SAMPLE_RATE / math.prod(config.conv_stride)
        self.one_by_one = config.feat_extract_norm == "group" or bool(getattr(config, "conv_pos_batch_norm", False))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], layer: int = LAYER, device: str = "cpu") -> SslEncoder:
        """Read a speech model; safetensors only, from the disk only, and no code from it.

        Args:
            folder: Folder in the transformers format: config.json, preprocessor_config.json and the weights.
            layer: L, see above.
            device: Device that it runs on.

        Raises:
            ModelNotFoundError: The folder or a part of it is missing.
            ModelFormatError: It is not such a model, damaged, or its weights are pickles.
            UsageError: The model has no such layer.
        """
        folder = Path(folder).expanduser()
        stamp = read_stamp(folder)
        return cls(load_network(folder, layer).to(device), layer, stamp)

    @property
    def device(self) -> torch.device:
        """Device that it runs on."""
        return torch.device(self.network.device)

    def counts(self, lengths: Tensor) -> Tensor:
        """Return the number of hidden states of so many samples; (B,) int64 both."""
        config = self.network.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            lengths = ((lengths - kernel).div(stride, rounding_mode="floor") + 1).clamp_min(0)
        return lengths

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states.

        Args:
            waveforms: (B, T) float32 at 16 kHz; samples after each end are ignored.
            lengths: (B,) int64, samples of each.

        Returns:
            (B, N, D) float32, zeros after each end, and their numbers (B,) int64.
        """
        counts = self.counts(lengths.to(self.device))
        rows = [row for row, count in enumerate(counts.tolist()) if count]
        hidden = torch.zeros(len(counts), max(counts.tolist(), default=0), self.width, device=self.device)
        for batch in [[row] for row in rows] if self.one_by_one or not rows else [rows]:
            sizes = lengths[batch].to(self.device)
            whole = torch.zeros(len(batch), int(sizes.max()), device=self.device)
            for index, row in enumerate(batch):
                size = int(lengths[row])
                whole[index, :size] = self._normalize(waveforms[row, :size].to(self.device))
            padded = int(sizes.min()) < whole.shape[1]
            mask = valid_mask(sizes, whole.shape[1]).long() if padded else None
            states = self.network(whole, attention_mask=mask).last_hidden_state
            hidden[batch, : states.shape[1]] = states * valid_mask(counts[batch], states.shape[1])[:, :, None]
        return hidden, counts

    def _normalize(self, waveform: Tensor) -> Tensor:
        if not self.stamp.normalize:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(correction=0) + _VARIANCE_FLOOR).sqrt()


def read_stamp(folder: str | os.PathLike[str]) -> SslModelStamp:
    """Return the identity of the speech model in a folder, without loading it.

    Raises:
        ModelNotFoundError: The folder or a part of it is missing.
        ModelFormatError: It is not a speech model for 16 kHz, or its weights are pickles.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        remedy = "give a folder; `audio-llm models get OWNER/NAME` downloads one, and `models list` shows its folder"
        raise ModelNotFoundError("no such folder; names on the hub are not accepted here", path=folder, remedy=remedy)
    kind = _read_json(folder / _CONFIG).get("model_type")
    if kind not in _NETWORKS:
        message = f"a model of the type {kind or 'unknown'}, not one of {', '.join(_NETWORKS)}"
        raise ModelFormatError(message, path=folder, remedy="use a model such as facebook/wav2vec2-xls-r-300m")
    settings = _read_json(folder / PREPROCESSOR)
    normalize, rate = settings.get("do_normalize"), settings.get("sampling_rate")
    if not isinstance(normalize, bool) or rate != SAMPLE_RATE:
        message = f"do_normalize is {normalize!r} and sampling_rate {rate!r}, not true or false and {SAMPLE_RATE}"
        remedy = "take the file that was published with the model"
        raise ModelFormatError(message, path=folder / PREPROCESSOR, remedy=remedy)
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return SslModelStamp(folder.resolve().name, digest.hexdigest(), normalize)


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads, one or the parts of one."""
    names: set[str] = {_WEIGHTS}
    if not (folder / _WEIGHTS).is_file() and (folder / _SHARDS).is_file():
        parts = _read_json(folder / _SHARDS).get("weight_map")
        names = {str(name) for name in parts.values()} if isinstance(parts, dict) else set()
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ModelFormatError("names no safetensors files", path=folder / _SHARDS, remedy="get the model again")
    elif not (folder / _WEIGHTS).is_file() and (list(folder.glob("*.bin")) or list(folder.glob("*.pt"))):
        message = "weights in pickles, which can run code, instead of safetensors"
        raise ModelFormatError(message, path=folder, remedy=f"convert them to {_WEIGHTS} where you trust them")
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ModelNotFoundError("no weights there", path=folder / name, remedy=f"add {name}")
    return [folder / name for name in sorted(names)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError("no such file", path=path, remedy="get the model again, whole") from None
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"not readable: {error}", path=path, remedy="get the model again") from None
    if not isinstance(values, dict):
        raise ModelFormatError("not a mapping of keys to values", path=path, remedy="get the model again")
    return values


def load_network(folder: Path, layer: int) -> Any:
    """Return the network up to and including a layer, without the final layer norm."""
    import transformers
    from safetensors import SafetensorError

    network_class = getattr(transformers, _NETWORKS[_read_json(folder / _CONFIG)["model_type"]])
    remedy = "get the model again"
    try:
        config = network_class.config_class.from_pretrained(folder, local_files_only=True)
        layers = int(config.num_hidden_layers)
        if not 1 <= layer <= layers:
            raise UsageError(f"no layer {layer} in a model of {layers}", path=folder, remedy=f"give 1 to {layers}")
        config.num_hidden_layers, config.add_adapter = layer, False
        with _quiet_transformers():
            network, loading = network_class.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFormatError(f"not a speech model that can be read: {error}", path=folder, remedy=remedy) from None
    wrong = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])} - _TRAINING_ONLY
    if wrong:  # transformers would initialize them at random
        message = f"{len(wrong)} weights are missing or of another shape, first {min(wrong)}"
        raise ModelFormatError(message, path=folder, remedy=remedy)
    if config.do_stable_layer_norm:
        network.encoder.layer_norm = torch.nn.Identity()
    return network


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the progress bar of transformers, and its list of the layers that are skipped on purpose."""
    from transformers.utils import logging as transformers_logging

    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
