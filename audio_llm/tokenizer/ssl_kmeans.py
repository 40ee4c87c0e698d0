"""Speech to semantic tokens by a hidden layer of a self-supervised speech model and the nearest of K centres.

As in GenSE's code: XLS-R 300M, its 6th layer, 1,024 centres, 50 tokens a second. The model is the user's own, a folder
in the transformers form; the centres are fitted here and know which model they belong to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.errors import ConfigError, DataError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.features import valid_mask
from audio_llm.tokenizer.base import SAMPLE_RATE, Tokens
from audio_llm.training.config import config_from_dict

KIND = "ssl-kmeans"
LAYER = 6  # of 24 in XLS-R 300M
CLUSTERS = 1024
MOST_FRAMES = 200_000  # that centres are fitted to; 0.8 GB at a width of 1024

_NETWORKS = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}  # XLS-R is a wav2vec2
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _SHARDS = "model.safetensors", "model.safetensors.index.json"
_TRAINING_ONLY = {"masked_spec_embed"}  # what masked frames become; some published files lack it
_VARIANCE_FLOOR = 1e-7  # as Wav2Vec2FeatureExtractor adds it
_PIECE_SAMPLES = 30 * SAMPLE_RATE  # longer sounds are cut for fitting: attention grows with the square
_BLOCK = 4096  # frames whose distances are computed at a time
_MOST_PASSES = 50  # of k-means
_LEAST_GAIN = 1e-4  # share of the mean distance below which another pass is not worth it
_START_FRAMES = 8  # per centre, among which the first centres are drawn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SslModelStamp:
    """Which model the centres belong to.

    Attributes:
        name: Of its folder.
        fingerprint: SHA-256 of its weights.
        normalize: Whether its waveforms are brought to mean 0 and variance 1.
    """

    name: str
    fingerprint: str
    normalize: bool


@dataclass(frozen=True)
class SslKmeansConfig:
    """Settings of a saved tokenizer.

    Attributes:
        layer: See `SslEncoder`.
        frame_rate: Tokens per second.
        size: How many centres.
        model: What gives the hidden states.
    """

    layer: int
    frame_rate: float
    size: int
    model: SslModelStamp


@dataclass(frozen=True)
class SslKmeansFit:
    """What fitting gave.

    Attributes:
        folder: The model directory.
        frames: That the sounds had.
        used: Of these, drawn at random to fit the centres.
        skipped: Sounds too short for a frame.
        unused: Centres that no frame is nearest to, because the frames repeat themselves.
        distance: Mean squared distance of a frame from its centre.
    """

    folder: Path
    frames: int
    used: int
    skipped: int
    unused: int
    distance: float


class SslKmeansTokenizer:
    """The tokenizer.

    Args:
        encoder: What gives the hidden states.
        centres: (K, D) float32.
    """

    def __init__(self, encoder: SslEncoder, centres: Tensor) -> None:
        self.encoder, self.centres = encoder, centres.float().to(encoder.device)

    @classmethod
    def load(
        cls, name_or_dir: str | os.PathLike[str], ssl_folder: str | os.PathLike[str], device: str = "cpu"
    ) -> SslKmeansTokenizer:
        """Return the tokenizer of a model directory that `fit_ssl_kmeans` wrote.

        Args:
            name_or_dir: The model directory.
            ssl_folder: Folder of the speech model that it was fitted to.
            device: Where it runs.

        Raises:
            ModelNotFoundError, ModelFormatError: As `hub.load_model` and `SslEncoder.load`, or the speech model is
                another one.
        """
        loaded, ssl_folder = hub.load_model(name_or_dir, KIND), Path(ssl_folder).expanduser()
        remedy = "fit it again, or get it again"
        try:
            config = config_from_dict(SslKmeansConfig, loaded.config, loaded.path / hub.CONFIG_NAME)
        except ConfigError as error:
            raise ModelFormatError(f"its settings do not fit: {error}", path=loaded.path, remedy=remedy) from None
        stamp = read_stamp(ssl_folder)
        wanted = f"the speech model {config.model.name!r} (SHA-256 {config.model.fingerprint[:16]}...)"
        if stamp.fingerprint != config.model.fingerprint:
            message = f"its centres belong to {wanted}, not to the one in {ssl_folder}"
            raise ModelFormatError(message, path=loaded.path, remedy="give that model, or fit centres to this one")
        if stamp.normalize != config.model.normalize:
            message = f"do_normalize is {stamp.normalize}, but the centres of {loaded.path} were fitted with the other"
            remedy = f"restore {_PREPROCESSOR}, or fit the centres again"
            raise ModelFormatError(message, path=ssl_folder / _PREPROCESSOR, remedy=remedy)
        encoder = SslEncoder(_load_network(ssl_folder, config.layer).to(device), config.layer, stamp)
        centres = loaded.tensors.get("centres")
        if centres is None or centres.shape != (config.size, encoder.width) or config.frame_rate != encoder.frame_rate:
            message = (
                f"it should hold {config.size} centres of width {encoder.width} and {encoder.frame_rate:g} a second"
            )
            raise ModelFormatError(message, path=loaded.path, remedy=remedy)
        return cls(encoder, centres)

    @property
    def size(self) -> int:
        """How many different tokens there are."""
        return len(self.centres)

    @property
    def frame_rate(self) -> float:
        """Tokens per second."""
        return self.encoder.frame_rate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the centres, the layer, the speech model's weights and whether waveforms are normalised."""
        source = {**asdict(self.encoder.stamp), "layer": self.encoder.layer}
        del source["name"]
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
        digest.update(self.centres.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return tokens (see `SemanticTokenizer.encode`)."""
        hidden, counts = self.encoder.encode(waveforms, lengths)
        numbers = _nearest(hidden.flatten(0, 1), self.centres)[0].view(hidden.shape[:2])
        tokens = numbers * valid_mask(counts, hidden.shape[1])
        return Tokens(tokens.to(waveforms.device), counts.to(waveforms.device))


class SslEncoder:
    """Waveforms to the hidden states of one layer.

    Layer L is the output of the L-th transformer layer, counted from 1, before the layer norm with which models such as
    XLS-R end; the layers above it are not loaded. With transformers that is `hidden_states[L]`, of which
    `hidden_states[0]` is the input of the first layer; with fairseq, which GenSE uses, `output_layer` L - 1.

    Args:
        network: Wav2Vec2Model, HubertModel or WavLMModel that ends behind the layer; in eval mode from here on.
        layer: L.
        stamp: Which model it is.

    Attributes:
        width: Of a hidden state.
        frame_rate: Hidden states per second.
        one_by_one: Whether zeros behind an utterance would change its hidden states: a group norm in the first
            convolution takes its statistics over them.
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
            folder: In the transformers form: config.json, preprocessor_config.json and the weights.
            layer: L, see above.
            device: Where it runs.

        Raises:
            ModelNotFoundError: There is no such folder, or a part is missing.
            ModelFormatError: It is no such model, damaged, or its weights are pickles.
            UsageError: It has no such layer.
        """
        folder = Path(folder).expanduser()
        stamp = read_stamp(folder)
        return cls(_load_network(folder, layer).to(device), layer, stamp)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.network.device)

    def counts(self, lengths: Tensor) -> Tensor:
        """Return how many hidden states so many samples give; (B,) int64 both."""
        config = self.network.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            lengths = ((lengths - kernel).div(stride, rounding_mode="floor") + 1).clamp_min(0)
        return lengths

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states.

        Args:
            waveforms: (B, T) float32 at 16 kHz; what lies behind each end does not matter.
            lengths: (B,) int64, samples of each.

        Returns:
            (B, N, D) float32, zeros behind each end, and (B,) int64 hidden states of each.
        """
        counts = self.counts(lengths.to(self.device))
        rows = [row for row, count in enumerate(counts.tolist()) if count]
        hidden = torch.zeros(len(counts), max(counts.tolist(), default=0), self.width, device=self.device)
        for batch in [[row] for row in rows] if self.one_by_one or not rows else [rows]:
            sizes = lengths[batch].to(self.device)
            whole = torch.zeros(len(batch), int(sizes.max()), device=self.device)
            for place, row in enumerate(batch):
                size = int(lengths[row])
                whole[place, :size] = self._normalize(waveforms[row, :size].to(self.device))
            mask = None if self.one_by_one else valid_mask(sizes, whole.shape[1]).long()
            found = self.network(whole, attention_mask=mask).last_hidden_state
            hidden[batch, : found.shape[1]] = found * valid_mask(counts[batch], found.shape[1])[:, :, None]
        return hidden, counts

    def _normalize(self, waveform: Tensor) -> Tensor:
        if not self.stamp.normalize:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(correction=0) + _VARIANCE_FLOOR).sqrt()


