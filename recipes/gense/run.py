"""The recipe of speech enhancement: the mask network and GenSE; each stage is a function."""

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
import tune_checks
from finish import finish
from resemblyzer_weights import read_resemblyzer
from systems import systems

from audio_llm import hub
from audio_llm.gense.mask_train import MaskTrainingConfig, train_mask
from audio_llm.gense.models import load_gense, load_mask, load_parts
from audio_llm.gense.train import GenseTrainingConfig, TokenPackConfig, pack_tokens, train_gense
from audio_llm.simulation.speech_pack import SpeechPack, clean_targets
from audio_llm.tokenizer.s3 import S3Tokenizer, load_perceptual_loss
from audio_llm.training.config import load_config

HERE = Path(__file__).parent
TUNE_STRETCHES, TUNE_SEED, LIMITS_SEED = 480, 1 << 41, 1 << 42


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="pack, report: folder with audio/speech and audio/noise")
    parser.add_argument("--output", type=Path, default=Path("exp/gense"), help="folder of all outputs")
    parser.add_argument("--config", type=Path, help="settings of a training (default: config/STAGE.yaml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that override the file")
    parser.add_argument("--name", default="mask", help="mask, mask-finish: folder of the training")
    parser.add_argument("--packs", default="packed", help="mask: packed, or refined")
    parser.add_argument("--start", type=Path, help="model to initialize from")
    parser.add_argument("--listener", help="mask: tokenizer used as a perceptual loss, to preserve content")
    parser.add_argument("--max-minutes", type=float, help="time limit of a training")
    parser.add_argument("--resume", action="store_true", help="continue a training")
    parser.add_argument("--tokenizer", default="tokenizer-s3-small", help="tokens, gense, report: tokenizer")
    parser.add_argument("--codec", default="codec-small", help="tokens, gense: codec")
    parser.add_argument(
        "--mask", help="tokens and later: mask network (default: OUTPUT/mask-small, else the package's)"
    )
    parser.add_argument("--gense", help="attack, report: GenSE model; report without it: the mask network alone")
    parser.add_argument("--voices", action="store_true", help="report: speaker similarity by Resemblyzer's encoder")
    parser.add_argument(
        "--systems", nargs="*", default=[], help="report: systems to compare, by their names in systems.py"
    )
    parser.add_argument("--count", type=int, help="number of segments (tokens, limits) or utterances (attack, report)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[arguments.stage](arguments)
    return 0


def pack(arguments: argparse.Namespace) -> None:
    """Pack speech and noise of the training, validation and test parts (half a minute)."""
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
        perceptual_loss=load_perceptual_loss(arguments.listener) if arguments.listener else None,
        **_limits(arguments),
    )


def refine(arguments: argparse.Namespace) -> None:
    """Write the packs again, with targets denoised by the mask network, for a further training."""
    network = load_mask(arguments.start or arguments.output / "mask" / "best")

    for part in ("train", "tune"):
        source, output = (arguments.output / kind / part for kind in ("packed", "refined"))
        count = clean_targets(source, output, lambda waveform: tune_checks.masked_sound(network, waveform))
        logging.info("%s: %d utterances", part, count)


def finish_mask(arguments: argparse.Namespace) -> None:
    """Write `mask-small` from the trained mask network: half precision, with its card."""
    card = HERE / "cards" / "mask-small.md"
    finish(arguments.output / arguments.name / "best", arguments.output / "mask-small", card, "recipes/gense")


def tokens(arguments: argparse.Namespace) -> None:
    """Pack tokens of noisy and clean speech of the training and validation parts."""
    parts = load_parts(arguments.tokenizer, arguments.codec)
    network = load_mask(_mask(arguments))
    for part, count, seed in (("train", arguments.count or 12_000, 0), ("tune", TUNE_STRETCHES, TUNE_SEED)):
        config = load_config(TokenPackConfig, None, [*arguments.set, f"count={count}", f"seed={seed}"])
        output = arguments.output / "tokens" / part
        written = pack_tokens(arguments.output / "packed" / part, parts, network, output, config)
        logging.info("%s: %d segments", part, written)


def gense(arguments: argparse.Namespace) -> None:
    """Train N2S and S2S."""
    config = load_config(GenseTrainingConfig, arguments.config or HERE / "config" / "gense.yaml", arguments.set)
    parts = load_parts(arguments.tokenizer, arguments.codec)
    train, tune = (arguments.output / "tokens" / part for part in ("train", "tune"))
    output = arguments.output / "gense"
    train_gense(train, tune, parts, output, config, start_from=arguments.start, **_limits(arguments))


