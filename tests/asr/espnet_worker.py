"""Run by test_espnet.py inside ESPnet's own environment: train a small Conformer, then decode through the adapter.

Usage: python espnet_worker.py MANIFEST.jsonl FOLDER    (prints one JSON object as its last line)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch

from audio_llm.asr.espnet import EspnetRecognizer, import_espnet
from audio_llm.errors import AudioLLMError

STEPS = 120
OPTIONS = {
    "token_type": "char",
    "init": "xavier_uniform",
    "frontend_conf": {"fs": 16000, "n_fft": 512, "hop_length": 160, "win_length": 400, "n_mels": 40},
    "specaug": None,
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 64,
        "attention_heads": 4,
        "linear_units": 256,
        "num_blocks": 3,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "input_layer": "conv2d",
        "macaron_style": True,
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "activation_type": "swish",
        "use_cnn_module": True,
        "cnn_module_kernel": 15,
    },
    "decoder": "transformer",
    "decoder_conf": {
        "attention_heads": 4,
        "linear_units": 256,
        "num_blocks": 2,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
    },
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.0, "length_normalized_loss": False},
}


def main(manifest: Path, folder: Path) -> dict[str, object]:
    """Train, save, load and decode; return what the test checks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import_espnet()
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    waveforms = [soundfile.read(row["audio_filepath"], dtype="float32")[0] for row in rows]
    texts = [row["text"] for row in rows]
    write_config(folder, texts)
    model, losses = train(folder, waveforms, texts)
    torch.save(model.state_dict(), folder / "valid.acc.best.pth")

    recognizer = EspnetRecognizer.load(folder, "cpu")
    nbest = recognizer.recognize(waveforms[0], nbest=5, id="first")
    bests = [recognizer.recognize(waveform, nbest=1).best for waveform in waveforms]
    silent = recognizer.recognize(np.zeros(16000, np.float32))
    short = recognizer.recognize(waveforms[0][4000:6000])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "losses": losses,
        "id": nbest.id,
        "texts": [hypothesis.text for hypothesis in nbest.hypotheses],
        "scores": [hypothesis.score for hypothesis in nbest.hypotheses],
        "rescored": recognizer.score(waveforms[0], nbest.texts),
        "other_sound": recognizer.score(waveforms[1], nbest.texts),
        "unknown": recognizer.score(waveforms[0], ["文字", nbest.best.upper(), "", nbest.best * 40]),
        "wide": EspnetRecognizer.load(folder, beam_size=1000).recognize(waveforms[0], nbest=1).best,
        "references": texts,
        "bests": bests,
        "silent": len(silent.hypotheses),
        "short": len(short.hypotheses),
        "version": recognizer.version,
        "errors": refused(folder, model),
    }


def write_config(folder: Path, texts: list[str]) -> None:
    """Write config.yaml as ESPnet's own training does: every argument of the task, with its default or ours."""
    from espnet2.tasks.asr import ASRTask
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    characters = sorted({character for text in texts for character in text if character != " "})
    tokens = ["<blank>", "<unk>", "<space>", *characters, "<sos/eos>"]
    parser = ASRTask.get_parser()
    parser.set_defaults(**OPTIONS)
    arguments = vars(parser.parse_args(["--output_dir", str(folder), "--token_list", "tokens.txt"]))
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    with (folder / "config.yaml").open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump({**arguments, "token_list": tokens}, file, indent=4, sort_keys=False)


def train(folder: Path, waveforms: list[np.ndarray], texts: list[str]) -> tuple[torch.nn.Module, list[float]]:
    """Take some full-batch steps; return the model and the loss of each step."""
    from espnet2.tasks.asr import ASRTask

    model, arguments = ASRTask.build_model_from_file(folder / "config.yaml")
    ids = [[arguments.token_list.index("<space>" if c == " " else c) for c in text] for text in texts]
    batch = {
        "speech": torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True),
        "speech_lengths": torch.tensor([len(w) for w in waveforms]),
        "text": torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True, padding_value=-1),
        "text_lengths": torch.tensor([len(i) for i in ids]),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        loss, _, _ = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


class _Payload:
    """Unpickled without restriction it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def refused(folder: Path, model: torch.nn.Module) -> dict[str, str]:
    """Try model folders that must not load; return the error of each."""
    from dataclasses import dataclass

    @dataclass
    class Case:
        name: str
        config: str
        weights: object

    config = (folder / "config.yaml").read_text(encoding="utf-8")
    state = model.state_dict()
    mark = folder / "code-was-run"
    incomplete = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    cases = [
        Case("code", config, {**state, "more": _Payload(mark)}),
        Case("incomplete", config, incomplete),
        Case("elsewhere", config.replace("\nencoder: conformer", "\nencoder: hubert"), state),
        Case("unbuildable", config.replace("cnn_module_kernel: 15", "cnn_module_kernel: seven"), state),
    ]
    errors = {}
    for case in cases:
        bad = folder / case.name
        bad.mkdir()
        (bad / "config.yaml").write_text(case.config, encoding="utf-8")
        torch.save(case.weights, bad / "model.pth")
        try:
            EspnetRecognizer.load(bad)
        except AudioLLMError as error:
            errors[case.name] = f"{type(error).__name__}: {error}"
    errors["ran"] = str(mark.exists())
    return errors


if __name__ == "__main__":
    outcome = main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(outcome))
