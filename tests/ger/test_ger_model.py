from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_llm.errors import MissingDependencyError
from audio_llm.ger.batches import Collator
from audio_llm.ger.encoders import HashNgramEncoder
from audio_llm.ger.model import IGNORED, Batch, GerSettings, LoraSettings, RobustGer
from audio_llm.ger.noise import NoiseSettings
from audio_llm.ger.prompt import PromptEncoder, PromptSettings

torch.set_num_threads(1)

LISTS = [["the cat sat on the mat", "a cat sat"], ["a dog"], ["we went to the sea", "we when to the sea", "we"]]
ANSWERS = ["the cat sat", "a big dog ran home", "we went"]
NOISE = NoiseSettings(hypotheses=3, width=8)
MakeLlm = Callable[..., Any]


def made(make_llm: MakeLlm, tokenizer: Any, kind: str = "llama", **changes: Any) -> tuple[RobustGer, Collator]:
    """Return a model that looks at the noise and numbers its hypotheses, in eval mode, and its collator."""
    prompt = changes.pop("prompt", PromptSettings("compact", hypotheses=3, restart_positions=True))
    values = {"noise": NOISE, "number_hypotheses": True, "tune": "all", **changes}
    chosen = GerSettings(prompt, **values)
    llm = make_llm(kind, len(tokenizer), initializer_range=0.2)
    torch.manual_seed(1)
    model = RobustGer(llm, NOISE.width, chosen).eval()
    if model.adapter is not None:
        with torch.no_grad():
            for layer in model.adapter.layers:
                layer.gate.fill_(0.5)
    return model, Collator(PromptEncoder(tokenizer, prompt), HashNgramEncoder(NOISE.width), NOISE)


@torch.no_grad()
def logits(model: RobustGer, batch: Batch) -> Tensor:
    with model.condition(batch.noise, batch.noise_valid):
        return model(batch.ids, batch.positions, batch.segments, batch.valid)


@torch.no_grad()
def loss(model: RobustGer, batch: Batch) -> float:
    return model.loss(batch).item()


