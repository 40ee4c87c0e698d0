"""Split of the data into training, development and test; every speaker, head, room and noise is in one part only."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audio_llm import audio
from audio_llm.errors import DataError
from audio_llm.simulation.heads import Head, load_head
from audio_llm.simulation.mono import trim_silence
from audio_llm.simulation.scene_plan import Voice
from audio_llm.simulation.sources import write_sources

PARTS = ("train", "tune", "test")
CORPORA = (  # without those reserved for other reports
    "librispeech_tc100",
    "librispeech_dev_clean_mp3",
    "librispeech_test_other",
    "librispeech_test_clean_few",
    "speechocean762",
    "kathleen",
    "cmu_arctic_few",
)
EXTRA_CORPORA = ("common_voice_v1_dev", "dc_tts_own_voice", "librispeech_tc100_walleclipse")  # only for training
TEST_HEADS = ("subject_003", "subject_012", "subject_021", "subject_044", "subject_124", "subject_165")
TUNE_HEADS = ("subject_008", "subject_065")
TEST_KEMAR, TRAIN_KEMAR = "kemar_normal_pinna", "kemar_large_pinna"
TUNE_FRACTION = 0.08  # of the training speakers and of the noises
TEST_NOISE_FRACTION = 0.15
MOST_UTTERANCES = 60  # of one speaker
LEAST_S = 1.0  # of an utterance without silence
LEAST_RANGE_DB = 30.0  # between loud and quiet frames of an extra recording, to leave out noisy ones


def pack(folder: Path, output: Path) -> None:
    """Write the packs `train`, `tune` and `test`.

    Args:
        folder: The data: `audio/speech`, `audio/noise` and `audio/rir` with their manifests.
        output: Output folder of the packs.
    """
    for part in PARTS:
        counts = write_sources(
            output / part, _voices(folder, part), _noises(folder, part), _heads(folder, part), _rooms(folder, part)
        )
        logging.info("%s: %s", part, counts)
    pack_extra(folder, output)


def pack_extra(folder: Path, output: Path) -> None:
    """Write the pack `extra`: more voices for training, clean recordings only; clips without speaker id are voices."""
    logging.info("extra: %s", write_sources(output / "extra", _extra_voices(folder), (), ()))


def _extra_voices(folder: Path) -> Iterator[Voice]:
    for corpus in EXTRA_CORPORA:
        for row in _manifest(folder, f"speech/{corpus}"):
            if row["split"] != "train" or (row["speaker"] and speaker_part(row["speaker"], "train") != "train"):
                continue
            sound = trim_silence(audio.read(folder / "audio" / row["path"]))
            if sound.size >= LEAST_S * audio.SAMPLE_RATE and _range_db(sound) >= LEAST_RANGE_DB:
                yield Voice(str(row["speaker"] or row["id"]), corpus, str(row.get("gender") or ""), (sound,))


def _range_db(sound: np.ndarray) -> float:
    """Return the distance between the 95th and the 5th percentile of the levels of frames of 20 ms."""
    size = audio.SAMPLE_RATE // 50
    frames = sound[: sound.size // size * size].reshape(-1, size)
    levels = 10.0 * np.log10(np.mean(np.square(frames), axis=1) + 1e-10)
    return float(np.diff(np.percentile(levels, [5, 95]))[0])


def _voices(folder: Path, part: str) -> Iterator[Voice]:
    for corpus in CORPORA:
        by_speaker: dict[str, list[dict[str, str]]] = {}
        for row in _manifest(folder, f"speech/{corpus}"):
            if speaker_part(row["speaker"], row["split"]) == part:
                by_speaker.setdefault(row["speaker"], []).append(row)
        for speaker, rows in sorted(by_speaker.items()):
            order = sorted(rows, key=lambda row: _hash_fraction(row["id"]))[:MOST_UTTERANCES]
            sounds = [trim_silence(audio.read(folder / "audio" / row["path"])) for row in order]
            utterances = tuple(sound for sound in sounds if sound.size >= LEAST_S * audio.SAMPLE_RATE)
            if utterances:
                yield Voice(speaker, corpus, str(rows[0].get("gender") or ""), utterances)


def speaker_part(speaker: str, split: str) -> str:
    """Return the part of a speaker: the manifests' `dev` is the test part, development is a fraction of `train`.

    Only Kathleen is in both splits; she is in training.
    """
    if split == "dev" and speaker != "kathleen":
        return "test"
    return "tune" if _hash_fraction(speaker) < TUNE_FRACTION and speaker != "kathleen" else "train"


def _noises(folder: Path, part: str) -> Iterator[np.ndarray]:
    for path in sorted((folder / "audio" / "noise").glob("*/manifest.jsonl")):
        for row in _manifest(folder, f"noise/{path.parent.name}"):
            fraction = _hash_fraction(row["source"] or row["id"])
            both = TEST_NOISE_FRACTION + TUNE_FRACTION
            assigned = "test" if fraction < TEST_NOISE_FRACTION else "tune" if fraction < both else "train"
            if assigned == part:
                yield audio.read(folder / "audio" / row["path"])


def _heads(folder: Path, part: str) -> Iterator[Head]:
    rir = folder / "audio" / "rir"
    for path in sorted((rir / "cipic").glob("*.npz")):
        assigned = "test" if path.stem in TEST_HEADS else "tune" if path.stem in TUNE_HEADS else "train"
        if assigned == part:
            yield load_head(path)
    kemar = {"test": TEST_KEMAR, "train": TRAIN_KEMAR}.get(part)
    if kemar:
        yield load_head(rir / "mit_kemar" / f"{kemar}.npz")


def _rooms(folder: Path, part: str) -> Iterator[Head]:
    if part == "test":
        yield load_head(folder / "audio" / "rir" / "surrey_brir" / "uniS_room_a.npz")


def _manifest(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / "audio" / name / "manifest.jsonl"
    if not path.exists():
        raise DataError("no manifest", path=path, remedy="see the recipe's README for the structure of a data folder")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _hash_fraction(name: str) -> float:
    """Return a number in 0..1 that depends only on the name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
