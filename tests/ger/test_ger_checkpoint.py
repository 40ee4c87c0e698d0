from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from audio_llm import hub
from audio_llm.errors import AudioLLMError, ConfigError, ModelFormatError, ModelNotFoundError
from audio_llm.ger.adapter import AdapterSettings
from audio_llm.ger.checkpoint import GerCheckpoint, build, llm_fingerprint, load, save
from audio_llm.ger.data import ListData, split_by_reference
from audio_llm.ger.decode import greedy
from audio_llm.ger.distillation import DistillationSettings
from audio_llm.ger.model import GerSettings, LoraSettings
from audio_llm.ger.noise import NoiseSettings
from audio_llm.ger.prompt import PromptSettings
from audio_llm.ger.small_lm import SmallLmSettings, create_small_lm
from audio_llm.ger.train import GerTrainConfig, train_ger
from audio_llm.training.loop import TrainingConfig

torch.set_num_threads(1)

PROMPT = PromptSettings("compact", hypotheses=3, restart_positions=True)
NOISE = NoiseSettings(hypotheses=3, width=8)
WHOLE = GerSettings(PROMPT, NOISE, number_hypotheses=True, tune="all")
ADAPTERS = GerSettings(PROMPT, NOISE, lora=LoraSettings(rank=2, alpha=2, dropout=0.0))
LISTS = [["the cat sat", "a cat sat on the mat"], ["we went", "we went"]]
MakeLlm = Callable[..., Any]
Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_LLM_OFFLINE", "1")


@pytest.fixture
def llm_folder(tmp_path: Path, make_llm: MakeLlm, tokenizer: Any) -> Folder:
    """Kind -> a transformers folder of it, with the tokenizer unless that is not wanted."""

    def make(
        kind: str = "llama", with_tokenizer: bool = True, seed: int = 0, half: bool = False, **changes: Any
    ) -> Path:
        folder = tmp_path / f"{kind}-{seed}"
        llm = make_llm(kind, len(tokenizer), layers=2, seed=seed, **changes)
        (llm.to(torch.bfloat16) if half else llm).save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return folder

    return make


