from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from audio_llm.dlm import vocab
from audio_llm.dlm.decode import log_probs
from audio_llm.dlm.model import DenoisingLM, ModelConfig, batch_sources, batch_targets, load, parameters, save
from audio_llm.errors import ModelFormatError

torch.set_num_threads(1)

HYPOTHESES = ["the cat", "a", "it's a very long hypothesis of words"]
TEXTS = ["the hat sat", "of", "it is a long text"]
SWITCHES = list(itertools.product([True, False], [True, False]))


def tiny(positions: bool = True, pointer: bool = True, seed: int = 0) -> DenoisingLM:
    """An untrained model whose probabilities are far from even."""
    torch.manual_seed(seed)
    model = DenoisingLM(ModelConfig(16, 32, 2, 2, 2, positions=positions, pointer=pointer)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def teacher_forced(model: DenoisingLM, hypotheses: list[str], texts: list[str]) -> torch.Tensor:
    return model(*batch_sources(hypotheses), batch_targets(texts)[0])


@pytest.mark.parametrize("positions, pointer", SWITCHES)
def test_probabilities_sum_to_one(positions: bool, pointer: bool) -> None:
    log_probabilities = teacher_forced(tiny(positions, pointer), HYPOTHESES, TEXTS)
    assert log_probabilities.shape == (3, max(map(len, TEXTS)) + 1, vocab.SIZE)
    assert log_probabilities.dtype == torch.float32
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(3, 18), atol=2e-6, rtol=0)


