"""The sequences of the two language models, written out by hand for three semantic tokens and six codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audio_llm.errors import UsageError
from audio_llm.gense.prompts import n2s_prompt, n2s_target, s2s_prompt, s2s_target
from audio_llm.lm.token_lm import Sequence, join
from audio_llm.lm.vocabulary import BOS, SEP, Vocabulary

VOCABULARY = Vocabulary({"semantic": 10, "acoustic": 20})  # ids 4..13 and 14..33
NOISY_SEMANTIC, CLEAN_SEMANTIC = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8, 9]])
NOISY_ACOUSTIC, CLEAN_ACOUSTIC = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[19, 18, 17, 16, 15, 14]])


def rows(sequence: Sequence) -> tuple[list[int], list[int], list[float]]:
    """Return ids, segments and positions of the first row."""
    ids, segments, positions = (part[0].tolist() for part in sequence)
    assert len(ids) == len(segments) == len(positions)
    return ids, segments, positions


def test_n2s_is_told_noisy_tokens_and_continues_with_clean_ones() -> None:
    ids, segments, positions = rows(n2s_prompt(NOISY_SEMANTIC, VOCABULARY, 2))
    assert ids == [5, 6, 7, BOS]
    assert segments == [0, 0, 0, 1]
    assert positions == [0, 2, 4, 0]
    ids, segments, positions = rows(n2s_target(CLEAN_SEMANTIC, VOCABULARY, 2))
    assert ids == [11, 12, 13]
    assert segments == [1, 1, 1]
    assert positions == [0, 2, 4]


def test_s2s_is_told_the_chain_and_continues_with_clean_codes() -> None:
    ids, segments, positions = rows(s2s_prompt(NOISY_SEMANTIC, CLEAN_SEMANTIC, NOISY_ACOUSTIC, VOCABULARY, 2))
    assert ids == [5, 6, 7, 11, 12, 13, SEP, 14, 15, 16, 17, 18, 19, BOS]
    assert segments == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]
    assert positions == [0, 2, 4, 0, 2, 4, 0, 0, 1, 2, 3, 4, 5, 0]
    ids, segments, positions = rows(s2s_target(CLEAN_ACOUSTIC, VOCABULARY))
    assert ids == [33, 32, 31, 30, 29, 28]
    assert segments == [3] * 6
    assert positions == [0, 1, 2, 3, 4, 5]


def test_codes_of_the_mask_network_take_the_place_of_the_noisy_ones() -> None:
    noisy, masked = (
        rows(s2s_prompt(NOISY_SEMANTIC, CLEAN_SEMANTIC, NOISY_ACOUSTIC, VOCABULARY, 2, masked))
        for masked in (False, True)
    )
    assert masked[0] == noisy[0]
    assert masked[2] == noisy[2]
    assert masked[1] == [0, 0, 0, 1, 1, 1, 2, 4, 4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize(
    ("streams", "ids", "positions"),
    [
        (
            (None, CLEAN_SEMANTIC, NOISY_ACOUSTIC),
            [11, 12, 13, SEP, 14, 15, 16, 17, 18, 19, BOS],
            [0, 2, 4, 0, 0, 1, 2, 3, 4, 5, 0],
        ),
        (
            (NOISY_SEMANTIC, None, NOISY_ACOUSTIC),
            [5, 6, 7, SEP, 14, 15, 16, 17, 18, 19, BOS],
            [0, 2, 4, 0, 0, 1, 2, 3, 4, 5, 0],
        ),
        ((NOISY_SEMANTIC, CLEAN_SEMANTIC, None), [5, 6, 7, 11, 12, 13, SEP, BOS], [0, 2, 4, 0, 2, 4, 0, 0]),
        ((None, None, NOISY_ACOUSTIC), [SEP, 14, 15, 16, 17, 18, 19, BOS], [0, 0, 1, 2, 3, 4, 5, 0]),
        ((None, CLEAN_SEMANTIC, None), [11, 12, 13, SEP, BOS], [0, 2, 4, 0, 0]),
    ],
)
def test_streams_that_are_not_given_are_left_out(
    streams: tuple[Tensor | None, Tensor | None, Tensor | None], ids: list[int], positions: list[float]
) -> None:
    found = rows(s2s_prompt(*streams, VOCABULARY, 2))
    assert found[0] == ids
    assert found[2] == positions
    # what is there keeps the segment that it has in the whole chain
    whole = rows(s2s_prompt(NOISY_SEMANTIC, CLEAN_SEMANTIC, NOISY_ACOUSTIC, VOCABULARY, 2))
    segment_of = dict(zip(whole[0], whole[1], strict=True))
    assert found[1] == [segment_of[id] for id in ids]


def test_a_prompt_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one stream"):
        s2s_prompt(None, None, None, VOCABULARY, 2)


def test_one_moment_has_one_position_in_every_stream() -> None:
    for ratio in (1, 2, 4, 2.5):
        sequence = s2s_prompt(NOISY_SEMANTIC, CLEAN_SEMANTIC, NOISY_ACOUSTIC, VOCABULARY, ratio)
        noisy, clean = (sequence.positions[0, part].tolist() for part in (slice(0, 3), slice(3, 6)))
        assert noisy == clean == [0.0, ratio, 2 * ratio]
        assert sequence.positions[0, 7:13].tolist() == [0, 1, 2, 3, 4, 5]
        assert sequence.positions.dtype == torch.float32


def test_rows_of_a_batch_are_apart() -> None:
    noisy = torch.tensor([[1, 2, 3], [4, 5, 6]])
    sequence = s2s_prompt(noisy, noisy, noisy.repeat(1, 2), VOCABULARY, 2)
    assert all(part.shape == (2, 14) for part in sequence)
    assert sequence.ids[1].tolist() == [8, 9, 10, 8, 9, 10, SEP, 18, 19, 20, 18, 19, 20, BOS]
    assert torch.equal(sequence.positions[0], sequence.positions[1])


def test_tokens_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(UsageError, match="semantic"):
        n2s_prompt(torch.tensor([[10]]), VOCABULARY, 2)
    with pytest.raises(UsageError, match="acoustic"):
        s2s_prompt(NOISY_SEMANTIC, None, torch.tensor([[20]]), VOCABULARY, 2)


def test_joining_appends() -> None:
    prompt, target = n2s_prompt(NOISY_SEMANTIC, VOCABULARY, 2), n2s_target(CLEAN_SEMANTIC, VOCABULARY, 2)
    ids, segments, positions = rows(join([prompt, target]))
    assert ids == [5, 6, 7, BOS, 11, 12, 13]
    assert segments == [0, 0, 0, 1, 1, 1, 1]
    assert positions == [0, 2, 4, 0, 0, 2, 4]
