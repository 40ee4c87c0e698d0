"""Decoding of Whisper windows on CTranslate2: beam search, and what guards against invented text.

A text that repeats itself is decoded again, with repetition forbidden; one that keeps repeating a phrase is cut to its
first occurrence, and an unlikely text of a window in which the model expects no speech is rejected. Every check that
acted is named in the result. Nothing is sampled, so that the same sound gives the same text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from audio_llm.asr.whisper_tokens import WhisperTokens

MAX_LENGTH = 448  # positions of the decoder
_NO_REPEAT = (6, 3)  # tokens of a phrase that may come only once, tried in turn
_EXTRA_BEAMS = 3  # some hypotheses differ in tokens and not in text
_NO_SPEECH = 0.6  # above this probability of its own mark, and with an unlikely text, a window holds no speech
_PERHAPS_NO_SPEECH = 0.05  # the same for texts of few words where the detector of speech was not sure: sneezes, barks
_FEW_WORDS = 4
_SURE = 0.75  # the detector's mean probability over a second; sneezes, barks and babies reach 0.65, short words 0.9
_UNLIKELY = -0.5  # mean log-probability per token below which a text counts as unlikely
_GARBAGE = -1.0  # the same of a text without repetitions that is better than the loop cut to one
_COMPRESSION = 2.4  # a text that zlib shrinks more than this repeats itself
_LOOP_TIMES = 4  # a phrase this often in a row, and over as many tokens as below, is a loop; people say less
_LOOP_TOKENS = 24


@dataclass(frozen=True)
class DecodeOptions:
    """How windows are decoded.

    Attributes:
        beam_size: Hypotheses kept by the beam search; 1 is greedy.
        checks: Check texts, decode again those that fail, and reject those that cannot be speech.
    """

    beam_size: int = 5
    checks: bool = True


@dataclass(frozen=True)
class Candidate:
    """One text of a window.

    Attributes:
        ids: Its tokens, without the end mark.
        text: The text.
        score: log p(text, end mark | window) in nats.
    """

    ids: tuple[int, ...]
    text: str
    score: float

    @property
    def mean(self) -> float:
        """Score divided by the number of tokens, the end mark included."""
        return self.score / (len(self.ids) + 1)


@dataclass(frozen=True)
class Decoded:
    """What a window was decoded to.

    Attributes:
        candidates: Distinct texts, best first; empty where there is no text.
        no_speech: Probability of no speech, 0 to 1.
        notes: The checks that acted, in words.
        rejected: Why the window was rejected, or an empty string; `candidates` then hold the rejected text.
    """

    candidates: tuple[Candidate, ...]
    no_speech: float
    notes: tuple[str, ...] = field(default=())
    rejected: str = ""


class WhisperDecoder:
    """Decodes encoded windows.

    Args:
        model: A `ctranslate2.models.Whisper`.
        tokens: Its tokenizer.
        options: How to decode.
    """

    def __init__(self, model: Any, tokens: WhisperTokens, options: DecodeOptions) -> None:
        self._model, self._tokens, self._options = model, tokens, options

    def decode(
        self,
        encoded: np.ndarray,
        prompts: Sequence[list[int]],
        nbest: int = 1,
        contexts: Sequence[int] = (),
        speech: Sequence[float | None] | None = None,
    ) -> list[Decoded]:
        """Decode windows.

        Args:
            encoded: (B, 1500, D) float32, the encoder's output.
            prompts: The prompt of each window (see `WhisperTokens.prompt`), all of one length.
            nbest: Distinct texts of each window, at most.
            contexts: Ids of the text in front of the prompts, which must not come back as a transcript.
            speech: How sure the detector of speech was of each window, 0 to 1; None where it is not known.
        """
        decoded = self._search(encoded, prompts, nbest)
        if not self._options.checks:
            return decoded
        for number, first in enumerate(decoded):
            plain = self._without_context(prompts[number]) if contexts else prompts[number]
            if contexts and _echoes(first, contexts):
                again = self._search(encoded[number : number + 1], [plain], nbest)[0]
                first = replace(again, notes=("decoded again: the text repeated the prompt",))
            sure = speech is not None and (speech[number] or 0.0) >= _SURE
            decoded[number] = self._checked(encoded[number : number + 1], plain, first, nbest, sure)
        return decoded

    def _search(self, encoded: np.ndarray, prompts: Sequence[list[int]], nbest: int, **more: Any) -> list[Decoded]:
        """Return the results of beam search."""
        import ctranslate2

        beams = max(self._options.beam_size, nbest + _EXTRA_BEAMS if nbest > 1 else 1)
        results = self._model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded)),
            [list(prompt) for prompt in prompts],
            max_length=MAX_LENGTH,
            return_scores=True,
            return_no_speech_prob=True,
            beam_size=beams,
            num_hypotheses=beams if nbest > 1 else 1,
            **more,
        )
        return [self._collect(result, nbest) for result in results]

    def _collect(self, result: Any, nbest: int) -> Decoded:
        """Return distinct texts of a native result, whose scores are means over the tokens."""
        candidates: dict[str, Candidate] = {}
        for ids, mean in zip(result.sequences_ids, result.scores, strict=True):
            ids = [number for number in ids if number < self._tokens.end]
            text = " ".join(self._tokens.decode(ids).split())
            if text and text not in candidates:
                candidates[text] = Candidate(tuple(ids), text, float(mean) * max(1, len(ids)))
        ranked = sorted(candidates.values(), key=lambda candidate: -candidate.mean)
        return Decoded(tuple(ranked[:nbest]), float(result.no_speech_prob))

    def _checked(self, encoded: np.ndarray, prompt: list[int], first: Decoded, nbest: int, sure: bool) -> Decoded:
        """Return a result that passes the checks, or what is left of it."""
        if not first.candidates:
            return first
        best = first.candidates[0]
        few = len(best.text.split()) <= _FEW_WORDS
        enough = _PERHAPS_NO_SPEECH if few and not sure else _NO_SPEECH
        if best.mean < _UNLIKELY and first.no_speech > enough:
            return replace(first, rejected=f"no speech (probability {first.no_speech:.2f}) and an unlikely text")
        problem = _problem(best)
        if not problem:
            return first
        result = replace(first, notes=(*first.notes, f"decoded again: {problem}"))
        for size in _NO_REPEAT:
            again = self._search(encoded, [prompt], nbest, no_repeat_ngram_size=size)[0]
            if again.candidates and again.candidates[0].mean >= _GARBAGE and not _problem(again.candidates[0]):
                return replace(again, notes=(*result.notes, f"phrases of {size} tokens only once"))
        return self._cut(result)

    def _cut(self, result: Decoded) -> Decoded:
        """Cut the loop of the best text to its first occurrence."""
        best = result.candidates[0]
        loop = _loop(best.ids)
        if loop is None:
            return result
        start, length, times = loop
        phrase, rest = best.ids[start : start + length], best.ids[start + length * times :]
        if rest == phrase[: len(rest)]:  # the window ended within a repetition
            rest = ()
        ids = best.ids[:start] + phrase + rest
        cut = Candidate(ids, " ".join(self._tokens.decode(ids).split()), best.score)
        note = f"a phrase repeated {times} times was cut to one"
        return replace(result, candidates=(cut,), notes=(*result.notes, note))

    def _without_context(self, prompt: list[int]) -> list[int]:
        return prompt[prompt.index(self._tokens.start) :]


def _problem(candidate: Candidate) -> str:
    """Return how a text repeats itself, or an empty string."""
    if _loop(candidate.ids) is not None:
        return "a phrase repeats"
    content = candidate.text.encode()
    ratio = len(content) / len(zlib.compress(content))
    return f"compression ratio {ratio:.1f}" if ratio > _COMPRESSION else ""


def _loop(ids: Sequence[int]) -> tuple[int, int, int] | None:
    """Return start, length and number of repetitions of a phrase that repeats without end, or None."""
    ids = list(ids)
    for length in range(1, len(ids) // _LOOP_TIMES + 1):
        run = 0  # tokens in a row that equal those one length before
        for index in range(length, len(ids) + 1):
            if index < len(ids) and ids[index] == ids[index - length]:
                run += 1
                continue
            times = run // length + 1
            if times >= _LOOP_TIMES and times * length >= _LOOP_TOKENS:
                return index - run - length, length, times
            run = 0
    return None


def _echoes(decoded: Decoded, context: Sequence[int], length: int = 8) -> bool:
    """Return whether the best text repeats so many tokens of the context in a row, or consists of its tokens alone."""
    if not decoded.candidates:
        return False
    ids = list(decoded.candidates[0].ids)
    length = min(length, max(3, len(ids)))
    runs = {tuple(context[at : at + length]) for at in range(len(context) - length + 1)}
    return any(tuple(ids[at : at + length]) in runs for at in range(len(ids) - length + 1))
