"""Model directories: what was saved is what is loaded, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.codec.vocoder import KIND as VOCODER_KIND
from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.tokenizer.s3 import KIND, S3Tokenizer
from audio_llm.tokenizer.s3_model import S3Network
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.models import (
    FLOW,
    SPEECH_TEXT_LM,
    TouchModel,
    assemble,
    load_flow,
    load_speech_text_lm,
    load_touchtts,
    save_touchtts,
    speech_vectors,
    voice_of,
)
from audio_llm.touchtts.speech import TouchTTS

torch.set_num_threads(1)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """Return a model's directory that may be changed, its tokenizer next to it."""
    shutil.copytree(model_folder.parent, tmp_path / "models")
    return tmp_path / "models" / model_folder.name


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the settings of a model directory."""
    document = json.loads((folder / "config.json").read_text())
    edit(document["config"])
    (folder / "config.json").write_text(json.dumps(document))


def test_what_was_saved_is_what_is_loaded(model: TouchModel, model_folder: Path) -> None:
    loaded = load_touchtts(model_folder)
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    for part in ("lm", "flow", "vocoder"):
        one, other = getattr(model, part), getattr(loaded, part)
        assert other.config == one.config
        assert not other.training
        assert not any(parameter.requires_grad for parameter in other.parameters())
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())
    assert loaded.voices.keys() == model.voices.keys()
    assert all(torch.equal(loaded.voices[name], value) for name, value in model.voices.items())
    text = "Hello there. Good day."
    before, again = (TouchTTS(one).synthesize(text, "robot", seed=2) for one in (model, loaded))
    assert before.tokens == again.tokens
    np.testing.assert_allclose(again.waveform, before.waveform, atol=1e-6)  # where a weight lies may round it otherwise


def test_weights_are_kept_in_half_precision(model: TouchModel, model_folder: Path) -> None:
    size = sum(value.numel() for part in (model.lm, model.flow, model.vocoder) for value in part.state_dict().values())
    bytes_ = (model_folder / "model.safetensors").stat().st_size
    assert bytes_ < 2.2 * size + 40_000
    loaded = hub.load_model(model_folder, "touchtts")
    assert loaded.provenance == {"made": "here"}
    assert loaded.config["tokenizer"]["name"] == "s3-tiny"
    hub.verify_model(model_folder)


def test_another_tokenizer_is_refused(folder: Path) -> None:
    torch.manual_seed(9)
    config = S3Tokenizer.load(folder.parent / "s3-tiny").network.config
    hub.save_model(folder.parent / "s3-tiny", asdict(config), S3Network(config).state_dict(), KIND, "Other.\n")
    with pytest.raises(ModelFormatError, match=r"touch-tiny: was trained with another 's3-tiny'"):
        load_touchtts(folder)


def test_a_tokenizer_that_is_missing_is_named(folder: Path) -> None:
    shutil.rmtree(folder.parent / "s3-tiny")
    with pytest.raises(ModelNotFoundError, match="s3-tiny"):
        load_touchtts(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config.pop("tokenizer"),
        lambda config: config["tokenizer"].pop("fingerprint"),
        lambda config: config.update(tokenizer=3),
        lambda config: config.pop("vocoder"),
        lambda config: config["flow"].update(layers=3),
        lambda config: config["flow"].update(width=32),
        lambda config: config["flow"].update(width="wide"),
        lambda config: config["flow"].update(heads=5),
        lambda config: config["lm"].update(colour="red"),
        lambda config: config["lm"].update(voices=[]),
        lambda config: config["vocoder"].update(blocks=0),
        lambda config: config.update(lm=[]),
    ],
)
def test_settings_that_do_not_fit_are_a_format_error(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(folder, edit)
    with pytest.raises(ModelFormatError, match="touch-tiny"):
        load_touchtts(folder)


def test_damaged_weights_are_a_format_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="sha256"):
        load_touchtts(folder)


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ModelFormatError, match="s3-tokenizer"):
        load_touchtts(folder.parent / "s3-tiny")
    with pytest.raises(ModelNotFoundError, match="touch-tin"):
        load_touchtts("touch-tin")


@pytest.fixture
def parts(model: TouchModel, tmp_path: Path) -> dict[str, Path]:
    """Return the model's parts as trainings leave them."""
    saved = {}
    about = {"name": "s3-tiny", "fingerprint": model.tokenizer.fingerprint}
    for name, part, kind in (("lm", model.lm, SPEECH_TEXT_LM), ("flow", model.flow, FLOW)):
        settings = {"network": asdict(part.config), "tokenizer": about}
        saved[name] = hub.save_model(tmp_path / name, settings, part.state_dict(), kind, "Tiny.\n", {"by": name})
    settings = asdict(model.vocoder.config)
    saved["vocoder"] = hub.save_model(
        tmp_path / "vocoder", settings, model.vocoder.state_dict(), VOCODER_KIND, "Tiny.\n", {"by": "vocoder"}
    )
    return saved


