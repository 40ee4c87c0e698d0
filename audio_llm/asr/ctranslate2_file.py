"""The weights of a CTranslate2 model in numpy: reading `model.bin` without the ctranslate2 package.

Layout of binary version 6, little-endian, strings as uint16 length and bytes that end in 0:

    uint32 binary version, string specification, uint32 revision
    uint32 number of variables, each: string name, uint8 rank, uint32 per dimension, uint8 type, uint32 bytes, values
    uint32 number of aliases, each: string alias, string name of the variable it equals
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from audio_llm.errors import ModelFormatError, ModelNotFoundError

MODEL_NAME = "model.bin"

_BINARY_VERSION = 6
_SPECIFICATION, _REVISION = "WhisperSpec", 3
_TYPES = ("<f4", "i1", "<i2", "<i4", "<f2", "bfloat16")  # the position is the number in the file
_MAX_RANK = 3  # a convolution's weight has the most dimensions in Whisper
_MAX_NAME = 1000  # bytes
_REMEDY = "get the model again"


def read_ctranslate2(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every variable of a Whisper model in the CTranslate2 form.

    Args:
        folder: The folder with `model.bin`.

    Returns:
        Variables by CTranslate2's names, such as `encoder/layer_0/self_attention/linear_0/weight`, scalars with shape
        (). Weights in int8 or int16 are dequantized to float32, without their scales; bfloat16 is widened to
        float32; float16 and float32 stay. An alias has the same array as the variable it names.

    Raises:
        ModelNotFoundError: There is no `model.bin`.
        ModelFormatError: It is cut off or damaged, of another version, or no Whisper.
    """
    path = Path(folder) / MODEL_NAME
    if not path.is_file():
        raise ModelNotFoundError(
            f"no {MODEL_NAME} in the folder", path=folder, remedy="give the folder of a CTranslate2 model"
        )
    with path.open("rb") as file:
        reader = _Reader(file, path)
        _check_header(reader)
        stored = _read_variables(reader)
        aliases = _read_aliases(reader, stored)
        if reader.remaining:
            raise reader.damaged(f"{reader.remaining} bytes follow the end of the model")
    variables = _without_scales(stored, path)
    for name, array in variables.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelFormatError(f"{name} has values that are not finite", path=path, remedy=_REMEDY)
    return variables | {alias: variables[name] for alias, name in aliases.items() if name in variables}


class _Reader:
    """Reads a binary file, never beyond its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.remaining = os.fstat(file.fileno()).st_size

    def number(self, code: str) -> int:
        """Return one unsigned number of `struct`'s code B, H or I."""
        return int(struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0])

    def string(self) -> str:
        """Return one string, without the 0 at its end."""
        length = self.number("H")
        content = self._bytes(length)
        if not 1 < length <= _MAX_NAME or content[-1] != 0:
            raise self.damaged("a name is not a string")
        try:
            return content[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a name is not a string") from None

    def values(self, type_name: str, shape: tuple[int, ...], size: int) -> np.ndarray:
        """Return an array of `size` bytes; bfloat16 is widened to float32."""
        stored_type = np.dtype("<u2" if type_name == "bfloat16" else type_name)
        if math.prod(shape) * stored_type.itemsize != size:
            raise self.damaged(f"an array of shape {shape} cannot have {size} bytes")
        if size > self.remaining:
            raise self.damaged(f"is cut off: {size} bytes of an array should follow, {self.remaining} do")
        array = np.fromfile(self._file, stored_type, math.prod(shape)).reshape(shape)
        self.remaining -= size
        if type_name == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def damaged(self, what: str) -> ModelFormatError:
        """Return the error of an invalid file."""
        return ModelFormatError(what, path=self.path, remedy=_REMEDY)

    def _bytes(self, count: int) -> bytes:
        content = self._file.read(count) if count <= self.remaining else b""
        if len(content) != count:
            raise self.damaged("is cut off")
        self.remaining -= count
        return content


def _check_header(reader: _Reader) -> None:
    """Refuse everything but Whisper in the version this module knows."""
    version = reader.number("I")
    if version != _BINARY_VERSION:
        message = f"not a CTranslate2 model of binary version {_BINARY_VERSION}: its version is {version}"
        raise ModelFormatError(message, path=reader.path, remedy="convert it with a current ctranslate2")
    specification = reader.string()
    if specification != _SPECIFICATION:
        message = f"a CTranslate2 model of the kind {specification}, not {_SPECIFICATION}"
        raise ModelFormatError(message, path=reader.path, remedy="give the folder of a Whisper model")
    revision = reader.number("I")
    if revision != _REVISION:
        message = f"revision {revision} of {_SPECIFICATION}, not {_REVISION}"
        raise ModelFormatError(message, path=reader.path, remedy="convert it with a current ctranslate2")


def _read_variables(reader: _Reader) -> dict[str, np.ndarray]:
    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):  # a wrong count ends at the end of the file
        name = reader.string()
        if name in variables:
            raise reader.damaged(f"{name} occurs twice")
        rank = reader.number("B")
        if rank > _MAX_RANK:
            raise reader.damaged(f"{name} has {rank} dimensions")
        shape = tuple(reader.number("I") for _ in range(rank))
        type_number = reader.number("B")
        if type_number >= len(_TYPES):
            raise reader.damaged(f"{name} has the unknown type {type_number}")
        variables[name] = reader.values(_TYPES[type_number], shape, reader.number("I"))
    return variables


def _read_aliases(reader: _Reader, variables: dict[str, np.ndarray]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        if alias in variables or alias in aliases or name not in variables:
            raise reader.damaged(f"{alias} cannot be an alias of {name}")
        aliases[alias] = name
    return aliases


def _without_scales(stored: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Dequantize weights: stored integers are value times scale, with one scale per row or one in total."""
    variables = {name: array for name, array in stored.items() if not name.endswith("_scale")}
    for name, array in variables.items():
        if array.ndim == 0 or array.dtype.kind == "f":
            continue
        scale = stored.get(f"{name}_scale")
        is_known = scale is not None and scale.dtype.kind == "f" and scale.shape in ((), array.shape[:1])
        if scale is None or not is_known or array.dtype.itemsize > 2:
            message = f"{name} is quantized in a way this version cannot read"
            raise ModelFormatError(message, path=path, remedy="get the model in int8, float16 or float32")
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ModelFormatError(f"{name}_scale has impossible values", path=path, remedy=_REMEDY)
        variables[name] = array / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    return variables