def shaken(checkpoint: GerCheckpoint, seed: int = 0) -> GerCheckpoint:
    """Move every trained weight, as a training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    checkpoint.model.set_noise_size(torch.tensor([0.5, 2.0]))
    checkpoint.model.eval()
    return checkpoint


@torch.no_grad()
def logits(checkpoint: GerCheckpoint) -> Tensor:
    batch = checkpoint.collator.batch(LISTS, ["the cat", "we"])
    with checkpoint.model.eval().condition(batch.noise, batch.noise_valid):
        return checkpoint.model(batch.ids, batch.positions, batch.segments, batch.valid)


def saved(checkpoint: GerCheckpoint, folder: Path) -> Path:
    return save(folder, replace(checkpoint, normalizer="raw"), {"seed": 0})


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / hub.CONFIG_NAME
    document = json.loads(path.read_text())
    change(document["config"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "falcon"])
def test_adapters_come_back_bit_equal_on_their_language_model(llm_folder: Folder, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("peft")
    llm = llm_folder(kind)
    checkpoint = shaken(build(llm, ADAPTERS))
    fresh = logits(build(llm, ADAPTERS))
    folder = saved(checkpoint, tmp_path / "made")
    back = load(folder)
    assert torch.equal(logits(back), logits(checkpoint))
    assert not torch.equal(logits(back), fresh)
    assert (back.normalizer, back.llm, back.fingerprint) == ("raw", str(llm), checkpoint.fingerprint)
    assert back.model.settings == ADAPTERS
    own = hub.load_model(folder).tensors
    assert all("lora_" in name for name in own if name.startswith("llm."))  # the language model is not in it


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
def test_a_model_trained_as_a_whole_comes_back_bit_equal_and_needs_nothing_else(
    llm_folder: Folder, tmp_path: Path, kind: str, tied: bool
) -> None:
    llm = llm_folder(kind, tie_word_embeddings=tied)
    checkpoint = shaken(build(llm, WHOLE))
    folder = saved(checkpoint, tmp_path / "made")
    shutil.rmtree(llm)
    back = load(folder)
    assert torch.equal(logits(back), logits(checkpoint))
    assert back.llm == ""
    assert back.model.settings == WHOLE
    assert not back.model.training


@pytest.mark.parametrize("settings", [WHOLE, ADAPTERS], ids=["whole", "adapters"])
def test_a_language_model_in_half_precision_stays_so(llm_folder: Folder, tmp_path: Path, settings: GerSettings) -> None:
    pytest.importorskip("peft")
    llm = llm_folder(half=True, tie_word_embeddings=True)
    checkpoint = shaken(build(llm, replace(settings, number_hypotheses=False)))
    back = load(saved(checkpoint, tmp_path / "made"))
    assert logits(back).dtype == logits(checkpoint).dtype == torch.bfloat16
    assert torch.equal(logits(back), logits(checkpoint))


def test_another_language_model_is_refused_and_the_option_named(llm_folder: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    llm, other, smaller = llm_folder(), llm_folder(seed=1), llm_folder("qwen2", hidden_size=16)
    checkpoint = shaken(build(llm, ADAPTERS))
    folder = saved(checkpoint, tmp_path / "made")
    moved = llm.rename(tmp_path / "moved")
    with pytest.raises(ModelNotFoundError, match="--llm"):
        load(folder)
    assert torch.equal(logits(load(folder, llm=moved)), logits(checkpoint))
    for wrong in (other, smaller):
        with pytest.raises(ModelFormatError, match=r"another language model.*--llm"):
            load(folder, llm=wrong)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_language_model_without_tokenizer_is_refused(llm_folder: Folder, kind: str) -> None:
    folder = llm_folder(kind, with_tokenizer=False)
    for prompt in (PROMPT, PromptSettings()):
        with pytest.raises(ModelFormatError, match="tokenizer"):
            build(folder, replace(WHOLE, prompt=prompt))


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        build(tmp_path / "nothing-here", WHOLE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="empty"):
        build(tmp_path / "empty", WHOLE)


def test_damaged_weights_of_a_language_model_are_named(llm_folder: Folder) -> None:
    broken = llm_folder()
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(AudioLLMError, match="llama"):
        build(broken, WHOLE)


def test_offline_mode_makes_no_network_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def look_up(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ModelNotFoundError, match="nobody/nothing"):
        build("nobody/nothing", WHOLE)
    assert asked == []


def test_an_encoder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """BERT sees what comes later; trained on it, a corrector would read its targets."""
    from transformers import BertConfig, BertLMHeadModel

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelFormatError):
        build(tmp_path / "bert", WHOLE)


def test_a_tokenizer_in_one_file_comes_along(llm_folder: Folder, tmp_path: Path) -> None:
    llm = llm_folder(tie_word_embeddings=True)
    (llm / "tokenizer_config.json").unlink()
    checkpoint = build(llm, WHOLE)
    assert torch.equal(logits(load(saved(checkpoint, tmp_path / "made"))), logits(checkpoint))


def test_a_tokenizer_in_the_two_files_of_gpt2_comes_along(llm_folder: Folder, tmp_path: Path) -> None:
    llm = llm_folder("gpt2")
    fast = json.loads((llm / "tokenizer.json").read_text())
    vocabulary = fast["model"]["vocab"] | {token["content"]: token["id"] for token in fast["added_tokens"]}
    (llm / "vocab.json").write_text(json.dumps(vocabulary))
    (llm / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in fast["model"]["merges"])]))
    special = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<end>", "pad_token": "<pad>"}
    (llm / "tokenizer_config.json").write_text(json.dumps(special))
    (llm / "tokenizer.json").unlink()
    checkpoint = build(llm, WHOLE)
    assert torch.equal(logits(load(saved(checkpoint, tmp_path / "made"))), logits(checkpoint))


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], type[AudioLLMError], str]] = {
    "no settings": (lambda c: c.pop("settings"), ModelFormatError, "settings"),
    "no fingerprint": (lambda c: c.pop("llm_fingerprint"), ModelFormatError, "llm_fingerprint"),
    "settings are text": (lambda c: c.update(settings="x"), AudioLLMError, "made"),
    "unknown setting": (lambda c: c["settings"].update(color=1), ConfigError, "color"),
    "wrong value": (lambda c: c["settings"].update(tune="some"), ConfigError, "tune"),
    "another width": (lambda c: c["settings"]["noise"].update(width=16), ModelFormatError, "do not fit"),
    "another list": (lambda c: c["settings"]["noise"].update(hypotheses=4), ModelFormatError, "do not fit"),
    "no adapter": (lambda c: c["settings"].update(use_noise=False), ModelFormatError, "do not fit"),
}


@pytest.mark.parametrize(("change", "kind", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_configuration_is_named(
    small_folder: Path, tmp_path: Path, change: Any, kind: type[AudioLLMError], words: str
) -> None:
    folder = saved(build(small_folder, WHOLE), tmp_path / "made")
    edit(folder, change)
    with pytest.raises(kind, match=words):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "llm.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(small_folder: Path, tmp_path: Path, name: str) -> None:
    folder = saved(build(small_folder, WHOLE), tmp_path / "made")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFormatError, match=name):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelFormatError, match=name):
        load(folder)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    hub.save_model(tmp_path / "other", {}, {"a": torch.zeros(1)}, "dlm", "", {})
    with pytest.raises(ModelFormatError, match="dlm"):
        load(tmp_path / "other")


def test_building_from_a_model_keeps_its_weights(small_folder: Path, tmp_path: Path) -> None:
    checkpoint = shaken(build(small_folder, WHOLE))
    folder = saved(checkpoint, tmp_path / "made")
    again = build(folder, WHOLE)
    assert again.llm == ""
    assert not again.fresh_adapter
    assert torch.equal(again.model.noise_size, torch.tensor([0.5, 2.0]))
    assert torch.equal(logits(again), logits(checkpoint))
    back = load(saved(shaken(again, seed=1), tmp_path / "more"))
    assert torch.equal(logits(back), logits(again))
    assert not torch.equal(logits(back), logits(checkpoint))


def test_building_with_another_adapter_initializes_it(small_folder: Path, tmp_path: Path) -> None:
    checkpoint = shaken(build(small_folder, WHOLE))
    plain = build(saved(checkpoint, tmp_path / "made"), replace(WHOLE, use_noise=False))
    for form in (AdapterSettings("reference-code"), AdapterSettings(width=32)):
        other = build(tmp_path / "made", replace(WHOLE, adapter=form))
        assert torch.equal(logits(other), logits(plain))  # a fresh adapter changes nothing
    assert build(small_folder, WHOLE).fresh_adapter


def test_adapters_on_a_ger_model_include_it_and_can_be_built_on(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    first = saved(shaken(build(small_folder, WHOLE)), tmp_path / "first")
    settings = replace(ADAPTERS, number_hypotheses=True)
    second = shaken(build(first, settings), seed=1)
    folder = saved(second, tmp_path / "second")
    shutil.rmtree(first)
    assert torch.equal(logits(load(folder)), logits(second))
    third = build(folder, settings)
    assert llm_weights(third).keys() == llm_weights(second).keys()
    assert all(torch.equal(tensor, llm_weights(third)[name]) for name, tensor in llm_weights(second).items())
    assert torch.equal(logits(third), logits(second))


def llm_weights(checkpoint: GerCheckpoint) -> dict[str, Tensor]:
    """Return the language model's own weights, LoRA left out."""
    return {name: tensor for name, tensor in checkpoint.model.llm.state_dict().items() if "lora_" not in name}


