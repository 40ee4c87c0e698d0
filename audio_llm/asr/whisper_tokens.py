"""Whisper's tokens: texts to ids and back, the prompt of a window, and words in any script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from audio_llm.errors import ModelFormatError, UsageError

Task = Literal["transcribe", "translate"]
TASKS: tuple[Task, ...] = ("transcribe", "translate")
CONTEXT_TOKENS = 223  # most tokens of a prompt before a window: half the decoder's 448 positions, less one

_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "km", "bo", "yue"})  # languages written without spaces
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_PARTIAL = "\ufffd"  # decoded from bytes that are not a whole character


class WhisperTokens:
    """The tokenizer of a model.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        multilingual: Whether prompts have a language and a task.
        path: Source file, for errors.

    Attributes:
        languages: Token id of each language code; empty for an English-only model.

    Raises:
        ModelFormatError: A token that every Whisper has is missing.
    """

    def __init__(self, tokenizer: Any, multilingual: bool, path: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self.multilingual = multilingual
        self._path = path
        self.end = self._id("<|endoftext|>")
        self.start = self._id("<|startoftranscript|>")
        self.no_timestamps = self._id("<|notimestamps|>")
        self._previous = self._id("<|startofprev|>")
        self._tasks = {task: self._id(f"<|{task}|>") for task in TASKS} if multilingual else {}
        languages = {
            match[1]: number
            for token, number in tokenizer.get_vocab().items()
            if number > self.start and (match := _LANGUAGE.fullmatch(token))
        }
        self.languages: dict[str, int] = languages if multilingual else {}

    @classmethod
    def load(cls, folder: Path, multilingual: bool) -> WhisperTokens:
        """Read `tokenizer.json` of a folder.

        Raises:
            ModelFormatError: It is missing or damaged.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain exceptions
            remedy = "get the model again, or copy tokenizer.json of the original model into the folder"
            raise ModelFormatError(f"no readable tokenizer: {error}", path=path, remedy=remedy) from None
        return cls(tokenizer, multilingual, path)

    def check_language(self, language: str | None) -> str | None:
        """Return a language code the model knows, lower case; None stays None.

        Raises:
            UsageError: The model does not know it.
        """
        if language is None:
            return None
        code = language.strip().lower()
        known = self.languages or {"en": 0}
        if code not in known:
            codes = ", ".join(sorted(known))
            what = f"the model does not know the language {language!r}"
            if not self.multilingual:
                what = f"an English-only model does not know the language {language!r}"
                codes = "en, or a multilingual model such as whisper-base"
            raise UsageError(what, remedy=f"use auto or one of: {codes}" if self.multilingual else f"use {codes}")
        return code

    def prompt(self, language: str, task: Task, context: Sequence[int] = (), timestamps: bool = False) -> list[int]:
        """Return the ids before the text of a window.

        Args:
            language: A code of `languages`; has no effect for an English-only model.
            task: `translate` gives English text.
            context: Ids of the text before the window; only the last `CONTEXT_TOKENS` are used.
            timestamps: Let the model write timestamps between the words.
        """
        before = [self._previous, *context[-CONTEXT_TOKENS:]] if context else []
        marks = [self.languages[language], self._tasks[task]] if self.multilingual else []
        return [*before, self.start, *marks, *([] if timestamps else [self.no_timestamps])]

    def alignment_start(self, language: str, task: Task) -> list[int]:
        """Return the ids before a text that is aligned: those of `prompt` without the no-timestamps token."""
        return self.prompt(language, task, timestamps=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text with a leading space, as within running text."""
        stripped = text.strip()
        ids: list[int] = self._tokenizer.encode(f" {stripped}", add_special_tokens=False).ids if stripped else []
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens and timestamps."""
        text: str = self._tokenizer.decode([number for number in ids if number < self.end], skip_special_tokens=True)
        return text

    def words(self, ids: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        """Divide text ids into words.

        Args:
            ids: Ids of the text without special tokens.
            language: A code; some languages are written without spaces.

        Returns:
            Each word, stripped, with the positions in `ids` of its tokens, in order; together they are all positions
            but those of empty text. In languages without spaces every group of whole characters is a word.
        """
        words: list[tuple[str, list[int]]] = []
        for text, positions in self._whole_characters(ids):
            starts_word = not words or text[:1].isspace() or language in _UNSPACED
            if starts_word and not (language in _UNSPACED and words and not any(map(str.isalnum, text))):
                words.append((text, list(positions)))
            else:  # the rest of a word, or punctuation
                words[-1] = (words[-1][0] + text, words[-1][1] + list(positions))
        return [(text.strip(), positions) for text, positions in words if text.strip()]

    def _whole_characters(self, ids: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """Yield groups of ids that decode to whole characters; incomplete characters come last, replaced."""
        group: list[int] = []
        for position, _ in enumerate(ids):
            group.append(position)
            text = self.decode([ids[index] for index in group])
            if _PARTIAL not in text or position + 1 == len(ids):
                yield text, group
                group = []

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ModelFormatError(f"the tokenizer has no {token}", path=self._path, remedy="give a Whisper model")
        return int(number)