def fit_ssl_kmeans(
    waveforms: Iterable[np.ndarray],
    model_folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layer: int = LAYER,
    clusters: int = CLUSTERS,
    seed: int = 0,
    most_frames: int = MOST_FRAMES,
    device: str = "cpu",
    provenance: Mapping[str, Any] | None = None,
) -> SslKmeansFit:
    """Fit centres to speech and write the tokenizer's model directory.

    Args:
        waveforms: (T,) float32 at 16 kHz, read once; what is longer than 30 s is cut.
        model_folder: Folder of the speech model.
        output: The directory to make.
        layer: See `SslEncoder`.
        clusters: How many centres.
        seed: Of the draw of frames and of the first centres; the same gives the same centres.
        most_frames: At most so many frames, drawn evenly from all, are kept and fitted.
        device: Where the speech model runs; the centres are fitted on the CPU.
        provenance: What else the directory shall say about its making.

    Raises:
        ModelNotFoundError, ModelFormatError, UsageError: As `SslEncoder.load`.
        DataError: There are fewer frames than centres, or a hidden state is not a number.
    """
    if clusters < 1 or most_frames < clusters:
        message = f"{clusters} centres cannot be fitted to {most_frames} frames"
        raise UsageError(message, remedy="keep at least as many frames as centres")
    encoder, generator = SslEncoder.load(model_folder, layer, device), np.random.default_rng(seed)
    sample = _Reservoir(most_frames, encoder.width, generator)
    skipped = 0
    for waveform in waveforms:
        pieces = [waveform[start : start + _PIECE_SAMPLES] for start in range(0, len(waveform), _PIECE_SAMPLES)]
        before = sample.seen
        for piece in pieces:
            sound = torch.from_numpy(np.ascontiguousarray(piece, dtype=np.float32))[None]
            sample.add(encoder.encode(sound, torch.tensor([sound.shape[1]]))[0][0].cpu().numpy())
        skipped += sample.seen == before
    points = sample.frames()
    if len(points) < clusters:
        message = f"{len(points)} frames of speech do not make {clusters} centres ({skipped} sounds were too short)"
        raise DataError(message, remedy="give more speech, or fewer clusters")
    if not np.isfinite(points).all():
        raise DataError("a hidden state is not a number", path=model_folder, remedy="look for NaN in the sounds")
    fitted = _kmeans(torch.from_numpy(points), clusters, generator)
    config = SslKmeansConfig(layer, encoder.frame_rate, clusters, encoder.stamp)
    figures = {"seed": seed, "frames": sample.seen, "used": len(points), "distance": fitted.distance}
    folder = hub.save_model(
        output, asdict(config), {"centres": fitted.centres}, KIND, _card(config), figures | dict(provenance or {})
    )
    logger.info("%d centres from %d of %d frames, %d sounds skipped", clusters, len(points), sample.seen, skipped)
    return SslKmeansFit(folder, sample.seen, len(points), skipped, fitted.unused, fitted.distance)


