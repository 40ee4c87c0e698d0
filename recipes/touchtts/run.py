"""TouchTTS's recipe: vocoder, language model and flow, in stages that are run one by one."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import corpora
import evaluate
import noisy_sets
from resemblyzer_weights import read_resemblyzer
from similarity import similarity

from audio_llm import hub
from audio_llm.codec.vocoder_train import VocoderTrainingConfig, train_vocoder
from audio_llm.tokenizer.base import SemanticTokenizer
from audio_llm.tokenizer.load import load_tokenizer
from audio_llm.tokenizer.s3 import load_perceptual_loss
from audio_llm.touchtts.data import UtterancePack, pack_utterances
from audio_llm.touchtts.flow_train import FlowTrainingConfig, train_flow
from audio_llm.touchtts.models import assemble, load_touchtts, save_touchtts, tokenizer_name
from audio_llm.touchtts.speaker_vectors import CamPlusPlus
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.touchtts.speech_text_lm_train import SpeechTextLmTrainingConfig, train_speech_text_lm
from audio_llm.training.config import load_config

HERE = Path(__file__).parent
TOKENIZER = "tokenizer-s3-small"
SYNTHETIC, SYNTHETIC_TUNE = 8000, 80  # sentences spoken by other synthesizers
MAIN_VOICE = "kathleen"


def main() -> int:
    """Run the stage named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="pack, made: folder with audio/speech, audio/noise and text")
    parser.add_argument("--output", type=Path, default=Path("exp/touchtts"), help="output folder")
    parser.add_argument("--config", type=Path, help="settings of a training (default: config/STAGE.yaml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that override the file's")
    parser.add_argument("--manifest", type=Path, help="own: manifest of utterances")
    parser.add_argument("--packs", nargs="+", help="talk, flow: training packs (default: train made; train)")
    parser.add_argument("--tokenizer", default=TOKENIZER, help="a model, or a published S3Tokenizer .onnx file")
    parser.add_argument("--variant", help="which S3Tokenizer that file is, such as v2_25hz")
    parser.add_argument("--speaker", type=Path, help="packing: campplus.onnx, the speaker encoder of the flow")
    parser.add_argument("--llm", type=Path, help="talk: folder of a pretrained LLM to initialize from")
    parser.add_argument("--name", help="trainings, own: folder of this one (default: the stage's name)")
    parser.add_argument("--start", type=Path, help="trainings: model to initialize from")
    parser.add_argument("--max-minutes", type=float, help="time limit of a training")
    parser.add_argument("--resume", action="store_true", help="resume a training")
    parser.add_argument("--count", type=int, help="made: number of sentences; reports: number of each kind")
    parser.add_argument("--parts", nargs=3, metavar=("LM", "FLOW", "VOCODER"), help="finish: trainings to assemble")
    parser.add_argument("--systems", nargs="*", default=[], help="report: systems of evaluate.py (default: all)")
    parser.add_argument(
        "--encoder", type=Path, help="similarity: Resemblyzer's pretrained.pt (default: the installed one)"
    )
    parser.add_argument("--model", help="reports: model (default: OUTPUT/touchtts-small)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[arguments.stage](arguments)
    return 0


def pack(arguments: argparse.Namespace) -> None:
    """Pack recorded utterances with their tokens, and speech and noise for the vocoder (one minute)."""
    noisy_sets.pack(arguments.data, arguments.output / "packed")
    tokenizer, speaker = _tokenizer(arguments), _speaker(arguments)
    for part in noisy_sets.PARTS:
        count = pack_utterances(corpora.recorded(arguments.data, part), tokenizer, _packs(arguments) / part, speaker)
        logging.info("%s: %d utterances", part, count)


def pack_manifest(arguments: argparse.Namespace) -> None:
    """Pack the utterances of a manifest, such as that of `audio-llm prepare`, as an additional training pack."""
    folder = _packs(arguments) / (arguments.name or "own")
    utterances = corpora.from_manifest(arguments.manifest)
    count = pack_utterances(utterances, _tokenizer(arguments), folder, _speaker(arguments))
    logging.info("%s: %d utterances", folder, count)


def pack_synthetic(arguments: argparse.Namespace) -> None:
    """Pack book sentences spoken by synthesizers (ten minutes): more text for the language model."""
    tokenizer, count = _tokenizer(arguments), arguments.count or SYNTHETIC
    for part, first, size in (("made", 0, count), ("made-tune", count, min(count, SYNTHETIC_TUNE))):
        written = pack_utterances(corpora.synthetic(arguments.data, size, first), tokenizer, _packs(arguments) / part)
        logging.info("%s: %d utterances", part, written)


def vocoder(arguments: argparse.Namespace) -> None:
    """Train the vocoder."""
    config = _config(arguments, VocoderTrainingConfig)
    train, tune = (arguments.output / "packed" / part for part in ("train", "tune"))
    train_vocoder(
        train, tune, _folder(arguments), config, perceptual_loss=load_perceptual_loss(TOKENIZER), **_limits(arguments)
    )


def train_lm(arguments: argparse.Namespace) -> None:
    """Train the language model."""
    config = _config(arguments, SpeechTextLmTrainingConfig, "talk-llm" if arguments.llm else "talk")
    names = (arguments.packs or ("train", "made"), ("tune", "made-tune"))
    packs, tuning = ([_packs(arguments) / name for name in part] for part in names)
    tokenizer = _tokenizer(arguments), tokenizer_name(arguments.tokenizer)
    train_speech_text_lm(packs, tuning, *tokenizer, _folder(arguments), config, llm=arguments.llm, **_limits(arguments))


def flow(arguments: argparse.Namespace) -> None:
    """Train the flow."""
    config = _config(arguments, FlowTrainingConfig)
    names = (arguments.packs or ("train",), ("tune",))
    packs, tuning = ([_packs(arguments) / name for name in part] for part in names)
    tokenizer = _tokenizer(arguments), tokenizer_name(arguments.tokenizer)
    train_flow(packs, tuning, *tokenizer, _folder(arguments), config, **_limits(arguments))


def finish(arguments: argparse.Namespace) -> None:
    """Assemble `touchtts-small` from the trained parts: half precision, with its card."""
    folders = arguments.parts or [arguments.output / name / "best" for name in ("talk", "flow", "vocoder")]
    model, provenance = assemble(
        *folders, _tokenizer(arguments), UtterancePack(_packs(arguments) / "train"), MAIN_VOICE
    )
    card = (HERE / "cards" / "touchtts-small.md").read_text(encoding="utf-8")
    folder = arguments.output / "touchtts-small"
    save_touchtts(
        folder, model, tokenizer_name(arguments.tokenizer), card, {"recipe": "recipes/touchtts", "training": provenance}
    )
    logging.info("%s: voices %s", folder, ", ".join(sorted(load_touchtts(folder).voices)))


def report(arguments: argparse.Namespace) -> None:
    """Print the intelligibility of each step, the dependence on the text, and the error rates of transcription."""
    speech, pack = _speech(arguments), UtterancePack(_packs(arguments) / "test")
    count = arguments.count or 50
    fingerprint = hub.fingerprint(arguments.model or arguments.output / "touchtts-small")[:12]
    output = arguments.output / "heard.jsonl"
    for lines in (
        evaluate.ladder(speech, pack, MAIN_VOICE, count, output, fingerprint, arguments.systems),
        evaluate.text_matters(speech, pack, MAIN_VOICE, count),
        evaluate.transcription(speech, pack, count),
    ):
        for line in lines:
            print(line, flush=True)


def measure_cost(arguments: argparse.Namespace) -> None:
    """Print the time of a chunk at several positions, and the time to the first sound."""
    for line in evaluate.cost(_speech(arguments), MAIN_VOICE):
        print(line, flush=True)


def measure_similarity(arguments: argparse.Namespace) -> None:
    """Print the speaker similarity of speech to its reference, for speakers of the test part."""
    pack = UtterancePack(_packs(arguments) / "test")
    for line in similarity(_speech(arguments), pack, read_resemblyzer(arguments.encoder), MAIN_VOICE):
        print(line, flush=True)


STAGES = {
    "pack": pack,
    "own": pack_manifest,
    "made": pack_synthetic,
    "vocoder": vocoder,
    "talk": train_lm,
    "flow": flow,
    "finish": finish,
    "report": report,
    "cost": measure_cost,
    "similarity": measure_similarity,
    "likeness": measure_similarity,  # the former name of the stage
}


def _speech(arguments: argparse.Namespace) -> TouchTTS:
    return TouchTTS.load(arguments.model or arguments.output / "touchtts-small")


def _tokenizer(arguments: argparse.Namespace) -> SemanticTokenizer:
    return load_tokenizer(arguments.tokenizer, variant=arguments.variant)


def _speaker(arguments: argparse.Namespace) -> CamPlusPlus | None:
    return CamPlusPlus(arguments.speaker) if arguments.speaker else None


def _packs(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.output / "talks"
    return folder


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.output / (arguments.name or arguments.stage)
    return folder


def _config(arguments: argparse.Namespace, kind: type[Any], name: str | None = None) -> Any:
    default = HERE / "config" / f"{name or arguments.stage}.yaml"
    return load_config(kind, arguments.config or default, arguments.set)


def _limits(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {"max_minutes": "max_minutes", "resume": "resume", "start_from": "start"}
    return {name: getattr(arguments, option) for name, option in names.items()}


if __name__ == "__main__":
    raise SystemExit(main())
