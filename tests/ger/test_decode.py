from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from audio_llm.ger.batches import Collator
from audio_llm.ger.decode import _new_tokens, _Writer, greedy, log_probs, score_candidates, search
from audio_llm.ger.encoders import HashNgramEncoder
from audio_llm.ger.model import GerSettings, LoraSettings, RobustGer
from audio_llm.ger.noise import NoiseSettings
from audio_llm.ger.prompt import PromptEncoder, PromptSettings
from audio_llm.ger.word_graph import any_words, confusion_network, slots

torch.set_num_threads(1)

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "falcon"]
LISTS = [["the cat sat on the mat", "a cat sat"], ["a"], ["we went to the sea", "we when to the see", "we"], ["", ""]]
NOISE = NoiseSettings(hypotheses=3, width=8)
Case = tuple[RobustGer, Collator]


@pytest.fixture(scope="module")
def random_model(make_llm: Callable[..., Any], tokenizer: Any) -> Callable[..., Case]:
    """Kind, whether positions restart -> a corrector of random weights with an active noise adapter."""

    def make(kind: str = "llama", restart: bool = True, max_tokens: int = 1024, **changes: Any) -> Case:
        prompt = PromptSettings("compact", 3, restart, max_tokens)
        chosen = GerSettings(prompt, NOISE, lora=LoraSettings(rank=0), number_hypotheses=True)
        llm = make_llm(kind, len(tokenizer), initializer_range=0.2, **changes)
        torch.manual_seed(1)
        model = RobustGer(llm, NOISE.width, chosen).eval()
        assert model.adapter is not None
        with torch.no_grad():
            for layer in model.adapter.layers:
                layer.gate.fill_(0.5)
        return model, Collator(PromptEncoder(tokenizer, prompt), HashNgramEncoder(NOISE.width), NOISE)

    return make


def split(texts: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(text.split()) for text in texts]


