"""Speech enhancement's recipe: the mask network and GenSE; stages as plain functions, run one by one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import bench
import evaluate
import measure
import noisy_sets
import trial
from finish import finish
from resemblyzer_weights import read_resemblyzer
from systems import systems

from audio_llm import hub
from audio_llm.gense.mask_train import MaskTrainingConfig, train_mask
from audio_llm.gense.models import load_gense, load_mask, load_parts
from audio_llm.gense.train import GenseTrainingConfig, TokenPackConfig, pack_tokens, train_gense
from audio_llm.simulation.speech_pack import SpeechPack, clean_targets
from audio_llm.tokenizer.s3 import S3Tokenizer, load_listener
from audio_llm.training.config import load_config

HERE = Path(__file__).parent
TUNE_STRETCHES, TUNE_SEED, LIMITS_SEED = 480, 1 << 41, 1 << 42


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="pack, report: folder with audio/speech and audio/noise")
    parser.add_argument("--output", type=Path, default=Path("exp/gense"), help="folder of everything that is made")
    parser.add_argument("--config", type=Path, help="settings of a training (default: config/STAGE.yaml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that win over the file's")
    parser.add_argument("--name", default="mask", help="mask, mask-finish: folder of the training")
    parser.add_argument("--packs", default="packed", help="mask: packed, or refined")
    parser.add_argument("--start", type=Path, help="model to start from")
    parser.add_argument("--listener", help="mask: tokenizer that hears what is enhanced, so that words stay")
    parser.add_argument("--max-minutes", type=float, help="of a training")
    parser.add_argument("--resume", action="store_true", help="go on with a training")
    parser.add_argument("--tokenizer", default="tokenizer-s3-small", help="tokens, gense, report: which")
    parser.add_argument("--codec", default="codec-small", help="tokens, gense: which")
    parser.add_argument("--mask", help="tokens and later: which (default: OUTPUT/mask-small, else the package's)")
    parser.add_argument("--gense", help="attack, report: which; report without it: the mask network alone")
    parser.add_argument("--voices", action="store_true", help="report: compare voices, by Resemblyzer's encoder")
    parser.add_argument("--systems", nargs="*", default=[], help="report: which, of those that systems.py names")
    parser.add_argument("--count", type=int, help="tokens, limits: stretches; attack, report: utterances")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[arguments.stage](arguments)
    return 0


def pack(arguments: argparse.Namespace) -> None:
    """Pack speech and noise of training, tuning and test, half a minute."""
    noisy_sets.pack(arguments.data, arguments.output / "packed")


def mask(arguments: argparse.Namespace) -> None:
    """Train the mask network."""
    config = load_config(MaskTrainingConfig, arguments.config or HERE / "config" / "mask.yaml", arguments.set)
    packs = arguments.output / arguments.packs
    train_mask(
        packs / "train",
        packs / "tune",
        arguments.output / arguments.name,
        config,
        start_from=arguments.start,
        listener=load_listener(arguments.listener) if arguments.listener else None,
        **_limits(arguments),
    )


def refine(arguments: argparse.Namespace) -> None:
    """Write the packs anew, with targets that the mask network has cleaned: it then learns from better ones."""
    network = load_mask(arguments.start or arguments.output / "mask" / "best")

    for part in ("train", "tune"):
        source, output = (arguments.output / kind / part for kind in ("packed", "refined"))
        count = clean_targets(source, output, lambda waveform: trial.masked_sound(network, waveform))
        logging.info("%s: %d utterances", part, count)


def finish_mask(arguments: argparse.Namespace) -> None:
    """Make `mask-small` of the mask network trained: half precision, with its card."""
    card = HERE / "cards" / "mask-small.md"
    finish(arguments.output / arguments.name / "best", arguments.output / "mask-small", card, "recipes/gense")


def tokens(arguments: argparse.Namespace) -> None:
    """Pack tokens of noisy and clean speech, of training and tuning."""
    parts = load_parts(arguments.tokenizer, arguments.codec)
    network = load_mask(_mask(arguments))
    for part, count, seed in (("train", arguments.count or 12_000, 0), ("tune", TUNE_STRETCHES, TUNE_SEED)):
        config = load_config(TokenPackConfig, None, [*arguments.set, f"count={count}", f"seed={seed}"])
        output = arguments.output / "tokens" / part
        found = pack_tokens(arguments.output / "packed" / part, parts, network, output, config)
        logging.info("%s: %d stretches", part, found)


def gense(arguments: argparse.Namespace) -> None:
    """Train N2S and S2S."""
    config = load_config(GenseTrainingConfig, arguments.config or HERE / "config" / "gense.yaml", arguments.set)
    parts = load_parts(arguments.tokenizer, arguments.codec)
    train, tune = (arguments.output / "tokens" / part for part in ("train", "tune"))
    output = arguments.output / "gense"
    train_gense(train, tune, parts, output, config, start_from=arguments.start, **_limits(arguments))


def find_limits(arguments: argparse.Namespace) -> None:
    """Find on tuning speech what S2S is told, how it draws, the guards' limits and the threshold of `balanced`.

    They go with `gense-small`, which is there already, beside the codec and the mask network that it shall have.
    """
    folder = arguments.output / "gense-small"
    model, count = load_gense(folder), arguments.count or 40
    network, made_by = load_mask(model.mask), "-".join(_fingerprints(folder, model.mask))
    pack = SpeechPack(arguments.output / "packed" / "tune", least_dynamics_db=24.0)
    arms = trial.arms(model)

    def rows_of(name: str, count: int) -> list[dict[str, Any]]:
        kept = arguments.output / f"trial-{name}-{made_by}.jsonl"
        return trial.speak_all(arms[name].generator(model), network, pack, count, LIMITS_SEED, kept)

    best = trial.choose({name: rows_of(name, count) for name in arms})
    found = trial.find(arms[best], rows_of(best, 3 * count), trial.clean_ratios_db(network, pack, count, LIMITS_SEED))
    logging.info("%s", found)
    finish_gense(arguments, asdict(found))


def finish_gense(arguments: argparse.Namespace, found: Mapping[str, Any] | None = None) -> None:
    """Make `gense-small` of the language models trained: half precision, with its card and with what was found."""
    mask_folder = hub.find_model(_mask(arguments)).resolve()
    mask = {"name": mask_folder.name, "fingerprint": hub.fingerprint(mask_folder)}
    settings = {**(found or {}), "mask": mask}
    card, trained = HERE / "cards" / "gense-small.md", arguments.output / "gense" / "best"
    finish(trained, arguments.output / "gense-small", card, "recipes/gense", settings)


def attack(arguments: argparse.Namespace) -> None:
    """Put the guards to the test: other words, another's voice, clean speech, noise alone."""
    model, test = load_gense(arguments.gense), arguments.output / "packed" / "test"
    for line in trial.attack(model, load_mask(model.mask), test, arguments.count or 40):
        print(line, flush=True)


