"""Packed utterances and noises: 16-bit sound with speaker and words, in shards that are read by memory map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from audio_llm.errors import DataError
from audio_llm.simulation.sources import NOISE, SPEECH, to_pcm
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards

FULL_BAND_HZ = 8000  # of sound at 16 kHz


@dataclass(frozen=True)
class Utterance:
    """One recorded utterance.

    Attributes:
        id: Name of the utterance.
        speaker: Name of the speaker.
        corpus: Source of the recording.
        words: Normalized text; empty if unknown.
        bandwidth_hz: Bandwidth of the recording.
        dynamics_db: Spread of its frame levels, a measure of how clean it is; 0 if unknown.
        waveform: (T,) at 16 kHz, float32 in -1..1 or int16.
        target: (T,) in the same format, a cleaner version: the target of an enhancer; None: the waveform.
    """

    id: str
    speaker: str
    corpus: str
    words: str
    bandwidth_hz: int
    dynamics_db: float
    waveform: np.ndarray = field(repr=False)
    target: np.ndarray | None = field(default=None, repr=False)


def write_speech_pack(folder: Path, utterances: Iterable[Utterance], noises: Iterable[np.ndarray]) -> dict[str, int]:
    """Write a pack; return the numbers of utterances and noises.

    Args:
        folder: The pack.
        utterances: Iterated once, so that they need not all be in memory.
        noises: Each (N,) float32 at 16 kHz or int16.
    """
    rows = {SPEECH: map(_row, utterances), NOISE: ({"pcm": to_pcm(noise)} for noise in noises)}
    return {name: write_shards(shard_rows, folder / name) for name, shard_rows in rows.items()}


class SpeechPack:
    """The utterances of a pack.

    Args:
        folder: Folder written by `write_speech_pack`.
        least_dynamics_db: Leave out utterances with lower dynamics; unknown dynamics are accepted.
        labelled: Leave out utterances without words.

    Attributes:
        samples: (N,) int64, length of every utterance.
        speakers: Speaker of every utterance.
        corpora: Corpus of every utterance.
        words: Normalized text of every utterance.
        bandwidths_hz: (N,) float64, bandwidth of every utterance.
        noises: Noise recordings, each (T,) int16.

    Raises:
        DataError: The pack is missing or damaged, or no utterance is left.
    """

    def __init__(self, folder: str | Path, least_dynamics_db: float = 0.0, labelled: bool = False) -> None:
        self._reader = reader = ShardReader(Path(folder) / SPEECH)
        if not len(reader):
            raise DataError("the pack contains no utterance", path=folder, remedy="pack more speech")
        dynamics = np.concatenate(reader.column("dynamics_db"))
        words = [decode_text(text) for text in reader.column("words")]
        retained = (dynamics >= least_dynamics_db) | (dynamics == 0.0)
        if labelled:
            retained &= np.array([bool(text) for text in words])
        self._rows = np.flatnonzero(retained)
        if not len(self._rows):
            remedy = "lower the demands, or pack more"
            raise DataError("no utterance of this pack meets the requirements", path=folder, remedy=remedy)
        self.samples = reader.lengths("pcm")[self._rows]
        self.speakers = self._texts("speaker")
        self.corpora = self._texts("corpus")
        self.ids = self._texts("id")
        self.words = [words[row] for row in self._rows]
        self.bandwidths_hz = np.concatenate(reader.column("bandwidth_hz"))[self._rows].astype(np.float64)
        self.noises = [row["pcm"] for row in ShardReader(Path(folder) / NOISE)]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def hours(self) -> float:
        """Total length in hours."""
        return float(self.samples.sum()) / 16_000 / 3600

    def pcm(self, number: int) -> np.ndarray:
        """Return the sound of an utterance: (T,) int16 at 16 kHz."""
        return self._reader[int(self._rows[number])]["pcm"]

    def target(self, number: int) -> np.ndarray:
        """Return the target of an enhancer for the utterance, by default its sound: (T,) int16."""
        row = self._reader[int(self._rows[number])]
        return row["target"] if "target" in row else row["pcm"]

    def _texts(self, name: str) -> list[str]:
        column = self._reader.column(name)
        return [decode_text(column[row]) for row in self._rows]


def _row(utterance: Utterance) -> dict[str, np.ndarray]:
    texts = {name: encode_text(getattr(utterance, name)) for name in ("id", "speaker", "corpus", "words")}
    numbers = {"bandwidth_hz": np.array([utterance.bandwidth_hz]), "dynamics_db": np.array([utterance.dynamics_db])}
    sounds = {"pcm": to_pcm(utterance.waveform)}
    if utterance.target is not None:
        sounds["target"] = to_pcm(utterance.target)
    return {**sounds, **texts, **numbers}


def clean_targets(folder: Path, output: Path, clean: Callable[[np.ndarray], np.ndarray]) -> int:
    """Write a copy of a pack with cleaner targets; return the number of utterances.

    Nominally clean recordings have a noise floor, which an enhancer trained on them learns to preserve. The output of
    that enhancer is a better target for the next one.

    Args:
        folder: The pack.
        output: The new pack.
        clean: Enhancer, (T,) float32 at 16 kHz to the same shape.
    """

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for row in ShardReader(folder / SPEECH):
            yield {**row, "target": to_pcm(clean(row["pcm"].astype(np.float32) / 32768.0))}

    write_shards(({"pcm": row["pcm"]} for row in ShardReader(folder / NOISE)), output / NOISE)
    return write_shards(rows(), output / SPEECH)
