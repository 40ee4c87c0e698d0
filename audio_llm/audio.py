"""The one door for sound files: probe, read, stream in blocks, write, resample."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from audio_llm.errors import AudioFileError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000  # Hz, what the recognisers take
STDIN = "-"  # the name that stands for standard input

_PIECE = 16_384  # frames read at a time, whatever the block length
_RATES = (1_000, 1_000_000)  # Hz, outside of which a header is not believed
_UNKNOWN_BYTES = (range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000))  # as written to a pipe
_UNKNOWN_FRAMES = 1 << 60  # libsndfile's count where the file does not say
_LEAST_LOSS_S = {"MP3": 0.1}  # encoder padding makes the count of frames in an MP3 inexact
_CLAIMED_BYTES = re.compile(r"(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)")
_NO_END_MARK = re.compile(r"lacks an end-of-stream|without an End-Of-Stream", re.IGNORECASE)
_FOREIGN = (
    (4, b"ftyp", "MP4 (m4a)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\x1a\x45\xdf\xa3", "WebM (Matroska)"),
)
_WRITERS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

WRITABLE = tuple(_WRITERS)  # suffixes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file says about itself.

    Attributes:
        path: The file; `-` for standard input.
        sample_rate: Hz.
        channels: Count.
        duration_s: Seconds as the header claims them; infinite where it does not say.
        format: `WAV PCM_16`, `OGG OPUS` and so on; `empty` for a file of 0 bytes.
    """

    path: Path
    sample_rate: int
    channels: int
    duration_s: float
    format: str


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of a sound file; a file of 0 bytes counts as a sound of 0 s.

    Raises:
        AudioFileError: The file is missing, unreadable or no sound.
    """
    with BlockReader(path) as reader:
        return reader.info


def read(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Read a whole sound file; its warnings (see `BlockReader`) go to the log.

    Args:
        path: The file, or `-` for standard input.
        sample_rate: Wanted rate in Hz.

    Returns:
        (T,) float32, the mean of the channels, within -1..1; empty for an empty file.

    Raises:
        AudioFileError: The file is missing, unreadable, no sound, or holds NaN or infinite samples.
    """
    with BlockReader(path, sample_rate) as reader:
        blocks = list(reader)
        for warning in reader.warnings:
            _log.warning("%s: %s", path, warning)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class BlockReader:
    """Reads a sound file once, block by block, in memory that depends on neither its length nor its channels' count.

    Samples are never scaled: channels are averaged, the rate is converted, and what lies beyond -1..1 is clipped
    (with a warning where a file of floating-point samples really holds such values).

    Args:
        path: The file, or `-` for standard input, which is first copied to a temporary file. So is a pipe.
        sample_rate: Wanted rate in Hz; None takes the file's own.
        block_s: Length of the blocks in seconds; the last may be shorter.
        mono: Average the channels; otherwise blocks are (T, C).

    Raises:
        AudioFileError: The file is missing, unreadable or no sound; while reading: NaN or infinite samples.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int | None = SAMPLE_RATE,
        block_s: float = 30.0,
        mono: bool = True,
    ) -> None:
        self._mono = mono
        self._name = "standard input" if str(path) == STDIN else str(path)
        self._warnings: list[str] = []
        self._spool = _spool(path)
        self._stream: IO[bytes] | None = None
        self._file: soundfile.SoundFile | None = None
        try:
            source = Path(self._spool.name if self._spool else path)
            self._size = _check(source, self._name)
            if self._size:
                self._open(source)
        except BaseException:
            self.close()
            raise
        self.info = self._describe(Path(path))
        self.sample_rate = sample_rate or self.info.sample_rate
        self._block = max(1, round(block_s * self.sample_rate))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was amiss with the sound, one line each; complete once the last block was read."""
        return tuple(self._warnings)

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and remove the temporary copy, if there is one."""
        for thing in (self._file, self._stream, self._spool):
            if thing is not None:
                thing.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (T,) or (T, C) float32 blocks at `sample_rate`; once only, the reader is used up afterwards."""
        waiting: list[np.ndarray] = []
        count = 0
        for piece in self._resampled():
            waiting.append(np.clip(piece, -1.0, 1.0))
            count += len(piece)
            while count >= self._block:
                joined = np.concatenate(waiting)
                yield joined[: self._block].copy()
                waiting = [joined[self._block :]]
                count -= self._block
        if count:
            yield np.concatenate(waiting)

    def _open(self, source: Path) -> None:
        import soundfile

        try:
            self._file = _open_forward(str(source))
            if self._file.format == "MP3":
                self._file.close()
                self._stream = source.open("rb")  # so that it can be told how far the decoder came
                self._file = _open_forward(self._stream)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: the suffix .raw
            reason = getattr(error, "error_string", "").rstrip(". ")
            if not reason or "possibly a pipe" in reason:  # what libsndfile says of every MP3 it cannot read
                reason = "no sound in a known format"
            reason = reason.replace("Internal error : SF_INFO struct incomplete", "the sample rate is 0 or no number")
            raise AudioFileError(
                f"cannot be read as sound: {reason}",
                path=self._name,
                remedy=f"check that it plays at all; if it does: {_ffmpeg(self._name)}",
            ) from None
        if not _RATES[0] <= self._file.samplerate <= _RATES[1]:
            raise AudioFileError(
                f"its header claims a sample rate of {self._file.samplerate} Hz",
                path=self._name,
                remedy=f"name the true rate: sox -r 16000 {shlex.quote(self._name)} OUT.wav",
            )

    def _describe(self, path: Path) -> AudioInfo:
        if (file := self._file) is None:
            return AudioInfo(path, SAMPLE_RATE, 1, 0.0, "empty")
        duration_s = file.frames / file.samplerate if file.frames < _UNKNOWN_FRAMES else float("inf")
        return AudioInfo(path, file.samplerate, file.channels, duration_s, f"{file.format} {file.subtype}")

    def _resampled(self) -> Iterator[np.ndarray]:
        if self._file is None:
            return
        if self._file.samplerate == self.sample_rate:
            yield from self._pieces(self._file)
            return
        import soxr

        channels = () if self._mono else (self._file.channels,)
        stream = soxr.ResampleStream(self._file.samplerate, self.sample_rate, *channels or (1,), dtype="float32")
        for piece in self._pieces(self._file):
            yield stream.resample_chunk(piece)
        yield stream.resample_chunk(np.zeros((0, *channels), np.float32), last=True)

    def _pieces(self, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
        """Yield the channels, or their mean, at the file's own rate, and note what is missing at the end."""
        import soundfile

        buffer = np.empty((_PIECE, file.channels), np.float32)
        done, peak, broken = 0, 0.0, False
        while not broken:
            buffer.fill(np.nan)  # what libsndfile did decode before it raised an error is found by this mark
            try:
                count = len(file.read(out=buffer))
            except soundfile.SoundFileError:
                count = int(np.isnan(buffer[:, -1]).argmax()) if np.isnan(buffer[-1, -1]) else _PIECE
                broken = True
            piece = buffer[:count].mean(axis=1) if self._mono else buffer[:count].copy()
            if not np.isfinite(piece).all():
                self._refuse_not_finite(done + int((~np.isfinite(piece.reshape(count, -1)).all(axis=1)).argmax()))
            if count:
                peak = max(peak, float(np.abs(buffer[:count]).max()))
                yield piece
            done += count
            if count < _PIECE:
                break
        self._note_losses(file, done)
        if peak > 1 and file.subtype in {"FLOAT", "DOUBLE"}:
            self._warnings.append(f"samples up to {peak:.4g} were clipped to 1: the file is too loud, scale it down")

    def _refuse_not_finite(self, frame: int) -> None:
        raise AudioFileError(
            f"NaN or infinite sample at {frame / self.info.sample_rate:.2f} s",
            path=self._name,
            remedy="export it again as 16-bit PCM from the program that made it",
        )

    def _note_losses(self, file: soundfile.SoundFile, done: int) -> None:
        """Compare the frames that were read with what the header claims, format by format."""
        got_s = done / file.samplerate
        claimed = _claimed_frames(file, done)
        if self._stream is not None and not _mp3_knows_length(self._stream.name):
            claimed = done
            left = self._size - self._stream.tell()
            if left > max(_PIECE, 0.05 * self._size):
                self._warnings.append(
                    f"only the first {got_s:.2f} s could be read, {left} bytes of sound follow (an MP3 of varying "
                    f"bit rate without its length); to read them all: {_ffmpeg(self._name)}"
                )
        lost_s = (claimed - done) / file.samplerate
        if claimed < _UNKNOWN_FRAMES and lost_s >= _LEAST_LOSS_S.get(file.format, 0.005):
            self._warnings.append(f"the file is cut off or damaged: {lost_s:.2f} s lost after {got_s:.2f} s")
        elif _NO_END_MARK.search(file.extra_info) and got_s > 0.1:  # libsndfile writes none into the shortest files
            self._warnings.append(
                f"the file is cut off: it ends without its end mark after {got_s:.2f} s, "
                "the seconds lost are not known in this format"
            )
        elif file.format == "WAV" and not done and self._size > 1_000:
            self._warnings.append(
                f"its header claims 0 s but {self._size} bytes follow: the recording was not finished; "
                f"to repair it: sox --ignore-length {shlex.quote(self._name)} OUT.wav"
            )


def write(path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int) -> None:
    """Write a sound file whole or not at all, in the format its suffix names.

    Args:
        path: Ends in .wav, .flac (both 16-bit), .ogg, .oga (Vorbis), .opus or .mp3.
        waveform: (T,) or (T, C) float in -1..1; what lies beyond is clipped.
        sample_rate: Hz.

    Raises:
        AudioFileError: Unknown suffix, NaN or infinite samples, a rate the format has not, or no place to write to.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    write_blocks(path, [waveform], sample_rate, 1 if waveform.ndim == 1 else waveform.shape[1])


def write_blocks(
    path: str | os.PathLike[str],
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    channels: int = 1,
    comment: str = "",
    keep_part: bool = False,
) -> None:
    """Write a sound file as `write` does, of blocks (T,) or (T, C) as they come.

    Args:
        path: As for `write`.
        blocks: Their making may take long, and may fail.
        sample_rate: Hz.
        channels: Of every block.
        comment: Kept in the file's metadata.
        keep_part: Keep what was written when something fails, as `NAME.part.SUFFIX`; the log says so.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise AudioFileError("no format for this suffix", path=path, remedy=f"use one of {', '.join(_WRITERS)}")
    kind, subtype = _WRITERS[path.suffix.lower()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    made, written = _Making(blocks), 0
    try:
        with soundfile.SoundFile(str(temporary), "w", sample_rate, channels, subtype, format=kind) as file:
            if comment:
                file.comment = comment
            for block in made:
                if not np.isfinite(block).all():
                    raise AudioFileError(
                        "NaN or infinite samples are not written", path=path, remedy="mend the waveform"
                    )
                for start in range(0, len(block), _PIECE):  # whole at once, libsndfile's Vorbis overflows the stack
                    file.write(np.clip(block[start : start + _PIECE], -1.0, 1.0))
                    written = file.frames
        os.replace(temporary, path)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        if made.failed and not isinstance(error, OSError):
            raise  # no matter of the file
        raise AudioFileError(
            f"cannot be written: {error}".replace(str(temporary), path.name),
            path=path,
            remedy=f"check the folder, and that {path.suffix} can hold {channels} channels at {sample_rate} Hz",
        ) from None
    finally:
        if keep_part and written and temporary.exists():
            part = path.with_suffix(f".part{path.suffix}")
            os.replace(temporary, part)
            _log.warning("what was finished is kept in %s", part)
        temporary.unlink(missing_ok=True)


class _Making:
    """Blocks as they are made; tells afterwards whether their making failed."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks, self.failed = blocks, False

    def __iter__(self) -> Iterator[np.ndarray]:
        self.failed = True  # until all have come
        for block in self._blocks:
            self.failed = False  # while it is written
            yield block
            self.failed = True
        self.failed = False


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Convert the sample rate.

    Args:
        waveform: (T,) or (T, C) float32.
        from_rate: Its rate in Hz.
        to_rate: Wanted rate in Hz.

    Returns:
        (T',) or (T', C) float32; the input itself where the rates are equal.
    """
    if from_rate == to_rate:
        return waveform
    import soxr

    return np.asarray(soxr.resample(np.asarray(waveform, dtype=np.float32), from_rate, to_rate))


@contextlib.contextmanager
def readable_twice(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a file that can be read more than once: standard input and pipes are copied to a temporary one."""
    with contextlib.ExitStack() as stack:
        spool = _spool(path)
        yield Path(stack.enter_context(spool).name) if spool is not None else Path(path)


def _spool(path: str | os.PathLike[str]) -> Any:
    """Copy standard input or a pipe to a temporary file, for libsndfile must seek; None for other files."""
    if str(path) == STDIN:
        source: IO[bytes] = sys.stdin.buffer
    elif os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
        source = open(path, "rb")  # noqa: SIM115
    else:
        return None
    spool = tempfile.NamedTemporaryFile(prefix="audio-llm-")  # noqa: SIM115
    shutil.copyfileobj(source, spool)
    spool.flush()
    return spool


def _check(source: Path, name: str) -> int:
    """Return the size in bytes, or raise where no sound can be in the file."""
    try:
        if not source.is_dir() and source.exists() and not source.is_file():
            raise AudioFileError("a device, not a file", path=name, remedy="record from it to a file first")
        with source.open("rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise AudioFileError("no such file", path=name, remedy="check the name") from None
    except IsADirectoryError:
        raise AudioFileError("a folder, not a sound file", path=name, remedy="name the files in it") from None
    except PermissionError:
        raise AudioFileError(
            "no permission to read it", path=name, remedy=f"chmod u+r {shlex.quote(name)}, or ask its owner"
        ) from None
    except OSError as error:
        raise AudioFileError(f"cannot be opened: {error.strerror}", path=name, remedy="check the name") from None
    if container := _foreign_container(head):
        raise AudioFileError(f"{container} is not a format that is read here", path=name, remedy=_ffmpeg(name))
    return size


def _foreign_container(head: bytes) -> str | None:
    """Name the container by its first bytes where libsndfile does not know it."""
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return next((name for at, mark, name in _FOREIGN if head.startswith(mark, at)), None)


def _ffmpeg(name: str) -> str:
    path = Path(name)
    out = path.with_name(f"{path.stem}_16k.wav" if path.suffix.lower() == ".wav" else f"{path.stem}.wav")
    return f"ffmpeg -i {shlex.quote(name)} -ar 16000 -ac 1 {shlex.quote(str(out))}"


def _mp3_knows_length(name: str) -> bool:
    """True where an encoder left the count of frames in the first frame (behind an ID3 tag of any length)."""
    with open(name, "rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":
            tag = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(tag)
        first = file.read(256)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _open_forward(source: str | IO[bytes]) -> soundfile.SoundFile:
    """Open a file to be read once from start to end.

    soundfile seeks to where it already is after every read of a seekable file. In an MP3 that throws away the bits
    that a frame borrows from those before it: the next samples come out wrong and mpg123 prints an error.
    """
    import soundfile

    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Forward(source)


def _claimed_frames(file: soundfile.SoundFile, done: int) -> int:
    """Return the frames the header promises; libsndfile corrects the count of WAV and its like, but logs it."""
    match = _CLAIMED_BYTES.search(file.extra_info)
    if not match:
        return file.frames
    claimed, real = map(int, match.groups())
    if any(claimed in sizes for sizes in _UNKNOWN_BYTES):
        return done
    if real:
        return round(done * claimed / real)
    align = re.search(r"Block Align\s*: (\d+)", file.extra_info)
    return claimed // int(align.group(1)) if align else done
