"""The contract of an exported model: read `tse.json`, and reject a network that does not match it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_llm_realtime.errors import ContractError, ModelNotFoundError

NAME = "tse.json"
FORMAT = "audio-llm-hearing"
VERSION = 2
EARS = 2

_AGAIN = "export the model again with `audio-llm export tse`"


@dataclass(frozen=True)
class Port:
    """An input or output of a network, float32.

    Attributes:
        name: Name in the ONNX file.
        shape: Sizes; None for a free size.
    """

    name: str
    shape: tuple[int | None, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, if every size is fixed."""
        return tuple(int(size or 0) for size in self.shape)


@dataclass(frozen=True)
class State:
    """A state of the network that is carried from chunk to chunk; zeros at the beginning.

    Attributes:
        input: The network's input for it.
        output: The network's output for its next value.
    """

    input: Port
    output: Port


@dataclass(frozen=True)
class StreamContract:
    """The network that runs once per chunk.

    Attributes:
        path: The ONNX file.
        sha256: Hash of the file.
        chunk: Input for the binaural chunk.
        conditions: Inputs for the enrollment vector; empty if the network has no target speaker.
        sound: Output for the target speaker, delayed by `lookahead_samples`.
        states: States that are carried from chunk to chunk.
    """

    path: Path
    sha256: str
    chunk: Port
    conditions: tuple[Port, ...]
    sound: Port
    states: tuple[State, ...]

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Every input of the network."""
        return (self.chunk, *self.conditions, *(state.input for state in self.states))

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Every output of the network."""
        return (self.sound, *(state.output for state in self.states))


@dataclass(frozen=True)
class EnrollmentContract:
    """The network that maps an enrollment recording to a vector.

    Attributes:
        path: The ONNX file.
        sha256: Hash of the file.
        recording: Input for the binaural recording.
        vector: Output for the vector, the first condition of the stream.
        frontal_level: Output for the level of the frontal speaker relative to the recording, in dB.
        least_frontal_level_db: Level below which no frontal speaker is assumed.
        least_samples: Shortest accepted recording.
        most_samples: Longest part of a recording that is used, from its beginning.
    """

    path: Path
    sha256: str
    recording: Port
    vector: Port
    frontal_level: Port
    least_frontal_level_db: float
    least_samples: int
    most_samples: int


@dataclass(frozen=True)
class Contract:
    """Description of an exported model.

    Attributes:
        folder: Folder of the model.
        sample_rate: In Hz.
        chunk_samples: Samples of a chunk.
        lookahead_samples: Delay of the output relative to the chunk, in samples.
        model: Name of the model.
        fingerprint: Hash of the weights the model was exported from.
        stream: Network that runs once per chunk.
        enrollment: Network that runs once per enrollment; None if the model cannot enroll.
    """

    folder: Path
    sample_rate: int
    chunk_samples: int
    lookahead_samples: int
    model: str
    fingerprint: str
    stream: StreamContract
    enrollment: EnrollmentContract | None

    @property
    def chunk_ms(self) -> float:
        """Duration of a chunk in ms."""
        return 1000.0 * self.chunk_samples / self.sample_rate

    @property
    def lookahead_ms(self) -> float:
        """Lookahead of the network in ms."""
        return 1000.0 * self.lookahead_samples / self.sample_rate


