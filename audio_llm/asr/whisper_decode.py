"""Decoding of Whisper windows on CTranslate2: beam search, and what guards against invented text.

A text that fails a check is decoded again, by sampling at rising temperatures (Radford et al. 2022, section 4.5); one
that keeps repeating a phrase is cut to its first occurrence, and a window in which the model expects no speech is
rejected. Every guard that acted is named in the result.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from audio_llm.asr.whisper_tokens import WhisperTokens

MAX_LENGTH = 448  # positions of the decoder
_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
_SAMPLES = 5  # drawn at each temperature; the likeliest counts
_EXTRA_BEAMS = 3  # some hypotheses differ in tokens and not in text
_NO_SPEECH = 0.6  # above this probability of its own mark, and with an unlikely text, a window holds no speech
_UNLIKELY = -1.0  # mean log-probability per token below which a text counts as unlikely
_COMPRESSION = 2.4  # a text that zlib shrinks more than this repeats itself
_LOOP_TIMES = 4  # a phrase this often in a row, and over as many tokens as below, is a loop; people say less
_LOOP_TOKENS = 24


@dataclass(frozen=True)
class DecodeOptions:
    """How windows are decoded.

    Attributes:
        beam_size: Hypotheses kept by the beam search; 1 is greedy.
        guards: Check texts, decode again those that fail, and reject those that cannot be speech.
    """

    beam_size: int = 5
    guards: bool = True


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
        notes: The guards that acted, in words.
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
        self, encoded: np.ndarray, prompts: Sequence[list[int]], nbest: int = 1, contexts: Sequence[int] = ()
    ) -> list[Decoded]:
        """Decode windows.

        Args:
            encoded: (B, 1500, D) float32, the encoder's output.
            prompts: The prompt of each window (see `WhisperTokens.prompt`), all of one length.
            nbest: Distinct texts of each window, at most.
            contexts: Ids of the text in front of the prompts, which must not come back as a transcript.
        """
        decoded = self._search(encoded, prompts, nbest)
        if not self._options.guards:
            return decoded
        for number, first in enumerate(decoded):
            plain = self._without_context(prompts[number]) if contexts else prompts[number]
            if contexts and _echoes(first, contexts):
                again = self._search(encoded[number : number + 1], [plain], nbest)[0]
                first = replace(again, notes=("decoded again: the text repeated the prompt",))
            decoded[number] = self._guarded(encoded[number : number + 1], plain, first, nbest)
        return decoded

    def _search(self, encoded: np.ndarray, prompts: Sequence[list[int]], nbest: int) -> list[Decoded]:
        """Return the results of beam search."""
        beams = max(self._options.beam_size, nbest + _EXTRA_BEAMS if nbest > 1 else 1)
        return self._generate(encoded, prompts, nbest, beam_size=beams, num_hypotheses=beams if nbest > 1 else 1)

    def _generate(self, encoded: np.ndarray, prompts: Sequence[list[int]], nbest: int, **options: Any) -> list[Decoded]:
        import ctranslate2

        results = self._model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded)),
            [list(prompt) for prompt in prompts],
            max_length=MAX_LENGTH,
            return_scores=True,
            return_no_speech_prob=True,
            **options,
        )
        return [self._collect(result, nbest) for result in results]

    def _collect(self, result: Any, nbest: int) -> Decoded:
        """Return distinct texts of a native result, whose scores are means over the tokens."""
        found: dict[str, Candidate] = {}
        for ids, mean in zip(result.sequences_ids, result.scores, strict=True):
            ids = [number for number in ids if number < self._tokens.end]
            text = " ".join(self._tokens.decode(ids).split())
            if text and text not in found:
                found[text] = Candidate(tuple(ids), text, float(mean) * max(1, len(ids)))
        ranked = sorted(found.values(), key=lambda candidate: -candidate.mean)
        return Decoded(tuple(ranked[:nbest]), float(result.no_speech_prob))

    def _guarded(self, encoded: np.ndarray, prompt: list[int], first: Decoded, nbest: int) -> Decoded:
        """Return a result that passes the checks, or what is left of it."""
        if not first.candidates:
            return first
        best = first.candidates[0]
        if first.no_speech > _NO_SPEECH and best.mean < _UNLIKELY:
            return replace(first, rejected=f"no speech (probability {first.no_speech:.2f}), text unlikely")
        problem = _problem(best)
        if not problem:
            return first
        result, notes = first, (*first.notes, f"decoded again: {problem}")
        for temperature in _TEMPERATURES:
            sampled = self._generate(
                encoded,
                [prompt],
                nbest,
                beam_size=1,
                num_hypotheses=_SAMPLES,
                sampling_topk=0,
                sampling_temperature=temperature,
            )[0]
            if sampled.candidates and not _problem(sampled.candidates[0]):
                return replace(sampled, no_speech=first.no_speech, notes=(*notes, f"temperature {temperature}"))
            if sampled.candidates and sampled.candidates[0].mean > result.candidates[0].mean and not result.rejected:
                result = sampled if _loop(sampled.candidates[0].ids) is None else result
        return self._last_resort(replace(result, no_speech=first.no_speech, notes=notes))

    def _last_resort(self, result: Decoded) -> Decoded:
        """Cut loops, and reject what is unlikely and perhaps no speech."""
        best = result.candidates[0]
        loop = _loop(best.ids)
        if loop is not None:
            start, length, times = loop
            phrase, rest = best.ids[start : start + length], best.ids[start + length * times :]
            if rest == phrase[: len(rest)]:  # the window ended within a repetition
                rest = ()
            ids = best.ids[:start] + phrase + rest
            cut = Candidate(ids, " ".join(self._tokens.decode(ids).split()), best.score)
            note = f"a phrase repeated {times} times was cut to one"
            return replace(result, candidates=(cut,), notes=(*result.notes, note))
        if best.mean < _UNLIKELY and result.no_speech > _NO_SPEECH / 2:
            return replace(result, rejected=f"text unlikely at every temperature (mean {best.mean:.2f} nats a token)")
        return result

    def _without_context(self, prompt: list[int]) -> list[int]:
        return prompt[prompt.index(self._tokens.start) :]


def _problem(candidate: Candidate) -> str:
    """Return what is wrong with a text, or an empty string."""
    content = candidate.text.encode()
    ratio = len(content) / len(zlib.compress(content))
    if ratio > _COMPRESSION:
        return f"compression ratio {ratio:.1f}"
    if _loop(candidate.ids) is not None:
        return "a phrase repeats"
    return f"mean log-probability {candidate.mean:.2f}" if candidate.mean < _UNLIKELY else ""


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
