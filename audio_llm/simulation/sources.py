"""Packed sources of scenes: a folder of shards with 16-bit sound and head responses, read by memory map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from audio_llm.simulation.heads import Head
from audio_llm.simulation.scene_plan import SceneSources, Voice
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards

SPEECH, NOISE, HEADS, ROOMS = "speech", "noise", "heads", "rooms"  # folders of a pack


def write_sources(
    folder: Path,
    voices: Iterable[Voice],
    noises: Iterable[np.ndarray],
    heads: Iterable[Head],
    rooms: Iterable[Head] = (),
) -> dict[str, int]:
    """Write a pack; return the numbers of recordings, noises, heads and rooms.

    Args:
        folder: The pack.
        voices: Speakers; iterated once, so that they need not all be in memory.
        noises: Each (N,) float32 at 16 kHz or int16.
        heads: Measured heads.
        rooms: Heads measured in rooms.
    """
    rows = {
        SPEECH: (_speech_row(voice, sound) for voice in voices for sound in voice.utterances),
        NOISE: ({"pcm": to_pcm(sound)} for sound in noises),
        HEADS: (_head_row(head) for head in heads),
        ROOMS: (_head_row(head) for head in rooms),
    }
    return {name: write_shards(shard_rows, folder / name) for name, shard_rows in rows.items()}


def read_sources(*folders: str | Path) -> SceneSources:
    """Read packs as one.

    Raises:
        DataError: A pack is missing or damaged.
    """
    utterances: dict[tuple[str, str, str], list[np.ndarray]] = {}
    noises: list[np.ndarray] = []
    heads: list[Head] = []
    rooms: list[Head] = []
    for folder in map(Path, folders):
        for row in ShardReader(folder / SPEECH):
            key = decode_text(row["speaker"]), decode_text(row["corpus"]), decode_text(row["gender"])
            utterances.setdefault(key, []).append(row["pcm"])
        noises += [row["pcm"] for row in ShardReader(folder / NOISE)]
        for name, loaded in ((HEADS, heads), (ROOMS, rooms)):
            loaded += [_head(row) for row in ShardReader(folder / name)]
    voices = tuple(Voice(*key, tuple(sounds)) for key, sounds in utterances.items())
    return SceneSources(voices, tuple(heads), tuple(noises), tuple(rooms))


def _speech_row(voice: Voice, sound: np.ndarray) -> dict[str, np.ndarray]:
    names = {"speaker": voice.name, "corpus": voice.corpus, "gender": voice.gender}
    return {"pcm": to_pcm(sound), **{key: encode_text(text) for key, text in names.items()}}


def _head_row(head: Head) -> dict[str, np.ndarray]:
    shape = {"responses": head.responses.ravel(), "azimuths": head.azimuths}
    return {"name": encode_text(head.name), **shape}


def _head(row: dict[str, np.ndarray]) -> Head:
    azimuths = row["azimuths"]
    return Head(decode_text(row["name"]), azimuths, row["responses"].reshape(len(azimuths), 2, -1))


def to_pcm(waveform: np.ndarray) -> np.ndarray:
    """Return 16-bit sound (..., T) from float32 in -1..1; 16-bit sound is returned unchanged."""
    if waveform.dtype == np.int16:
        return waveform
    return np.rint(np.clip(waveform, -1.0, 32767.0 / 32768.0) * 32768.0).astype(np.int16)
