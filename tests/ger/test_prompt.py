from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audio_llm.errors import ModelFormatError
from audio_llm.ger.batches import Collator
from audio_llm.ger.model import IGNORED
from audio_llm.ger.noise import NoiseSettings
from audio_llm.ger.prompt import COMPACT_TOKENS, END, OUT, Prompt, PromptEncoder, PromptSettings

FORMS = ["paper", "compact"]
LONG = " ".join(f"word{i % 97}" for i in range(2000))
TEXTS = st.one_of(
    st.sampled_from(
        ["", "the cat sat", "the cat", "schöne grüße aus köln", "привет мир", "今日は 良い 天気", "o'clock"]
    ),
    st.integers(1, 60).map(lambda count: "a big dog " * count).map(str.strip),
)


def encoder(tokenizer: Any, form: str, **changes: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer, PromptSettings(form, **changes))  # type: ignore[arg-type]


def heading(prompts: PromptEncoder) -> list[int]:
    """Return the tokens behind which the response begins."""
    if prompts.settings.form == "compact":
        return [prompts.tokenizer.get_vocab()[OUT]]
    return list(prompts.tokenizer("### Response:\n", add_special_tokens=False)["input_ids"])


def shown(prompts: PromptEncoder, prompt: Prompt) -> str:
    return str(prompts.tokenizer.decode(prompt.ids[: prompt.response]))


def assert_sound(prompts: PromptEncoder, prompt: Prompt, response: str | None) -> None:
    """Assert what holds for every prompt, however much of its list had to go."""
    answer = [*prompts.response_ids(response), prompts.end] if response is not None else []
    head = heading(prompts)
    assert list(prompt.ids[prompt.response :]) == answer
    assert list(prompt.ids[prompt.response - len(head) : prompt.response]) == head
    assert len(prompt.ids) == len(prompt.positions) == len(prompt.segments)
    assert set(prompt.segments[prompt.response - len(head) :]) == {0}
    assert len(prompt.ids) <= max(prompts.settings.max_tokens, len(head) + len(answer) + 1)
    assert all(0 <= position < len(prompt.ids) for position in prompt.positions)


