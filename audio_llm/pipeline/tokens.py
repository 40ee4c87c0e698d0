"""Sound files to tokens as JSON lines, and codes back to sound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from audio_llm import audio
from audio_llm.audio import SAMPLE_RATE, BlockReader, readable_twice
from audio_llm.codec.codec import Codes, SpeechCodec, gain_of
from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.mono import active_power
from audio_llm.tokenizer.base import SemanticTokenizer

WINDOW_S = 30.0  # length of an encoded window
MARGIN_S = 2.0  # context on each side of a window
_SEMANTIC, _ACOUSTIC = "semantic", "acoustic"


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one recording: a line of a token file.

    Attributes:
        audio_filepath: The recording.
        kind: `semantic` of a tokenizer, `acoustic` of a codec.
        model: Name of the tokenizer or codec.
        fingerprint: Fingerprint of its weights.
        frame_rate: Tokens per second.
        samples: Length of the recording in samples at 16 kHz.
        gain_db: Gain applied before encoding, in dB; reverted by decoding.
        tokens: Token numbers.
    """

    audio_filepath: str
    kind: Literal["semantic", "acoustic"]
    model: str
    fingerprint: str
    frame_rate: float
    samples: int
    gain_db: float
    tokens: tuple[int, ...]

    def to_line(self) -> str:
        """Return the JSON line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def tokenize(
    path: str | os.PathLike[str],
    model: SemanticTokenizer | SpeechCodec,
    name: str,
    progress: Callable[[float], None] | None = None,
) -> TokenFile:
    """Return the tokens of a recording, its channels averaged, in memory that its length hardly changes.

    Args:
        path: The recording; `-` for standard input.
        model: Tokenizer or codec.
        name: Name of the model.
        progress: Called with the seconds of sound just finished.

    Raises:
        AudioFileError: It cannot be read.
    """
    is_codec = isinstance(model, SpeechCodec)
    tokens: list[int] = []
    samples = 0
    with readable_twice(path) as source:
        gain = _gain(source) if is_codec else 1.0
        for window in _windows(source, model.frame_rate):
            waveform = torch.from_numpy(window.waveform * np.float32(gain))[None]
            lengths = torch.tensor([waveform.shape[1]])
            encoded = model.encode(waveform, lengths)
            row = encoded[0][0, : int(encoded[1][0])].tolist()
            end = len(row) if window.last else window.skip + window.keep
            tokens += row[window.skip : end]
            samples = window.start + waveform.shape[1]
            if progress is not None:
                progress((window.keep if not window.last else len(row) - window.skip) / model.frame_rate)
    kind: Literal["semantic", "acoustic"] = "acoustic" if is_codec else "semantic"
    gain_db = round(20.0 * float(np.log10(gain)), 3)
    rate = model.frame_rate
    return TokenFile(os.fspath(path), kind, name, model.fingerprint, rate, samples, gain_db, tuple(tokens))


def detokenize(row: TokenFile, codec: SpeechCodec | None) -> np.ndarray:
    """Return the waveform of acoustic codes: (samples,) float32 at 16 kHz.

    Args:
        row: The codes.
        codec: The codec; None for rows of semantic tokens, which are refused.

    Raises:
        DataError: They are semantic tokens, which hold content but not sound, or are not codes of this codec.
        ModelFormatError: They are codes of another codec.
    """
    if row.kind != _ACOUSTIC or codec is None:
        remedy = "write codes with `audio-llm tokenize --codec`"
        raise DataError("these are semantic tokens, which have no sound", path=row.audio_filepath, remedy=remedy)
    if row.fingerprint != codec.fingerprint:
        remedy = f"decode with {row.model!r} as it was then, or tokenize again"
        raise ModelFormatError("another codec made these codes", path=row.audio_filepath, remedy=remedy)
    codes = np.array(row.tokens, dtype=np.int64)
    if len(codes) and not (codes.min() >= 0 and codes.max() < codec.size):
        raise DataError(f"a code is outside 0..{codec.size - 1}", path=row.audio_filepath, remedy="tokenize again")
    step = round(SAMPLE_RATE / codec.frame_rate)
    size, margin = round(WINDOW_S * codec.frame_rate), round(MARGIN_S * codec.frame_rate)
    parts = []
    for start in range(0, len(codes), size):
        first, last = max(0, start - margin), min(len(codes), start + size + margin)
        window = torch.from_numpy(codes[first:last])[None]
        lengths = torch.tensor([window.shape[1]])
        sound = codec.decode(Codes(window, lengths), lengths * step)[0].numpy()
        parts.append(sound[(start - first) * step :][: min(size, len(codes) - start) * step])
    sound = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    sound = np.pad(sound, (0, max(0, row.samples - len(sound))))[: row.samples]
    return np.asarray(sound / 10.0 ** (row.gain_db / 20.0), dtype=np.float32)


def read_tokens(path: str | os.PathLike[str]) -> list[TokenFile]:
    """Return the rows of a token file.

    Raises:
        DataError: It is missing, or a line is not a row of tokens.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path=path, remedy="give what `audio-llm tokenize` wrote") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            values["tokens"] = tuple(int(token) for token in values["tokens"])
            rows.append(TokenFile(**values))
        except (ValueError, TypeError, KeyError) as error:
            remedy = "give what `audio-llm tokenize` wrote"
            raise DataError(f"line {number} is not a row of tokens: {error}", path=path, remedy=remedy) from None
    return rows


@dataclass(frozen=True)
class _Window:
    """A window to encode: its waveform, its start, the range of its tokens that is used, and whether it is the last."""

    waveform: np.ndarray
    start: int
    skip: int
    keep: int
    last: bool


def _windows(path: str | os.PathLike[str], frame_rate: float) -> Iterator[_Window]:
    """Yield windows of 30 s with 2 s of context on both sides, so that all tokens have context."""
    size, margin = round(WINDOW_S * SAMPLE_RATE), round(MARGIN_S * SAMPLE_RATE)
    with BlockReader(path) as reader:
        waiting, start, skip = np.zeros(0, np.float32), 0, 0
        for block in reader:
            waiting = np.concatenate([waiting, block])
            while len(waiting) >= skip + size + 2 * margin:
                whole = waiting[: skip + size + margin]
                rate = frame_rate / SAMPLE_RATE
                yield _Window(whole, start, round(skip * rate), round(size * rate), False)
                drop = skip + size - margin
                waiting, start, skip = waiting[drop:], start + drop, margin
        if len(waiting):
            yield _Window(waiting, start, round(skip * frame_rate / SAMPLE_RATE), 0, True)


def _gain(path: str | os.PathLike[str]) -> float:
    """Return the gain that brings the loudest minute of a recording to `LEVEL_DB`; 1 for silence."""
    power = 0.0
    with BlockReader(path, block_s=60.0) as reader:
        for block in reader:
            power = max(power, active_power(block))
    return gain_of(power)


def write_sound(folder: Path, row: TokenFile, sound: np.ndarray, taken: set[str]) -> Path:
    """Write a decoded recording as `<stem>.wav`, numbered where this run already used the name; return the path."""
    stem = name = Path(row.audio_filepath).stem or "sound"
    number = 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    folder.mkdir(parents=True, exist_ok=True)
    audio.write(folder / f"{name}.wav", sound, SAMPLE_RATE)
    return folder / f"{name}.wav"
