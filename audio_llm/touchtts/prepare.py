"""Recordings to training clips: segmentation at silence, verification of every text, every sample accounted for.

TouchTTS's simple pipeline (arXiv:2412.08237): voice activity detection, a recognizer, and a second one that has to
agree with the first. There is no denoising, no diarization and no limit on noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audio_llm import audio
from audio_llm.audio import SAMPLE_RATE, BlockReader
from audio_llm.errors import AudioFileError, UsageError
from audio_llm.manifest import Utterance, write_manifest
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.touchtts.prepare_cut import BLOCK_S, Stretch, stretches
from audio_llm.touchtts.prepare_filters import MEASURES, SPEED, TextVerifier, clip_snr_db, is_clipped, is_stuck
from audio_llm.touchtts.text import UnspeakableError, normalize_text

CLIPS, MANIFEST, DROPPED = "clips", "manifest.jsonl", "dropped.jsonl"  # in the output folder
JOURNAL = ".audio-llm-prepare.jsonl"
REASONS = {  # why a clip is dropped, in the order of the tests
    "unreadable": "the file cannot be read",
    "silent": "no speech in the whole recording",
    "too_short": "less speech than the shortest clip",
    "too_long": "one text for more speech than the longest clip",
    "clipped": "clipped peaks",
    "no_text": "the text is empty, or nothing was recognized",
    "unspeakable": "nothing in the text can be pronounced",
    "repeated": "a phrase of the text is repeated many times",
    "speed": "an implausible number of letters per second",
    "disagree": "the recognizers disagree on the text",
}


@dataclass(frozen=True)
class PrepareConfig:
    """Conditions on a clip.

    Attributes:
        min_s: Shortest clip in seconds.
        max_s: Longest clip in seconds.
        max_disagreement: Largest disagreement on the text of a clip that is kept; None: the default of its measure in
            `MEASURES`.

    Raises:
        UsageError: The lengths or the limit are out of range.
    """

    min_s: float = 2.0
    max_s: float = 30.0
    max_disagreement: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_s < self.max_s < math.inf or self.max_s < 2:
            remedy = "give a minimum below the maximum, and a maximum of at least 2 s"
            raise UsageError(f"no clip has {self.min_s:g} to {self.max_s:g} s", remedy=remedy)
        if self.max_disagreement is not None and not 0 <= self.max_disagreement < math.inf:
            raise UsageError(f"{self.max_disagreement} is no valid limit of disagreement", remedy="give 0 or more")

    def limit(self, measure: str) -> float:
        """Return the largest disagreement by a measure."""
        return MEASURES[measure] if self.max_disagreement is None else self.max_disagreement


@dataclass(frozen=True)
class Recording:
    """A recording to cut into clips.

    Attributes:
        path: The sound file.
        name: Unique prefix of the names of its clips.
        text: Text of the whole recording, which then becomes one clip; None if unknown.
        speaker: Name of the speaker, if known.
        problem: Why the recording cannot be used, if that is known before it is opened.
    """

    path: Path
    name: str
    text: str | None = None
    speaker: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Clip:
    """A segment of a recording, kept or dropped.

    Attributes:
        id: Name of its file without the ending.
        offset: Index of its first sample in the recording at 16 kHz.
        samples: Its length.
        reason: Why it was dropped, a key of `REASONS`; empty: it was kept.
        text: Its text.
        second_text: Hypothesis of the second recognizer.
        disagreement: As in `TextVerification`; None if the text was not verified.
        measure: As in `TextVerification`.
        snr_db: Estimated signal-to-noise ratio in dB; only reported.
    """

    id: str
    offset: int
    samples: int
    reason: str = ""
    text: str = ""
    second_text: str = ""
    disagreement: float | None = None
    measure: str = ""
    snr_db: float | None = None


@dataclass(frozen=True)
class Prepared:
    """Result of a recording; every sample of it is in a clip, kept or dropped, or in the silence between.

    Attributes:
        recording: The recording.
        samples: Samples that were read, at 16 kHz.
        silence: Samples without speech, in a recording that has speech.
        clips: Its clips, in order.
        warnings: Warnings of the file reader.
        error: Why it could not be read, in one line.
        status: `done` now, `skipped` (done by an earlier run) or `failed`.
    """

    recording: Recording
    samples: int
    silence: int
    clips: tuple[Clip, ...]
    warnings: tuple[str, ...] = ()
    error: str = ""
    status: Literal["done", "skipped", "failed"] = "done"

    def __post_init__(self) -> None:
        assert self.samples == self.silence + sum(clip.samples for clip in self.clips), self.recording.path

    @property
    def duration_s(self) -> float:
        """Seconds that were read."""
        return self.samples / SAMPLE_RATE


def prepare(
    recordings: Iterable[Recording],
    verifier: TextVerifier,
    folder: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    stamp: str = "",
    progress: Callable[[float], None] | None = None,
    overwrite: bool = False,
) -> Iterator[Prepared]:
    """Cut recordings into clips of 16 kHz with texts, one after another.

    The folder gets `clips/*.flac`, and once all recordings are done `manifest.jsonl` (clips that were kept) and
    `dropped.jsonl` (the others, with reasons). A journal records what is finished, so that the same call resumes a
    stopped run.

    Args:
        recordings: Recordings to cut.
        verifier: Transcribes clips, or verifies their texts.
        folder: Output folder.
        config: Conditions on a clip.
        stamp: Identifies the verifier; results of another one are replaced.
        progress: Called with the seconds of sound just read.
        overwrite: Replace all earlier results.

    Yields:
        The result of each recording, in order. One that cannot be read does not stop the others.

    Raises:
        UsageError: The folder holds something else, or two recordings have one name.
    """
    folder, config = Path(folder), config or PrepareConfig()
    journal = _Journal(folder, overwrite)
    for manifest in (MANIFEST, DROPPED):  # so that an unfinished run has no manifests of another one
        (folder / manifest).unlink(missing_ok=True)
    done: list[Prepared] = []
    names: set[str] = set()
    for recording in recordings:
        if recording.name in names:
            raise UsageError(f"two recordings are named {recording.name!r}", remedy="give each a unique name")
        names.add(recording.name)
        key = _key(recording, config, stamp)
        result = journal.find(key, recording)
        if result is None:
            journal.begin(recording)
            result = prepare_recording(recording, verifier, folder / CLIPS, config, progress)
            if result.status == "done":
                journal.add(key, result)
        done.append(result)
        yield result
    _write_manifests(folder, done)


def prepare_recording(
    recording: Recording,
    verifier: TextVerifier,
    folder: Path,
    config: PrepareConfig,
    progress: Callable[[float], None] | None = None,
) -> Prepared:
    """Cut one recording and write the clips that are kept to `folder`, in memory that its length does not change."""
    clips: list[Clip] = []
    reading, whole = _Reading(recording, progress), recording.text is not None
    try:
        for number, stretch in enumerate(stretches(reading, config.min_s, config.max_s, whole), 1):
            clip = _filter_clip(recording, f"{recording.name}-{number:04d}", stretch, verifier, config)
            if not clip.reason and stretch.waveform is not None:
                folder.mkdir(parents=True, exist_ok=True)
                audio.write(folder / f"{clip.id}.flac", stretch.waveform, SAMPLE_RATE)
            clips.append(clip)
    except _UnreadableError as error:
        for clip in clips:
            (folder / f"{clip.id}.flac").unlink(missing_ok=True)
        lost = Clip(recording.name, 0, reading.samples, "unreadable", recording.text or "")
        return Prepared(recording, reading.samples, 0, (lost,), error=str(error), status="failed")
    if not clips:
        clips = [Clip(recording.name, 0, reading.samples, "silent", recording.text or "")]
    silence = reading.samples - sum(clip.samples for clip in clips)
    return Prepared(recording, reading.samples, silence, tuple(clips), reading.warnings)


def _filter_clip(
    recording: Recording, id: str, stretch: Stretch, verifier: TextVerifier, config: PrepareConfig
) -> Clip:
    """Decide on one clip: cheap conditions first, verification of the text last."""
    waveform = stretch.waveform
    clip = Clip(id, stretch.start, stretch.stop - stretch.start, text=" ".join((recording.text or "").split()))
    if clip.samples < config.min_s * SAMPLE_RATE:
        return replace(clip, reason="too_short")
    if waveform is None:
        return replace(clip, reason="too_long")
    clip = replace(clip, snr_db=round(clip_snr_db(waveform), 1))
    if is_clipped(waveform):
        return replace(clip, reason="clipped")
    verification = None if recording.text is not None else verifier.transcribe(waveform)
    clip = replace(clip, text=verification.text) if verification is not None else clip
    if not clip.text:
        return replace(clip, reason="no_text")
    try:
        words = DEFAULT_NORMALIZER(normalize_text(clip.text).text)
    except UnspeakableError:
        return replace(clip, reason="unspeakable")
    if is_stuck(words):
        return replace(clip, reason="repeated")
    if not SPEED[0] <= len(words) * SAMPLE_RATE / clip.samples <= SPEED[1]:
        return replace(clip, reason="speed")
    verification = verification or verifier.verify_text(waveform, words)
    disagreement, measure = verification.disagreement, verification.measure
    clip = replace(clip, second_text=verification.second_text, measure=measure)
    if disagreement is None:
        return replace(clip, reason="speed")
    return replace(
        clip, disagreement=round(disagreement, 4), reason="disagree" if disagreement > config.limit(measure) else ""
    )


class _UnreadableError(Exception):
    """Reading failed; unlike an error in writing clips it concerns this recording alone."""


class _Reading:
    """Blocks of a recording as they are read, (T,) float32 at 16 kHz; counts samples and collects warnings."""

    def __init__(self, recording: Recording, progress: Callable[[float], None] | None) -> None:
        self._recording, self._progress = recording, progress
        self.samples = 0
        self.warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._recording.problem:
            raise _UnreadableError(self._recording.problem)
        try:
            with BlockReader(self._recording.path, block_s=BLOCK_S) as reader:
                for block in reader:
                    self.samples += len(block)
                    yield block
                    if self._progress is not None:
                        self._progress(len(block) / SAMPLE_RATE)
                self.warnings = reader.warnings
        except AudioFileError as error:
            raise _UnreadableError(str(error)) from error


class _Journal:
    """Finished recordings of an output folder: JSON lines, of which the last one of a recording is valid.

    Raises:
        UsageError: The folder holds something else.
    """

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self._folder, self._path = folder / CLIPS, folder / JOURNAL
        self._rows: dict[str, dict[str, Any]] = {}
        self._files: dict[str, list[Path]] = {}  # by recording
        try:
            if folder.is_dir() and any(folder.iterdir()) and not self._path.exists() and not overwrite:
                raise UsageError("is not empty", path=folder, remedy="give --overwrite or another folder")
            folder.mkdir(parents=True, exist_ok=True)
            text = "" if overwrite or not self._path.exists() else self._path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # the last run was killed while it wrote a line
                text = text[: text.rfind("\n") + 1]
                self._path.write_text(text, encoding="utf-8")
        except OSError as error:
            remedy = "choose another folder with -o"
            raise UsageError(f"cannot be written to: {error.strerror}", path=folder, remedy=remedy) from None
        for line in text.splitlines():
            row = json.loads(line)
            self._rows[row["name"]] = row
        for path in self._folder.glob("*.flac"):
            name, _, number = path.stem.rpartition("-")
            if number.isdecimal():
                self._files.setdefault(name, []).append(path)

    def find(self, key: str, recording: Recording) -> Prepared | None:
        """Return an earlier result of the same recording with the same settings, if its clips are still there."""
        row = self._rows.get(recording.name)
        if row is None or row["key"] != key:
            return None
        clips = tuple(Clip(**clip) for clip in row["clips"])
        there = {file.stem for file in self._files.get(recording.name, ())}
        if there != {clip.id for clip in clips if not clip.reason}:
            return None
        return Prepared(recording, row["samples"], row["silence"], clips, tuple(row["warnings"]), status="skipped")

    def begin(self, recording: Recording) -> None:
        """Delete the clips of a recording that a stopped run, or one with other settings, has left."""
        if self._rows.pop(recording.name, None) is not None:
            self._append({"name": recording.name, "key": ""})
        for path in self._files.get(recording.name, ()):
            path.unlink()

    def add(self, key: str, result: Prepared) -> None:
        """Append the result of a recording."""
        names = ("samples", "silence", "warnings")
        row = {"name": result.recording.name, "key": key, **{name: getattr(result, name) for name in names}}
        self._append({**row, "clips": [asdict(clip) for clip in result.clips]})

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _key(recording: Recording, config: PrepareConfig, stamp: str) -> str:
    """Return a hash of everything that requires a recording to be processed again if it changes."""
    try:
        status = recording.path.stat()
        state: Sequence[int] = (status.st_size, status.st_mtime_ns)
    except OSError:
        state = ()
    described: Mapping[str, Any] = {
        "recording": [_source(recording), recording.text, recording.speaker],
        "state": state,
        "config": asdict(config),
        "limits": MEASURES,
        "stamp": stamp,
        "form": [field.name for field in fields(Clip)],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _source(recording: Recording) -> str:
    r"""Return the recording's path; bytes of it that are not UTF-8 as `\xff`."""
    return os.fsencode(os.path.abspath(recording.path)).decode("utf-8", errors="backslashreplace")


def _write_manifests(folder: Path, results: Sequence[Prepared]) -> None:
    retained: list[Utterance] = []
    dropped: list[Utterance] = []
    for result in results:
        source = _source(result.recording)
        for clip in result.clips:
            path = Path(source) if clip.reason else folder / CLIPS / f"{clip.id}.flac"
            extra = {"id": clip.id, "source": source, "source_offset": clip.offset / SAMPLE_RATE}
            extra |= {name: getattr(clip, name) for name in ("disagreement", "measure", "second_text", "snr_db")}
            extra |= {"reason": clip.reason} if clip.reason else {}
            utterance = Utterance(path, clip.samples / SAMPLE_RATE, clip.text, result.recording.speaker, None, extra)
            (dropped if clip.reason else retained).append(utterance)
    write_manifest(retained, folder / MANIFEST)
    write_manifest(dropped, folder / DROPPED)
