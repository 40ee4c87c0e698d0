"""The contract: what a device must know of the files beside it, as one JSON document."""

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
    """One float32 input or output; a size of None is free."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class StatePort:
    """A state that goes out as `output` and comes back as `input`."""

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StreamPart:
    """What runs chunk by chunk; the states are `initial` before the first."""

    file: str
    sha256: str
    chunk: Port
    conditions: tuple[Port, ...]
    sound: Port
    states: tuple[StatePort, ...]
    initial: str = "zeros"


@dataclass(frozen=True)
class EnrollmentPart:
    """What learns from a look who is wanted; below the least level of `front` nobody seems to talk there."""

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
    """Which model it was; the fingerprint is the SHA-256 of its weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Contract:
    """The whole document; `latency_samples` are a chunk and the lookahead."""

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
        """Return the document, the same for the same contract."""
        document = asdict(self, dict_factory=_with_stored_keys)
        return json.dumps({"format": FORMAT, "version": VERSION, **document}, indent=1) + "\n"


def _with_stored_keys(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a dataclass under their keys in the document."""
    return {_STORED_KEYS.get(name, name): value for name, value in fields}


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
