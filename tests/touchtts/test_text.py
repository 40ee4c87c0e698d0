"""Text normalization: nothing is lost without notice, and any text gives pronounceable symbols."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audio_llm.asr.pronounce import phones_of
from audio_llm.text import split_sentences
from audio_llm.touchtts.speech import normalized_sentences
from audio_llm.touchtts.text import (
    BETWEEN,
    LONGEST,
    MARKS,
    PHONES,
    SYMBOLS,
    NormalizedText,
    UnspeakableError,
    normalize_text,
    sentences,
)


def words_in(text: str) -> str:
    """Return the normalized words of a text, in lower case and without marks."""
    return " ".join(re.sub(r"[.,!?]", " ", normalize_text(text).text.lower()).split())


def words_of(normalized: NormalizedText) -> list[list[str]]:
    """Return the phones of each word."""
    words: list[list[str]] = [[]]
    for symbol in normalized.symbols:
        if symbol == BETWEEN or symbol in MARKS:
            words.append([])
        else:
            words[-1].append(symbol)
    return [word for word in words if word]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I have 3 cats", "i have three cats"),
        ("the 22nd day", "the twenty second day"),
        ("1,000,000 stars", "one million stars"),
        ("about 3.14", "about three point one four"),
        ("50% of it", "fifty percent of it"),
        ("a bill of €20", "a bill of twenty euros"),
        ("at 10:30", "at ten thirty"),
        ("2024-05-06", "the sixth of may twenty twenty four"),
        ("-5°C", "negative five degrees celsius"),
        ("half is 1/2", "half is one half"),
        ("agent 007", "agent oh oh seven"),
        ("Mr. Jones & Dr. Smith", "mister jones and doctor smith"),
        ("ﬁne ｗｏｒｄｓ", "fine words"),
    ],
)
def test_numbers_dates_money_and_abbreviations_are_words(text: str, expected: str) -> None:
    assert words_in(text) == expected
    assert not re.search(r"\d", normalize_text(text).text)


def test_money_keeps_its_currency() -> None:
    assert "dollar" in words_in("I paid $5.50")
    assert "pound" in words_in("£3 a day")

    normalized = normalize_text("it costs 5€ a day")
    assert "euro" in normalized.text or normalized.left_out


def test_fractions_of_one_character_are_fractions() -> None:

    assert words_in("½ a cup") == words_in("1/2 a cup")
    assert "thirty" not in words_in("3½ cups")


def test_words_are_said_as_the_dictionary_has_them() -> None:
    assert normalize_text("Hello there.").symbols == ("HH", "AH", "L", "OW", BETWEEN, "DH", "EH", "R", ".")
    assert normalize_text("café").symbols == (*phones_of("cafe"), ".")
    assert words_of(normalize_text("Gregson’s cat")) == [list(phones_of("gregson's")), list(phones_of("cat"))]


@pytest.mark.parametrize(
    ("word", "letters"), [("FBI", "EH F B IY AY"), ("PC", "P IY S IY"), ("UK", "Y UW K EY"), ("US", "Y UW EH S")]
)
def test_short_words_in_capitals_are_spelled(word: str, letters: str) -> None:
    assert words_of(normalize_text(f"see the {word} now"))[2] == letters.split()


def test_capitals_everywhere_are_no_acronyms() -> None:
    assert normalize_text("GO AND SEE IT").symbols == normalize_text("go and see it").symbols
    assert words_of(normalize_text("the NATO talks"))[1] == list(phones_of("nato"))


def test_marks_are_pauses_and_the_last_word_is_followed_by_one() -> None:
    marks = [symbol for symbol in normalize_text("Well, yes; no - or (so) ... what?!").symbols if symbol in MARKS]
    assert marks == [",", ",", ",", ",", ",", "!"]
    assert normalize_text("hello").symbols[-1] == "."
    assert normalize_text("hello,").symbols[-1] == ","
    assert normalize_text("Really?").symbols[-1] == "?"
    assert normalize_text("... hello").symbols[0] == "HH"  # no pause at the beginning
    assert normalize_text("yes, .").symbols[-2:] == ("S", ".")  # of two marks the stronger one counts
    assert normalize_text("yes. ,").symbols[-2:] == ("S", ".")


def test_what_is_not_pronounced_is_named() -> None:
    assert normalize_text("hi 😀 you").left_out == ("grinning face",)
    assert normalize_text("hi 日 and П").left_out == ("cjk unified ideograph-65e5", "cyrillic capital letter pe")
    assert normalize_text("one\x00two\x07").left_out == ("u+0000", "u+0007")
    assert words_of(normalize_text("one\x00two")) == [list(phones_of("one")), list(phones_of("two"))]
    assert normalize_text("“so” he said — *now*").left_out == ()
    assert normalize_text("₿ 5").left_out == ("bitcoin sign",)


@pytest.mark.parametrize("tag", ["<speak>", "</speak>", '<break time="500ms"/>', "<b class='x'>"])
def test_tags_are_not_read_out(tag: str) -> None:
    normalized = normalize_text(f"say {tag} no more")
    assert normalized.symbols == normalize_text("say no more").symbols
    assert normalized.left_out == (f"tag {tag}",)


def test_tags_are_not_read_out_of_long_text_either() -> None:

    expected = [normalized.symbols for normalized in normalized_sentences("Hello there. Good day.")]
    result = normalized_sentences('<speak>Hello there. <break time="1s"/>Good day.</speak>')
    assert [normalized.symbols for normalized in result] == expected


def test_less_than_is_no_tag() -> None:
    assert len(words_of(normalize_text("one < two and three > two"))) == 5
    assert normalize_text("one < two and three > two").left_out == ()


@pytest.mark.parametrize("text", ["", "   \n", "...", "?!", "😀", "日本語", "<speak></speak>", "\x00\x01", "'", "-"])
def test_nothing_to_pronounce_is_an_error(text: str) -> None:
    with pytest.raises(UnspeakableError, match=r"nothing to pronounce.*English"):
        normalize_text(text)
    if text != "<speak></speak>":
        with pytest.raises(UnspeakableError, match=r"nothing to pronounce.*English"):
            normalized_sentences(text)


def test_the_error_names_what_was_there() -> None:
    with pytest.raises(UnspeakableError, match="grinning face"):
        normalize_text("😀😀")


def test_a_sentence_that_cannot_be_pronounced_is_skipped() -> None:
    result = normalized_sentences("Hello there.\n\n日本語です\n\nGood day.")
    assert [normalized.text for normalized in result] == ["Hello there.", "Good day."]


def test_sentences_end_where_they_end() -> None:
    assert sentences("Mr. Jones met Dr. A. Smith. He left! Why? Nobody knows; it is late.") == [
        "Mr. Jones met Dr. A. Smith.",
        "He left!",
        "Why?",
        "Nobody knows;",
        "it is late.",
    ]
    assert sentences("No stop here\n\nAnother paragraph") == ["No stop here", "Another paragraph"]
    assert sentences("") == []


def plain(text: str) -> str:
    """Return letters and digits alone, which no cut may lose."""
    return "".join(character for character in text if character.isalnum())


@given(st.text(alphabet=string.ascii_letters + string.digits + " .,;:!?\n\"'()-", max_size=900))
def test_splitting_loses_no_letter(text: str) -> None:
    parts = sentences(text)
    assert plain("".join(parts)) == plain(text)
    assert all(0 < len(part) <= LONGEST for part in parts)
    assert plain("".join(split_sentences(text))) == plain(text)


def test_lines_that_end_in_a_carriage_return_are_lines() -> None:
    assert sentences("one line\r\nanother") == ["one line another"]

    assert sentences("one line\ranother") == ["one line another"]


def test_long_sentences_are_cut_at_commas_then_between_words_then_anywhere() -> None:
    clause = "and so the long tale went on and on for many days, "
    parts = sentences(clause * 12)
    assert len(parts) > 2
    assert all(part.endswith("days,") for part in parts)
    parts = sentences("word " * 2000)
    assert " ".join(parts) == " ".join(["word"] * 2000)
    assert set(" ".join(parts).split()) == {"word"}
    assert [len(part) for part in sentences("x" * 500)] == [220, 220, 60]


def test_ten_thousand_characters_are_normalized() -> None:
    text = ("The quick brown fox jumps over 13 lazy dogs, and then it sleeps. " * 160)[:10_000]
    result = normalized_sentences(text)
    assert sum(len(words_of(normalized)) for normalized in result) > 1900
    assert max(len(normalized.symbols) for normalized in result) < 2 * LONGEST


def faults(normalized: NormalizedText) -> list[str]:
    """Return the faults of a normalized text."""
    pairs = list(zip(normalized.symbols, normalized.symbols[1:], strict=False))
    result = {
        "unknown symbols": not set(normalized.symbols) <= set(SYMBOLS),
        "no mark at the end": normalized.symbols[-1] not in MARKS,
        "no phone at the beginning": normalized.symbols[0] not in PHONES,
        "pauses that follow each other": any(one not in PHONES and two not in PHONES for one, two in pairs),
        "digits": any(character.isdigit() for character in normalized.text),
    }
    return [fault for fault, is_there in result.items() if is_there]


ODD = st.sampled_from(
    [*"0123456789.,:;/-'$£€%°½&@()<>", " ", "\n", "a", "St.", "No.", "1st", "II", "ñ", "日", "😀", "\u200d"]
)


@given(
    st.one_of(st.text(max_size=60), st.lists(ODD, max_size=25).map("".join), st.lists(ODD, max_size=20).map(" ".join))
)
@example("1" * 300)
@example("1.1.1.1.1")
@example("$" * 50 + "1")
@example("00:00:00/00-00")
@example("\udc80 lone surrogates are no text")
@example("'s")
@example("a'b'c-d-e'")
def test_any_text_is_normalized_or_refused(text: str) -> None:
    try:
        whole = normalize_text(text)
    except UnspeakableError:
        return
    assert faults(whole) == []
    assert not any(map(faults, normalized_sentences(text)))


@given(
    st.lists(
        st.sampled_from(["the", "cat", "sat,", "on", "a", "mat.", "why?", "no!", "Gregson's", "ice-cream"]),
        min_size=1,
        max_size=12,
    )
)
def test_words_that_are_words_already_stay(words: list[str]) -> None:
    once = normalize_text(" ".join(words))
    again = normalize_text(once.text)
    assert again == once
    assert words_in(once.text) == words_in(" ".join(words))
