from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audio_llm.errors import ModelFormatError
from audio_llm.ger.adapter import AdapterSettings, NoiseAdapter, NoiseAttention, attention_modules
from audio_llm.ger.model import IGNORED, Batch, GerSettings, LoraSettings, RobustGer
from audio_llm.ger.noise import NoiseSettings

torch.set_num_threads(1)

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "falcon"]
FORMS = ["paper", "reference-code"]
SLOTS, WIDTH, HIDDEN = 6, 5, 32
MakeLlm = Callable[..., Any]


def settings(form: str, **changes: Any) -> AdapterSettings:
    return AdapterSettings(form, **{"width": 16, "heads": 2, **changes})  # type: ignore[arg-type]


def adapter(form: str, layers: int = 3, **changes: Any) -> NoiseAdapter:
    torch.manual_seed(1)
    return NoiseAdapter(HIDDEN, layers, SLOTS, WIDTH, settings(form, **changes))


def open_gates(made: NoiseAdapter) -> NoiseAdapter:
    """Give every gate a value, as a training does."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "gate" in name:
                parameter.fill_(0.7)
            elif name.endswith("output.weight") or name == "map.weight":
                parameter.mul_(3.0)
    return made


def noises(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, SLOTS, WIDTH, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(llm: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = llm(input_ids=ids).logits
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_a_removed_one_leaves_no_trace(
    make_llm: MakeLlm, kind: str, form: str
) -> None:
    llm, ids, noise = make_llm(kind), tokens(), noises(2)
    bare = logits(llm, ids)
    made = adapter(form)
    handles = made.attach(llm)
    with made.condition(noise):
        assert (logits(llm, ids) - bare).abs().max() < 1e-5
    open_gates(made)
    with made.condition(noise):
        changed = logits(llm, ids)
    assert (changed - bare).abs().max() > 1e-3
    assert torch.equal(logits(llm, ids), bare)  # outside of the block
    with made.condition(None):
        assert torch.equal(logits(llm, ids), bare)
    for handle in handles:
        handle.remove()
    with made.condition(noise):
        assert torch.equal(logits(llm, ids), bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model_with_lora_is_the_bare_one_at_the_first_step(make_llm: MakeLlm, kind: str) -> None:
    pytest.importorskip("peft")
    llm, ids = make_llm(kind), tokens()
    bare = logits(llm, ids)
    chosen = GerSettings(noise=NoiseSettings(3), adapter=settings("paper"), lora=LoraSettings(rank=2, alpha=2))
    model = RobustGer(llm, WIDTH, chosen).eval()
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    valid = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), model.condition(noises(2), None):
        found = model(ids, positions, torch.zeros_like(ids), valid)
    assert (found - bare).abs().max() < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_only_layers_from_the_first_tuned_one_on_attend_to_the_noise(make_llm: MakeLlm, form: str, first: int) -> None:
    llm, ids = make_llm("llama"), tokens()
    made = open_gates(adapter(form, first_layer=first))
    assert len(made.layers) == len(made.attach(llm)) == 3 - first
    outputs: list[list[Tensor]] = [[], []]
    for layer in attention_modules(llm):
        layer.register_forward_hook(lambda *args: outputs[run].append(args[2][0]))
    run = 0
    logits(llm, ids)
    run = 1
    with made.condition(noises(2)):
        logits(llm, ids)
    changed = [not torch.equal(one, other) for one, other in zip(*outputs, strict=True)]
    assert changed == [layer >= first for layer in range(3)]


@pytest.mark.parametrize("form", FORMS)
def test_each_text_has_its_own_noise(make_llm: MakeLlm, form: str) -> None:
    llm, noise = make_llm("llama"), noises(3)
    ids = tokens(1).expand(3, -1)
    made = open_gates(adapter(form))
    made.attach(llm)
    with made.condition(noise):
        together = logits(llm, ids)
    assert (together[0] - together[1]).abs().max() > 1e-4
    for row in range(3):
        with made.condition(noise[row : row + 1]):
            torch.testing.assert_close(logits(llm, ids[:1])[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_select_keeps_the_noise_of_the_texts_that_a_beam_keeps(make_llm: MakeLlm, form: str) -> None:
    llm, noise, ids = make_llm("llama"), noises(3), tokens(3)
    valid = torch.ones(3, SLOTS, dtype=torch.bool)
    valid[1, 2:] = False
    valid[2] = False
    made = open_gates(adapter(form))
    made.attach(llm)
    rows = torch.tensor([2, 0, 0, 1, 1])
    with made.condition(noise[rows], valid[rows]):
        expected = logits(llm, ids[rows])
    with made.condition(noise, valid):
        made.select(rows)
        torch.testing.assert_close(logits(llm, ids[rows]), expected)
        made.select(torch.tensor([4, 0]))
        torch.testing.assert_close(logits(llm, ids[[1, 2]]), expected[[4, 0]])
    made.select(rows)  # outside of the block: nothing to choose from


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_valid_do_not_matter(make_llm: MakeLlm, form: str) -> None:
    llm, noise, ids = make_llm("llama"), noises(2), tokens()
    bare = logits(llm, ids)
    made = open_gates(adapter(form))
    made.attach(llm)
    valid = torch.ones(2, SLOTS, dtype=torch.bool)
    valid[0, [1, 4]] = False
    valid[1] = False
    other = noise.clone()
    other[~valid] = 50.0
    with made.condition(noise, valid):
        expected = logits(llm, ids)
    with made.condition(other, valid):
        torch.testing.assert_close(logits(llm, ids), expected)
    assert (expected[0] - bare[0]).abs().max() > 1e-4
    assert torch.equal(expected[1], bare[1])  # nothing to compare in its list
    with made.condition(noise):
        assert (logits(llm, ids)[0] - expected[0]).abs().max() > 1e-5


@torch.no_grad()
def test_the_amount_of_noise_is_preserved_in_the_papers_form_and_lost_in_the_released_code() -> None:
    noise = noises(1)
    made = open_gates(adapter("paper"))
    layer = made.layers[0]
    assert isinstance(layer, NoiseAttention)
    assert made.map is not None
    none, once, twice = (layer.keys_and_values(s * noise, s * made.map(noise)) for s in (0.0, 1.0, 2.0))
    for part in (0, 1):
        torch.testing.assert_close(twice[part] - none[part], 2 * (once[part] - none[part]))
        assert (once[part] - none[part]).abs().max() > 0.1
    layer = open_gates(adapter("reference-code")).layers[0]
    assert isinstance(layer, NoiseAttention)
    layer.noise_value.bias.zero_()
    once, twice = (layer.keys_and_values(s * noise, noise) for s in (1.0, 2.0))
    torch.testing.assert_close(twice, once, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_noise_is_taken_away_in_both_forms() -> None:
    """From the slots before keys are made; or added to the keys as better minus worse, the negative of ours."""
    noise = noises(1)
    made = open_gates(adapter("paper"))
    layer = made.layers[0]
    assert isinstance(layer, NoiseAttention)
    assert made.map is not None
    key, value = layer.keys_and_values(noise, made.map(noise))
    slots = layer.slots - 0.7 * made.map(noise)
    torch.testing.assert_close((key, value), (layer.key(slots), layer.value(slots)))
    layer = open_gates(adapter("reference-code")).layers[0]
    assert isinstance(layer, NoiseAttention)
    key, _ = layer.keys_and_values(noise, noise)
    mapped = layer.noise_key(-noise)
    expected = layer.key(layer.slots) + 0.7 * mapped / mapped.pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(key, expected, atol=1e-4, rtol=0)


def test_tuned_is_what_the_noise_becomes_with_a_gradient_for_its_maps() -> None:
    for form, count, width in (("paper", 1, HIDDEN), ("reference-code", 4, 16)):
        made = adapter(form)
        found = made.tuned(noises(2))
        assert [tuple(part.shape) for part in found] == [(2, SLOTS, width)] * count
        sum(part.square().sum() for part in found).backward()  # type: ignore[union-attr]
        learned = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.any()}
        maps = {name for name, _ in made.named_parameters() if name.startswith("map.") or ".noise_" in name}
        assert learned == {name for name in maps if "gate" not in name}


def test_half_precision_models_take_it_too(make_llm: MakeLlm) -> None:
    llm, ids = make_llm("llama").to(torch.bfloat16), tokens()
    bare = logits(llm, ids)
    made = adapter("paper")
    made.attach(llm)
    with made.condition(noises(2)):
        found = logits(llm, ids)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, bare)


def test_a_model_whose_layers_are_not_known_is_refused() -> None:
    class Config:
        num_hidden_layers = 2

    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    with pytest.raises(ModelFormatError, match="Strange"):
        attention_modules(Strange())


def conditioned_batch(noise: Tensor, targets: Tensor) -> Batch:
    """The same prompt for all; what follows it is decided by the noise alone."""
    ids = torch.tensor([[5, 9, 3, 7]]).expand(len(noise), -1)
    ids = torch.cat([ids, targets[:, None]], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1] = targets
    positions = torch.arange(5).expand_as(ids)
    valid = torch.ones_like(ids, dtype=torch.bool)
    return Batch(ids, positions, torch.zeros_like(ids), valid, labels, noise, torch.ones(len(noise), SLOTS) > 0)


@torch.no_grad()
def accuracy(model: RobustGer, batch: Batch, noise: Tensor) -> float:
    with model.condition(noise, batch.noise_valid):
        last = model(batch.ids[:, :-1], batch.positions[:, :-1], batch.segments[:, :-1], batch.valid[:, :-1])[:, -1]
    return (last.argmax(-1) == batch.labels[:, -1]).float().mean().item()


def conditioned_model(make_llm: MakeLlm, form: str, rank: int = 0) -> RobustGer:
    chosen = GerSettings(
        noise=NoiseSettings(hypotheses=3), adapter=settings(form), lora=LoraSettings(rank=rank, alpha=4, dropout=0.0)
    )
    llm = make_llm("llama")
    torch.manual_seed(2)
    return RobustGer(llm, WIDTH, chosen)


def digest(model: RobustGer) -> str:
    """Return a hash of the language model's own weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.llm.state_dict().items()):
        if "lora_" not in name:
            found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def learn(model: RobustGer, batch: Batch, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()


@pytest.mark.parametrize("form", FORMS)
def test_gates_leave_zero_and_the_maps_of_the_noise_begin_to_learn(make_llm: MakeLlm, form: str) -> None:
    model = conditioned_model(make_llm, form)
    assert model.adapter is not None
    batch = conditioned_batch(noises(8), torch.arange(8) % 4 + 20)
    learn(model, batch, 2 if form == "paper" else 3, 1e-3)  # first the outer gate moves, then what is behind it
    parameters = dict(model.adapter.named_parameters())
    gates = [p for name, p in parameters.items() if "gate" in name]
    maps = [
        p for name, p in parameters.items() if name == "map.weight" or name.endswith(("_key.weight", "_value.weight"))
    ]
    assert len(maps) == (1 if form == "paper" else 4)
    assert all(gate.abs().max() > 0 for gate in gates)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in maps)


