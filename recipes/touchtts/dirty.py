"""A corpus with planted faults, and the result of `audio-llm prepare`: is each dropped for its reason?"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from noisy_sets import noises

from audio_llm import audio
from audio_llm.asr.engines import load_recognizer
from audio_llm.errors import DataError
from audio_llm.simulation.mono import add_noise, colored_noise, trim_silence
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.touchtts.prepare import Prepared, Recording, prepare
from audio_llm.touchtts.prepare_filters import AsrAgreement
from audio_llm.touchtts.prepare_report import account, to_html, to_lines

CORPUS = "kathleen"
EXPECTED = {  # expected reason of each kind; empty: it is kept
    "good": "",
    "noisy": "",
    "wrong": "disagree",
    "silent": "silent",
    "short": "too_short",
    "long": "too_long",
    "clipped": "clipped",
    "empty": "no_text",
    "unspeakable": "unspeakable",
    "repeated": "repeated",
    "crammed": "speed",
    "broken": "unreadable",
}
NOISE_DB = 10.0  # signal-to-noise ratio
SHORT_S, LONG_S, SILENT_S = 1.0, 40.0, 5.0
PAUSE_S, ROOM_DB = 1.0, -75.0  # before and after every recording, and level of the room noise
LEAST_S = 3.2  # shortest recording: two seconds remain without silence
CUT_OFF = 0.03  # fraction of clipped samples
CRAMMED = 8  # texts for one recording
LOST = 0.05  # fraction of good recordings that may be dropped; no fault may be kept or dropped for another reason
PLANTED = "planted.json"
_UNSPEAKABLE = ("???", "...", "<br/>", "\u4f60\u597d", "\u266a \u266a")


@dataclass(frozen=True)
class Planted:
    """One recording of the corpus.

    Attributes:
        name: File name, without folder.
        kind: A key of `EXPECTED`.
        text: Its text, right or wrong.
        source: Ids of the recordings it was made from.
    """

    name: str
    kind: str
    text: str
    source: tuple[str, ...]


def main() -> int:
    """Write the corpus, prepare it, and print the results of each kind; return 1 where too many are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with audio/speech and audio/noise")
    parser.add_argument("--count", type=int, default=20, help="recordings of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep corpus and clips here (default: a temporary folder)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        planted = make_dirty(arguments.data, folder / "corpus", arguments.count, arguments.seed)
        results = run(folder / "corpus", folder / "prepared")
        print("\n".join(table(planted, results)))
        print("\n".join(to_lines(account(results))))
        (folder / "report.html").write_text(to_html(account(results)), encoding="utf-8")
    wrong = Counter(name.split("-")[0] for name in misjudged(planted, results))
    return 1 if any(count > (0 if EXPECTED[kind] else LOST * arguments.count) for kind, count in wrong.items()) else 0


def make_dirty(data: Path, folder: Path, count: int = 20, seed: int = 0) -> list[Planted]:
    """Write a corpus with `count` recordings of each kind, their texts, and `planted.json`.

    Args:
        data: Folder with `audio/speech/kathleen` and `audio/noise`; only the training part is used.
        folder: Folder of the corpus.
        count: Recordings of each kind.
        seed: Random seed.

    Raises:
        DataError: There are too few recordings.
    """
    rng = np.random.default_rng(seed)
    rows = _rows(data, rng, count * len(EXPECTED))
    hiss = list(noises(data, "train"))
    folder.mkdir(parents=True, exist_ok=True)
    planted = []
    for kind in EXPECTED:
        taken = [rows.pop() for _ in range(count)]
        if kind == "wrong":
            taken = _swapped(taken)
        for number, row in enumerate(taken):
            waveform = audio.read(data / "audio" / row["path"])
            text, source = row["text"], (row["id"],)
            if kind == "silent":
                waveform = _silence(number, rng)
            elif kind == "short":
                waveform = trim_silence(waveform)[: int(SHORT_S * audio.SAMPLE_RATE)]
            elif kind == "long":
                more = [taken[(number + step) % count] for step in range(int(LONG_S / LEAST_S) + 1)]
                waveform = np.concatenate([audio.read(data / "audio" / part["path"]) for part in more])
                text, source = " ".join(part["text"] for part in more), tuple(part["id"] for part in more)
            elif kind == "clipped":
                waveform = np.clip(waveform / np.quantile(np.abs(waveform), 1 - CUT_OFF), -1.0, 1.0)
            if kind != "silent":
                waveform = _room(waveform, rng)
            if kind == "noisy":
                waveform = add_noise(waveform, hiss[int(rng.integers(len(hiss)))], NOISE_DB)
            text = _text(kind, text, number, taken)
            name = f"{kind}-{number:03d}.flac"
            if kind == "broken":
                (folder / name).write_bytes(b"fLaC" + rng.bytes(2000) if number % 2 else b"no sound")
            else:
                audio.write(folder / name, waveform, audio.SAMPLE_RATE)
            (folder / name).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
            planted.append(Planted(name, kind, text, source))
    (folder / PLANTED).write_text(json.dumps([asdict(row) for row in planted], indent=1, ensure_ascii=False))
    return planted


def run(corpus: Path, output: Path) -> list[Prepared]:
    """Prepare a corpus that `make_dirty` wrote."""
    rows = json.loads((corpus / PLANTED).read_text(encoding="utf-8"))
    recordings = [Recording(corpus / row["name"], Path(row["name"]).stem, row["text"]) for row in rows]
    verifier = AsrAgreement(*[partial(load_recognizer, name, device="cpu") for name in ("ctc", "sphinx", "ctc")])
    return list(prepare(recordings, verifier, output))


def misjudged(planted: list[Planted], results: list[Prepared]) -> list[str]:
    """Return the names of recordings with another result than expected."""
    return [
        row.name
        for row, result in zip(planted, results, strict=True)
        if {clip.reason for clip in result.clips} != {EXPECTED[row.kind]}
    ]


def table(planted: list[Planted], results: list[Prepared]) -> list[str]:
    """Return a line for each kind: clips kept, dropped and why, hours, and clips that a classic pipeline keeps."""
    lines = [
        "| kind | expected | kept | dropped | hours in | silence | kept | dropped | classic pipeline keeps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, reason in EXPECTED.items():
        of_kind = [result for row, result in zip(planted, results, strict=True) if row.kind == kind]
        total = account(of_kind)
        why = Counter(clip.reason for result in of_kind for clip in result.clips if clip.reason)
        dropped = ", ".join(f"{count} {name}" for name, count in why.most_common()) or "-"
        gone = sum(part.hours for part in total.dropped.values())
        lines.append(
            f"| {kind} | {reason or 'kept'} | {total.retained.clips} | {dropped} | {total.read.hours:.4f} "
            f"| {total.silence.hours:.4f} | {total.retained.hours:.4f} | {gone:.4f} | {total.classic['kept'].clips} |"
        )
    wrong = misjudged(planted, results)
    return [*lines, f"misjudged: {', '.join(wrong) or 'none'}"]


def _rows(data: Path, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Return training recordings that are long enough, one of each prompt."""
    path = data / "audio" / "speech" / CORPUS / "manifest.jsonl"
    if not path.exists():
        raise DataError("no manifest", path=path, remedy="see the recipe's README for the structure of a data folder")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = {DEFAULT_NORMALIZER(row["text"]): row for row in rows if row["split"] == "train"}
    usable = [row for row in prompts.values() if row["duration"] >= LEAST_S]
    if len(usable) < count:
        raise DataError(f"{len(usable)} recordings, {count} are needed", path=path, remedy="give a smaller --count")
    return [usable[index] for index in rng.permutation(len(usable))[:count]]


def _swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every recording the text of another one of similar length."""
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    return [{**row, "text": ordered[(index + 1) % len(rows)]["text"]} for index, row in enumerate(ordered)]


def _silence(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return digital silence, noise, or a hum: (T,) float32."""
    samples = int(SILENT_S * audio.SAMPLE_RATE)
    if number % 3 == 0:
        return np.zeros(samples, np.float32)
    if number % 3 == 1:
        return 0.003 * colored_noise(samples, rng, float(rng.uniform(0.0, 1.5)))
    return (0.01 * np.sin(2 * np.pi * 50 * np.arange(samples) / audio.SAMPLE_RATE)).astype(np.float32)


def _room(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a recording with quiet room noise before and after it: (T,) float32."""
    pause = int(PAUSE_S * audio.SAMPLE_RATE)
    room = 10 ** (ROOM_DB / 20) * colored_noise(len(waveform) + 2 * pause, rng, 1.0)
    return np.asarray(room + np.pad(waveform, pause), dtype=np.float32)


def _text(kind: str, text: str, number: int, rows: list[dict[str, Any]]) -> str:
    if kind == "empty":
        return ""
    if kind == "unspeakable":
        return _UNSPEAKABLE[number % len(_UNSPEAKABLE)]
    if kind == "repeated":
        return " ".join([" ".join(text.split()[:3])] * 6)
    if kind == "crammed":
        return " ".join(rows[(number + step) % len(rows)]["text"] for step in range(CRAMMED))
    return text


if __name__ == "__main__":
    raise SystemExit(main())
