"""Whisper's tokens: prompts, languages, words in scripts with and without spaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from asr.tiny_whisper import LANGUAGE_CODES
from hypothesis import given
from hypothesis import strategies as st

from audio_llm.asr.whisper_tokens import CONTEXT_TOKENS, WhisperTokens
from audio_llm.errors import ModelFormatError, UsageError


@pytest.fixture(scope="module")
def tokens(tiny_whisper: Path) -> WhisperTokens:
    return WhisperTokens.load(tiny_whisper, multilingual=True)


@pytest.fixture(scope="module")
def english(tiny_whisper_en: Path) -> WhisperTokens:
    return WhisperTokens.load(tiny_whisper_en, multilingual=False)


class Characters:
    """A tokenizer whose ids are the bytes of UTF-8."""

    marks = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>")

    def token_to_id(self, token: str) -> int:
        return 1000 + self.marks.index(token)

    def get_vocab(self) -> dict[str, int]:
        return {}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def divided(text: str, language: str) -> list[str]:
    content = list(text.encode())
    words = WhisperTokens(Characters(), multilingual=False).words(content, language)
    positions = [position for _, own in words for position in own]
    assert positions == sorted(set(positions))
    return [word for word, _ in words]


def test_every_language_of_whisper_has_its_token(tokens: WhisperTokens) -> None:
    assert sorted(tokens.languages) == sorted(LANGUAGE_CODES)
    assert tokens.languages["en"] == tokens.start + 1


def test_an_english_only_model_has_no_languages_and_no_tasks(english: WhisperTokens) -> None:
    assert english.languages == {}
    assert english.prompt("en", "transcribe") == [english.start, english.no_timestamps]


def test_the_prompt_names_language_and_task(tokens: WhisperTokens) -> None:
    for task in ("transcribe", "translate"):
        start, language, task_mark, last = tokens.prompt("de", task)
        assert (start, language, last) == (tokens.start, tokens.languages["de"], tokens.no_timestamps)
        assert tokens._tokenizer.id_to_token(task_mark) == f"<|{task}|>"
    assert tokens.prompt("de", "transcribe", timestamps=True) == tokens.prompt("de", "transcribe")[:-1]


def test_the_end_of_a_long_context_counts(tokens: WhisperTokens) -> None:
    context = list(range(300))
    prompt = tokens.prompt("en", "transcribe", context)
    assert tokens._tokenizer.id_to_token(prompt[0]) == "<|startofprev|>"
    assert prompt[1 : CONTEXT_TOKENS + 1] == context[-CONTEXT_TOKENS:]
    assert prompt[CONTEXT_TOKENS + 1] == tokens.start
    assert len(prompt) == 1 + CONTEXT_TOKENS + 4


def test_a_language_is_checked_without_case(tokens: WhisperTokens) -> None:
    assert tokens.check_language(" DE ") == "de"
    assert tokens.check_language(None) is None
    with pytest.raises(UsageError, match=r"does not know the language 'german' \(use auto or one of: af, am"):
        tokens.check_language("german")


def test_an_english_only_model_names_a_multilingual_one(english: WhisperTokens) -> None:
    assert english.check_language("EN") == "en"
    with pytest.raises(UsageError, match=r"an English-only model does not know the language 'de' .*whisper-base"):
        english.check_language("de")


def test_text_comes_back_from_its_tokens(tokens: WhisperTokens) -> None:
    ids = tokens.encode("  ba be bi ")
    assert tokens.decode(ids) == " ba be bi"
    assert tokens.decode([*ids, tokens.end, tokens.no_timestamps + 1]) == " ba be bi"
    assert tokens.encode("   ") == []


def test_words_begin_at_spaces(tokens: WhisperTokens) -> None:
    ids = tokens.encode("ba bebi go")
    assert [word for word, _ in tokens.words(ids, "en")] == ["ba", "bebi", "go"]
    assert [position for _, own in tokens.words(ids, "en") for position in own] == list(range(len(ids)))


def test_punctuation_belongs_to_its_word() -> None:
    assert divided(" Well, it's 42 % (yes).", "en") == ["Well,", "it's", "42", "%", "(yes)."]


def test_every_character_is_a_word_where_there_are_no_spaces() -> None:
    assert divided("今天，好。", "zh") == ["今", "天，", "好。"]
    assert divided("กิน", "th") == ["กิ", "น"]


def test_characters_of_several_tokens_stay_whole() -> None:
    assert divided(" größe 日本", "de") == ["größe", "日本"]
    assert divided("👍🏽 ok", "en") == ["👍🏽", "ok"]


def test_bytes_that_are_no_character_are_kept_as_a_replacement() -> None:
    content = [*" ok".encode(), 0xE4, 0xBB]
    words = WhisperTokens(Characters(), multilingual=False).words(content, "en")
    assert [own for _, own in words] == [[0, 1, 2, 3, 4]]
    assert words[0][0].startswith("ok")


@given(st.text(alphabet=" aé日,.👍\n", max_size=40), st.sampled_from(["en", "ja"]))
def test_words_hold_all_of_the_text(text: str, language: str) -> None:
    assert "".join("".join(divided(text, language)).split()) == "".join(text.split())


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"tokenizer.json: no readable tokenizer"):
        WhisperTokens.load(tmp_path, multilingual=True)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelFormatError, match="copy tokenizer.json of the original model"):
        WhisperTokens.load(tmp_path, multilingual=True)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFormatError, match=r"the tokenizer has no <\|endoftext\|> \(give a Whisper model\)"):
        WhisperTokens.load(tmp_path, multilingual=False)
