from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audio_llm.align import edit_distance
from audio_llm.asr.pronounce import read_dictionary
from audio_llm.errors import AudioLLMError
from audio_llm.simulation.confusions import Confusions, learn_confusions

TEXTS = [
    "the wreck of a nice beach was there in the night",
    "i scream for ice cream and a meat pie",
    "we meet their son where the sun shone red",
    "she read a book by the sea and could see the knight ride right there",
    "write two letters to the ward at dawn",
    "their hair and the hare ran for an hour in our yard",
    "he heard the herd and bade them stay",
    "a bad bat sat beside the bed and bit the bad lad",
    "the pale whale swam along a pail in the rain of the reign",
    "some say the sum of the parts is the heart of the art",
]


@pytest.fixture(scope="module")
def dictionary() -> dict[str, tuple[str, ...]]:
    return read_dictionary()


def test_learned_spans_appear_with_their_weight() -> None:
    pairs = [
        ("the cat sat down", ["the hat sat down", "the cats at down"]),
        ("the cat sat down", ["the hat sat down"]),
        ("go to the shop", ["go the shop"]),
        ("stop it now", ["stop it right now"]),
    ]
    confusions = learn_confusions(pairs, [], {})
    assert dict(confusions.table["cat"]) == {"hat": 1.0}
    assert dict(confusions.table["cat sat"]) == {"cats at": 1.0}
    assert dict(confusions.table["to"]) == {"": 1.0}
    assert dict(confusions.table["it"]) == {"it right": 1.0}
    assert confusions.error_rates == (0.25, 0.25, 0.25, pytest.approx(1 / 3, abs=1e-3))


def test_an_insertion_at_the_beginning_hangs_on_the_first_word_and_long_spans_are_left() -> None:
    confusions = learn_confusions([("now go", ["and now go"]), ("a b c d", ["w x y z"])], [], {})
    assert dict(confusions.table) == {"now": (("and now", 1.0),)}
    assert confusions.error_rates == (0.5, 1.0)


def test_only_the_first_hypothesis_counts_for_the_error_rates() -> None:
    confusions = learn_confusions([("a b", ["a b", "a c"]), ("a b", [""])], [], {})
    assert confusions.error_rates == (0.0, 1.0)
    assert dict(confusions.table["b"])["c"] > 0


def test_observed_confusions_outweigh_neighbors(dictionary: dict[str, tuple[str, ...]]) -> None:
    plain = learn_confusions([], TEXTS, dictionary)
    learned = learn_confusions([("the sea rose", ["the tree rose"])] * 3, TEXTS, dictionary)
    assert "tree" not in dict(plain.table["sea"])
    assert dict(learned.table["sea"])["tree"] == max(dict(learned.table["sea"]).values())
    assert "see" in dict(learned.table["sea"])


def test_neighbors_sound_alike(dictionary: dict[str, tuple[str, ...]]) -> None:
    table = learn_confusions([], TEXTS, dictionary).table
    for word, alike in (("sea", "see"), ("meet", "meat"), ("sun", "son"), ("bad", "bed"), ("their", "there")):
        assert alike in dict(table[word])
        assert word not in dict(table[word])

    def distance(a: str, b: str) -> float:
        first, second = ([p for word in text.split() for p in dictionary[word]] for text in (a, b))
        return edit_distance(first, second) / max(len(first), len(second))

    rng = np.random.default_rng(0)
    words = sorted({word for text in TEXTS for word in text.split()})
    near = [distance(span, new) for span, rows in table.items() for new, _ in rows]
    random = [distance(*rng.choice(words, size=2, replace=False)) for _ in near]
    assert len(near) > 100
    assert max(near) <= 1.0
    assert np.mean(near) < 0.6 * np.mean(random)


def test_probabilities_sum_to_one_and_never_give_the_span_itself(dictionary: dict[str, tuple[str, ...]]) -> None:
    confusions = learn_confusions([("we meet", ["we mete"])], TEXTS, dictionary)
    for span, rows in confusions.table.items():
        assert sum(weight for _, weight in rows) == pytest.approx(1.0, abs=2e-3)
        assert span not in dict(rows)
        assert all(weight >= 0 for _, weight in rows)


def test_two_calls_give_the_same_table(dictionary: dict[str, tuple[str, ...]]) -> None:
    first, second = (learn_confusions([("a b", ["a c"])], TEXTS, dictionary) for _ in range(2))
    assert first == second
    assert list(first.table) == list(second.table)


def test_save_and_load(tmp_path: Path, dictionary: dict[str, tuple[str, ...]]) -> None:
    confusions = learn_confusions([("the cat", ["the hat"]), ("to go", ["go"])], TEXTS, dictionary)
    confusions.save(tmp_path / "confusions.json")
    assert Confusions.load(tmp_path / "confusions.json") == confusions
    assert [path.name for path in tmp_path.iterdir()] == ["confusions.json"]


def test_a_damaged_table_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "confusions.json").write_text('{"table": {"a"')
    with pytest.raises(AudioLLMError, match=r"confusions\.json"):
        Confusions.load(tmp_path / "confusions.json")
    with pytest.raises(AudioLLMError, match=r"nowhere\.json"):
        Confusions.load(tmp_path / "nowhere.json")
