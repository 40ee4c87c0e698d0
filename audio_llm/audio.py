"""Sound files: probe, read, stream in blocks, write, resample."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from audio_llm.audio_channels import EACH, MIX, Channel, Excerpt, Mixer, channel_index
from audio_llm.audio_containers import NOT_SOUND, ContainerTrack
from audio_llm.audio_soundfile import SoundFileTrack
from audio_llm.errors import AudioFileError, MissingDependencyError

SAMPLE_RATE = 16_000  # Hz, the input rate of the recognizers
STDIN = "-"  # the name of standard input

_PIECE = 16_384  # frames written at a time
_RATES = (1_000, 1_000_000)  # Hz, the plausible range of a header
_LEAST_ALIGNED_S = 0.5
_CONTAINERS = (  # that libsndfile does not know: offset, magic bytes, name
    (4, b"ftyp", "MP4 (m4a)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\x1a\x45\xdf\xa3", "WebM (Matroska)"),
    (0, b"#!AMR", "AMR"),
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
READABLE = (  # suffixes of sound files; the content decides how a file is read
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".spx", ".mp3", ".mp2", ".mpga"),
    *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".sph", ".voc", ".wv", ".ape", ".tta"),
    *(".m4a", ".m4b", ".m4p", ".m4r", ".aac", ".aax", ".ac3", ".eac3", ".dts", ".amr", ".awb", ".3ga", ".wma", ".mka"),
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".weba", ".mkv", ".avi", ".wmv", ".asf", ".flv", ".ogv", ".mts"),
    *(".m2ts", ".mpg", ".mpeg", ".mxf"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioInfo:
    """Header of a sound file.

    Attributes:
        path: The file; `-` for standard input.
        sample_rate: Hz.
        channels: Count.
        duration_s: Duration in seconds according to the header; infinite where it is unknown.
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
        AudioFileError: The file is missing, unreadable or not a sound file.
    """
    with BlockReader(path) as reader:
        return reader.info


def read(
    path: str | os.PathLike[str],
    sample_rate: int = SAMPLE_RATE,
    channel: Channel = MIX,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> np.ndarray:
    """Read a whole sound file; its warnings (see `BlockReader`) go to the log.

    Args:
        path: The file, or `-` for standard input.
        sample_rate: Target rate in Hz.
        channel: As in `Excerpt`.
        start_s: As in `Excerpt`.
        end_s: As in `Excerpt`.

    Returns:
        (T,) float32 within -1..1, the mean of the channels or the chosen one, or (T, C) for `each`; empty for an
        empty file.

    Raises:
        AudioFileError: The file is missing, unreadable, no sound, or holds NaN or infinite samples; it has no such
            channel, or it ends before `start_s`.
        UsageError: The channel or the times are not valid for any file.
    """
    with BlockReader(path, sample_rate, channel=channel, start_s=start_s, end_s=end_s) as reader:
        blocks = list(reader)
        for warning in reader.warnings:
            _log.warning("%s: %s", path, warning)
        shape = (0, reader.info.channels) if channel == EACH else (0,)
    return np.concatenate(blocks) if blocks else np.zeros(shape, np.float32)


class BlockReader:
    """Reads a sound file once, block by block, in memory that does not depend on its length.

    libsndfile reads the formats it knows; other containers (MP4, WebM, WMA, AMR, video ...) are decoded by FFmpeg, on
    the time line of a player. Samples are never scaled: channels are averaged, the rate is converted, and samples
    beyond -1..1 are clipped (with a warning where a floating-point file has such samples).

    Args:
        path: The file, or `-` for standard input, which is copied to a temporary file first, as are pipes.
        sample_rate: Target rate in Hz; None keeps that of the file.
        block_s: Length of the blocks in seconds; the last may be shorter.
        channel: As in `Excerpt`; blocks are (T, C) for `each`, else (T,).
        start_s: As in `Excerpt`.
        end_s: As in `Excerpt`.

    Raises:
        AudioFileError: The file is missing, unreadable or no sound, it has no such channel, or it ends before
            `start_s`; while reading: NaN or infinite samples, or an end before `start_s` where that is not known.
        UsageError: The channel or the times are not valid for any file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int | None = SAMPLE_RATE,
        block_s: float = 30.0,
        channel: Channel = MIX,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> None:
        self._excerpt = Excerpt(channel, start_s, end_s)
        self._each = channel == EACH
        self._name = "standard input" if str(path) == STDIN else str(path)
        self._warnings: list[str] = []
        self._spool = _spool(path)
        self._stream: IO[bytes] | None = None
        self._track: SoundFileTrack | ContainerTrack | None = None
        try:
            source = Path(self._spool.name if self._spool else path)
            size, container = _check(source, self._name)
            if size:
                self._track = self._open(source, size, container)
            else:
                self._warnings.append("the file is empty (0 bytes)")
            self.info = self._describe(Path(path))
            self._index = channel_index(channel, self.info.channels, self._name) if size else None
            if start_s > 0 and self.info.duration_s <= start_s:
                self._refuse_start(self.info.duration_s)
        except BaseException:
            self.close()
            raise
        self.sample_rate = sample_rate or self.info.sample_rate
        self._block = max(1, round(block_s * self.sample_rate))

    @property
    def start_s(self) -> float:
        """Where the first block begins, in seconds of the file: `start_s`, rounded to a sample of the file."""
        return round(self._excerpt.start_s * self.info.sample_rate) / self.info.sample_rate

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the sound file, one line each; complete once the last block was read."""
        return (*(self._track.warnings if self._track else ()), *self._warnings)

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and remove the temporary copy, if there is one."""
        for thing in (self._track, self._stream, self._spool):
            if thing is not None:
                thing.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (T,) or (T, C) float32 blocks at `sample_rate`; can be iterated only once."""
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

    def _open(self, source: Path, size: int, container: str | None) -> SoundFileTrack | ContainerTrack:
        """Open the file with libsndfile, or with FFmpeg if it is a container or libsndfile cannot read it."""
        try:
            track: SoundFileTrack | ContainerTrack = (
                self._open_container(source, container) if container else SoundFileTrack(source, size, self._name)
            )
        except AudioFileError as error:
            if container:
                raise
            try:
                track = self._open_container(source)
            except (AudioFileError, MissingDependencyError) as second:
                raise (error if second.message.startswith(NOT_SOUND) else second) from None
        if not _RATES[0] <= track.sample_rate <= _RATES[1]:
            track.close()
            raise AudioFileError(
                f"its header claims a sample rate of {track.sample_rate} Hz",
                path=self._name,
                remedy=f"name the true rate: sox -r 16000 {shlex.quote(self._name)} OUT.wav",
            )
        return track

    def _open_container(self, source: Path, kind: str = "") -> ContainerTrack:
        self._stream = source.open("rb")
        return ContainerTrack(self._stream, self._name, kind)

    def _describe(self, path: Path) -> AudioInfo:
        if (track := self._track) is None:
            return AudioInfo(path, SAMPLE_RATE, 1, 0.0, "empty")
        return AudioInfo(path, track.sample_rate, track.channels, track.duration_s, track.format)

    def _resampled(self) -> Iterator[np.ndarray]:
        if self._track is None:
            return
        if self._track.sample_rate == self.sample_rate:
            yield from self._pieces(self._track)
            return
        import soxr

        channels = (self._track.channels,) if self._each else ()
        stream = soxr.ResampleStream(self._track.sample_rate, self.sample_rate, *channels or (1,), dtype="float32")
        for piece in self._pieces(self._track):
            yield stream.resample_chunk(piece)
        yield stream.resample_chunk(np.zeros((0, *channels), np.float32), last=True)

    def _pieces(self, track: SoundFileTrack | ContainerTrack) -> Iterator[np.ndarray]:
        """Yield the selected channels, or their mean, at the rate of the file."""
        rate, mixer, peak = track.sample_rate, Mixer(track.channels, track.sample_rate), 0.0
        start, end_s = round(self._excerpt.start_s * rate), self._excerpt.end_s
        end = round(end_s * rate) if end_s is not None and end_s < float("inf") else None
        done = track.seek(start)
        for raw in track.pieces():
            part = raw[max(0, start - done) : None if end is None else max(0, end - done)]
            if len(part):
                piece = self._of_channels(part, mixer)
                if not np.isfinite(piece).all():
                    bad = ~np.isfinite(piece.reshape(len(piece), -1)).all(axis=1)
                    self._refuse_not_finite(max(start, done) + int(bad.argmax()))
                peak = max(peak, float(np.abs(part).max()))
                yield piece
            done += len(raw)
            if end is not None and done >= end:
                break
        if start > 0 and done <= start:
            self._refuse_start(done / rate)
        if peak > 1 and track.is_float:
            self._warnings.append(f"samples up to {peak:.4g} were clipped to 1: the file is too loud, scale it down")
        if mixer.aligned_s >= _LEAST_ALIGNED_S:
            self._warnings.append(
                f"its channels are inverted copies of each other for {mixer.aligned_s:.1f} s and would cancel out: "
                "they were aligned before they were mixed"
            )

    def _of_channels(self, part: np.ndarray, mixer: Mixer) -> np.ndarray:
        if self._each:
            return part.copy()
        return mixer.mix(part) if self._index is None else part[:, self._index].copy()

    def _refuse_not_finite(self, frame: int) -> None:
        raise AudioFileError(
            f"NaN or infinite sample at {frame / self.info.sample_rate:.2f} s",
            path=self._name,
            remedy="export it again as 16-bit PCM from the program that made it",
        )

    def _refuse_start(self, duration_s: float) -> None:
        raise AudioFileError(
            f"ends after {duration_s:.2f} s, nothing can be read from {self._excerpt.start_s:g} s on",
            path=self._name,
            remedy="choose an earlier start",
        )


def write(path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int) -> None:
    """Write a sound file atomically, in the format of its suffix.

    Args:
        path: Ends in .wav, .flac (both 16-bit), .ogg, .oga (Vorbis), .opus or .mp3.
        waveform: (T,) or (T, C) float in -1..1; samples beyond are clipped.
        sample_rate: Hz.

    Raises:
        AudioFileError: Unknown suffix, NaN or infinite samples, a rate that the format lacks, or an unwritable path.
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
    """Write blocks (T,) or (T, C) to a sound file (see `write`) as they are generated.

    Args:
        path: As for `write`.
        blocks: The blocks; generating them may raise an error.
        sample_rate: Hz.
        channels: Channels of every block.
        comment: Comment in the metadata of the file.
        keep_part: After an error, keep the written part as `NAME.part.SUFFIX` and log a warning.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise AudioFileError("no format for this suffix", path=path, remedy=f"use one of {', '.join(_WRITERS)}")
    kind, subtype = _WRITERS[path.suffix.lower()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    monitored, written = _MonitoredBlocks(blocks), 0
    try:
        with soundfile.SoundFile(str(temporary), "w", sample_rate, channels, subtype, format=kind) as file:
            if comment:
                file.comment = comment
            for block in monitored:
                if not np.isfinite(block).all():
                    raise AudioFileError(
                        "NaN or infinite samples are not written", path=path, remedy="mend the waveform"
                    )
                for start in range(
                    0, len(block), _PIECE
                ):  # in one call, libsndfile's Vorbis encoder would overflow the stack
                    file.write(np.clip(block[start : start + _PIECE], -1.0, 1.0))
                    written = file.frames
        os.replace(temporary, path)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        if monitored.failed and not isinstance(error, OSError):
            raise  # not an error of the file
        raise AudioFileError(
            f"cannot be written: {error}".replace(str(temporary), path.name),
            path=path,
            remedy=f"check the folder, and that {path.suffix} can hold {channels} channels at {sample_rate} Hz",
        ) from None
    finally:
        if keep_part and written and temporary.exists():
            part = path.with_suffix(f".part{path.suffix}")
            os.replace(temporary, part)
            _log.warning("the finished part is kept in %s", part)
        temporary.unlink(missing_ok=True)


class _MonitoredBlocks:
    """Passes blocks on and records whether generating them failed."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks, self.failed = blocks, False

    def __iter__(self) -> Iterator[np.ndarray]:
        self.failed = True  # until all are generated
        for block in self._blocks:
            self.failed = False  # while the block is written
            yield block
            self.failed = True
        self.failed = False


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Convert the sample rate.

    Args:
        waveform: (T,) or (T, C) float32.
        from_rate: Sample rate of the waveform in Hz.
        to_rate: Target rate in Hz.

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
    """Copy standard input or a pipe to a temporary file, since libsndfile must seek; None for other files."""
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


def _check(source: Path, name: str) -> tuple[int, str | None]:
    """Return the size in bytes and the name of the container (see `_container_name`), or raise if it is not a file."""
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
    return size, _container_name(head)


def _container_name(head: bytes) -> str | None:
    """Return the name of a container that libsndfile does not know, from its first bytes."""
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return next((name for at, mark, name in _CONTAINERS if head.startswith(mark, at)), None)
