"""Speech to semantic tokens: a hidden layer of a self-supervised speech model, quantized to the nearest of K centers.

As in GenSE's code: XLS-R 300M, its 6th layer, 1,024 centers, 50 tokens per second. The model is a local folder in the
transformers format; the centers are fitted here and store which model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.errors import ConfigError, DataError, ModelFormatError, UsageError
from audio_llm.features import valid_mask
from audio_llm.tokenizer.base import SAMPLE_RATE, Tokens
from audio_llm.tokenizer.kmeans import Reservoir, kmeans, nearest
from audio_llm.tokenizer.ssl_model import LAYER, PREPROCESSOR, SslEncoder, SslModelStamp, load_network, read_stamp
from audio_llm.training.config import config_from_dict

KIND = "ssl-kmeans"
CLUSTERS = 1024
MOST_FRAMES = 200_000  # at most, for fitting; 0.8 GB at a width of 1024

_PIECE_SAMPLES = 30 * SAMPLE_RATE  # longer sounds are split for fitting: the cost of attention grows with the square

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SslKmeansConfig:
    """Settings of a saved tokenizer.

    Attributes:
        layer: See `SslEncoder`.
        frame_rate: Tokens per second.
        size: Number of centers.
        model: The speech model.
    """

    layer: int
    frame_rate: float
    size: int
    model: SslModelStamp


@dataclass(frozen=True)
class SslKmeansFit:
    """Result of fitting.

    Attributes:
        folder: The model directory.
        frames: Number of frames of the sounds.
        used: Number of frames drawn at random to fit the centers.
        skipped: Number of sounds too short for a frame.
        unused: Number of centers that no frame is nearest to, because frames repeat.
        distance: Mean squared distance of a frame from its center.
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
        encoder: Encoder of the hidden states.
        centers: (K, D) float32.
    """

    def __init__(self, encoder: SslEncoder, centers: Tensor) -> None:
        self.encoder, self.centers = encoder, centers.float().to(encoder.device)

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
            ModelNotFoundError, ModelFormatError: As `hub.load_model` and `SslEncoder.load`, or it is another speech
                model.
        """
        loaded, ssl_folder = hub.load_model(name_or_dir, KIND), Path(ssl_folder).expanduser()
        remedy = "fit it again, or get it again"
        try:
            config = config_from_dict(SslKmeansConfig, loaded.config, loaded.path / hub.CONFIG_NAME)
        except ConfigError as error:
            raise ModelFormatError(f"its settings do not fit: {error}", path=loaded.path, remedy=remedy) from None
        stamp = read_stamp(ssl_folder)
        expected = f"the speech model {config.model.name!r} (SHA-256 {config.model.fingerprint[:16]}...)"
        if stamp.fingerprint != config.model.fingerprint:
            message = f"its centers belong to {expected}, not to the one in {ssl_folder}"
            raise ModelFormatError(message, path=loaded.path, remedy="give that model, or fit centers to this one")
        if stamp.normalize != config.model.normalize:
            message = f"do_normalize is {stamp.normalize}, but the centers of {loaded.path} were fitted with the other"
            remedy = f"restore {PREPROCESSOR}, or fit the centers again"
            raise ModelFormatError(message, path=ssl_folder / PREPROCESSOR, remedy=remedy)
        encoder = SslEncoder(load_network(ssl_folder, config.layer).to(device), config.layer, stamp)
        centers = loaded.tensors.get("centres")
        if centers is None or centers.shape != (config.size, encoder.width) or config.frame_rate != encoder.frame_rate:
            message = (
                f"it should hold {config.size} centers of width {encoder.width} and {encoder.frame_rate:g} a second"
            )
            raise ModelFormatError(message, path=loaded.path, remedy=remedy)
        return cls(encoder, centers)

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return len(self.centers)

    @property
    def frame_rate(self) -> float:
        """Tokens per second."""
        return self.encoder.frame_rate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the centers, the layer, the speech model's weights and whether waveforms are normalized."""
        source = {**asdict(self.encoder.stamp), "layer": self.encoder.layer}
        del source["name"]
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
        digest.update(self.centers.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, waveforms: Tensor, lengths: Tensor) -> Tokens:
        """Return tokens (see `SemanticTokenizer.encode`)."""
        hidden, counts = self.encoder.encode(waveforms, lengths)
        numbers = nearest(hidden.flatten(0, 1), self.centers)[0].view(hidden.shape[:2])
        tokens = numbers * valid_mask(counts, hidden.shape[1])
        return Tokens(tokens.to(waveforms.device), counts.to(waveforms.device))


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
    """Fit centers to speech and write the tokenizer's model directory.

    Args:
        waveforms: (T,) float32 at 16 kHz, read once; longer than 30 s they are split.
        model_folder: Folder of the speech model.
        output: The directory to write.
        layer: See `SslEncoder`.
        clusters: Number of centers.
        seed: Random seed of the sampled frames and the initial centers; equal seeds give equal centers.
        most_frames: Largest number of frames, sampled uniformly, to fit.
        device: Device of the speech model; the centers are fitted on the CPU.
        provenance: Further facts about the origin, stored in the directory.

    Raises:
        ModelNotFoundError, ModelFormatError, UsageError: As `SslEncoder.load`.
        DataError: There are fewer frames than centers, or a hidden state is not a number.
    """
    if clusters < 1 or most_frames < clusters:
        message = f"{clusters} centers cannot be fitted to {most_frames} frames"
        raise UsageError(message, remedy="give at least as many frames as centers")
    encoder, generator = SslEncoder.load(model_folder, layer, device), np.random.default_rng(seed)
    sample = Reservoir(most_frames, encoder.width, generator)
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
        message = (
            f"{len(points)} frames of speech do not suffice for {clusters} centers ({skipped} sounds were too short)"
        )
        raise DataError(message, remedy="give more speech, or fewer clusters")
    if not np.isfinite(points).all():
        raise DataError("a hidden state is not a number", path=model_folder, remedy="check the sounds for NaN")
    fitted = kmeans(torch.from_numpy(points), clusters, generator)
    config = SslKmeansConfig(layer, encoder.frame_rate, clusters, encoder.stamp)
    figures = {"seed": seed, "frames": sample.seen, "used": len(points), "distance": fitted.distance}
    folder = hub.save_model(
        output, asdict(config), {"centres": fitted.centers}, KIND, _card(config), figures | dict(provenance or {})
    )
    logger.info("%d centers from %d of %d frames, %d sounds skipped", clusters, len(points), sample.seen, skipped)
    return SslKmeansFit(folder, sample.seen, len(points), skipped, fitted.unused, fitted.distance)


def _card(config: SslKmeansConfig) -> str:
    return f"""# Semantic tokens by k-means

{config.size} centers of hidden states of layer {config.layer} of the speech model `{config.model.name}`, \
{config.frame_rate:g} tokens per second.
Loading them needs that model's folder: SHA-256 of its weights `{config.model.fingerprint}`.
"""
