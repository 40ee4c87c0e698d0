"""Tests of the n-gram language model: training, look-up, files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.lm.arpa import write_arpa
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import END, UNKNOWN, NgramLm, load_ngram, save_ngram

TOY = ["a b", "a b", "a c"]


def made_up_text(count: int, seed: int) -> list[str]:
    """Sentences with word order that can be learned: subject, verb, maybe adverb, article, object, maybe a place."""
    generator = np.random.default_rng(seed)
    pick = lambda words: str(generator.choice(words.split()))  # noqa: E731
    sentences = []
    for _ in range(count):
        parts = [pick("i you we they anna tom"), pick("see hear take want find lose")]
        parts += [pick("often never") for _ in range(generator.integers(0, 2))]
        parts += [pick("the a this"), pick("house dog river boat letter stone hat")]
        if generator.random() < 0.4:
            parts += [pick("in near behind"), "the", pick("town wood garden")]
        sentences.append(" ".join(parts))
    return sentences


def test_hand_worked_bigrams() -> None:
    # Counts of 3 bigrams after <s>/a/b/c: <s>a 3; ab 2, ac 1; b</s> 2; c</s> 1. Too few for estimated
    # discounts (nothing occurs 3 times with 4 following), so .5, 1, 1.5 are taken off counts of 1, 2, 3.
    # Unigram counts are numbers of left neighbors: a 1, b 1, c 1, </s> 2, in all 5; discounts .5, .5, .5, 1 free 2.5,
    # spread over 5 words (a b c </s> <unk>): a third of a half each, that is 0.1.
    model = train_ngram(TOY, order=2)
    for word, expected in {"a": 0.2, "b": 0.2, "c": 0.2, END: 0.3, UNKNOWN: 0.1}.items():
        unigram = math.exp(float(model.levels[0].log_probs[model.vocabulary.index(word)]))
        assert unigram == pytest.approx(expected, rel=1e-6)
    # After a: (2-1)/3 for b, (1-.5)/3 for c, and 1.5/3 goes to the unigrams.
    assert math.exp(model.score(["a"], "b")) == pytest.approx(1 / 3 + 0.5 * 0.2, rel=1e-5)
    assert math.exp(model.score(["a"], "c")) == pytest.approx(0.5 / 3 + 0.5 * 0.2, rel=1e-5)
    assert math.exp(model.score(["a"], END)) == pytest.approx(0.5 * 0.3, rel=1e-5)
    assert math.exp(model.score(["a"], "zebra")) == pytest.approx(0.5 * 0.1, rel=1e-5)
    # The sentence: after <s> (3-1.5)/3 + .5*.2 for a; after b (2-1)/2 + .5*.3 for the end.
    assert math.exp(model.log_prob(["a", "b"])) == pytest.approx(0.6 * (1 / 3 + 0.1) * 0.65, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("cutoffs", ["all", "pruned"])
def test_probabilities_sum_to_one_for_seen_and_unseen_histories(order: int, cutoffs: str) -> None:
    limits = [1] * order if cutoffs == "all" else [min(n, 3) for n in range(1, order + 1)]
    model = train_ngram(made_up_text(300, 0), order=order, cutoffs=limits)
    histories = ["", "i", "i see", "we want the", "they never lose a", "hat hat hat", "zebra", "the zebra", "town i i"]
    for history in histories:
        words = history.split()
        total = sum(math.exp(model.score(words, word)) for word in (*model.vocabulary[3:], END, "zebra"))
        assert total == pytest.approx(1.0, abs=1e-5), history


def test_rare_words_share_the_unknown_mass() -> None:
    text = [*made_up_text(300, 0), "i see the yak", "i see the emu", "we hear a gnu"]
    model = train_ngram(text, min_count=2)
    assert "dog" in model
    assert "yak" not in model
    assert model.unknown_types == 3
    total = sum(math.exp(model.score(["i", "see"], word)) for word in (*model.vocabulary[3:], END))
    assert total + 3 * math.exp(model.score(["i", "see"], "yak")) == pytest.approx(1.0, abs=1e-5)
    assert model.score(["see", "the"], "yak") == model.score(["see", "the"], "never-heard")


def test_true_order_is_far_likelier_than_shuffled() -> None:
    model = train_ngram(made_up_text(2000, 0))
    held_out = [sentence.split() for sentence in made_up_text(200, 1)]
    generator = np.random.default_rng(0)
    shuffled = [list(generator.permutation(sentence)) for sentence in held_out]
    assert model.perplexity(held_out) < 8
    assert model.perplexity(shuffled) > 5 * model.perplexity(held_out)


def test_agrees_with_kneser_ney_written_out() -> None:
    text = made_up_text(150, 3)
    model = train_ngram(text, order=3, cutoffs=(1, 1, 1))
    slow = _SlowKneserNey([sentence.split() for sentence in text])
    for history in (["<s>"], ["<s>", "i"], ["i", "see"], ["see", "the"], ["the", "see"], ["hat", "a"]):
        for word in ("i", "see", "the", "dog", "never", END):
            mine = model.score(history[1:] if history[0] == "<s>" else history, word)
            assert math.exp(mine) == pytest.approx(slow.prob(tuple(history), word), rel=1e-4), (history, word)


class _SlowKneserNey:
    """Interpolated modified Kneser-Ney of order 3 with dictionaries, written independently of the library."""

    def __init__(self, sentences: list[list[str]]) -> None:
        self.counts: dict[tuple[str, ...], int] = {}
        for sentence in sentences:
            row = ["<s>", *sentence, END]
            for n in (1, 2, 3):
                for i in range(len(row) - n + 1):
                    gram = tuple(row[i : i + n])
                    self.counts[gram] = self.counts.get(gram, 0) + 1
        self.adjusted = {}
        for gram, count in self.counts.items():
            left = sum(1 for other in self.counts if len(other) == len(gram) + 1 and other[1:] == gram)
            self.adjusted[gram] = count if len(gram) == 3 or gram[0] == "<s>" else left
        del self.adjusted[("<s>",)]
        self.vocabulary = {gram[0] for gram in self.counts if len(gram) == 1} - {"<s>"}

    def discount(self, order: int, count: int) -> float:
        values = [c for gram, c in self.adjusted.items() if len(gram) == order]
        t = [values.count(k) for k in range(5)]
        if min(t[1:4]) > 0:
            y = t[1] / (t[1] + 2 * t[2])
            found = [1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]]
            if all(0 < d < k for k, d in enumerate(found, 1)):
                return found[min(count, 3) - 1]
        return [0.5, 1.0, 1.5][min(count, 3) - 1]

    def prob(self, history: tuple[str, ...], word: str) -> float:
        order = len(history) + 1
        followers = {g[-1]: c for g, c in self.adjusted.items() if len(g) == order and g[:-1] == history}
        lower = self.prob(history[1:], word) if history else 1 / (len(self.vocabulary) + 1)
        if not followers:
            return lower
        total = sum(followers.values())
        mine = followers.get(word, 0)
        direct = (mine - self.discount(order, mine)) / total if mine else 0.0
        return direct + sum(self.discount(order, c) for c in followers.values()) / total * lower


def test_batches_equal_single_sentences_and_sums_of_steps() -> None:
    model = train_ngram(made_up_text(300, 0))
    sentences = [sentence.split() for sentence in made_up_text(50, 5)] + [[], ["zebra"], ["i"], ["i", "zebra", "see"]]
    for sentence, value in zip(sentences, model.log_probs(sentences), strict=True):
        assert value == pytest.approx(model.log_prob(sentence), abs=1e-5)
        steps = sum(model.score(sentence[:i], word) for i, word in enumerate([*sentence, END]))
        assert value == pytest.approx(steps, abs=1e-4)


def test_marks_in_the_text_are_unknown_words() -> None:
    model = train_ngram(["a <s> b </s> c", *TOY])
    assert model.log_prob(["<s>"]) == pytest.approx(model.log_prob(["zebra"]))
    assert model.log_prob(["a", "</s>"]) == pytest.approx(model.log_prob(["a", "zebra"]))


def test_saved_model_is_the_same(tmp_path: Path) -> None:
    model = train_ngram(made_up_text(500, 0), min_count=2, cutoffs=(1, 1, 2))
    loaded = NgramLm.load(model.save(tmp_path / "lm.npz"))
    sentences = [sentence.split() for sentence in made_up_text(50, 9)]
    assert loaded.log_probs(sentences) == model.log_probs(sentences)
    assert loaded.score(["i"], "gnu") == model.score(["i"], "gnu")
    assert [file.name for file in tmp_path.iterdir()] == ["lm.npz"]


def test_a_model_directory_holds_nearly_the_same_model(tmp_path: Path) -> None:
    model = train_ngram(["the cat sat on the mat", "the dog sat", "a cat sat"])
    save_ngram(model, tmp_path / "three", "# three\n")
    loaded = load_ngram(tmp_path / "three")
    texts = [["the", "cat", "sat"], ["a", "zebra"], []]
    assert loaded.log_probs(texts) == pytest.approx(model.log_probs(texts), abs=0.01)
    assert all((a.keys == b.keys).all() for a, b in zip(loaded.levels, model.levels, strict=True))


def test_damaged_files_are_typed_errors(tmp_path: Path) -> None:
    path = train_ngram(made_up_text(50, 0)).save(tmp_path / "lm.npz")
    with pytest.raises(ModelNotFoundError, match="train_ngram"):
        NgramLm.load(tmp_path / "absent.npz")
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ModelFormatError, match=r"lm\.npz"):
            NgramLm.load(path)
    np.savez(path, header=np.frombuffer(b'{"format": "other"}', dtype=np.uint8))
    with pytest.raises(ModelFormatError, match="other"):
        NgramLm.load(path)


def test_arpa_holds_every_ngram_and_gives_the_same_probabilities(tmp_path: Path) -> None:
    model = train_ngram(made_up_text(200, 0))
    text = write_arpa(model, tmp_path / "lm.arpa").read_text()
    grams: dict[tuple[str, ...], tuple[float, float]] = {}
    for line in text.splitlines():
        if "\t" in line:
            columns = line.split("\t")
            grams[tuple(columns[1].split(" "))] = (float(columns[0]), float(columns[2]) if len(columns) > 2 else 0.0)
    sizes = [int(line.split("=")[1]) for line in text.splitlines() if line.startswith("ngram ")]
    assert sizes == [len(level.keys) for level in model.levels]
    assert len(grams) == sum(sizes)

    def arpa_score(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in grams:
            return grams[(*history, word)][0]
        return grams.get(history, (0.0, 0.0))[1] + arpa_score(history[1:], word)

    for history, word in ((("i", "see"), "the"), (("see", "the"), "dog"), (("hat", "hat"), "dog"), (("<s>",), "i")):
        mine = model.score([w for w in history if w != "<s>"], word)
        assert mine == pytest.approx(arpa_score(history, word) * math.log(10), abs=1e-4)


def test_wrong_settings_and_empty_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        train_ngram(TOY, order=0)
    with pytest.raises(UsageError):
        train_ngram(TOY, order=2, cutoffs=(2, 1))
    with pytest.raises(DataError, match="no words"):
        train_ngram(["", " "])
    with pytest.raises(DataError, match=r"absent\.txt"):
        train_ngram(tmp_path / "absent.txt")
    path = tmp_path / "text.txt"
    path.write_text("A b.\nA c!\n")
    assert "a" in train_ngram(path, normalizer=lambda line: line.lower().rstrip(".!"))
