"""Figures of the voice activity detector: false alarms, missed speech, speed and memory.

    python recipes/asr/vad_report.py --data data --part report

`--part tune` gives the figures of the material that its defaults were chosen on: training speakers and one half of the
noise recordings. `report` has the speakers of the `dev` splits and the other half.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm import audio
from audio_llm.asr.segment import Segment
from audio_llm.asr.vad import SpeechDetector, VadOptions, speech_segments
from audio_llm.simulation.mono import add_noise

RATE = 16_000
CORPORA = ("librispeech_dev_clean_mp3", "librispeech_tc100", "kathleen", "speechocean762", "common_voice_v1_dev")
UTTERANCES = 60  # of each corpus at most, evenly over its manifest
LEAST_DYNAMICS_DB = 25.0  # recordings with less are too noisy for a reference by level
SILENCE_S = 2.0  # of noise or silence before and after every utterance
RANGE_DB = 35.0  # 10 ms below the loudest by more than this are not speech in the reference
EDGE_S = 0.1  # of the first and last speech of an utterance, reported apart
CONDITIONS: dict[str, tuple[float | None, float]] = {  # signal-to-noise ratio, peak in dB relative to full scale
    "as recorded": (None, -3.0),
    "peak -50 dBFS": (None, -50.0),
    "peak -60 dBFS": (None, -60.0),
    "20 dB SNR": (20.0, -3.0),
    "10 dB SNR": (10.0, -3.0),
    "5 dB SNR": (5.0, -3.0),
}
APART = {"babble": "babble", "public address": "announcements", "lets_go_fishin": "song"}  # by label or id: speech
HUMAN = ("baby_cry", "person_sneeze")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with audio/speech and audio/noise")
    parser.add_argument("--part", choices=["tune", "report"], default="report")
    parser.add_argument("--hours", type=float, default=0.0, help="also stream this many hours with occasional speech")
    for field in dataclasses.fields(VadOptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    arguments = vars(parser.parse_args())
    options = VadOptions(**{field.name: arguments[field.name] for field in dataclasses.fields(VadOptions)})
    detector = SpeechDetector()
    print_noise(arguments["data"], arguments["part"], options, detector)
    print_speech(arguments["data"], arguments["part"], options, detector)
    print_speed(arguments["data"], options, detector)
    if arguments["hours"]:
        print_memory(arguments["data"], options, detector, arguments["hours"])


def print_noise(data: Path, part: str, options: VadOptions, detector: SpeechDetector) -> None:
    """Print the seconds of every kind of noise that count as speech, padding included."""
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    files: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row, waveform in noises(data, part):
        detected_s = sum(len(segment.waveform) for segment in speech_segments([waveform], options, detector)) / RATE
        kind = APART.get(row["label"]) or APART.get(row["id"]) or ("human" if row["label"] in HUMAN else "other")
        kind = "instrumental music" if kind == "other" and row["label"] == "music" else kind
        seconds[kind][0] += detected_s
        seconds[kind][1] += len(waveform) / RATE
        files[kind][0] += detected_s > 0
        files[kind][1] += 1
    print("\n| noise | recordings | minutes | with a detection | s of false alarm per minute |\n|---|---|---|---|---|")
    for kind, (detected_s, total) in sorted(seconds.items()):
        print(f"| {kind} | {files[kind][1]} | {total / 60:.1f} | {files[kind][0]} | {60 * detected_s / total:.2f} |")


def print_speech(data: Path, part: str, options: VadOptions, detector: SpeechDetector) -> None:
    """Print how much speech is missed and how much other sound is included, by corpus, level and noise."""
    sounds = [waveform for row, waveform in noises(data, part) if not is_speech(row) and len(waveform) >= 4 * RATE]
    print(
        "\n| condition | utterances | s of speech | missed % | first / last 100 ms missed | other sound included % |"
        "\n|---|---|---|---|---|---|"
    )
    for name, (snr_db, peak_db) in CONDITIONS.items():
        rng = np.random.default_rng(0)
        counts: dict[str, list[np.ndarray]] = defaultdict(list)
        for corpus, waveform in utterances(data, part):
            clean = np.pad(waveform / np.abs(waveform).max(), round(SILENCE_S * RATE))
            reference = speech_mask(clean)
            scene = clean + 1e-4 * rng.standard_normal(len(clean)).astype(np.float32)
            if snr_db is not None:
                sound = sounds[rng.integers(len(sounds))]
                padding_db = 10 * np.log10(np.mean(reference))  # the ratio counts where there is speech
                scene = add_noise(clean, sound, snr_db + padding_db)
            scene = scene / np.abs(scene).max() * 10 ** (peak_db / 20)
            scene = (np.round(scene * 32768) / 32768).astype(np.float32)  # as a 16-bit file has it
            counted = compared(reference, list(speech_segments([scene], options, detector)))
            counts[name].append(counted)
            if name == "as recorded":
                counts[f"of these {corpus}"].append(counted)
        for title, rows in counts.items():
            speech, missed, other, included, first, last = np.sum(rows, axis=0)
            columns = f"{100 * missed / speech:.2f} | {first:.0f} / {last:.0f} | {100 * included / other:.0f}"
            print(f"| {title} | {len(rows)} | {speech / RATE:.0f} | {columns} |", flush=True)


def compared(reference: np.ndarray, segments: list[Segment]) -> np.ndarray:
    """Return speech, missed speech, other sound, other sound included (samples), first and last 100 ms missed (0/1)."""
    inside = np.zeros(len(reference), bool)
    for segment in segments:
        start = round(segment.start_s * RATE)
        inside[start : start + len(segment.waveform)] = True
    first, last = np.flatnonzero(reference)[[0, -1]]
    edge = round(EDGE_S * RATE)
    edges = (inside[first : first + edge], inside[last + 1 - edge : last + 1])
    samples = (reference, reference & ~inside, ~reference, inside & ~reference)
    return np.array([*(mask.sum() for mask in samples), *(not mask.all() for mask in edges)], float)


def print_speed(data: Path, options: VadOptions, detector: SpeechDetector) -> None:
    """Print how many seconds of sound are processed per second."""
    joined = np.concatenate([waveform for _, waveform in utterances(data, "report")])
    begin, begin_cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in speech_segments([joined], options, detector))
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    seconds = len(joined) / RATE
    speed = f"{seconds / wall_s:.0f} x real time, {seconds / cpu_s:.0f} x by CPU time"
    print(f"\n{seconds:.0f} s in {count} segments: {speed}")


def print_memory(data: Path, options: VadOptions, detector: SpeechDetector, hours: float) -> None:
    """Print the peak memory after each tenth of a long stream in which one thirtieth is speech."""
    speech = np.concatenate([waveform for _, waveform in utterances(data, "report")])[: 60 * RATE]
    noise = 1e-3 * np.random.default_rng(0).standard_normal(60 * RATE, dtype=np.float32)
    total = 0.0

    def stream() -> Iterator[np.ndarray]:
        for index in range(round(2 * hours)):
            for part in (*[noise] * 29, speech):
                yield from (part[start : start + RATE] for start in range(0, len(part), RATE))
            if index % max(1, round(hours / 5)) == 0:
                peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{(index + 1) / 2:.1f} h: peak memory {peak_mb:.0f} MB", flush=True)

    for segment in speech_segments(stream(), options, detector):
        total += len(segment.waveform) / RATE
    print(f"{hours:.0f} h with {hours * 2:.0f} minutes of speech: {total / 60:.1f} minutes detected")


def noises(data: Path, part: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield manifest row and sound of one half of the noise recordings; those of one source are in one half."""
    for path in sorted((data / "audio" / "noise").glob("*/manifest.jsonl")):
        for row in manifest(path):
            # recordings that are speech are reported only
            half = "report" if is_speech(row) or hashed(row.get("source") or row["id"]) % 2 else "tune"
            if half == part:
                yield row, audio.read(data / "audio" / row["path"])


