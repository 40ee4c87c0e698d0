"""Tests of a pretrained text model that is extended: its outputs stay, new tokens get new embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from audio_llm.errors import ModelFormatError
from audio_llm.lm.grown_lm import FAMILIES, GrownLm
from audio_llm.lm.sampling import GREEDY
from audio_llm.lm.token_lm import Sequence, TokenLmConfig
from audio_llm.lm.vocabulary import EOS, SPECIALS

torch.set_num_threads(1)
OWN = 40
CONFIG = TokenLmConfig({"speech": OWN, "text": 64}, segments=2, dropout=0.0)
KINDS = [*FAMILIES, "untied"]


def llm(make_llm: Callable[..., Any], kind: str) -> Any:
    return make_llm("llama" if kind == "untied" else kind, tie_word_embeddings=kind != "untied")


def row(lm: GrownLm, text: list[int], first: float = 0.0) -> Sequence:
    ids = lm.vocabulary.encode("text", torch.tensor([text]))
    return Sequence(ids, torch.zeros_like(ids), first + torch.arange(len(text))[None].float())


@pytest.mark.parametrize("kind", KINDS)
def test_text_logits_initially_equal_the_pretrained_models(make_llm: Callable[..., Any], kind: str) -> None:
    other, text = llm(make_llm, kind), [3, 60, 7, 7, 12, 0, 63]
    with torch.no_grad():
        wanted = other(input_ids=torch.tensor([text])).logits
        lm = GrownLm(CONFIG, llm(make_llm, kind)).eval()
        sequence = row(lm, text)
        found = lm.logits(lm(sequence), "text")
        later = lm.logits(lm(row(lm, text, 100.5)), "text")  # rotary places are relative
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(later, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_are_like_old_ones_and_are_learned(make_llm: Callable[..., Any], kind: str) -> None:
    torch.manual_seed(0)
    lm = GrownLm(CONFIG, llm(make_llm, kind))
    known = lm.network.embed_tokens.weight
    assert lm.own.weight.shape == (SPECIALS + OWN, 32)
    assert lm.embeddings().shape == (SPECIALS + OWN, 32)
    assert lm.vocabulary.size == SPECIALS + OWN + 64
    assert float(lm.own.weight.detach().std()) == pytest.approx(float(known.detach().std()), rel=0.3)
    ids = torch.cat([row(lm, [5, 9]).ids, lm.vocabulary.encode("speech", torch.tensor([[1, 39, 8]]))], dim=1)
    sequence = Sequence(ids, torch.zeros_like(ids), torch.arange(5)[None].float())
    optimizer = torch.optim.Adam(lm.parameters(), 1e-2)
    for _ in range(60):
        logits = lm.logits(lm(sequence)[0, 1:], "speech", [EOS])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 40, 9, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    said = lm.eval().generate(
        row(lm, [5, 9]), sequence._replace(ids=ids[:, 2:], positions=sequence.positions[:, 2:]), "speech", GREEDY
    )
    assert (said.ids == ids[:, 2:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_changes_nothing(make_llm: Callable[..., Any], kind: str) -> None:
    lm = GrownLm(CONFIG, llm(make_llm, kind)).eval()
    with torch.no_grad():
        one, other = (lm(row(lm, [3, 60, last, 8]))[0] for last in (7, 9))
    assert torch.equal(one[:2], other[:2])
    assert not torch.allclose(one[2:], other[2:], atol=1e-4)


def test_tokens_with_vectors_share_what_they_have_in_common(make_llm: Callable[..., Any]) -> None:
    vectors = torch.stack([torch.arange(OWN) % 5, torch.arange(OWN) // 5], dim=1).float()
    lm = GrownLm(CONFIG, make_llm("llama"), {"speech": vectors})
    assert torch.equal(lm.embeddings(), lm.own.weight)  # at first they are as old ones, vectors or not
    before, span = lm.embeddings().detach(), lm.vocabulary.span("speech")
    with torch.no_grad():
        lm.shared["speech"].weight[:, 0] += 1.0  # of the first number's first level
    changed = (lm.embeddings().detach() != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [span.start + n for n in range(0, OWN, 5)]


def test_weights_are_floats_and_come_back(make_llm: Callable[..., Any]) -> None:
    for kind in KINDS:
        base = llm(make_llm, kind)
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16()
        lm = GrownLm(CONFIG, base).eval()
        assert {parameter.dtype for parameter in lm.parameters()} == {torch.float32}
        again = GrownLm(
            CONFIG, make_llm("llama" if kind == "untied" else kind, seed=9, tie_word_embeddings=kind != "untied")
        ).eval()
        again.load_state_dict(lm.state_dict())
        with torch.no_grad():
            one, other = (m.logits(m(row(m, [1, 2, 3])), "text", [EOS]) for m in (lm, again))
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "falcon"])
def test_other_families_are_refused_by_name(make_llm: Callable[..., Any], kind: str) -> None:
    with pytest.raises(ModelFormatError, match=rf"'{kind}' cannot be extended.*llama, mistral, qwen2, qwen3"):
        GrownLm(CONFIG, make_llm(kind))
