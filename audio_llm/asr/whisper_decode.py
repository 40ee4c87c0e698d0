"""Decoding of Whisper windows on CTranslate2: beam search, and checks against hallucinated text.

A text that repeats itself is decoded again, with repetition forbidden; one that keeps repeating a phrase is cut to its
first occurrence, and an unlikely text of a window in which the model expects no speech is rejected. Every check that
took effect is named in the result. Nothing is sampled, so the same sound gives the same text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from audio_llm.asr.whisper_tokens import WhisperTokens

MAX_LENGTH = 448  # positions of the decoder
_NO_REPEAT = (6, 3)  # n-gram sizes whose repetition is forbidden, tried in turn
_EXTRA_BEAMS = 3  # some hypotheses differ in tokens but not in text
_NO_SPEECH = 0.6  # above this no-speech probability, and with an unlikely text, a window holds no speech
_PERHAPS_NO_SPEECH = 0.05  # the same for short texts where the voice activity detector was not sure: sneezes, barks
_FEW_WORDS = 4
_SURE = 0.75  # the detector's mean probability over a second; sneezes, barks and babies reach 0.65, short words 0.9
_UNLIKELY = -0.5  # mean log-probability per token below which a text counts as unlikely
_GARBAGE = -1.0  # the same below which a text without repetitions is worse than a loop cut to one occurrence
_COMPRESSION = 2.4  # a text with a larger compression ratio (zlib) repeats itself
_LOOP_TIMES = 4  # a phrase repeated this often, and over as many tokens as below, is a loop; speakers repeat less
_LOOP_TOKENS = 24


@dataclass(frozen=True)
class DecodeOptions:
    """Options of the decoding of windows.

    Attributes:
        beam_size: Beam size; 1 is greedy.
        checks: Check texts, decode those that fail again, and reject those that are not speech.
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
    """Result of the decoding of a window.

    Attributes:
        candidates: Distinct texts, best first; empty where there is no text.
        no_speech: Probability of the no-speech token, 0 to 1.
        notes: Checks that took effect, one line each.
        rejected: Reason why the window was rejected, else empty; `candidates` then hold the rejected text.
    """

    candidates: tuple[Candidate, ...]
    no_speech: float
    notes: tuple[str, ...] = field(default=())
    rejected: str = ""


class WhisperDecoder:
    """Decodes encoded windows.

    Args:
        model: A `ctranslate2.models.Whisper`.
        tokens: Tokenizer of the model.
        options: Decoding options.
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
            nbest: Maximum number of distinct texts of each window.
            contexts: Ids of the context text of the prompts, which must not be repeated as a transcript.
            speech: Speech probability of each window, 0 to 1; None where it is unknown.
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
        """Return the distinct texts of a CTranslate2 result, whose scores are means over the tokens."""
        candidates: dict[str, Candidate] = {}
        for ids, mean in zip(result.sequences_ids, result.scores, strict=True):
            ids = [number for number in ids if number < self._tokens.end]
            text = " ".join(self._tokens.decode(ids).split())
            if text and text not in candidates:
                candidates[text] = Candidate(tuple(ids), text, float(mean) * max(1, len(ids)))
        ranked = sorted(candidates.values(), key=lambda candidate: -candidate.mean)
        return Decoded(tuple(ranked[:nbest]), float(result.no_speech_prob))

    def _checked(self, encoded: np.ndarray, prompt: list[int], first: Decoded, nbest: int, sure: bool) -> Decoded:
        """Return a result that passes the checks, a repaired one, or a rejected one."""
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
    """Return the kind of repetition in a text, or an empty string."""
    if _loop(candidate.ids) is not None:
        return "a phrase repeats"
    content = candidate.text.encode()
    ratio = len(content) / len(zlib.compress(content))
    return f"compression ratio {ratio:.1f}" if ratio > _COMPRESSION else ""


def _loop(ids: Sequence[int]) -> tuple[int, int, int] | None:
    """Return start, length and number of repetitions of a looping phrase, or None."""
    ids = list(ids)
    for length in range(1, len(ids) // _LOOP_TIMES + 1):
        run = 0  # consecutive tokens that equal the one `length` before
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
    """Return whether the best text repeats `length` consecutive tokens of the context, or only tokens of it."""
    if not decoded.candidates:
        return False
    ids = list(decoded.candidates[0].ids)
    length = min(length, max(3, len(ids)))
    runs = {tuple(context[at : at + length]) for at in range(len(context) - length + 1)}
    return any(tuple(ids[at : at + length]) in runs for at in range(len(ids) - length + 1))