@pytest.mark.parametrize("positions, pointer", SWITCHES)
def test_batch_equals_one_by_one_whatever_the_padding_holds(positions: bool, pointer: bool) -> None:
    model = tiny(positions, pointer)
    together = teacher_forced(model, HYPOTHESES, TEXTS)
    for row, (hypothesis, text) in enumerate(zip(HYPOTHESES, TEXTS, strict=True)):
        alone = teacher_forced(model, [hypothesis], [text])
        torch.testing.assert_close(together[row, : len(text) + 1], alone[0], atol=1e-4, rtol=1e-4)
    source, lengths = batch_sources(HYPOTHESES)
    target_in, target_out = batch_targets(TEXTS)
    source[torch.arange(source.shape[1])[None] >= lengths[:, None]] = vocab.encode("z")[0]
    target_in[:, 1:][target_out[:, :-1] == vocab.EOS] = vocab.encode("q")[0]
    with torch.no_grad():
        other = model(source, lengths, target_in)
    valid = target_out != vocab.PAD
    torch.testing.assert_close(other[valid], together[valid], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions, pointer", SWITCHES)
def test_step_by_step_equals_teacher_forcing_also_after_rows_were_selected(positions: bool, pointer: bool) -> None:
    model = tiny(positions, pointer)
    target_in, _ = batch_targets(TEXTS)
    whole = teacher_forced(model, HYPOTHESES, TEXTS)
    rows = torch.tensor([2, 0, 0])
    with torch.no_grad():
        state = model.encode(*batch_sources(HYPOTHESES))
        for step in range(5):
            torch.testing.assert_close(model.step(target_in[:, step], state), whole[:, step], atol=1e-4, rtol=1e-4)
        state.select(rows)
        # From here on each selected row continues with another text, also the two copies of row 0.
        texts = [TEXTS[2], TEXTS[0], TEXTS[0][:5] + "other"]
        chosen_in = batch_targets(texts)[0]
        expected = teacher_forced(model, [HYPOTHESES[i] for i in rows.tolist()], texts)
        for step in range(5, 10):
            log_probabilities = model.step(chosen_in[:, step], state)
            torch.testing.assert_close(log_probabilities, expected[:, step], atol=1e-4, rtol=1e-4)
    assert state.step == 10


def test_stepping_equals_teacher_forcing_over_a_long_text() -> None:
    """Beyond 16 and 64 characters T5's relative positions are coarser."""
    model, text = tiny(), "long texts go on and on " * 5
    target_in, _ = batch_targets([text])
    whole = teacher_forced(model, ["long texts"], [text])
    with torch.no_grad():
        state = model.encode(*batch_sources(["long texts"]))
        stepped = torch.stack([model.step(target_in[:, step], state) for step in range(target_in.shape[1])], dim=1)
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


def test_log_probs_are_the_sum_over_characters_and_the_end() -> None:
    model = tiny()
    rows = teacher_forced(model, HYPOTHESES, TEXTS)
    for row, (hypothesis, text) in enumerate(zip(HYPOTHESES, TEXTS, strict=True)):
        numbers = [*vocab.encode(text), vocab.EOS]
        expected = sum(rows[row, position, number].item() for position, number in enumerate(numbers))
        assert log_probs(model, [hypothesis], [text])[0] == pytest.approx(expected, abs=1e-3)
        without_end = sum(rows[row, position, number].item() for position, number in enumerate(numbers[:-1]))
        assert log_probs(model, [hypothesis], [text])[0] < without_end
    assert log_probs(model, HYPOTHESES, TEXTS) == pytest.approx(
        [log_probs(model, [h], [t])[0] for h, t in zip(HYPOTHESES, TEXTS, strict=True)], abs=1e-3
    )
    assert log_probs(model, [], []) == []


def test_the_empty_text_costs_its_end_alone() -> None:
    model = tiny()
    first = teacher_forced(model, [HYPOTHESES[0]], [""])[0, 0, vocab.EOS].item()
    assert log_probs(model, [HYPOTHESES[0]], [""])[0] == pytest.approx(first, abs=1e-5)


def test_a_pointer_that_is_always_used_copies_the_hypothesis_only() -> None:
    model = tiny(pointer=True)
    with torch.no_grad():
        model.pointer_gate.weight.zero_()
        model.pointer_gate.bias.fill_(30.0)
    probabilities = teacher_forced(model, ["cab"], ["abc"])[0].exp()
    symbols = [*vocab.encode("abc"), vocab.EOS]
    torch.testing.assert_close(probabilities[:, symbols].sum(-1), torch.ones(4), atol=1e-5, rtol=0)
    assert parameters(tiny(pointer=False)) < parameters(model)
    assert not any("pointer" in name for name in tiny(pointer=False).state_dict())


def test_positions_distinguish_equal_characters() -> None:
    """Without positions, the decoder distinguishes the characters of `aaaa` by their distance to the ends only."""
    difference = {}
    for positions in (True, False):
        model = tiny(positions)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative_attention_bias" in name:
                    parameter.zero_()
            memory = model.encode(*batch_sources(["aaaa"])).memory[0, :4]
        difference[positions] = (memory - memory[0]).abs().max().item()
    assert difference[False] < 1e-4
    assert difference[True] > 0.1


def test_unknown_characters_are_one_symbol_and_never_padding() -> None:
    source, lengths = batch_sources(["é1a", ""])
    assert source.tolist() == [[vocab.UNK, vocab.UNK, *vocab.encode("a"), vocab.EOS], [vocab.EOS, 0, 0, 0]]
    assert lengths.tolist() == [4, 1]
    assert vocab.decode([*vocab.encode("it's"), vocab.EOS, *vocab.encode("no")]) == "it's"


def test_save_and_load_go_through_half_precision(tmp_path: Path) -> None:
    model = tiny(seed=3)
    save(model, tmp_path / "model", provenance={"seed": 3})
    loaded = load(tmp_path / "model")
    assert not loaded.training
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float(), atol=0, rtol=0)
    assert log_probs(loaded, HYPOTHESES, TEXTS) == pytest.approx(log_probs(model, HYPOTHESES, TEXTS), rel=5e-3)
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    assert size < 2.2 * parameters(model) + 10_000


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    from audio_llm import hub

    hub.save_model(tmp_path / "other", {}, {"a": torch.zeros(1)}, "ctc", "")
    with pytest.raises(ModelFormatError):
        load(tmp_path / "other")


def test_distances_are_the_edit_distances_to_every_prefix() -> None:
    from audio_llm.align import edit_distance
    from audio_llm.dlm.model import next_distances

    source, written = "my favor was great", "my favor is"
    numbers, _ = batch_sources([source])
    distances = torch.arange(numbers.shape[1] + 1, dtype=torch.float32)[None]
    for count, character in enumerate(written, 1):
        distances = next_distances(distances, torch.tensor(vocab.encode(character)), numbers)
        expected = [edit_distance(source[:end], written[:count]) for end in range(len(source) + 1)]
        assert distances[0, : len(source) + 1].tolist() == expected