def test_parts_become_a_model(
    parts: dict[str, Path], model: TouchModel, tokenizer: S3Tokenizer, utterances: Path, tmp_path: Path
) -> None:
    pack = UtterancePack(utterances)
    saved, provenance = assemble(*parts.values(), tokenizer, pack, "reader")
    assert {Path(name).name: value["by"] for name, value in provenance.items()} == {
        n: n for n in ("lm", "flow", "vocoder")
    }
    assert list(saved.voices) == ["reader"]
    vectors = [voice_of(model.flow, pack.pcm(row)) for row in range(len(pack)) if pack.voices[row] == "reader"]
    torch.testing.assert_close(saved.voices["reader"], torch.cat(vectors).mean(0, keepdim=True), atol=1e-5, rtol=1e-5)
    for part in (saved.lm, saved.flow, saved.vocoder):
        assert not part.training
    hub.save_model(
        tmp_path / "s3-tiny", asdict(tokenizer.network.config), tokenizer.network.state_dict(), KIND, "Tiny.\n"
    )
    save_touchtts(tmp_path / "whole", saved, "s3-tiny", "Tiny.\n", {"parts": provenance})
    speech = TouchTTS.load(tmp_path / "whole")
    assert speech.voices == ["reader"]
    assert speech.synthesize("Hello.").waveform.size
    with pytest.raises(UsageError, match="'robot'"):  # the language model knows it, but it has no embedding
        speech.synthesize("Hello.", "robot")


def test_a_voice_needs_recordings(parts: dict[str, Path], tokenizer: S3Tokenizer, utterances: Path) -> None:
    with pytest.raises(DataError, match="'robot'"):  # all its utterances are synthetic
        assemble(*parts.values(), tokenizer, UtterancePack(utterances), "robot")
    with pytest.raises(UsageError, match="'nobody'"):
        assemble(*parts.values(), tokenizer, UtterancePack(utterances), "nobody")


@pytest.mark.parametrize(("name", "load"), [("lm", load_speech_text_lm), ("flow", load_flow)])
def test_parts_of_another_tokenizer_are_refused(
    parts: dict[str, Path], tokenizer: S3Tokenizer, name: str, load: Callable[..., torch.nn.Module]
) -> None:
    other = S3Tokenizer(tokenizer.network, "0" * 64)
    with pytest.raises(ModelFormatError, match="another tokenizer"):
        load(parts[name], other)
    assert not load(parts[name], tokenizer).training
    change(parts[name], lambda config: config["network"].update(speech=81))
    with pytest.raises(ModelFormatError):
        load(parts[name], tokenizer)
    change(parts[name], lambda config: config.pop("network"))
    with pytest.raises(ModelFormatError, match=str(parts[name])):
        load(parts[name], tokenizer)


def test_parts_are_not_mistaken_for_each_other(parts: dict[str, Path], tokenizer: S3Tokenizer) -> None:
    with pytest.raises(ModelFormatError, match="touchtts-flow"):
        load_speech_text_lm(parts["flow"], tokenizer)
    with pytest.raises(ModelFormatError, match="touchtts-lm"):
        load_flow(parts["lm"], tokenizer)


def test_vectors_are_those_of_the_tokenizer(tokenizer: S3Tokenizer) -> None:
    vectors = speech_vectors(tokenizer)
    assert vectors.shape == (80, 3)
    assert len(vectors.unique(dim=0)) == 80


def test_a_voice_sounds_alike_at_all_lengths_but_not_at_all_levels(model: TouchModel, sounds: list[np.ndarray]) -> None:
    pcm = (np.concatenate(sounds[:2]) * 32767.0).astype(np.int16)
    once, twice = voice_of(model.flow, pcm), voice_of(model.flow, np.concatenate([pcm, pcm]))
    torch.testing.assert_close(once, twice, atol=0.05, rtol=0.05)
    assert replace(model, voices={}).voices == {}


def test_the_ready_object_of_a_speaking_model_speaks(model_folder: Path) -> None:
    import audio_llm

    assert audio_llm.load(model_folder).voices == ["reader", "robot"]