@pytest.mark.parametrize("form", FORMS)
def test_a_target_that_the_noise_alone_decides_is_learned_and_shuffled_noise_is_chance(
    make_llm: MakeLlm, form: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    classes = torch.arange(240) % 4
    centres = noises(4, seed=4)
    noise = centres[classes] + 0.3 * torch.randn(240, SLOTS, WIDTH, generator=generator)
    train, test = conditioned_batch(noise[:160], classes[:160] + 20), conditioned_batch(noise[160:], classes[160:] + 20)
    model = conditioned_model(make_llm, form)
    before = digest(model)
    learn(model, train, 120, 1e-2)
    assert accuracy(model, test, test.noise) > 0.95
    shuffled = test.noise[torch.randperm(80, generator=generator)]
    assert accuracy(model, test, shuffled) < 0.45  # one in four by chance
    assert accuracy(model, test, torch.zeros_like(noise[160:])) < 0.45
    assert digest(model) == before


def test_training_adapter_and_lora_leaves_the_language_models_weights(make_llm: MakeLlm) -> None:
    pytest.importorskip("peft")
    model = conditioned_model(make_llm, "paper", rank=2)
    before, own = digest(model), {name: tensor.clone() for name, tensor in model.adapter_tensors().items()}
    batch = conditioned_batch(noises(8), torch.arange(8) % 4 + 20)
    learn(model, batch, 5, 1e-2)
    assert digest(model) == before
    after = model.adapter_tensors()
    assert after.keys() == own.keys()
    same = {name for name in own if torch.equal(own[name], after[name])}
    assert same == {"noise_size"}
    assert sum("lora_" in name for name in own) > 10
