from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from audio_llm.align import count_edits
from audio_llm.dlm import vocab
from audio_llm.dlm.noise import NoiseConfig, corrupt, substitute_characters
from audio_llm.simulation.confusions import Confusions

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "klmnop"]
WORDS_ONLY = NoiseConfig(substitution_prob=0.0, clean_prob=0.0)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, 25))) for _ in range(count)]


def table(longest: int, rates: Sequence[float]) -> Confusions:
    """Return a table that replaces spans of up to `longest` words by as many or one more words that are in no sentence.

    No span becomes shorter: next to an insertion, the cheapest alignment would have fewer errors than were introduced.
    """
    spans = list(WORDS)
    for _ in range(longest - 1):
        spans += [f"{span} {word}" for span in spans for word in WORDS if len(span.split()) < longest]
    rows = {}
    for span in spans:
        new = " ".join(["zz"] * len(span.split()))
        rows[span] = ((new, 0.75), (f"{new} zz", 0.25))
    return Confusions(rows, tuple(rates))


def error_counts(texts: Sequence[str], confusions: Confusions, config: NoiseConfig, seed: int) -> np.ndarray:
    """Return (N, 2): word errors and words of every sentence."""
    rng = np.random.default_rng(seed)
    counts = [count_edits(text.split(), corrupt(text, confusions, config, rng).split()) for text in texts]
    return np.array([(c.errors, c.reference_words) for c in counts], dtype=float)


@pytest.mark.parametrize("longest", [1, 2])
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5])
def test_the_word_error_rate_is_the_drawn_one_within_three_sigma(longest: int, rate: float) -> None:
    counts = error_counts(sentences(800), table(longest, [rate]), WORDS_ONLY, seed=1)
    excess = counts[:, 0] - rate * counts[:, 1]
    sigma = excess.std() / len(excess) ** 0.5
    assert abs(excess.mean()) < 3 * sigma
    assert sigma < 0.06


def test_rates_are_drawn_from_those_observed_and_scaled() -> None:
    rates, factor = (0.0, 0.0, 0.1, 0.6), 0.5
    config = NoiseConfig(substitution_prob=0.0, clean_prob=0.2, rate_factor=factor)
    counts = error_counts(sentences(1200), table(1, rates), config, seed=2)
    expected = (1 - 0.2) * factor * np.mean(rates)
    excess = counts[:, 0] - expected * counts[:, 1]
    assert abs(excess.mean()) < 3 * excess.std() / len(excess) ** 0.5
    untouched = float(np.mean(counts[:, 0] == 0))
    least = 0.2 + 0.8 * 0.5  # in addition, short sentences with the small rate
    assert untouched > least - 3 * (least * (1 - least) / len(counts)) ** 0.5
    assert untouched < 0.95


def test_errors_are_spread_evenly_over_all_positions() -> None:
    rng = np.random.default_rng(3)
    text = " ".join(WORDS[:8])
    one_for_one = Confusions(dict.fromkeys(WORDS, (("zz", 1.0),)), (0.25,))
    hits = np.zeros(8)
    count = 2000
    for _ in range(count):
        hits += [word == "zz" for word in corrupt(text, one_for_one, WORDS_ONLY, rng).split()]
    assert np.all(np.abs(hits - 0.25 * count) < 4 * (count * 0.25 * 0.75) ** 0.5)


def test_no_rate_no_table_or_a_clean_draw_leaves_the_text() -> None:
    rng = np.random.default_rng(0)
    for confusions in (table(1, [0.0]), table(1, []), Confusions({}, (0.9,))):
        assert [corrupt(t, confusions, WORDS_ONLY, rng) for t in sentences(50)] == sentences(50)
    clean = NoiseConfig(substitution_prob=1.0, substitution_rate=(0.5, 0.5), clean_prob=1.0)
    assert [corrupt(t, table(1, [0.9]), clean, rng) for t in sentences(50)] == sentences(50)
    assert corrupt("", table(1, [0.9]), NoiseConfig(clean_prob=0.0), rng) == ""


def test_replacements_follow_their_probabilities() -> None:
    rng = np.random.default_rng(5)
    confusions = Confusions({"cat": (("hat", 0.6), ("a cat", 0.3), ("", 0.1))}, (1.0,))
    drawn = [corrupt("cat", confusions, WORDS_ONLY, rng) for _ in range(2000)]
    for text, fraction in (("hat", 0.6), ("a cat", 0.3), ("", 0.1)):
        assert abs(drawn.count(text) - fraction * 2000) < 3 * (2000 * fraction * (1 - fraction)) ** 0.5


@pytest.mark.parametrize("rate", [(0.02, 0.02), (0.0, 0.3)])
def test_the_character_substitution_rate_is_the_drawn_one_within_three_sigma(rate: tuple[float, float]) -> None:
    config = NoiseConfig(substitution_prob=0.4, substitution_rate=rate)
    rng = np.random.default_rng(4)
    text, count = "a" * 60, 3000
    changed = np.array([60 - substitute_characters(text, config, rng).count("a") for _ in range(count)])
    other = 1 - 1 / len(vocab.SYMBOLS)  # a character may be drawn for itself
    expected = 0.4 * np.mean(rate) * 60 * other
    assert abs(changed.mean() - expected) < 3 * changed.std() / count**0.5
    assert expected > 0


def test_substituted_characters_are_symbols_never_padding_begin_or_end() -> None:
    config = NoiseConfig(substitution_prob=1.0, substitution_rate=(1.0, 1.0), clean_prob=0.0)
    rng = np.random.default_rng(6)
    drawn = [corrupt(text, table(1, [0.3]), config, rng) for text in sentences(300)]
    numbers = {number for text in drawn for number in vocab.encode(text)}
    assert min(numbers) >= vocab.FIRST_SYMBOL
    assert len(numbers) == len(vocab.SYMBOLS)
    assert all(text == " ".join(text.split()) for text in drawn)


def test_a_seed_reproduces_and_another_differs() -> None:
    texts, confusions = sentences(40), table(2, [0.3])

    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [corrupt(text, confusions, NoiseConfig(), rng) for text in texts]

    assert draw(1) == draw(1)
    assert sum(a != b for a, b in zip(draw(1), draw(2), strict=True)) > 20
