"""Sound files that libsndfile reads: WAV, FLAC, Ogg, MP3, AIFF, AU, CAF and similar."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from audio_llm.errors import AudioFileError

if TYPE_CHECKING:
    import soundfile

PIECE = 16_384  # frames read at a time, independent of the block length

_UNKNOWN_BYTES = (range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000))  # as written to a pipe
_UNKNOWN_FRAMES = 1 << 60  # libsndfile's count where it is unknown
_LEAST_LOSS_S = {"MP3": 0.1}  # encoder padding makes the count of frames in an MP3 inexact
_CLAIMED_BYTES = re.compile(r"(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)")
_NO_END_MARK = re.compile(r"lacks an end-of-stream|without an End-Of-Stream", re.IGNORECASE)
_EXACT_SEEK = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"}  # uncompressed formats


class SoundFileTrack:
    """A sound file, decoded by libsndfile from start to end.

    Args:
        source: The file.
        size: Size in bytes.
        name: Name of the file, for errors.

    Raises:
        AudioFileError: libsndfile cannot read it.
    """

    def __init__(self, source: Path, size: int, name: str) -> None:
        self.warnings: list[str] = []
        self._source, self._size, self._name = source, size, name
        self._stream: IO[bytes] | None = None
        self._start = 0
        self._file = self._open()
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        self.format = f"{self._file.format} {self._file.subtype}"
        self.is_float = self._file.subtype in {"FLOAT", "DOUBLE"}

    @property
    def duration_s(self) -> float:
        """Duration in seconds according to the header; infinite where it is unknown."""
        return self._file.frames / self.sample_rate if self._file.frames < _UNKNOWN_FRAMES else float("inf")

    def close(self) -> None:
        """Close the file."""
        for thing in (getattr(self, "_file", None), self._stream):
            if thing is not None:
                thing.close()

    def seek(self, frame: int) -> int:
        """Go to a frame; returns where the next piece begins: 0 where seeking would not be exact."""
        import soundfile

        exact = self._file.subtype.startswith("PCM") or self.is_float or self._file.subtype in {"ULAW", "ALAW"}
        if not exact or self._file.format not in _EXACT_SEEK or not 0 < frame < self._file.frames:
            return 0
        try:
            self._start = self._file.seek(frame)
        except soundfile.SoundFileError:  # a damaged file
            self.close()
            self._file, self._start = self._open(), 0
        return self._start

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield (T, C) float32, each valid until the next, and record what is missing at the end."""
        import soundfile

        file = self._file
        buffer = np.empty((PIECE, file.channels), np.float32)
        done, broken = self._start, False
        while not broken:
            buffer.fill(np.nan)  # marks the samples that libsndfile decoded before an error
            try:
                count = len(file.read(out=buffer))
            except soundfile.SoundFileError:
                count = int(np.isnan(buffer[:, -1]).argmax()) if np.isnan(buffer[-1, -1]) else PIECE
                broken = True
            if count:
                yield buffer[:count]
            done += count
            if count < PIECE:
                break
        self._note_losses(file, done)

    def _open(self) -> soundfile.SoundFile:
        import soundfile

        try:
            file = _open_forward(str(self._source))
            if file.format == "MP3":
                file.close()
                self._stream = self._source.open("rb")  # to find how far the decoder came
                file = _open_forward(self._stream)
            return file
        except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: the suffix .raw
            self.close()
            reason = getattr(error, "error_string", "").rstrip(". ")
            if not reason or "possibly a pipe" in reason:  # libsndfile's message for every unreadable MP3
                reason = "no sound in a known format"
            reason = reason.replace("Internal error : SF_INFO struct incomplete", "the sample rate is 0 or no number")
            raise AudioFileError(
                f"cannot be read as sound: {reason}",
                path=self._name,
                remedy=f"check that it plays at all; if it does: {ffmpeg_line(self._name)}",
            ) from None

    def _note_losses(self, file: soundfile.SoundFile, done: int) -> None:
        """Compare the frames that were read with what the header claims, format by format."""
        got_s = done / file.samplerate
        claimed = _claimed_frames(file, done)
        if self._stream is not None and not _mp3_knows_length(self._stream.name):
            claimed = done
            left = self._size - self._stream.tell()
            if left > max(PIECE, 0.05 * self._size):
                self.warnings.append(
                    f"only the first {got_s:.2f} s could be read, {left} bytes of sound follow (an MP3 of varying "
                    f"bit rate without its length); to read them all: {ffmpeg_line(self._name)}"
                )
        lost_s = (claimed - done) / file.samplerate
        if claimed < _UNKNOWN_FRAMES and lost_s >= _LEAST_LOSS_S.get(file.format, 0.005):
            self.warnings.append(f"the file is cut off or damaged: {lost_s:.2f} s lost after {got_s:.2f} s")
        elif _NO_END_MARK.search(file.extra_info) and got_s > 0.1:  # libsndfile writes none into the shortest files
            self.warnings.append(
                f"the file is cut off: it ends without its end mark after {got_s:.2f} s, "
                "the seconds lost are not known in this format"
            )
        elif file.format == "WAV" and not done and self._size > 1_000:
            self.warnings.append(
                f"its header claims 0 s but {self._size} bytes follow: the recording was not finished; "
                f"to repair it: sox --ignore-length {shlex.quote(self._name)} OUT.wav"
            )


def ffmpeg_line(name: str) -> str:
    """Return the command that converts a file to a readable one."""
    path = Path(name)
    out = path.with_name(f"{path.stem}_16k.wav" if path.suffix.lower() == ".wav" else f"{path.stem}.wav")
    return f"ffmpeg -i {shlex.quote(name)} -ar 16000 -ac 1 {shlex.quote(str(out))}"


def _mp3_knows_length(name: str) -> bool:
    """Return whether the first frame, after an ID3 tag of any length, holds the number of frames."""
    with open(name, "rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":
            tag = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(tag)
        first = file.read(256)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _open_forward(source: str | IO[bytes]) -> soundfile.SoundFile:
    """Open a file for reading once from start to end.

    soundfile seeks to the current position after every read of a seekable file. In an MP3 that discards the bits
    that a frame borrows from previous ones: the next samples are wrong and mpg123 prints an error.
    """
    import soundfile

    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Forward(source)


def _claimed_frames(file: soundfile.SoundFile, done: int) -> int:
    """Return the number of frames in the header; libsndfile corrects that of WAV and similar formats, but logs it."""
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
