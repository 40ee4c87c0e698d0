"""Exports a model: graphs and contract are made beside the folder, compared with the network, then moved in."""

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
from audio_llm_export import contract, enrolment, stream
from audio_llm_export.extractor_step import EARS
from audio_llm_export.halves import is_half, round_to_half
from audio_llm_export.int8 import write_int8
from audio_llm_export.parity import Parity, compare_enrolment, compare_stream

DEFAULT_MODEL = "tse-small"
STREAM_FILE, INT8_FILE, ENROLMENT_FILE = "tse.onnx", "tse.int8.onnx", "enrolment.onnx"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        files: Names, the contract last.
        size_bytes: Of the graphs that the contract names.
        stream: How far the graph of a chunk is from the network.
        enrolment: The same of enrolment; None where there is none.
        int8: The same of the graph with weights of 8 bits, which is not held to any tolerance; None without one.
        lossless: Whether half precision holds every weight; if not, the network compared had them rounded to it.
    """

    folder: Path
    files: tuple[str, ...]
    size_bytes: int
    stream: Parity
    enrolment: Parity | None
    int8: Parity | None
    lossless: bool


def export_tse(
    name_or_dir: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    int8: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Export a model of target-speech hearing: `tse.onnx`, `enrolment.onnx` and the contract `tse.json`.

    Args:
        name_or_dir: A model directory, or the name of a model.
        folder: Where the files go; it is made.
        int8: Write `tse.int8.onnx` as well and let the contract name it.
        overwrite: Replace files that are there.

    Raises:
        ModelNotFoundError, ModelFormatError: As `tse.models.load_model`.
        ParityError: A graph does not compute what the network does; nothing was written.
        UsageError: The folder holds a contract already.
    """
    _check(Path(folder), overwrite)
    loaded = load_model(name_or_dir)
    model = contract.Model(hub.find_model(name_or_dir).resolve().name, hub.fingerprint(name_or_dir))
    lossless = is_half(loaded.network)
    hearing = round_to_half(loaded.network).eval()
    encoder = EnrollmentEncoder(hearing).eval()
    return _export(stream.hearing_stream(hearing), encoder, model, Path(folder), int8, lossless)


def export_gridnet(
    gridnet: GridNet, folder: str | os.PathLike[str], name: str = "tse-gridnet", overwrite: bool = False
) -> Exported:
    """Export the reference, which takes an embedding and no look: `tse.onnx` and `tse.json`; raises as `export_tse`."""
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
        found = compare_stream(part, path)
        found.require(path)
        enrolled, eight = None, None
        if encoder is not None:
            enrolment.write_enrolment(encoder, temporary / ENROLMENT_FILE)
            enrolled = compare_enrolment(encoder, temporary / ENROLMENT_FILE)
            enrolled.require(temporary / ENROLMENT_FILE)
        if int8:
            path = temporary / INT8_FILE
            write_int8(temporary / STREAM_FILE, path)
            eight = compare_stream(part, path)
        document = _contract(part, path, encoder, model)
        (temporary / contract.NAME).write_text(document.to_json(), encoding="utf-8")
        names = [path.name for path in sorted(temporary.iterdir()) if path.name != contract.NAME] + [contract.NAME]
        size = path.stat().st_size + (0 if encoder is None else (temporary / ENROLMENT_FILE).stat().st_size)
        folder.mkdir(exist_ok=True)
        for name in names:  # the contract last: with a kill in between, its hashes do not fit, which a device notices
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(folder, tuple(names), size, found, enrolled, eight, lossless)


def _contract(
    part: stream.Stream, path: Path, encoder: EnrollmentEncoder | None, model: contract.Model
) -> contract.Contract:
    chunk = (1, EARS, CHUNK)
    states = tuple(
        contract.StatePort(name, f"{stream.NEXT}{name}", tuple(tensor.shape)) for name, tensor in part.initial().items()
    )
    condition = contract.Port(part.condition, (1, part.width))
    look = (
        contract.EnrolmentPart(
            ENROLMENT_FILE,
            contract.sha256(path.with_name(ENROLMENT_FILE)),
            contract.Port(enrolment.LOOK, (1, EARS, None)),
            contract.Port(enrolment.VECTOR, (1, part.width)),
            contract.Port(enrolment.FRONT, (1,)),
            encoder.network.config.least_front_db,
            enrolment.LEAST_SAMPLES,
            enrolment.MOST_SAMPLES,
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
        enrolment=look,
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "audio_llm": audio_llm.__version__},
    )


def _check(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file", path=folder, remedy="name a folder for the export")
    if (folder / contract.NAME).exists() and not overwrite:
        raise UsageError("holds an exported model already", path=folder, remedy="add --overwrite to replace it")


def _fingerprint(module: nn.Module) -> str:
    """Return a hash of weights that lie in no file."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
