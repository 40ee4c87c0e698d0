"""Containers for tests: sound encoded with PyAV, and MP4 files taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def encode(
    path: Path,
    sound: np.ndarray,
    rate: int = 16_000,
    codec: str = "aac",
    start_s: float = 0.0,
    video_s: float = 0.0,
    tracks: int = 1,
    options: dict[str, str] | None = None,
) -> Path:
    """Write (T,) or (T, C) float32 with a codec in the container that the suffix names.

    Args:
        path: The file.
        sound: Of all tracks.
        rate: Hz.
        codec: FFmpeg's name of an encoder.
        start_s: Time of the first sample.
        video_s: Seconds of pictures beside the sound.
        tracks: How many times the sound is in the file.
        options: Of the muxer.
    """
    layout = {1: "mono", 2: "stereo"}[1 if sound.ndim == 1 else sound.shape[1]]
    with av.open(path, "w", options=options or {}) as container:
        streams: list[Any] = [container.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
        for stream in streams:
            stream.bit_rate = 12_200 if "amr" in codec else 64_000
        if video_s:
            _add_pictures(container, video_s)
        for stream in streams if len(sound) else ():
            _add_sound(container, stream, sound, rate, layout, start_s)
    return path


def pictures(path: Path, seconds: float) -> Path:
    """Write a video without sound."""
    with av.open(path, "w") as container:
        _add_pictures(container, seconds)
    return path


def remux(source: Path, path: Path, spans: Sequence[tuple[float, float]]) -> Path:
    """Copy the packets of some spans of time, in seconds, without changing their times."""
    with av.open(source) as old, av.open(path, "w") as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(audio=0):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            if any(start_s <= float(packet.pts * packet.time_base) < end_s for start_s, end_s in spans):
                packet.stream = stream
                new.mux(packet)
    return path


def _add_sound(container: Any, stream: Any, sound: np.ndarray, rate: int, layout: str, start_s: float) -> None:
    samples = np.clip(sound.reshape(len(sound), -1) * 32767, -32768, 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=layout)
    frame.rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start_s * rate)
    context = stream.codec_context
    fit = av.AudioResampler(context.format, layout, context.sample_rate, frame_size=context.frame_size or None)
    for piece in [*fit.resample(frame), *fit.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def _add_pictures(container: Any, seconds: float) -> None:
    video = container.add_stream("mpeg4", rate=10)
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    for _ in range(round(seconds * 10)):
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
    container.mux(video.encode(None))
