"""Export a model: graphs and contract are written to a temporary folder, compared with the network, then moved."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

import audio_llm
from audio_llm import hub
from audio_llm.errors import UsageError
from audio_llm.tse.enrollment import EnrollmentEncoder
from audio_llm.tse.frames import CHUNK, OVERLAP, SAMPLE_RATE
from audio_llm.tse.gridnet import GridNet
from audio_llm.tse.models import load_model
from audio_llm_export import contract, enrollment, stream
from audio_llm_export.extractor_step import EARS
from audio_llm_export.half_precision import is_half, round_to_half
from audio_llm_export.int8 import write_int8
from audio_llm_export.parity import Parity, compare_enrollment, compare_stream

DEFAULT_MODEL = "tse-small"
STREAM_FILE, INT8_FILE, ENROLLMENT_FILE = "tse.onnx", "tse.int8.onnx", "enrolment.onnx"


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: Folder of the files.
        files: Names of the files, the contract last.
        size_bytes: Size of the graphs that the contract names.
        stream: Deviation of the stream graph from the network.
        enrollment: Deviation of the enrollment graph from the network; None if there is none.
        int8: Deviation of the graph with 8-bit weights, for which there is no tolerance; None if there is none.
        lossless: Whether all weights are exact in half precision; if not, the graphs are compared with a network whose
            weights are rounded to half precision.
    """

    folder: Path
    files: tuple[str, ...]
    size_bytes: int
    stream: Parity
    enrollment: Parity | None
    int8: Parity | None
    lossless: bool


def export_tse(
    name_or_dir: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    int8: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Export a model of target-speech extraction: `tse.onnx`, `enrolment.onnx` and the contract `tse.json`.

    Args:
        name_or_dir: A model directory, or the name of a model.
        folder: Folder for the files; it is created.
        int8: Whether to write `tse.int8.onnx` as well, which the contract then names.
        overwrite: Whether to replace existing files.

    Raises:
        ModelNotFoundError, ModelFormatError: As `tse.models.load_model`.
        ParityError: A graph deviates from the network; nothing was written.
        UsageError: The folder already contains a contract, or the path is a file.
    """
    _check(Path(folder), overwrite)
    loaded = load_model(name_or_dir)
    model = contract.Model(hub.find_model(name_or_dir).resolve().name, hub.fingerprint(name_or_dir))
    lossless = is_half(loaded.network)
    hearing = round_to_half(loaded.network).eval()
    encoder = EnrollmentEncoder(hearing).eval()
    return _export(stream.target_speaker_stream(hearing), encoder, model, Path(folder), int8, lossless)


def export_gridnet(
    gridnet: GridNet, folder: str | os.PathLike[str], name: str = "tse-gridnet", overwrite: bool = False
) -> Exported:
    """Export the reference network, conditioned on an embedding: `tse.onnx` and `tse.json`; raises as `export_tse`."""
    _check(Path(folder), overwrite)
    model = contract.Model(name, _fingerprint(gridnet))
    rounded = round_to_half(gridnet).eval()
    return _export(stream.gridnet_stream(rounded), None, model, Path(folder), False, is_half(gridnet))


def _export(
    part: stream.Stream,
    encoder: EnrollmentEncoder | None,
    model: contract.Model,
    folder: Path,
    int8: bool,
    lossless: bool,
) -> Exported:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        path = temporary / STREAM_FILE
        stream.write_stream(part, path)
        parity = compare_stream(part, path)
        parity.require(path)
        enrollment_parity, int8_parity = None, None
        if encoder is not None:
            enrollment.write_enrollment(encoder, temporary / ENROLLMENT_FILE)
            enrollment_parity = compare_enrollment(encoder, temporary / ENROLLMENT_FILE)
            enrollment_parity.require(temporary / ENROLLMENT_FILE)
        if int8:
            path = temporary / INT8_FILE
            write_int8(temporary / STREAM_FILE, path)
            int8_parity = compare_stream(part, path)
        document = _contract(part, path, encoder, model)
        (temporary / contract.NAME).write_text(document.to_json(), encoding="utf-8")
        names = [path.name for path in sorted(temporary.iterdir()) if path.name != contract.NAME] + [contract.NAME]
        size = path.stat().st_size + (0 if encoder is None else (temporary / ENROLLMENT_FILE).stat().st_size)
        folder.mkdir(exist_ok=True)
        for name in names:  # the contract last: after a kill in between, a device detects that its hashes do not match
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(folder, tuple(names), size, parity, enrollment_parity, int8_parity, lossless)


def _contract(
    part: stream.Stream, path: Path, encoder: EnrollmentEncoder | None, model: contract.Model
) -> contract.Contract:
    chunk = (1, EARS, CHUNK)
    states = tuple(
        contract.StatePort(name, f"{stream.NEXT}{name}", tuple(tensor.shape)) for name, tensor in part.initial().items()
    )
    condition = contract.Port(part.condition, (1, part.width))
    enrollment_part = (
        contract.EnrollmentPart(
            ENROLLMENT_FILE,
            contract.sha256(path.with_name(ENROLLMENT_FILE)),
            contract.Port(enrollment.RECORDING, (1, EARS, None)),
            contract.Port(enrollment.VECTOR, (1, part.width)),
            contract.Port(enrollment.FRONTAL_LEVEL, (1,)),
            encoder.network.config.least_front_db,
            enrollment.LEAST_SAMPLES,
            enrollment.MOST_SAMPLES,
        )
        if encoder is not None
        else None
    )
    return contract.Contract(
        sample_rate=SAMPLE_RATE,
        channels=EARS,
        chunk_samples=CHUNK,
        lookahead_samples=OVERLAP,
        latency_samples=CHUNK + OVERLAP,
        model=model,
        stream=contract.StreamPart(
            path.name,
            contract.sha256(path),
            contract.Port(stream.INPUT, chunk),
            (condition,),
            contract.Port(stream.SOUND, chunk),
            states,
        ),
        enrollment=enrollment_part,
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "audio_llm": audio_llm.__version__},
    )


def _check(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file", path=folder, remedy="name a folder for the export")
    if (folder / contract.NAME).exists() and not overwrite:
        raise UsageError("already contains an exported model", path=folder, remedy="add --overwrite to replace it")


def _fingerprint(module: nn.Module) -> str:
    """Return a hash of weights that are not stored in a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
