"""One numbering for several kinds of tokens."""

from __future__ import annotations

import pytest
import torch

from audio_llm.errors import ConfigError, UsageError
from audio_llm.lm.vocabulary import BOS, EOS, PAD, SEP, SPECIALS, Vocabulary

SIZES = {"semantic": 7, "acoustic": 5, "text": 1}


def test_ranges_follow_each_other_and_share_nothing() -> None:
    vocabulary = Vocabulary(SIZES)
    assert sorted({PAD, BOS, EOS, SEP}) == list(range(SPECIALS))
    spans = [vocabulary.span(name) for name in SIZES]
    assert [len(span) for span in spans] == [7, 5, 1]
    assert sorted(id for span in spans for id in span) == list(range(SPECIALS, vocabulary.size))
    assert vocabulary.size == 17


def test_tokens_come_back() -> None:
    vocabulary = Vocabulary(SIZES)
    ids = []
    for name, size in SIZES.items():
        tokens = torch.arange(size).view(1, -1)
        encoded = vocabulary.encode(name, tokens)
        assert encoded.dtype == torch.int64
        assert encoded.shape == tokens.shape
        assert torch.equal(vocabulary.decode(name, encoded), tokens)
        ids += encoded.flatten().tolist()
    assert ids == list(range(SPECIALS, 17))
    assert vocabulary.encode("text", torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)


@pytest.mark.parametrize("token", [-1, 5, 8192])
def test_a_token_outside_of_its_range_is_refused(token: int) -> None:
    vocabulary = Vocabulary(SIZES)
    with pytest.raises(UsageError, match="acoustic"):
        vocabulary.encode("acoustic", torch.tensor([[0, token, 4]]))
    assert vocabulary.encode("semantic", torch.tensor([5])).tolist() == [9]  # while another range has it


def test_an_unknown_range_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'words'.*semantic, acoustic"):
        Vocabulary(SIZES).span("words")


@pytest.mark.parametrize("sizes", [{}, {"a": 0}, {"a": 3, "b": -1}])
def test_empty_ranges_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Vocabulary(sizes)


def test_what_is_allowed_is_exactly_what_was_asked_for() -> None:
    vocabulary = Vocabulary(SIZES)
    mask = vocabulary.allowed(["acoustic"], [EOS])
    assert mask.shape == (17,)
    assert torch.nonzero(mask)[:, 0].tolist() == [EOS, 11, 12, 13, 14, 15]
    assert vocabulary.allowed(list(SIZES)).sum() == 13
    assert not vocabulary.allowed([]).any()
