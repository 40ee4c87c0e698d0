"""Audio tracks of containers and codecs beyond libsndfile (MP4, WebM, WMA, AMR ...), decoded by FFmpeg."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from audio_llm.errors import AudioFileError, MissingDependencyError

if TYPE_CHECKING:
    import av

NOT_SOUND = "cannot be read as sound"  # beginning of FFmpeg's error for unknown formats
PIECE = 16_384  # frames per piece

# Allowed demuxers of FFmpeg. Those of playlists (hls, concat, dash) would open other files.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,avi,flv,mpegts,mpeg,mxf,rm,nut,ogg,mp3,aac,amr,amrnb,amrwb,ac3,eac3,dts,"
    "flac,wav,w64,aiff,au,caf,wv,ape,tta,tak,mpc,mpc8,loas,voc,nistsphere,dsf,iff,truehd,mlp,gsm,qcp"
)
_NAMES = {"mov": "MP4", "matroska": "Matroska", "asf": "WMA"}
_EXACT_END = ("mov",)  # their length is exact to the sample
_CLAIMED_END = ("mov", "matroska", "asf", "flv")  # their length is stored, not estimated
_FROM_ZERO = ("mov", "matroska")  # their time line begins at 0
_LIVE_S = 10.0  # a later first time is the clock of a live stream, which players set to 0
_GAP_S = 0.1  # smaller jumps of the time stamps are jitter
_DAMAGE_S = 0.005  # the same where packets could not be decoded
_LONGEST_GAP_S = 3600.0  # a longer one is a wrong time stamp
_PADDING = 8_192  # maximum encoder padding after the end of the track, samples
_LEAST_LOSS_S = 0.25
_PROTECTED = (b"drms", b"enca", b"drmi", b"aavd")  # sample entries of encrypted audio in MP4
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_ROOMS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes of MP4 that hold boxes
_MOST_BOXES = 100_000


class ContainerTrack:
    """First decodable audio track of a container.

    The output is on the time line of a player: encoder delays are removed, a later start and gaps are
    silence.

    Args:
        stream: The file, opened for reading; closed by the caller.
        name: Name of the file, for errors.
        kind: Format according to the first bytes, for errors.

    Raises:
        AudioFileError: There is no audio track, it is encrypted or damaged, or the file is not such a container.
    """

    def __init__(self, stream: IO[bytes], name: str, kind: str = "") -> None:
        self.warnings: list[str] = []
        self._name, self._supposed = name, kind
        self._stream = stream
        self._container = self._open()
        try:
            self._track = self._choose()
            self._frames = self._decoded()
            self._broken_s = self._pending_s = self._broken_at_s = 0.0
            self._last_s = -math.inf  # end of the last packet on the clock of the file
            self._first = next(self._frames, None)
            if self._first is None:
                codec = self._track.codec_context.codec.canonical_name.upper()
                raise self._error(f"nothing of its audio track ({codec}) can be decoded", "copy or export it again")
        except BaseException:
            self.close()
            raise
        self.sample_rate = self._first.sample_rate
        self.channels = self._first.layout.nb_channels
        self._origin_s = self._time_zero()
        self._end_s = self._claimed_end()
        self.duration_s = self._end_s
        codec = self._track.codec_context.codec.canonical_name
        self.format = f"{_NAMES.get(self._kind, self._kind)} {codec}".upper()
        self.is_float = codec.startswith("pcm_f")

    def close(self) -> None:
        """Close the decoder."""
        self._container.close()

    def seek(self, frame: int) -> int:
        """Go to a frame; returns where the next piece begins: 0, since seeking in containers is not exact."""
        return 0

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield (T, C) float32 pieces of equal length, the last one shorter; can be iterated only once."""
        waiting: list[np.ndarray] = []
        count = 0
        for chunk in self._trimmed(self._timed()):
            waiting.append(chunk)
            count += len(chunk)
            if count >= PIECE:
                joined = np.concatenate(waiting)
                whole = count // PIECE * PIECE
                yield from (joined[start : start + PIECE] for start in range(0, whole, PIECE))
                waiting, count = [joined[whole:]], count - whole
        if count:
            yield np.concatenate(waiting)
        self._note_losses()

    def _open(self) -> av.container.InputContainer:
        try:
            import av
        except ImportError:
            raise MissingDependencyError("this format is read with PyAV", remedy="pip install av") from None

        head = self._stream.read(16)
        boxes = (
            _mp4_boxes(self._stream) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") else None
        )
        if boxes is not None and boxes.intersection(_PROTECTED):
            raise self._error(
                "its sound is encrypted (DRM)", "export an unprotected copy from the program or shop it came from"
            )
        self._stream.seek(0)
        try:
            options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": ""}
            return av.open(self._stream, "r", options=options, metadata_errors="replace", buffer_size=1 << 16)
        except (av.FFmpegError, ValueError, OSError) as error:
            if boxes is not None and b"moov" not in boxes:
                raise self._error(
                    "an MP4 file without its index (moov): the recording or a copy of it was broken off",
                    "copy it from the device again; if that one is cut off too, the program untrunc can mend it",
                ) from None
            reason = getattr(error, "strerror", None) or str(error)
            raise self._error(
                f"{NOT_SOUND}: {self._supposed or 'no'} file, {reason[:1].lower()}{reason[1:]}",
                "check that it plays at all; copy or export it again",
            ) from None

    @property
    def _kind(self) -> str:
        return self._container.format.name.split(",")[0]

    def _choose(self) -> av.AudioStream:
        """Return the first audio track with a decoder; warn if it is not the only one."""
        tracks = self._container.streams.audio
        if not tracks:
            what = "pictures but no sound" if self._container.streams.video else "no sound"
            raise self._error(f"holds {what}", "check that this is the file you mean")
        index = next((i for i, track in enumerate(tracks) if track.codec_context is not None), None)
        if index is None:
            raise self._error("no decoder is known for its sound", "export it as wav, flac or m4a (AAC)")
        if len(tracks) > 1:
            self.warnings.append(
                f"it has {len(tracks)} audio tracks, number {index + 1} is read; "
                "to extract another one: ffmpeg -i IN -map 0:a:1 OUT.wav"
            )
        return tracks[index]

    def _decoded(self) -> Iterator[av.AudioFrame]:
        """Yield the frames of the track; damaged ones are skipped and counted."""
        import av

        packets = self._container.demux(*self._timed_streams())
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):  # the file is truncated
                packet = None
            try:
                if packet is None:
                    yield from self._track.codec_context.decode(None)
                    return
                if packet.pts is not None and packet.time_base is not None:
                    self._last_s = max(self._last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is self._track:
                    for frame in packet.decode():
                        self._broken_s, self._pending_s = self._broken_s + self._pending_s, 0.0
                        yield frame
            except av.EOFError:
                return  # end of file, the decoder is flushed
            except av.FFmpegError:
                if packet is None:
                    return
                self._note_broken(packet)

    def _note_broken(self, packet: av.Packet) -> None:
        length_s = float((packet.duration or 0) * packet.time_base) if packet.time_base else 0.0
        if not self._broken_s and not self._pending_s:
            self._broken_at_s = self._last_s - length_s
        self._pending_s += length_s

    def _timed_streams(self) -> list[Any]:
        """Return the track, and other tracks whose last packet shows the end of a truncated file."""
        if self._kind in _EXACT_END:
            return [self._track]
        return [self._track, *(s for s in self._container.streams.video if s.codec_context is not None)]

    def _time_zero(self) -> float:
        """Return the time in the file at which a player starts."""
        import av

        starts = [self._first.time or 0.0] if self._first is not None else [0.0]
        for stream in self._container.streams.video:
            cover = stream.disposition & av.stream.Disposition.attached_pic
            if stream.start_time is not None and stream.time_base is not None and not cover:
                starts.append(float(stream.start_time * stream.time_base))
        first_s = min(starts)
        return 0.0 if self._kind in _FROM_ZERO and 0 <= first_s <= _LIVE_S else first_s

    def _claimed_end(self) -> float:
        """Return the end of the sound according to the file, on the player's time line; infinite if unknown."""
        track, container = self._track, self._container
        if self._kind in _EXACT_END and track.duration and track.time_base:
            return float(((track.start_time or 0) + track.duration) * track.time_base) - self._origin_s
        if self._kind in _CLAIMED_END and container.duration:
            start_s = 0.0 if self._kind in _FROM_ZERO else (container.start_time or 0) / 1e6
            return start_s + container.duration / 1e6 - self._origin_s
        return math.inf

    def _timed(self) -> Iterator[np.ndarray]:
        """Yield (T, C) float32 at `sample_rate`, with silence in gaps."""
        fit = _Fitter(self.sample_rate, self.channels)
        position_s = gaps_s = gap_at_s = damage_s = 0.0
        frame, started = self._first, False
        while frame is not None:
            if frame.time is not None:
                gap_s = frame.time - self._origin_s - position_s
                least_s = _GAP_S if started and self._broken_s == damage_s else _DAMAGE_S
                if abs(gap_s) > _GAP_S and (gap_s < 0 or not self._plausible(position_s + gap_s, gap_s)):
                    self._origin_s += gap_s  # the clock of the stream was reset
                elif gap_s > least_s:
                    yield from fit.silence(gap_s)
                    if started and self._broken_s == damage_s:
                        gap_at_s = gap_at_s or position_s
                        gaps_s += gap_s
                    position_s += gap_s
            damage_s = self._broken_s
            position_s += frame.samples / frame.sample_rate
            yield fit.fit(frame)
            frame, started = next(self._frames, None), True
        yield fit.end()
        self._position_s = position_s
        if gaps_s:
            self.warnings.append(
                f"gaps of {gaps_s:.2f} s in all, the first after {gap_at_s:.2f} s, are read as silence"
            )

    def _plausible(self, time_s: float, gap_s: float) -> bool:
        return time_s <= self._end_s + 1 if math.isfinite(self._end_s) else gap_s <= _LONGEST_GAP_S

    def _trimmed(self, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Remove the padding after the end; if more than padding follows, the end was wrong."""
        limit: int | None = None
        if self._kind in _EXACT_END and math.isfinite(self._end_s):
            limit = round(self._end_s * self.sample_rate)
        held: list[np.ndarray] = []
        done = count = 0
        for chunk in chunks:
            keep = len(chunk) if limit is None else min(len(chunk), max(0, limit - done))
            done += len(chunk)
            if keep:
                yield chunk[:keep]
            if keep < len(chunk):
                held.append(chunk[keep:])
                count += len(chunk) - keep
            if count > _PADDING:
                yield from held
                limit, held, count = None, [], 0

    def _note_losses(self) -> None:
        """Compare the decoded duration with that of the file."""
        exact = self._kind in _EXACT_END
        reached_s = self._position_s if exact else max(self._position_s, self._last_s - self._origin_s)
        lost_s = self._end_s - reached_s if math.isfinite(self._end_s) else 0.0
        if self._broken_s or (self._pending_s and lost_s < _LEAST_LOSS_S):
            self.warnings.append(
                f"the file is damaged: {self._broken_s + self._pending_s:.2f} s could not be decoded, "
                f"the first after {max(0.0, self._broken_at_s - self._origin_s):.2f} s"
            )
        if lost_s >= _LEAST_LOSS_S:
            self.warnings.append(f"the file is cut off or damaged: {lost_s:.2f} s lost after {self._position_s:.2f} s")

    def _error(self, message: str, remedy: str) -> AudioFileError:
        return AudioFileError(message, path=self._name, remedy=remedy)


class _Fitter:
    """Converts decoded frames, whose rate and channels may change, to (T, C) float32 at one rate."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._rate, self._channels = sample_rate, channels
        self._from_rate = sample_rate
        self._resampler: Any = None

    def fit(self, frame: av.AudioFrame) -> np.ndarray:
        """Return the samples of the next frame."""
        samples = _float_samples(frame)
        if samples.shape[1] != self._channels:
            samples = np.repeat(samples.mean(axis=1, keepdims=True), self._channels, axis=1)
        tail = self.end() if frame.sample_rate != self._from_rate else None
        if frame.sample_rate != self._rate:
            if self._resampler is None:
                import soxr

                self._resampler = soxr.ResampleStream(frame.sample_rate, self._rate, self._channels, dtype="float32")
                self._from_rate = frame.sample_rate
            samples = self._resampler.resample_chunk(np.ascontiguousarray(samples))
        return samples if tail is None or not len(tail) else np.concatenate([tail, samples])

    def end(self) -> np.ndarray:
        """Return the rest of the resampler."""
        none = np.zeros((0, self._channels), np.float32)
        rest = none if self._resampler is None else self._resampler.resample_chunk(none, last=True)
        self._resampler, self._from_rate = None, self._rate
        return rest

    def silence(self, seconds: float) -> Iterator[np.ndarray]:
        """Yield zeros in pieces."""
        left = round(seconds * self._rate)
        while left > 0:
            yield np.zeros((min(left, PIECE), self._channels), np.float32)
            left -= PIECE


def _float_samples(frame: av.AudioFrame) -> np.ndarray:
    """Return (T, C) float32 in -1..1 of a frame, planar or packed, of any sample format."""
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    if array.dtype.kind == "u":
        return (array.astype(np.float32) - 128.0) / 128.0
    if array.dtype.kind == "i":
        return array.astype(np.float32) / float(2 ** (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32)


def _mp4_boxes(stream: IO[bytes]) -> set[bytes]:
    """Return the kinds of boxes in an MP4 file on the way to its sample entries, and of those entries."""
    kinds: set[bytes] = set()
    size = stream.seek(0, 2)
    ranges, count = [(0, size)], 0
    while ranges and count < _MOST_BOXES:
        start, end = ranges.pop()
        while start + 8 <= end and count < _MOST_BOXES:
            count += 1
            stream.seek(start)
            head = stream.read(16)
            length, kind = struct.unpack(">I4s", head[:8])
            body = start + 8
            if length == 1 and len(head) == 16:
                length, body = struct.unpack(">Q", head[8:])[0], start + 16
            elif length == 0:
                length = end - start
            if length < 8:
                break
            kinds.add(kind)
            if kind in _ROOMS:
                ranges.append((body, min(end, start + length)))
            elif kind == b"stsd":  # version, flags and a count, then boxes
                ranges.append((body + 8, min(end, start + length)))
            start += length
    return kinds