def utterances(data: Path, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield corpus and sound of utterances of training or `dev` speakers that suit a reference by level."""
    for corpus in CORPORA:
        split = "dev" if part == "report" else "train"
        rows = [row for row in manifest(data / "audio" / "speech" / corpus / "manifest.jsonl") if row["split"] == split]
        for row in rows[:: max(1, len(rows) // UTTERANCES)][:UTTERANCES]:
            waveform = audio.read(data / "audio" / row["path"])
            if dynamics_db(waveform) >= LEAST_DYNAMICS_DB:
                yield corpus, waveform


def dynamics_db(waveform: np.ndarray) -> float:
    """Return by how much the loudest tenth of all 10 ms exceeds the quietest."""
    frames = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
    levels = 10 * np.log10(np.mean(np.square(frames), axis=1) + 1e-10)
    return float(np.quantile(levels, 0.9) - np.quantile(levels, 0.1))


def speech_mask(waveform: np.ndarray) -> np.ndarray:
    """Return (T,) bool: at most 35 dB below the loudest 10 ms, from the first to the last such place of 30 ms or more.

    Pauses of more than 0.2 s are excluded.
    """
    step = RATE // 100
    frames = np.square(waveform[: len(waveform) // step * step], dtype=np.float64).reshape(-1, step).mean(axis=1)
    smooth = np.convolve(frames, np.ones(3) / 3, mode="same")
    loud = smooth > smooth.max() * 10 ** (-RANGE_DB / 10)
    for start, stop in runs(loud):
        loud[start:stop] = stop - start >= 5
    for start, stop in runs(~loud):
        loud[start:stop] |= stop - start <= 20 and start > 0 and stop < len(loud)
    return np.pad(np.repeat(loud, step), (0, len(waveform) - len(loud) * step))


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return start and stop of the stretches in which the mask is true."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def is_speech(row: dict[str, Any]) -> bool:
    """Return whether a noise recording consists of speech or song."""
    return row["label"] in APART or row["id"] in APART


def manifest(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a manifest."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hashed(name: str) -> int:
    """Return a number that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


if __name__ == "__main__":
    main()