@torch.no_grad()
def without_cache(model: RobustGer, collator: Collator, texts: Sequence[str]) -> tuple[str, float]:
    """Decode greedily, without a cache."""
    prompt = collator.prompts.encode(texts)
    ids, positions, segments = list(prompt.ids), list(prompt.positions), list(prompt.segments)
    noise, noise_valid = collator.noises([texts])
    total = 0.0
    for _ in range(_new_tokens(collator, texts)):
        row = [torch.tensor([values]) for values in (ids, positions, segments)]
        with model.condition(noise, noise_valid):
            last = model(*row, torch.ones(1, len(ids)) > 0)[0, -1].log_softmax(-1)
        total += last.max().item()
        ids.append(int(last.argmax()))
        positions.append(positions[-1] + 1)
        segments.append(0)
        if ids[-1] == collator.prompts.end:
            break
    return collator.prompts.text(ids[prompt.response :]), total


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_the_same_is_written_as_without(
    random_model: Callable[..., Case], kind: str, restart: bool
) -> None:
    model, collator = random_model(kind, restart)
    written = greedy(model, collator, [LISTS[0]])[0]
    text, log_prob = without_cache(model, collator, LISTS[0])
    assert written.text == text
    assert written.log_prob == pytest.approx(log_prob, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_text_of_a_graph_is_written_with_its_probability(random_model: Callable[..., Case], kind: str) -> None:
    model, collator = random_model(kind)
    for texts, only in ((LISTS[0], "the cat sat on the mat"), (LISTS[2], "we"), (LISTS[3], "")):
        written = search(model, collator, texts, slots(split([only])))
        assert written.text == only
        assert written.finished
        assert written.log_prob == pytest.approx(log_probs(model, collator, [texts], [only])[0], abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lists_of_unequal_length_are_written_as_each_alone(random_model: Callable[..., Case], kind: str) -> None:
    """Also where the model does not come to an end: how much may be written does not depend on the other lists."""
    model, collator = random_model(kind)
    together = greedy(model, collator, LISTS)
    for texts, found in zip(LISTS, together, strict=True):
        (alone,) = greedy(model, collator, [texts])
        assert (found.text, found.finished) == (alone.text, alone.finished)
        assert found.log_prob == pytest.approx(alone.log_prob, abs=1e-3)


def test_what_was_learned_is_written_together_and_one_by_one(
    trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    lists = [hypotheses for hypotheses, _ in memorized]
    together = greedy(trained.model, trained.collator, lists)
    assert [written.text for written in together] == [true for _, true in memorized]
    assert all(written.finished for written in together)
    for hypotheses, found in zip(lists, together, strict=True):
        (alone,) = greedy(trained.model, trained.collator, [hypotheses])
        assert alone.text == found.text
        assert alone.log_prob == pytest.approx(found.log_prob, abs=1e-4)


def test_what_is_written_has_the_probability_that_it_is_scored_with(
    trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    lists = [hypotheses for hypotheses, _ in memorized]
    written = greedy(trained.model, trained.collator, lists)
    scored = log_probs(trained.model, trained.collator, lists, [found.text for found in written])
    assert [found.log_prob for found in written] == pytest.approx(scored, abs=1e-4)
    assert min(scored) > -2.0


def test_scores_together_are_those_one_by_one_and_rank_the_truth_first(
    trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    lists = [hypotheses for hypotheses, _ in memorized]
    wrong = ["the", "", "we went to the mayor", "it rains", "i see", "write", "do", "she sells"]
    together = log_probs(trained.model, trained.collator, lists, wrong)
    alone = [log_probs(trained.model, trained.collator, [h], [w])[0] for h, w in zip(lists, wrong, strict=True)]
    assert together == pytest.approx(alone, abs=1e-3)
    right = log_probs(trained.model, trained.collator, lists, [true for _, true in memorized])
    assert all(score > other for score, other in zip(right, together, strict=True))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_for_one_list_are_scored_together_as_each_alone(
    random_model: Callable[..., Case], kind: str, restart: bool
) -> None:
    model, collator = random_model(kind, restart)
    texts = ["the cat sat on the mat", "", "a dog", "the"]
    for hypotheses in (LISTS[0], LISTS[1]):
        alone = [log_probs(model, collator, [hypotheses], [text])[0] for text in texts]
        assert score_candidates(model, collator, hypotheses, texts) == pytest.approx(alone, abs=1e-3)
        assert score_candidates(model, collator, hypotheses, [""]) == pytest.approx(alone[1:2], abs=1e-3)
    assert score_candidates(model, collator, LISTS[0], []) == []


def test_the_probability_of_nothing_is_that_of_the_end(random_model: Callable[..., Case]) -> None:
    model, collator = random_model()
    batch = collator.batch([LISTS[0]], [None])
    with torch.no_grad(), model.condition(batch.noise, batch.noise_valid):
        first = model(batch.ids, batch.positions, batch.segments, batch.valid)[0, -1].log_softmax(-1)
    found = log_probs(model, collator, [LISTS[0]], [""])[0]
    assert found == pytest.approx(first[collator.prompts.end].item(), abs=1e-4)


def test_a_wide_search_finds_the_likeliest_of_all_paths(
    random_model: Callable[..., Case], trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    for model, collator in (random_model(), (trained.model, trained.collator)):
        for hypotheses, _ in memorized[:4]:
            network = confusion_network(split(hypotheses))
            paths = sorted({" ".join(filter(None, words)) for words in itertools.product(*network)})
            assert len(paths) <= 64
            scores = log_probs(model, collator, [hypotheses] * len(paths), paths)
            found = search(model, collator, hypotheses, slots(split(hypotheses)), width=64)
            assert found.text == paths[scores.index(max(scores))]
            assert found.log_prob == pytest.approx(max(scores), abs=1e-3)


def test_a_wider_beam_is_not_below_a_greedy_one(
    random_model: Callable[..., Case], trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    for model, collator in (random_model(), random_model("gpt2"), (trained.model, trained.collator)):
        for hypotheses, _ in memorized:
            graph = slots(split(hypotheses))
            narrow, *wider = (search(model, collator, hypotheses, graph, width) for width in (1, 4, 8))
            assert all(found.log_prob >= narrow.log_prob - 1e-4 for found in wider)
            scored = log_probs(model, collator, [hypotheses], [wider[0].text])[0]
            assert wider[0].log_prob == pytest.approx(scored, abs=1e-3)


def test_search_repairs_with_words_of_the_list_alone(
    trained: Any, memorized: list[tuple[tuple[str, ...], str]]
) -> None:
    model, collator = trained.model, trained.collator
    hypotheses, true = memorized[1]
    assert search(model, collator, hypotheses, slots(split(hypotheses))).text == true
    hypotheses, true = memorized[0]
    assert search(model, collator, hypotheses, any_words(split(hypotheses))).text == true
    hypotheses, true = memorized[4]  # "see" is in no hypothesis
    assert search(model, collator, hypotheses, slots(split(hypotheses))).text == hypotheses[0]
    found = search(model, collator, hypotheses, any_words(split(hypotheses)))
    assert found.finished
    assert set(found.text.split()) <= set(hypotheses[0].split())
    assert found.log_prob < log_probs(model, collator, [hypotheses], [true])[0]


@pytest.mark.parametrize("width", [1, 4])
def test_any_words_writes_no_other_word(random_model: Callable[..., Case], width: int) -> None:
    model, collator = random_model()
    with torch.no_grad():  # as if it could not stop, so that words are written
        model.llm.get_output_embeddings().weight[collator.prompts.end] = 0
    for texts in LISTS[:3]:
        found = search(model, collator, texts, any_words(split(texts)), width)
        assert set(found.text.split()) <= {word for text in texts for word in text.split()}


def test_texts_of_a_batch_can_be_chosen_with_their_own_noise_and_cache(random_model: Callable[..., Case]) -> None:
    for kind in KINDS:
        model, collator = random_model(kind)
        rows, token = torch.tensor([2, 0, 2, 1]), collator.prompts.response_ids("the")[0]
        writer = _Writer(model, collator, LISTS[:3])
        with torch.no_grad(), writer.condition():
            writer.read()
            writer.select(rows)
            found = writer.write(torch.full((4,), token))
        for row, last in zip(rows.tolist(), found, strict=True):
            alone = _Writer(model, collator, [LISTS[row]])
            with torch.no_grad(), alone.condition():
                alone.read()
                torch.testing.assert_close(alone.write(torch.tensor([token]))[0], last, atol=1e-3, rtol=0)


def test_no_more_is_written_than_a_half_longer_than_the_list(random_model: Callable[..., Case]) -> None:
    model, collator = random_model()
    with torch.no_grad():
        model.llm.get_output_embeddings().weight[collator.prompts.end] = 0
    written = []

    class Counting(_Writer):
        def write(self, tokens: torch.Tensor) -> torch.Tensor:
            written.append(tokens)
            return super().write(tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audio_llm.ger.decode._Writer", Counting)
        (found,) = greedy(model, collator, [LISTS[0]])
    longest = len(collator.prompts.response_ids(LISTS[0][0]))
    assert not found.finished
    assert len(written) <= 1.5 * longest + 12


def test_prompt_and_what_is_written_stay_within_the_positions_of_the_model(random_model: Callable[..., Case]) -> None:
    """GPT-2 has no position beyond its table; `max_tokens` is of prompt and response together."""
    model, collator = random_model("gpt2", restart=False, max_tokens=64, n_positions=64)
    texts = ["the cat sat on the mat " * 20, "a cat sat " * 20]
    room = 64 - len(collator.prompts.encode(texts).ids)
    (free,) = greedy(model, collator, [texts])
    for written in (free, search(model, collator, texts, any_words(split(texts)))):
        assert len(collator.prompts.response_ids(written.text)) <= max(0, room)


def test_nothing_to_write_is_nothing_written(random_model: Callable[..., Case]) -> None:
    model, collator = random_model()
    assert greedy(model, collator, []) == []
    assert log_probs(model, collator, [], []) == []
    found = search(model, collator, ["", ""], any_words([(), ()]))
    assert (found.text, found.finished) == ("", True)
    assert found.log_prob == pytest.approx(log_probs(model, collator, [["", ""]], [""])[0], abs=1e-4)
