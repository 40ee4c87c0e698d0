"""Prompts: an N-best list and its reference -> tokens of a language model, with positions and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from audio_llm.errors import ModelFormatError

OUT, END, PAD, COPIES = "<out>", "<end>", "<pad>", tuple(f"<x{count}>" for count in range(1, 6))
COMPACT_TOKENS = (PAD, END, OUT, *COPIES)
MAX_SEGMENTS = 10  # the response is 0, the hypotheses are 1 to 9; later ones share the last number
_BEST, _OTHER_HYPOTHESES, _RESPONSE = "### Best-hypothesis:", "### Other-hypothesis:", "### Response:"
_INSTRUCTION = (
    "These are the hypotheses of a speech recogniser, the most likely first. Where the first one is wrong, repair it "
    "with words of the others, and write down what was said."
)


@dataclass(frozen=True)
class PromptSettings:
    """Form of the prompt of a list.

    Attributes:
        form: `paper`: an instruction and headings in plain text, for a model that reads English (RobustGER, app. C.2).
            `compact`: special tokens, each different hypothesis once with the number of its copies.
        hypotheses: Maximum hypotheses of a list in the prompt.
        restart_positions: Positions restart at every hypothesis and at the response, so that a word and its copy have
            nearly the same position. For a model trained with it from scratch.
        max_tokens: Maximum tokens of prompt and response; the last hypotheses of a longer list are dropped.
    """

    form: Literal["paper", "compact"] = "paper"
    hypotheses: int = 5
    restart_positions: bool = False
    max_tokens: int = 1024


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, and of its response if given.

    Attributes:
        ids: (T,) token numbers, prompt then response.
        positions: (T,) position of each token.
        segments: (T,) 0 for the response and its heading, k for hypothesis k.
        response: Index at which the response begins; equal to T without one.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    response: int

    @property
    def next_position(self) -> int:
        """Position of the next token."""
        return self.positions[-1] + 1


class PromptEncoder:
    """Builds prompts with a tokenizer.

    Args:
        tokenizer: A transformers tokenizer.
        settings: See `PromptSettings`.

    Raises:
        ModelFormatError: The tokenizer lacks an end-of-text token, or the special tokens that `compact` needs.
    """

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        if settings.form == "compact":
            known = tokenizer.get_vocab()
            missing = [token for token in COMPACT_TOKENS if token not in known]
            if missing:
                message = f"the tokenizer has no {', '.join(missing)}, which the compact prompt needs"
                raise ModelFormatError(message, remedy="use the prompt form 'paper'")
            self._special = {token: int(known[token]) for token in COMPACT_TOKENS}
            self.end: int = self._special[END]
        elif tokenizer.eos_token_id is None:
            raise ModelFormatError("the tokenizer has no end-of-text token", remedy="choose another language model")
        else:
            self.end = int(tokenizer.eos_token_id)
        self._lead = len(self._tokens("a"))
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end)

    def encode(self, texts: Sequence[str], response: str | None = None) -> Prompt:
        """Return the prompt of a list, followed by the response and the end-of-text token if a response is given.

        The response is never cut: a list too long for `max_tokens` loses its last hypotheses, then the end of the
        first. Prompt and response are tokenized separately, so that no token spans both.

        Args:
            texts: Hypotheses, best first, with duplicates.
            response: The reference text.
        """
        texts = list(texts[: self.settings.hypotheses]) or [""]
        answer = [*self.response_ids(response), self.end] if response is not None else []
        room = self.settings.max_tokens - len(answer)
        pieces = self._pieces(texts)
        while sum(map(len, pieces)) > room and len(set(texts)) > 1:
            last = list(dict.fromkeys(texts))[-1]
            texts = [text for text in texts if text != last]
            pieces = self._pieces(texts)
        if sum(map(len, pieces)) > room and len(set(texts)) == 1:
            texts = texts[:1] if self.settings.form == "paper" else texts  # the paper's form repeats copies
            pieces = self._pieces(texts, cut=max(0, room - sum(map(len, self._pieces([""])))))
        surplus = sum(map(len, pieces)) - room
        if surplus > 0:  # not even the instruction fits
            pieces[0] = pieces[0][: max(0, len(pieces[0]) - surplus)]
        ids: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        for number, piece in enumerate([*pieces, answer]):
            is_response = number >= len(pieces) - 1  # its heading, and itself
            begin = len(ids) if not self.settings.restart_positions else (len(pieces[-1]) if piece is answer else 0)
            ids += piece
            positions += range(begin, begin + len(piece))
            segments += [0 if is_response else min(number + 1, MAX_SEGMENTS - 1)] * len(piece)
        return Prompt(tuple(ids), tuple(positions), tuple(segments), len(ids) - len(answer))

    def response_ids(self, text: str) -> list[int]:
        """Return the tokens of a response, without end token; a word has the same tokens at every position."""
        if not text:
            return []
        # after another word, as tokenizers treat the first word of a text differently
        return self._tokens(f"a {text}")[self._lead :]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of response tokens up to the end or the first line break."""
        ids = list(ids)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return " ".join(text.strip().split("\n")[0].split())

    def _pieces(self, texts: Sequence[str], cut: int | None = None) -> list[list[int]]:
        """Return the tokens of each hypothesis with its markers, and those of the response's heading.

        Args:
            texts: Hypotheses.
            cut: Maximum tokens of a hypothesis.
        """
        if self.settings.form == "paper":
            return self._paper(texts, cut)
        marks = [(text, COPIES[min(count, len(COPIES)) - 1]) for text, count in Counter(texts).items()]
        pieces = [[self._special[mark], *self.response_ids(text)[:cut]] for text, mark in marks]
        return [*pieces, [self._special[OUT]]]

    def _paper(self, texts: Sequence[str], cut: int | None) -> list[list[int]]:
        """Return instruction and best hypothesis, then the others, then the heading of the response."""
        start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        opening, closing = self._tokens(f"{_INSTRUCTION}\n\n{_BEST}\n"), self._tokens(".\n\n")
        best = [*start, *opening, *self._tokens(texts[0])[:cut], *closing]
        remaining = ". ".join(texts[1:])
        rest = self._tokens(f"{_OTHER_HYPOTHESES}\n{remaining}.\n\n") if len(texts) > 1 else []
        return [best, rest, self._tokens(f"{_RESPONSE}\n")]

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of a text; special tokens written in it are treated as plain text."""
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