def read_stamp(folder: str | os.PathLike[str]) -> SslModelStamp:
    """Return which speech model lies in a folder, without loading it.

    Raises:
        ModelNotFoundError: There is no such folder, or a part is missing.
        ModelFormatError: It is no speech model for 16 kHz, or its weights are pickles.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        remedy = "give a folder; `audio-llm models get OWNER/NAME` downloads one, and `models list` says where it lies"
        raise ModelNotFoundError("no such folder; names on the hub are not taken here", path=folder, remedy=remedy)
    kind = _read_json(folder / _CONFIG).get("model_type")
    if kind not in _NETWORKS:
        message = f"a model of the type {kind or 'unknown'}, not one of {', '.join(_NETWORKS)}"
        raise ModelFormatError(message, path=folder, remedy="use a model such as facebook/wav2vec2-xls-r-300m")
    settings = _read_json(folder / _PREPROCESSOR)
    normalize, rate = settings.get("do_normalize"), settings.get("sampling_rate")
    if not isinstance(normalize, bool) or rate != SAMPLE_RATE:
        message = f"do_normalize is {normalize!r} and sampling_rate {rate!r}, not true or false and {SAMPLE_RATE}"
        remedy = "take the file that was published with the model"
        raise ModelFormatError(message, path=folder / _PREPROCESSOR, remedy=remedy)
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


def _load_network(folder: Path, layer: int) -> Any:
    """Return the network up to and with a layer, without the layer norm behind the last one."""
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
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFormatError(f"not a speech model that can be read: {error}", path=folder, remedy=remedy) from None
    missing = set(loading["missing_keys"]) - _TRAINING_ONLY
    if missing:  # transformers would leave them at random
        message = f"{len(missing)} weights are missing, first {min(missing)}"
        raise ModelFormatError(message, path=folder, remedy=remedy)
    if config.do_stable_layer_norm:
        network.encoder.layer_norm = torch.nn.Identity()
    return network


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing a bar, and from listing the layers above that are left out on purpose."""
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


