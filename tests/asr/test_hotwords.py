"""Listed names and terms get their capitals, and other words that resemble them do not."""

from __future__ import annotations

import pytest

from audio_llm.asr.hotwords import listed_spelling

TERMS = ["MacDougall", "iOS", "IT", "Jeanne", "LibriSpeech", "Mark", "Jacques Le Beau", "NASA", "Müller", "..."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Then Macdougall came.", "Then MacDougall came."),
        ("macdougall's house, and (Macdougall) too", "MacDougall's house, and (MacDougall) too"),
        ("He likes Ios more.", "He likes iOS more."),
        ("ask the It department", "ask the IT department"),
        ("It is late. It rains, and it will.", "It is late. It rains, and it will."),
        ('"Why?" It rains', '"Why?" It rains'),
        ("Nasa said so to Nasa", "Nasa said so to NASA"),  # a word of four capitals begins the sentence
        ("please mark the page, Mark", "please mark the page, Mark"),
        ("MARK said", "Mark said"),
        ("of jacques le beau, he said", "of Jacques Le Beau, he said"),
        ("Jacques le beach", "Jacques le beach"),
        ("MÜLLER\N{RIGHT SINGLE QUOTATION MARK}s", "Müller\N{RIGHT SINGLE QUOTATION MARK}s"),
        ("Librispeech-like", "Librispeech-like"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_capitals_are_those_of_the_list(text: str, expected: str) -> None:
    assert " ".join(listed_spelling(text.split(), TERMS)) == expected


def test_letters_are_never_changed() -> None:
    words = ["The", "STRASSE", "and", "the", "STRAßE"]
    assert listed_spelling(words, ["Straße"]) == ["The", "STRASSE", "and", "the", "Straße"]