def find_limits(arguments: argparse.Namespace) -> None:
    """Tune on validation speech: prompt and decoding of S2S, limits of the checks, threshold of `balanced`.

    The settings are stored in `gense-small`, which has to exist next to its codec and its mask network.
    """
    folder = arguments.output / "gense-small"
    model, count = load_gense(folder), arguments.count or 40
    network, versions = load_mask(model.mask), "-".join(_fingerprints(folder, model.mask))
    pack = SpeechPack(arguments.output / "packed" / "tune", least_dynamics_db=24.0)
    arms = tune_checks.arms(model)

    def rows_of(name: str, count: int) -> list[dict[str, Any]]:
        rows_path = arguments.output / f"trial-{name}-{versions}.jsonl"
        return tune_checks.generate_all(arms[name].generator(model), network, pack, count, LIMITS_SEED, rows_path)

    clean_db = tune_checks.clean_ratios_db(network, pack, count, LIMITS_SEED)
    best = tune_checks.best_arm({name: rows_of(name, count) for name in arms})
    tuned = tune_checks.tune(arms[best], rows_of(best, 3 * count), clean_db)
    logging.info("%s", tuned)
    settings = asdict(tuned)
    settings["heard_share"] = settings.pop("copy_weight")  # as model directories store it
    finish_gense(arguments, settings)


def finish_gense(arguments: argparse.Namespace, tuned: Mapping[str, Any] | None = None) -> None:
    """Write `gense-small` from the trained language models: half precision, with its card and the tuned settings."""
    mask_folder = hub.find_model(_mask(arguments)).resolve()
    mask = {"name": mask_folder.name, "fingerprint": hub.fingerprint(mask_folder)}
    settings = {**(tuned or {}), "mask": mask}
    card, trained = HERE / "cards" / "gense-small.md", arguments.output / "gense" / "best"
    finish(trained, arguments.output / "gense-small", card, "recipes/gense", settings)


def attack(arguments: argparse.Namespace) -> None:
    """Test the quality checks: other words, another voice, clean speech, noise alone."""
    model, test = load_gense(arguments.gense), arguments.output / "packed" / "test"
    for line in tune_checks.attack(model, load_mask(model.mask), test, arguments.count or 40):
        print(line, flush=True)


def report(arguments: argparse.Namespace) -> None:
    """Evaluate on VoiceBank-DEMAND and on mixtures of the test part; print the tables."""
    pairs = {"VoiceBank-DEMAND": measure.reported_pairs(arguments.data)}
    pairs["mixtures in rooms"] = evaluate.mixes(arguments.output / "packed" / "test", arguments.count or 60)
    texts = [evaluate.DEFAULT_NORMALIZER(pair.words) for of_set in pairs.values() for pair in of_set]
    tokenizer = S3Tokenizer.load(arguments.tokenizer) if arguments.gense else None
    evaluator = evaluate.Evaluator(tokenizer, read_resemblyzer() if arguments.voices else None, texts)
    output = arguments.output / "measures.jsonl"
    network = load_gense(arguments.gense).mask if arguments.gense else _mask(arguments)
    settings = [] if arguments.gense is None else [str(hub.model_stamp(arguments.gense)).split(":")[-1][:8]]
    versions = " ".join(
        [
            *_fingerprints(arguments.gense, network),
            *settings,
            *(name for name, part in vars(evaluator).items() if part is not None),
            *([tokenizer.fingerprint[:8]] if tokenizer else []),
        ]
    )
    for name, of_set in pairs.items():
        evaluate.run(systems(network, arguments.gense, arguments.systems), of_set, evaluator, output, name, versions)
    for line in evaluate.tables(evaluate.rows_of(output, versions)):
        print(line)


def measure_cost(arguments: argparse.Namespace) -> None:
    """Print CPU time, memory and seams for recordings of 10 s, 10 minutes and 2 hours, from VoiceBank-DEMAND."""
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
    """Return the mask network that was named, else the one trained here, else the package's."""
    trained: Path = arguments.output / "mask-small"
    return arguments.mask or (trained if trained.exists() else "mask-small")


def _fingerprints(gense: str | Path | None, mask: str | Path) -> list[str]:
    """Return the first characters of the fingerprints of all models in use."""
    if gense is None:
        return [hub.fingerprint(mask)[:8]]
    codec = hub.find_companion(gense, hub.model_settings(gense)["codec"]["name"])
    return [hub.fingerprint(model)[:8] for model in (gense, codec, mask)]


def _limits(arguments: argparse.Namespace) -> dict[str, float | bool | None]:
    return {"max_minutes": arguments.max_minutes, "resume": arguments.resume}


if __name__ == "__main__":
    raise SystemExit(main())