class _Reservoir:
    """An even draw from a stream of frames of unknown length (Vitter 1985, algorithm R)."""

    def __init__(self, most: int, width: int, generator: np.random.Generator) -> None:
        self._kept, self._generator, self.seen = np.empty((most, width), np.float32), generator, 0

    def add(self, frames: np.ndarray) -> None:
        """Take note of frames (N, D)."""
        numbers = np.arange(self.seen, self.seen + len(frames))
        places = np.where(numbers < len(self._kept), numbers, self._generator.integers(0, numbers + 1))
        kept = places < len(self._kept)
        self._kept[places[kept]] = frames[kept]  # of frames with the same place the last one stays
        self.seen += len(frames)

    def frames(self) -> np.ndarray:
        """Return the frames drawn, (M, D) float32."""
        return self._kept[: self.seen]


@dataclass(frozen=True)
class _Clusters:
    """Centres (K, D) float32, how many of them no point is nearest to, and the mean squared distance."""

    centres: Tensor
    unused: int
    distance: float


def _kmeans(points: Tensor, clusters: int, generator: np.random.Generator) -> _Clusters:
    """Return centres of points (N, D) float32; a centre without points moves to the point farthest from its own."""
    centres = _first_centres(points, clusters, generator)
    before = math.inf
    for _ in range(_MOST_PASSES):
        numbers, distances = _nearest(points, centres)
        counts = torch.bincount(numbers, minlength=clusters)
        distance = float(distances.mean())
        if before - distance <= _LEAST_GAIN * distance and bool(counts.all()):
            break
        before = distance
        sums = torch.zeros(clusters, points.shape[1], dtype=torch.float64)
        for block, places in zip(points.split(_BLOCK), numbers.split(_BLOCK), strict=True):
            sums.index_add_(0, places, block.double())
        empty = counts == 0
        centres = (sums / counts.clamp_min(1)[:, None]).float()
        centres[empty] = points[distances.topk(int(empty.sum())).indices]
    numbers, distances = _nearest(points, centres)
    return _Clusters(centres, clusters - len(numbers.unique()), float(distances.mean()))


def _first_centres(points: Tensor, clusters: int, generator: np.random.Generator) -> Tensor:
    """Return points far apart (Arthur and Vassilvitskii 2007, k-means++), of some drawn at random: (K, D) float32."""
    some = generator.choice(len(points), min(len(points), _START_FRAMES * clusters), replace=False)
    candidates = points[torch.from_numpy(some)]
    centred = candidates - candidates.mean(0)  # what all have in common would cost precision below
    energies = centred.square().sum(1)
    nearest = torch.full((len(centred),), math.inf)
    chosen: list[int] = []
    pick = int(generator.integers(len(centred)))
    for _ in range(clusters):
        chosen.append(pick)
        distances = (energies - 2.0 * (centred @ centred[pick]) + energies[pick]).clamp_min(0.0)
        nearest = torch.minimum(nearest, distances)
        nearest[pick] = 0.0
        sums = nearest.double().cumsum(0)
        draw = torch.tensor([generator.random() * float(sums[-1])], dtype=torch.float64)
        pick = min(int(torch.searchsorted(sums, draw, right=True)), len(centred) - 1)
    return candidates[chosen].clone()


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return number (N,) int64 of and squared distance (N,) float64 from the nearest centre (K, D) of points (N, D)."""
    centres = centres.double()  # hidden states of XLS-R have a few large values, beside which float32 loses the rest
    energies = centres.square().sum(1)
    numbers, distances = [points.new_zeros(0, dtype=torch.int64)], [energies.new_zeros(0)]
    for block in points.split(_BLOCK):
        block = block.double()
        best = (energies - 2.0 * (block @ centres.T)).min(1)
        numbers.append(best.indices)
        distances.append((best.values + block.square().sum(1)).clamp_min(0.0))
    return torch.cat(numbers), torch.cat(distances)


def _card(config: SslKmeansConfig) -> str:
    return f"""# Semantic tokens by k-means

{config.size} centres of hidden states of layer {config.layer} of the speech model `{config.model.name}`, \
{config.frame_rate:g} tokens a second.
Loading them needs that model's folder: SHA-256 of its weights `{config.model.fingerprint}`.
"""
