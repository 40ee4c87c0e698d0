"""The contract: a JSON document that describes the exported files in the same folder to a device."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT, VERSION, NAME = "audio-llm-hearing", 2, "tse.json"
_STORED_KEYS = {  # keys of version 2 that differ from the field's name
    "enrollment": "enrolment",
    "recording": "look",
    "frontal_level": "front",
    "least_frontal_level_db": "least_front_db",
}


@dataclass(frozen=True)
class Port:
    """A float32 input or output; a size of None is free."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class StatePort:
    """A state: the network's `output` becomes its `input` for the next chunk."""

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StreamPart:
    """The network that runs once per chunk; `initial` is the value of the states before the first chunk."""

    file: str
    sha256: str
    chunk: Port
    conditions: tuple[Port, ...]
    sound: Port
    states: tuple[StatePort, ...]
    initial: str = "zeros"


@dataclass(frozen=True)
class EnrollmentPart:
    """The network that maps an enrollment recording to a vector and to the level of the frontal speaker.

    Below `least_frontal_level_db`, no frontal speaker is assumed.
    """

    file: str
    sha256: str
    recording: Port
    vector: Port
    frontal_level: Port
    least_frontal_level_db: float
    least_samples: int
    most_samples: int


@dataclass(frozen=True)
class Model:
    """The exported model; the fingerprint is the SHA-256 of its weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Contract:
    """The whole document; `latency_samples` is the sum of chunk and lookahead."""

    sample_rate: int
    channels: int
    chunk_samples: int
    lookahead_samples: int
    latency_samples: int
    model: Model
    stream: StreamPart
    enrollment: EnrollmentPart | None
    versions: dict[str, str]

    def to_json(self) -> str:
        """Return the document; equal contracts give equal documents."""
        document = asdict(self, dict_factory=_with_stored_keys)
        return json.dumps({"format": FORMAT, "version": VERSION, **document}, indent=1) + "\n"


def _with_stored_keys(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a dataclass under their keys in the document."""
    return {_STORED_KEYS.get(name, name): value for name, value in fields}


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