@pytest.mark.parametrize("form", ["paper", "compact"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_is_the_mean_over_the_tokens_of_all_responses_worked_out_one_by_one(
    make_llm: MakeLlm, tokenizer: Any, kind: str, form: str
) -> None:
    prompt = PromptSettings(form, hypotheses=3, restart_positions=form == "compact")  # type: ignore[arg-type]
    model, collator = made(make_llm, tokenizer, kind, prompt=prompt)
    total = count = 0.0
    for texts, answer in zip(LISTS, ANSWERS, strict=True):
        alone = collator.batch([texts], [answer])
        spoken = [*collator.prompts.response_ids(answer), collator.prompts.end]
        rows = logits(model, alone)[0].log_softmax(-1)
        begin = rows.shape[0] - len(spoken) - 1  # what is before a token foretells it
        total -= sum(rows[begin + i, token].item() for i, token in enumerate(spoken))
        count += len(spoken)
    assert loss(model, collator.batch(LISTS, ANSWERS)) == pytest.approx(total / count, abs=1e-4)


def test_loss_ignores_what_the_labels_ignore_and_learns_the_end(make_llm: MakeLlm, tokenizer: Any) -> None:
    model, collator = made(make_llm, tokenizer)
    batch = collator.batch(LISTS, ANSWERS)
    labels = batch.labels.clone()
    ends = labels == collator.prompts.end
    assert ends.sum().item() == 3
    labels[ends] = IGNORED
    without = loss(model, replace(batch, labels=labels))
    learned = (batch.labels != IGNORED).sum().item()
    foretold = logits(model, batch).log_softmax(-1)[:, :-1][ends[:, 1:]][:, collator.prompts.end]
    assert loss(model, batch) == pytest.approx((without * (learned - 3) - foretold.sum().item()) / learned, abs=1e-4)


def test_prompts_are_read_and_not_learned(make_llm: MakeLlm, tokenizer: Any) -> None:
    """The gradient of the output weights is that of the response's tokens alone, worked out by hand."""
    model, collator = made(make_llm, tokenizer, use_noise=False)
    head = model.llm.lm_head.weight
    batch = collator.batch([["the cat sat", "a cat"]], ["a dog"])
    model.loss(batch).backward()
    assert head.grad is not None
    bare = collator.prompts.encode(["the cat sat", "a cat"], "a dog")
    size = len(bare.ids) - bare.response
    with torch.no_grad():
        states = model.llm.model(
            inputs_embeds=model.llm.get_input_embeddings()(batch.ids) + model.segments(batch.segments),  # type: ignore[misc]
            attention_mask=batch.valid.long(),
            position_ids=batch.positions,
        ).last_hidden_state[0, -size - 1 : -1]
        wrong = (states @ head.T).softmax(-1)
        wrong[torch.arange(size), batch.ids[0, -size:]] -= 1
    torch.testing.assert_close(head.grad, wrong.T @ states / size, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
def test_padding_does_not_matter(make_llm: MakeLlm, tokenizer: Any, kind: str) -> None:
    model, collator = made(make_llm, tokenizer, kind)
    batch = collator.batch(LISTS, ANSWERS)
    together = logits(model, batch)
    for row, (texts, answer) in enumerate(zip(LISTS, ANSWERS, strict=True)):
        alone = logits(model, collator.batch([texts], [answer]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-4, rtol=0)
    ids, positions = batch.ids.clone(), batch.positions.clone()
    ids[~batch.valid], positions[~batch.valid] = 17, 5
    other = replace(batch, ids=ids, positions=positions)
    assert loss(model, other) == pytest.approx(loss(model, batch), abs=1e-6)
    wide = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 6), value=IGNORED if name == "labels" else 0)
        for name in ("ids", "positions", "segments", "valid", "labels")
    }
    assert loss(model, replace(batch, **wide)) == pytest.approx(loss(model, batch), abs=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2", "falcon"])
def test_the_response_attends_to_every_hypothesis_though_positions_restart(
    make_llm: MakeLlm, tokenizer: Any, kind: str, attention: str
) -> None:
    """transformers takes restarting positions for packed texts, unless a mask is given."""
    model, collator = made(make_llm, tokenizer, kind, use_noise=False)
    model.llm.set_attn_implementation(attention)
    texts = ["the cat sat", "a dog ran", "we went"]
    found = logits(model, collator.batch([texts], ["we"]))[0]
    begin = collator.prompts.encode(texts).response
    for changed, other in enumerate((["the hat sat", *texts[1:]], [texts[0], "a hog ran", texts[2]])):
        batch = collator.batch([other], ["we"])
        start = len(batch.ids[0]) - (len(found) - begin)
        moved = logits(model, batch)[0, start:] - found[begin:]
        assert moved.abs().max() > 1e-3, f"hypothesis {changed + 1} is not seen"


def test_what_comes_later_is_not_seen(make_llm: MakeLlm, tokenizer: Any) -> None:
    model, collator = made(make_llm, tokenizer)
    batch = collator.batch([LISTS[0]], ["the cat sat"])
    other = replace(batch, ids=batch.ids.clone())
    other.ids[0, -2] = 50
    torch.testing.assert_close(logits(model, other)[0, :-2], logits(model, batch)[0, :-2], atol=1e-6, rtol=0)


def test_only_the_requested_logits_are_computed(make_llm: MakeLlm, tokenizer: Any) -> None:
    model, collator = made(make_llm, tokenizer)
    batch = collator.batch(LISTS, ANSWERS)
    with torch.no_grad(), model.condition(batch.noise, batch.noise_valid):
        last = model(batch.ids, batch.positions, batch.segments, batch.valid, keep=4)
    assert last.shape == (3, 4, len(tokenizer))
    torch.testing.assert_close(last, logits(model, batch)[:, -4:])


def test_positions_and_numbers_of_the_hypotheses_are_seen(make_llm: MakeLlm, tokenizer: Any) -> None:
    model, collator = made(make_llm, tokenizer)
    batch = collator.batch([LISTS[0]], ["the cat sat"])
    plain = logits(model, batch)
    running = replace(batch, positions=torch.arange(batch.ids.shape[1])[None])
    swapped = replace(batch, segments=torch.where(batch.segments > 0, 3 - batch.segments, batch.segments))
    for other in (running, swapped):
        assert (logits(model, other)[0, -1] - plain[0, -1]).abs().max() > 1e-4
    model, _ = made(make_llm, tokenizer, number_hypotheses=False)
    assert torch.equal(logits(model, swapped), logits(model, batch))


def test_the_noise_is_scaled_and_only_a_model_with_adapter_uses_it(make_llm: MakeLlm, tokenizer: Any) -> None:
    model, collator = made(make_llm, tokenizer)
    batch = collator.batch([LISTS[0]], ["the cat sat"])
    model.set_noise_size(torch.tensor([2.0, 4.0]))
    scaled = model.scale_noise(batch.noise)
    assert torch.equal(scaled[:, :3], batch.noise[:, :3] / 2)
    assert torch.equal(scaled[:, 3:], batch.noise[:, 3:] / 4)
    small = logits(model, batch)
    model.set_noise_size(torch.ones(2))
    torch.testing.assert_close(logits(model, replace(batch, noise=scaled)), small)
    assert (logits(model, batch) - small).abs().max() > 1e-5
    model, _ = made(make_llm, tokenizer, use_noise=False)
    assert model.adapter is None
    assert torch.equal(logits(model, batch), logits(model, replace(batch, noise=5 * batch.noise)))


def test_trained_parameters_and_adapter_tensors(make_llm: MakeLlm, tokenizer: Any) -> None:
    pytest.importorskip("peft")
    adapters, _ = made(make_llm, tokenizer, tune="adapters", lora=LoraSettings(rank=2, targets="q_proj,v_proj"))
    trained = {name for name, parameter in adapters.named_parameters() if parameter.requires_grad}
    assert set(adapters.adapter_tensors()) == trained | {"noise_size"}
    inside = {name.split(".")[-3] for name in trained if name.startswith("llm.")}
    assert inside == {"lora_A", "lora_B"}
    assert {name.split(".")[-4] for name in trained if name.startswith("llm.")} == {"q_proj", "v_proj"}
    whole, _ = made(make_llm, tokenizer, tune="all")
    assert all(parameter.requires_grad for parameter in whole.parameters())
    assert set(whole.adapter_tensors()) >= {name for name, _ in whole.named_parameters()}
    none, _ = made(make_llm, tokenizer, tune="adapters", lora=LoraSettings(rank=0))
    assert not any(name.startswith("llm.") for name in none.adapter_tensors())


def test_lora_without_peft_names_the_package(
    make_llm: MakeLlm, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"audio-llm\[train\]"):
        made(make_llm, tokenizer, tune="adapters")


@pytest.mark.parametrize("numbered", [False, True])
def test_a_language_model_in_half_precision_gives_a_loss(make_llm: MakeLlm, tokenizer: Any, numbered: bool) -> None:
    pytest.importorskip("peft")
    llm = make_llm("llama", len(tokenizer)).to(torch.bfloat16)
    chosen = GerSettings(PromptSettings("paper"), NOISE, lora=LoraSettings(rank=2), number_hypotheses=numbered)
    model = RobustGer(llm, NOISE.width, chosen).eval()
    batch = Collator(PromptEncoder(tokenizer, chosen.prompt), HashNgramEncoder(NOISE.width), NOISE).batch(
        LISTS, ANSWERS
    )
    model.loss(batch).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith(".gate"):
            assert parameter.grad is not None
            assert parameter.grad.abs() > 0