def report(arguments: argparse.Namespace) -> None:
    """Measure on the reported pairs and on mixtures of the test part; print the tables."""
    pairs = {"VoiceBank-DEMAND": measure.reported_pairs(arguments.data)}
    pairs["mixtures in rooms"] = evaluate.mixes(arguments.output / "packed" / "test", arguments.count or 60)
    texts = [evaluate.DEFAULT_NORMALIZER(pair.words) for own in pairs.values() for pair in own]
    tokenizer = S3Tokenizer.load(arguments.tokenizer) if arguments.gense else None
    judges = evaluate.Judges(tokenizer, read_resemblyzer() if arguments.voices else None, texts)
    output = arguments.output / "measures.jsonl"
    network = load_gense(arguments.gense).mask if arguments.gense else _mask(arguments)
    settings = [] if arguments.gense is None else [str(hub.model_stamp(arguments.gense)).split(":")[-1][:8]]
    made_by = " ".join(
        [
            *_fingerprints(arguments.gense, network),
            *settings,
            *(name for name, judge in vars(judges).items() if judge is not None),
            *([tokenizer.fingerprint[:8]] if tokenizer else []),
        ]
    )
    for name, own in pairs.items():
        evaluate.run(systems(network, arguments.gense, arguments.systems), own, judges, output, name, made_by)
    for line in evaluate.tables(evaluate.rows_of(output, made_by)):
        print(line)


def measure_cost(arguments: argparse.Namespace) -> None:
    """Print CPU time, memory and seams of recordings of 10 s, 10 minutes and 2 hours, out of the reported pairs."""
    sounds = [pair.noisy for pair in measure.reported_pairs(arguments.data)]
    mask = str(load_gense(arguments.gense).mask if arguments.gense else _mask(arguments))
    model, mode = arguments.gense or mask, "generative" if arguments.gense else "safe"
    lengths_s = [10.0, 600.0] if arguments.gense else [10.0, 600.0, 7200.0]
    for line in bench.rows(model, mask, mode, sounds, arguments.output / "bench", lengths_s):
        print(line, flush=True)


STAGES = {
    "pack": pack,
    "mask": mask,
    "refine": refine,
    "mask-finish": finish_mask,
    "tokens": tokens,
    "gense": gense,
    "limits": find_limits,
    "gense-finish": finish_gense,
    "attack": attack,
    "report": report,
    "bench": measure_cost,
}


def _mask(arguments: argparse.Namespace) -> str | Path:
    """Return the mask network that was named, else the one made here, else the package's."""
    made: Path = arguments.output / "mask-small"
    return arguments.mask or (made if made.exists() else "mask-small")


def _fingerprints(gense: str | Path | None, mask: str | Path) -> list[str]:
    """Return the beginnings of the fingerprints of what makes the sound, language models or none."""
    if gense is None:
        return [hub.fingerprint(mask)[:8]]
    codec = hub.find_companion(gense, hub.model_settings(gense)["codec"]["name"])
    return [hub.fingerprint(model)[:8] for model in (gense, codec, mask)]


def _limits(arguments: argparse.Namespace) -> dict[str, float | bool | None]:
    return {"max_minutes": arguments.max_minutes, "resume": arguments.resume}


if __name__ == "__main__":
    raise SystemExit(main())