def load_contract(folder: str | os.PathLike[str]) -> Contract:
    """Read the contract of a model directory.

    Args:
        folder: Folder with `tse.json` and the ONNX files that it names.

    Raises:
        ModelNotFoundError: The folder or the contract is missing.
        ContractError: The contract is damaged, inconsistent, or of another format or version.
    """
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        raise ModelNotFoundError(
            f"no {NAME} in this folder", path=folder, remedy="give the folder of an exported model"
        )
    try:
        document = _Reader(json.loads(path.read_text(encoding="utf-8")), path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ContractError(f"not JSON: {error}", path=path, remedy=_AGAIN) from None
    for key, right in (("format", FORMAT), ("version", VERSION), ("channels", EARS)):
        if document.value(key) != right:
            remedy = f"{_AGAIN} of the same version as this package"
            raise ContractError(f"{key} is {document.value(key)!r}, not {right!r}", path=path, remedy=remedy)
    chunk_samples = document.count("chunk_samples")
    lookahead_samples = document.count("lookahead_samples", least=0)
    if document.count("latency_samples") != chunk_samples + lookahead_samples:
        raise ContractError("latency_samples is not chunk_samples + lookahead_samples", path=path, remedy=_AGAIN)
    if lookahead_samples > chunk_samples:
        raise ContractError("lookahead_samples is more than chunk_samples", path=path, remedy=_AGAIN)
    model = document.part("model")
    stream = _read_stream(document.part("stream"), chunk_samples)
    enrollment = None if document.value("enrolment") is None else _read_enrollment(document.part("enrolment"), stream)
    return Contract(
        folder=folder,
        sample_rate=document.count("sample_rate"),
        chunk_samples=chunk_samples,
        lookahead_samples=lookahead_samples,
        model=model.text("name"),
        fingerprint=model.text("fingerprint"),
        stream=stream,
        enrollment=enrollment,
    )


def read_network(path: Path, sha256: str) -> bytes:
    """Return the bytes of an ONNX file.

    Raises:
        ModelNotFoundError: The file is missing.
        ContractError: The hash of the file is not the one in the contract.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelNotFoundError("this file of the model is missing", path=path, remedy=_AGAIN) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ContractError(f"the file is not the one that {NAME} describes: sha256 differs", path=path, remedy=_AGAIN)
    return content


def check_ports(path: Path, direction: str, expected: Sequence[Port], actual: Sequence[Any]) -> None:
    """Compare the ports of the contract with those of the network.

    Args:
        path: The ONNX file.
        direction: "input" or "output", for the message.
        expected: Ports of the contract.
        actual: Ports of the session, each with name, shape and type.

    Raises:
        ContractError: A name, a shape or a type differs.
    """
    by_name = {port.name: port for port in actual}
    if missing := [port.name for port in expected if port.name not in by_name]:
        raise ContractError(f"the network has no {direction} {missing[0]!r}", path=path, remedy=_AGAIN)
    if extra := sorted(by_name.keys() - {port.name for port in expected}):
        raise ContractError(f"the network's {direction} {extra[0]!r} is not in {NAME}", path=path, remedy=_AGAIN)
    for port in expected:
        network_port = by_name[port.name]
        shape = tuple(size if isinstance(size, int) else None for size in network_port.shape)
        if not _fits(shape, port.shape):
            raise ContractError(
                f"{direction} {port.name!r} has the shape {list(shape)}, not {list(port.shape)}",
                path=path,
                remedy=_AGAIN,
            )
        if network_port.type != "tensor(float)":
            raise ContractError(
                f"{direction} {port.name!r} is {network_port.type}, not float32", path=path, remedy=_AGAIN
            )


def _fits(actual: tuple[int | None, ...], stated: tuple[int | None, ...]) -> bool:
    """Return whether every size is the stated one or free in the network."""
    return len(actual) == len(stated) and all(a is None or a == b for a, b in zip(actual, stated, strict=True))


class _Reader:
    """Reads values from a part of the contract and checks their types; an error names the key."""

    def __init__(self, values: Any, path: Path, prefix: str = "") -> None:
        self.path = path
        self._prefix = prefix
        if not isinstance(values, dict):
            raise self.wrong("", "is not an object")
        self._values = values

    def wrong(self, key: str, what: str) -> ContractError:
        name = f"{self._prefix}{key}".rstrip(".") or "the contract"
        return ContractError(f"{name} {what}", path=self.path, remedy=_AGAIN)

    def value(self, key: str) -> Any:
        if key not in self._values:
            raise self.wrong(key, "is missing")
        return self._values[key]

    def count(self, key: str, least: int = 1) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"is {value!r}, not a whole number of {least} or more")
        return value

    def number(self, key: str) -> float:
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, f"is {value!r}, not a number")
        return float(value)

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, f"is {value!r}, not a string")
        return value

    def part(self, key: str) -> _Reader:
        return _Reader(self.value(key), self.path, f"{self._prefix}{key}.")

    def parts(self, key: str) -> list[_Reader]:
        values = self.value(key)
        if not isinstance(values, list):
            raise self.wrong(key, "is not a list")
        return [_Reader(value, self.path, f"{self._prefix}{key}[{n}].") for n, value in enumerate(values)]

    def file(self) -> Path:
        name = self.text("file")
        if Path(name).name != name:
            raise self.wrong("file", f"is {name!r}, not the name of a file in the same folder")
        return self.path.parent / name

    def shape(self, free: bool = False) -> tuple[int | None, ...]:
        """Return the shape; with `free`, one size may be null."""
        sizes = self.value("shape")
        right = isinstance(sizes, list) and sizes and all(isinstance(s, int) and s > 0 for s in sizes if s is not None)
        if not right or (None in sizes and not free):
            raise self.wrong("shape", f"is {sizes!r}, not a list of sizes")
        return tuple(sizes)

    def port(self, free: bool = False) -> Port:
        return Port(self.text("name"), self.shape(free))


def _read_stream(part: _Reader, chunk_samples: int) -> StreamContract:
    chunk, sound = part.part("chunk"), part.part("sound")
    for port in (chunk, sound):
        if port.shape() != (1, EARS, chunk_samples):
            raise port.wrong("shape", f"is {list(port.shape())}, not {[1, EARS, chunk_samples]}")
    if part.value("initial") != "zeros":
        raise part.wrong("initial", f"is {part.value('initial')!r}, not 'zeros'")
    states = tuple(
        State(Port(state.text("input"), state.shape()), Port(state.text("output"), state.shape()))
        for state in part.parts("states")
    )
    stream = StreamContract(
        path=part.file(),
        sha256=part.text("sha256"),
        chunk=chunk.port(),
        conditions=tuple(condition.port() for condition in part.parts("conditions")),
        sound=sound.port(),
        states=states,
    )
    for ports in (stream.inputs, stream.outputs):
        names = [port.name for port in ports]
        if len(set(names)) < len(names):
            raise part.wrong("states", "use one name twice")
    return stream


def _read_enrollment(part: _Reader, stream: StreamContract) -> EnrollmentContract:
    recording, vector = part.part("look").port(free=True), part.part("vector").port()
    if recording.shape != (1, EARS, None):
        raise part.wrong("look.shape", f"is {list(recording.shape)}, not {[1, EARS, None]}")
    if tuple(port.shape for port in stream.conditions) != (vector.shape,):
        raise part.wrong("vector.shape", f"is {list(vector.shape)}, which is not the shape of the stream's condition")
    least, most = part.count("least_samples"), part.count("most_samples")
    if most < least:
        raise part.wrong("most_samples", "is less than least_samples")
    frontal_level = part.part("front").port()
    if frontal_level.shape != (1,):
        raise part.wrong("front.shape", f"is {list(frontal_level.shape)}, not [1]")
    least_frontal_level_db = part.number("least_front_db")
    return EnrollmentContract(
        part.file(), part.text("sha256"), recording, vector, frontal_level, least_frontal_level_db, least, most
    )