@pytest.fixture
def with_begin(tokenizer: Any) -> Any:
    """The tokenizer with a token for the beginning of a text, and none for padding."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<begin>"})
    other.pad_token = None
    return other


def test_the_paper_form_reads_as_in_the_paper(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "paper")
    prompt = prompts.encode(["the cat sat", "the hat", "the cat"], "a cat")
    instruction, rest = shown(prompts, prompt).split("### Best-hypothesis:")
    assert "hypotheses" in instruction
    assert rest == "\nthe cat sat.\n\n### Other-hypothesis:\nthe hat. the cat.\n\n### Response:\n"
    assert prompts.text(prompt.ids[prompt.response :]) == "a cat"
    alone = shown(prompts, prompts.encode(["the cat"]))
    assert alone.endswith("### Best-hypothesis:\nthe cat.\n\n### Response:\n")
    assert "### Other" not in alone


def test_the_paper_form_starts_and_ends_with_the_tokenizers_special_tokens(tokenizer: Any, with_begin: Any) -> None:
    plain, begun = encoder(tokenizer, "paper"), encoder(with_begin, "paper")
    without, prompt = plain.encode(["the cat"], "a cat"), begun.encode(["the cat"], "a cat")
    assert without.ids == prompt.ids[1:]
    assert prompt.ids.count(with_begin.bos_token_id) == 1
    assert prompt.ids[0] == with_begin.bos_token_id
    assert prompt.ids[-1] == with_begin.eos_token_id == begun.end
    assert prompt.ids.count(begun.end) == 1
    assert begun.pad == begun.end  # where there is no token for padding
    assert plain.pad == tokenizer.pad_token_id


def test_the_compact_form_shows_each_different_text_once_with_its_copies(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "compact", hypotheses=7)
    known = tokenizer.get_vocab()
    prompt = prompts.encode(["the cat", "a dog", "the cat", "the cat", "", "a dog", "the cat"], "a cat")
    expected = [known["<x4>"], *prompts.response_ids("the cat"), known["<x2>"], *prompts.response_ids("a dog")]
    expected += [known["<x1>"], known[OUT], *prompts.response_ids("a cat"), known[END]]
    assert list(prompt.ids) == expected
    assert prompts.encode(["a"] * 7).ids[0] == known["<x5>"]  # five or more
    cat, dog = len(prompts.response_ids("the cat")) + 1, len(prompts.response_ids("a dog")) + 1
    assert list(prompt.segments) == [1] * cat + [2] * dog + [3] + [0] * (len(prompt.ids) - cat - dog - 1)


def test_only_the_first_hypotheses_are_shown(tokenizer: Any) -> None:
    for form in FORMS:
        prompts = encoder(tokenizer, form, hypotheses=2)
        assert prompts.encode(["a", "b", "c", "a"]) == prompts.encode(["a", "b"])
        assert prompts.encode([]) == prompts.encode([""])


def test_the_tenth_and_later_hypotheses_share_the_last_number(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "compact", hypotheses=12)
    prompt = prompts.encode([f"text {'a' * i}" for i in range(12)])
    assert max(prompt.segments) == 9
    assert sorted(set(prompt.segments)) == list(range(10))


def test_positions_continue_or_restart_at_every_hypothesis(tokenizer: Any) -> None:
    texts = ["the cat sat on the mat", "a cat sat on the mat", "the cat"]
    for form in FORMS:
        running = encoder(tokenizer, form).encode(texts, "the mat")
        assert list(running.positions) == list(range(len(running.ids)))
        assert running.next_position == len(running.ids)
        prompts = encoder(tokenizer, form, restart_positions=True)
        prompt = prompts.encode(texts, "the mat")
        assert prompt.ids == running.ids
        begins = [i for i, position in enumerate(prompt.positions) if position == 0]
        assert len(begins) == (4 if form == "compact" else 3)
        assert begins[-1] == prompt.response - len(heading(prompts))
        ends = [*begins[1:], len(prompt.ids)]
        for begin, end in zip(begins, ends, strict=True):  # the response goes on behind its heading
            assert list(prompt.positions[begin:end]) == list(range(end - begin))
        bare = prompts.encode(texts)
        assert bare.ids == prompt.ids[: prompt.response]
        assert bare.response == len(bare.ids)
        assert bare.next_position == prompt.positions[prompt.response]


def test_a_word_and_its_copy_in_the_response_have_the_same_tokens_and_position(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "compact", restart_positions=True)
    prompt = prompts.encode(["the cat sat", "a cat"], "the cat sat")
    size = len(prompts.response_ids("the cat sat"))
    assert prompt.ids[1 : 1 + size] == prompt.ids[prompt.response : -1]
    assert prompt.positions[1 : 1 + size] == prompt.positions[prompt.response : -1]


def test_words_have_the_same_tokens_alone_and_in_a_text(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "compact")
    for text in ("the cat don't sleep", "'tis o'clock", "schöne grüße", "今日は 良い", "a a a", "ab a"):
        alone = [token for word in text.split() for token in prompts.response_ids(word)]
        assert prompts.response_ids(text) == alone
        assert prompts.text(alone) == text
    assert prompts.response_ids("") == []


def test_text_ends_at_the_end_or_the_first_line_break(tokenizer: Any) -> None:
    prompts = encoder(tokenizer, "paper")
    cat, dog = prompts.response_ids("the cat"), prompts.response_ids("a dog")
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert prompts.text([*cat, prompts.end, *dog]) == "the cat"
    assert prompts.text([*cat, *line, *dog]) == "the cat"
    assert prompts.text([*line, *cat]) == "the cat"
    assert prompts.text([]) == prompts.text([prompts.end]) == ""


@pytest.mark.parametrize("form", FORMS)
@given(texts=st.lists(TEXTS, max_size=22), response=st.none() | TEXTS, limit=st.sampled_from([40, 400]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prompt_that_is_cut_keeps_heading_and_response(
    tokenizer: Any, form: str, texts: list[str], response: str | None, limit: int
) -> None:
    for restart in (False, True):
        prompts = encoder(tokenizer, form, hypotheses=20, max_tokens=limit, restart_positions=restart)
        assert_sound(prompts, prompts.encode(texts, response), response)


LISTS = {
    "one": [LONG],
    "two": [LONG, LONG + " x"],
    "duplicates": [LONG] * 5,
    "short, then long": ["the cat", LONG],
    "long, then short": [LONG, "the cat", ""],
    "twenty": [f"{LONG[:1500]} number{i}" for i in range(20)],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("texts", LISTS.values(), ids=LISTS.keys())
def test_a_list_of_two_thousand_words_is_cut_to_the_limit(tokenizer: Any, form: str, texts: list[str]) -> None:
    prompts = encoder(tokenizer, form, hypotheses=20, max_tokens=600)
    for response in (None, "the cat sat on the mat"):
        prompt = prompts.encode(texts, response)
        assert_sound(prompts, prompt, response)
        short = texts[0] == "the cat"
        assert ("the cat" if short else "word0 word1") in shown(prompts, prompt)
        assert short or len(prompt.ids) == 600  # no more of the first is lost than needed


def test_a_list_that_is_cut_keeps_the_number_of_its_copies(tokenizer: Any) -> None:
    prompt = encoder(tokenizer, "compact", max_tokens=100).encode([LONG] * 3)
    assert prompt.ids[0] == tokenizer.get_vocab()["<x3>"]
    assert len(prompt.ids) == 100


@pytest.mark.parametrize("form", FORMS)
def test_a_response_longer_than_the_limit_stays_whole(tokenizer: Any, form: str) -> None:
    prompts = encoder(tokenizer, form, max_tokens=200)
    prompt = prompts.encode(["the cat", "a cat"], LONG)
    assert_sound(prompts, prompt, LONG)


def test_the_last_hypotheses_go_first_and_no_more_than_needed(tokenizer: Any) -> None:
    for form in FORMS:
        texts = ["the cat sat", "a cat sat on the mat", "the cat sat", "the mat sat on a cat"]
        wide = encoder(tokenizer, form)
        size = len(wide.encode(texts, "a cat").ids)
        assert encoder(tokenizer, form, max_tokens=size).encode(texts, "a cat") == wide.encode(texts, "a cat")
        tight = encoder(tokenizer, form, max_tokens=size - 1).encode(texts, "a cat")
        assert tight == wide.encode(texts[:3], "a cat")


def test_special_tokens_written_in_a_text_are_plain_text(tokenizer: Any) -> None:
    """Else a text that spells the end of text would end the response."""
    for form in FORMS:
        prompts = encoder(tokenizer, form)
        prompt = prompts.encode(["the <end> cat", "<out> <x1>"], "a <end> cat")
        assert prompt.ids.count(prompts.end) == 1
        assert prompts.text(prompt.ids[prompt.response :]) == "a <end> cat"


def test_a_tokenizer_that_cannot_do_it_is_refused(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    with pytest.raises(ModelFormatError, match="end-of-text"):
        encoder(other, "paper")
    encoder(other, "compact")  # has an end of its own

    class Bare:
        def get_vocab(self) -> dict[str, int]:
            return {token: number for number, token in enumerate(COMPACT_TOKENS) if token != "<x2>"}

    with pytest.raises(ModelFormatError, match="no <x2>, which the compact prompt needs"):
        encoder(Bare(), "compact")


def collate(prompts: PromptEncoder, lists: Sequence[Sequence[str]], responses: Sequence[str | None]) -> Any:
    return Collator(prompts, None, NoiseSettings()).batch(lists, responses)


@pytest.mark.parametrize("form", FORMS)
def test_the_response_and_its_end_are_learned_and_nothing_else(tokenizer: Any, form: str) -> None:
    prompts = encoder(tokenizer, form)
    lists = [["the cat", "a cat"], ["a dog"], ["", ""]]
    batch = collate(prompts, lists, ["the cat sat", "", None])
    for row, response in enumerate(["the cat sat", "", None]):
        prompt = prompts.encode(lists[row], response)
        size = len(prompt.ids)
        assert batch.ids[row, :size].tolist() == list(prompt.ids)
        assert batch.positions[row, :size].tolist() == list(prompt.positions)
        assert batch.segments[row, :size].tolist() == list(prompt.segments)
        assert batch.valid[row].tolist() == [True] * size + [False] * (batch.ids.shape[1] - size)
        assert set(batch.ids[row, size:].tolist()) <= {prompts.pad}
        learned = batch.labels[row] != IGNORED
        answer = [] if response is None else [*prompts.response_ids(response), prompts.end]
        assert batch.labels[row][learned].tolist() == answer
        assert learned.nonzero()[:, 0].tolist() == list(range(prompt.response, size))


def test_a_model_without_adapter_gets_no_noise(tokenizer: Any) -> None:
    batch = collate(encoder(tokenizer, "paper"), [["a", "b"], ["c"]], [None, None])
    assert batch.noise.shape[0] == 2
    assert not batch.noise.any()
    assert not batch.noise_valid.any()
