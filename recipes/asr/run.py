"""Figures of the recognizer: word errors, oracles of N-best lists, hallucinated words, speed, word times, languages.

    python recipes/asr/run.py wer --data data --model whisper-tiny.en
    python recipes/asr/run.py report

Every hypothesis is written as it comes to OUTPUT/SYSTEM-MODEL/SET.jsonl; existing ones are not recognized again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import languages
import memory
import names
import nonspeech
import plot
import sets
import speed
import systems
import word_times

from audio_llm.metrics import oracle, utterance_errors
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.text import DEFAULT_NORMALIZER


def main() -> int:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="folder with audio/speech and audio/noise")
    parser.add_argument("--output", type=Path, default=Path("exp/asr"), help="folder of the hypotheses and tables")
    parser.add_argument("--system", choices=systems.SYSTEMS, default="audio-llm")
    parser.add_argument("--model", default="whisper-base")
    parser.add_argument("--sets", nargs="*", default=list(sets.SETS), choices=[*sets.SETS, *sets.TUNING])
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--nbest", type=int, default=1)
    parser.add_argument("--packed", action="store_true", help="wer: neighbors joined to windows of up to 30 s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="speed: how often each system runs")
    parser.add_argument("--only", nargs="*", help="speed: these systems alone")
    parser.add_argument("--limit", type=int, help="utterances of each set")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[arguments.stage](arguments)
    return 0


def recognize(arguments: argparse.Namespace) -> None:
    """Recognize sets, utterance by utterance."""
    run = systems.load(arguments.system, arguments.model, arguments.beam, arguments.nbest, arguments.threads)
    name = arguments.system if arguments.system == "sphinx" else f"{arguments.system}-{arguments.model}"
    name += f"-{arguments.nbest}best" if arguments.nbest > 1 else ""
    folder = arguments.output / (f"{name}-packed" if arguments.packed else name)
    folder.mkdir(parents=True, exist_ok=True)
    for set_name in arguments.sets:
        path = folder / f"{set_name}.jsonl"
        done = {row["id"] for row in read(path)}
        with path.open("a", encoding="utf-8") as file:
            utterances = sets.utterances(arguments.data, set_name)
            for number, utterance in enumerate(sets.packed(utterances) if arguments.packed else utterances):
                if utterance.id in done or (arguments.limit and number >= arguments.limit):
                    continue
                begin = time.perf_counter()
                texts = run(utterance.waveform)
                row = {"id": utterance.id, "reference": utterance.text, "hypotheses": texts}
                row |= {"seconds": len(utterance.waveform) / 16_000, "took_s": round(time.perf_counter() - begin, 3)}
                file.write(json.dumps(row) + "\n")
                file.flush()
        logging.info("%s, %s: %s", folder.name, set_name, describe(read(path)))


def describe(rows: list[dict]) -> str:
    """Return word error rate, oracle and counts of hypotheses."""
    words = sum(len(DEFAULT_NORMALIZER(row["reference"]).split()) for row in rows)
    text = f"{100 * word_error_rate(rows):.2f} % of {words} words"
    if any(len(row["hypotheses"]) > 1 for row in rows):
        lists = [NBest(row["id"], tuple(map(Hypothesis, row["hypotheses"])), row["reference"]) for row in rows]
        counts = utterance_errors([row["reference"] for row in rows], [oracle(each) for each in lists])
        text += f", oracle {100 * counts[:, :3].sum() / counts[:, 3].sum():.2f} %"
    return text


def word_error_rate(rows: list[dict]) -> float:
    """Return the rate, 0 to 1, of the best hypotheses."""
    best = [row["hypotheses"][0] if row["hypotheses"] else "" for row in rows]
    counts = utterance_errors([row["reference"] for row in rows], best)
    return float(counts[:, :3].sum() / counts[:, 3].sum())


def report(arguments: argparse.Namespace) -> None:
    """Print a table of all hypotheses, and draw it."""
    folders = sorted(path for path in arguments.output.iterdir() if path.is_dir())
    rates: dict[str, dict[str, float]] = {}
    print(f"Normalizer: {DEFAULT_NORMALIZER.name}; noise of seed {sets.SEED}.\n")
    print("| set | system | utterances | WER |\n|---|---|---|---|")
    for set_name in arguments.sets:
        for folder in folders:
            rows = read(folder / f"{set_name}.jsonl")
            if rows:
                print(f"| {set_name} | {folder.name} | {len(rows)} | {describe(rows)} |")
                if "best" not in folder.name:
                    rates.setdefault(folder.name, {})[set_name] = word_error_rate(rows)
    plot.draw(rates, arguments.output / "speed.jsonl", arguments.output / "results.png")


def read(path: Path) -> list[dict]:
    """Return the rows of a file, none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names_right(arguments: argparse.Namespace) -> None:
    """Print how many names are correct without and with a word list, here and with faster-whisper."""
    for set_name in arguments.sets:
        listed = names.NAMES[set_name]
        utterances = list(sets.utterances(arguments.data, set_name))
        references = [utterance.text for utterance in utterances]
        for system in ("audio-llm", "faster-whisper"):
            for label, words in (("without", ()), ("with the list", listed)):
                run = systems.load_with_words(system, arguments.model, words, arguments.threads)
                hypotheses = [run(utterance.waveform)[0] for utterance in utterances]
                counts = names.count(references, hypotheses, listed)
                logging.info("%s, %s, %s, %s: %s", set_name, system, arguments.model, label, counts)


def aligned(arguments: argparse.Namespace) -> None:
    """Print the differences of word times from forced alignment."""
    recognizer = systems.load_whisper(arguments.model, arguments.threads)
    print("| time | words | median difference | 90th percentile | median, signed |\n|---|---|---|---|---|")
    for name in arguments.sets:
        word_times.run(arguments.data, name, recognizer)


def invented(arguments: argparse.Namespace) -> None:
    """Print the words that are recognized in sound without speech."""
    nonspeech.run(arguments.data, systems.load_whisper(arguments.model, arguments.threads))


def detected(arguments: argparse.Namespace) -> None:
    """Print which languages are detected."""
    languages.run(systems.load_whisper(arguments.model, arguments.threads, language=None))


def timed(arguments: argparse.Namespace) -> None:
    """Time whole processes, in turns."""
    speed.run(arguments.data, arguments.output, arguments.model, arguments.threads, arguments.rounds, arguments.only)


def held(arguments: argparse.Namespace) -> None:
    """Measure memory on hours of sound."""
    memory.run(arguments.data, arguments.output, arguments.model, arguments.threads)


STAGES = {
    "wer": recognize,
    "report": report,
    "names": names_right,
    "times": aligned,
    "nonspeech": invented,
    "languages": detected,
    "speed": timed,
    "memory": held,
}


if __name__ == "__main__":
    sys.exit(main())
