"""Letter-to-sound rules: how often they are wrong on words held out, and how names and acronyms are taken apart."""

from __future__ import annotations

import pytest

from audio_llm.asr import pronounce as module
from audio_llm.asr.pronounce import learn_rules, phones_of, pronounce, read_dictionary

LETTERS = set("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def dictionary() -> dict[str, tuple[str, ...]]:
    return read_dictionary()


def distance(first: list[str], second: list[str]) -> int:
    """Return the least count of phones to change, insert or delete."""
    row = list(range(len(second) + 1))
    for number, phone in enumerate(first, 1):
        corner, row[0] = row[0], number
        for column, other in enumerate(second, 1):
            corner, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, corner + (phone != other))
    return row[-1]


def test_phone_errors_on_held_out_words_stay_low(dictionary: dict[str, tuple[str, ...]]) -> None:
    spoken = [word for word in dictionary if set(word) <= LETTERS and set(word) & set("aeiouy")]
    held_out = spoken[7::230][:500]
    assert len(held_out) == 500
    learned = [word for word in spoken[::4] if word not in set(held_out)]
    rules = learn_rules({word: dictionary[word] for word in learned})
    wrong = sum(distance(rules.apply(word), list(dictionary[word])) for word in held_out)
    share = wrong / sum(len(dictionary[word]) for word in held_out)
    assert 0.05 < share < 0.14


def test_rules_learned_twice_are_the_same(dictionary: dict[str, tuple[str, ...]]) -> None:
    words = {word: dictionary[word] for word in list(dictionary)[::100]}
    first, second = learn_rules(words), learn_rules(words)
    assert [first.apply(word) for word in ("gregson", "dracula")] == [
        second.apply(word) for word in ("gregson", "dracula")
    ]


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("brindleton", "B R IH N D AH L T AH N"),
        ("Brindleton's", "B R IH N D AH L T AH N Z"),
        ("BBC", "B IY B IY S IY"),
        ("bbc's", "B IY B IY S IY Z"),
        ("U.S.A.", "Y UW EH S EY"),
        ("U.S.A.'s", "Y UW EH S EY Z"),
        ("mp3", "EH M P IY TH R IY"),
        ("x", "EH K S"),
        ("drick", "D R IH K"),
        ("drick's", "D R IH K S"),
        ("tox-drick", "T AA K S D R IH K"),
        ("dríck", "D R IH K"),
        ("DRICK", "D R IH K"),
    ],
)
def test_parts_and_letters(word: str, phones: str) -> None:
    assert pronounce(word) == phones


@pytest.mark.parametrize("word", ["", "  ", "42", "--", "'", "Ελλάς", "東京", "Ivan\N{CYRILLIC SMALL LETTER O}v"])
def test_no_sensible_phones(word: str) -> None:
    assert pronounce(word) == ""


def test_known_parts_are_looked_up() -> None:
    known = {"smith": "S M IH TH", "box": "B AA K S"}
    assert pronounce("Drick-Smith", known.get) == "D R IH K S M IH TH"
    assert pronounce("Smith's", known.get) == "S M IH TH S"
    assert pronounce("box's", known.get) == "B AA K S IH Z"


def test_every_result_is_of_the_dictionarys_phones(dictionary: dict[str, tuple[str, ...]]) -> None:
    phones = {phone for entry in dictionary.values() for phone in entry}
    words = ["Szczecin", "xqzvae", "aaaaaaaaaaaaaaaaaaaaaaaa", "Llanfairpwllgwyngyll", "q'eqchi'", "o", "Straße", "Ærø"]
    for word in words:
        said = pronounce(word).split()
        assert said
        assert set(said) <= phones


def test_the_dictionary_is_read_in_its_first_readings(dictionary: dict[str, tuple[str, ...]]) -> None:
    assert dictionary["the"] == ("DH", "AH")
    assert dictionary["tomato"][0] == "T"
    assert not any("(" in word for word in dictionary)
    assert module._NAMES["w"].split() == list(dictionary["w."])
    assert all(module._NAMES[letter].split() == list(dictionary[f"{letter}."]) for letter in LETTERS)


def test_phones_of_known_guessed_and_unpronounceable_words() -> None:
    assert phones_of("cat") == ("K", "AE", "T")
    assert phones_of("murdoch") == phones_of("murdock")
    assert phones_of("brillig") == tuple(pronounce("brillig").split())
    assert phones_of("日本") == ("日", "本")
    assert phones_of("42nd") == tuple(pronounce("42nd").split())