def test_lora_of_other_settings_is_merged_when_building_from_a_model(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = replace(ADAPTERS, number_hypotheses=True)
    first = saved(shaken(build(small_folder, WHOLE)), tmp_path / "first")
    second = shaken(build(first, settings), seed=1)
    folder = saved(second, tmp_path / "second")
    for number, other in enumerate(
        (replace(settings, lora=LoraSettings(rank=4)), replace(settings, tune="all"), WHOLE)
    ):
        third = build(folder, other)
        assert not third.fresh_adapter
        torch.testing.assert_close(logits(third), logits(second), atol=1e-5, rtol=0)
        back = load(saved(shaken(third, seed=2), tmp_path / f"third{number}"))
        assert torch.equal(logits(back), logits(third))


def test_adapters_alone_cannot_be_built_on(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = saved(build(small_folder, ADAPTERS), tmp_path / "made")
    with pytest.raises(ModelFormatError, match="name the language model itself"):
        build(folder, ADAPTERS)


def test_noise_is_not_measured_by_embeddings_that_are_trained(small_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"noise\.encoder=hash"):
        build(small_folder, replace(WHOLE, noise=NoiseSettings(hypotheses=3, encoder="llm")))


def test_the_language_models_embeddings_encode_the_noise_the_same_after_training(
    small_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    checkpoint = build(small_folder, replace(ADAPTERS, noise=NoiseSettings(hypotheses=3, encoder="llm")))
    before = checkpoint.collator.noises(LISTS)[0].clone()
    assert before.abs().max() > 0
    shaken(checkpoint)
    assert torch.equal(checkpoint.collator.noises(LISTS)[0], before)
    back = load(saved(checkpoint, tmp_path / "made"))
    assert torch.equal(back.collator.noises(LISTS)[0], before)
    assert torch.equal(logits(back), logits(checkpoint))


def test_fingerprints_tell_models_apart(make_llm: MakeLlm) -> None:
    assert llm_fingerprint(make_llm()) == llm_fingerprint(make_llm())
    assert llm_fingerprint(make_llm()) != llm_fingerprint(make_llm(seed=1))
    assert llm_fingerprint(make_llm("llama")) != llm_fingerprint(make_llm("qwen2"))


def test_a_small_language_model_is_the_same_for_the_same_texts_and_seed(tmp_path: Path, small_folder: Path) -> None:
    settings = SmallLmSettings(vocabulary=300, width=16, layers=1, heads=2, feed_forward=16, max_positions=64)
    texts = ["a text", "another text"]
    one, same, other = (create_small_lm(texts, tmp_path / str(i), settings, i // 2) for i in range(3))
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.fixture
def data(memorized: list[tuple[tuple[str, ...], str]]) -> ListData:
    return ListData(tuple(true for _, true in memorized), tuple(hypotheses for hypotheses, _ in memorized))


def config(steps: int, **changes: Any) -> GerTrainConfig:
    training = TrainingConfig(
        steps, learning_rate=5e-3, warmup_steps=2, schedule="constant", log_every=1, validate_every=20
    )
    return GerTrainConfig(**{"ger": WHOLE, "training": training, "normalizer": "raw", "batch_tokens": 100, **changes})


def log_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_a_training_learns_resumes_and_writes_a_model(small_folder: Path, tmp_path: Path, data: ListData) -> None:
    pytest.importorskip("accelerate")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_ger(data, small_folder, whole, config(60), tuning=data, device="cpu")
    assert train_ger(data, small_folder, parts, config(20), tuning=data, device="cpu").steps == 20
    result = train_ger(data, small_folder, parts, config(60), tuning=data, device="cpu", resume=True)
    assert result.steps == 60
    losses = [[row["loss"] for row in log_rows(folder) if "loss" in row] for folder in (whole, parts)]
    assert len(losses[0]) == 60
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert sum(losses[0][-5:]) < 0.4 * sum(losses[0][:5])
    seen = [row["validation"] for row in log_rows(whole) if "validation" in row]
    assert [set(values) for values in seen] == [{"loss", "wer_before", "wer", "kept"}] * 3
    assert seen[2]["loss"] < seen[1]["loss"] < seen[0]["loss"]
    best = load(parts / "best")
    assert best.normalizer == "raw"
    assert not torch.equal(best.model.noise_size, torch.ones(2))
    assert len(greedy(best.model, best.collator, data.hypotheses)) == len(data)
    provenance = hub.load_model(parts / "best").provenance
    assert (provenance["seed"], provenance["lists"]) == (0, len(data))


def test_distillation_resumes_and_reports_whether_it_uses_the_text(
    small_folder: Path, tmp_path: Path, data: ListData
) -> None:
    pytest.importorskip("accelerate")
    rng = np.random.default_rng(0)
    noisy, clean = (rng.normal(size=(len(data), 6)).astype(np.float32) for _ in range(2))
    data = replace(data, noisy=noisy, clean=clean)
    settings = DistillationSettings(negatives="both", hidden=16, learning_rate_factor=2.0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_ger(data, small_folder, whole, config(12, distillation=settings), tuning=data, device="cpu")
    train_ger(data, small_folder, parts, config(5, distillation=settings), tuning=data, device="cpu")
    train_ger(data, small_folder, parts, config(12, distillation=settings), tuning=data, device="cpu", resume=True)
    losses = [[row["loss"] for row in log_rows(folder) if "loss" in row] for folder in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    one, two = (load_file(folder / "last" / "model.safetensors") for folder in (whole, parts))
    own = [name for name in one if name.startswith("distiller.")]
    assert any("optimizer" in name for name in own)
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-5) for name in own)
    seen = [row["validation"] for row in log_rows(whole) if "validation" in row][-1]
    assert {"mine", "mine_shuffled", "mine_reads_sound_only"} < set(seen)


def test_validation_reports_what_the_model_changes(small_folder: Path, tmp_path: Path, data: ListData) -> None:
    pytest.importorskip("accelerate")
    train_ger(data, small_folder, tmp_path / "run", config(1), tuning=data, device="cpu")
    (seen,) = (row["validation"] for row in log_rows(tmp_path / "run") if "validation" in row)
    assert seen["wer_before"] == pytest.approx(8 / 38)  # of the first hypotheses
    assert 0 <= seen["kept"] <= 1
    assert seen["wer"] > seen["wer_before"]  # after one step


def test_training_adapters_leaves_the_language_model_and_can_start_from_a_model(
    small_folder: Path, tmp_path: Path, data: ListData
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    settings = config(6, ger=ADAPTERS, no_audio_prob=0.3)
    train_ger(data, small_folder, tmp_path / "adapters", settings, tuning=data, device="cpu")
    assert load(tmp_path / "adapters" / "best").llm == str(small_folder)
    train_ger(data, small_folder, tmp_path / "first", config(6), device="cpu")  # chooses by a share of the data
    first = load(tmp_path / "first" / "best")
    train_ger(data, tmp_path / "first" / "best", tmp_path / "second", config(1), tuning=data, device="cpu")
    second = load(tmp_path / "second" / "best")
    assert torch.equal(second.model.noise_size, first.model.noise_size)
    both = zip(first.model.parameters(), second.model.parameters(), strict=True)
    moved = max((a - b).abs().max().item() for a, b in both)
    assert 0 < moved < 0.02  # one step


def test_no_reference_is_in_both_parts_of_a_split() -> None:
    data = ListData(tuple(f"text {i % 20}" for i in range(60)), tuple((f"heard {i}",) for i in range(60)))
    rest, share = split_by_reference(data, 0.25, seed=1)
    assert not set(rest.references) & set(share.references)
    assert len(set(share.references)) == 5
    assert sorted(rest.hypotheses + share.hypotheses) == sorted(data.hypotheses)
    assert split_by_reference(data, 0.25, seed=1) == (rest, share)
    assert split_by_reference(data, 0.25, seed=2) != (rest, share)
    assert len(set(split_by_reference(data, 0.0, seed=1)[1].references)) == 1
