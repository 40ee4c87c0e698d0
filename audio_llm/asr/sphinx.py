"""The embedded default recognizer: pocketsphinx with the US English model inside its package."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.nbest import Hypothesis, NBest, Word
from audio_llm.text import DEFAULT_NORMALIZER

logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 100  # of the acoustic model
_SCORE_SCALE = 1024.0  # pocketsphinx shifts its log scores right by 10 bits; this undoes it, giving nats
_MIN_SAMPLES = SAMPLE_RATE // 10  # shorter waveforms give an empty list
_SILENCE_PEAK = 1e-4  # quieter than -80 dBFS counts as silence
_ENTRIES_PER_HYPOTHESIS = 15  # the engine's list repeats texts that differ only in pronunciation or fillers
_ALIGNMENT_BEAM = 1e-300  # wide enough to align a text that differs much from the speech; the engine's default fails
_TWIN = "#"  # suffix of a second dictionary entry of a preferred word, internal to this module
_LOG_BASE = 1.0001  # of the language model's log probabilities
_FILLERS = ("<sil>", "[NOISE]", "[SPEECH]")  # of the acoustic model, pauses included
_FILLER_WEIGHT = 72000.0  # makes their language model cost negligible (0.008 nats)
_ADDED_WORD_NATS = -11.2  # log probability the engine gives a word that is added to its language model
_PREFERENCE_NATS = 40.0  # how much worse a hypothesis with a preferred word may score and still be taken


@dataclass(frozen=True)
class _Entry:
    text: str
    score: float


class SphinxRecognizer(SegmentRecognizer):
    """Recognizes US English with pocketsphinx; needs no download.

    Scores are natural logarithms of pocketsphinx's own path scores (acoustic, plus language model where a whole
    hypothesis is scored). They compare texts of one utterance, not different utterances.
    """

    name = "sphinx"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=True, word_preference=True)

    def __init__(self) -> None:
        self.version = f"pocketsphinx-{metadata.version('pocketsphinx')}-en-us"
        self._decoder: Any = _new_decoder()
        _make_pauses_free(self._decoder)
        self._aligner: Any = None
        self._preferred: tuple[str, ...] = ()
        self._pronunciations: dict[str, str] = {}

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`).

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.
        """
        if waveform.size < _MIN_SAMPLES or float(np.abs(waveform).max()) < _SILENCE_PEAK:
            return NBest(id, ())
        decoder = self._decoder
        _forget_past(decoder)
        decoder.start_utt()
        decoder.process_raw(_pcm(waveform), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        if best is None or not _text(best.hypstr):
            return NBest(id, ())
        count = nbest if not self._preferred else max(nbest, 50)
        entries = _distinct(decoder, _text(best.hypstr), count)
        words = tuple(_words(decoder))
        ranked = self._with_preference(entries)
        if ranked[0].text != entries[0].text:
            words = self.align_words(waveform, ranked[0].text)
        return NBest(id, tuple(Hypothesis(e.text, e.score) for e in ranked[:nbest]), words=words)

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return the acoustic log score of each text by forced alignment (see `Recognizer.score`).

        A text with a word outside the pronunciation dictionary, or one too long for the recording, gives None.
        All senones are computed for every frame, so that frames are normalized identically for every text.

        Args:
            waveform: (T,) float32 at 16 kHz.
            texts: Lower-case words separated by spaces.
        """
        pcm = _pcm(waveform)
        return [self._align(pcm, text) for text in texts]

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Prefer names and terms; return those, as given, that have no pronunciation.

        A word that the dictionary lacks gets the pronunciation of `pronounce`. A word that is rarer in the language
        model than one the engine adds, or absent from it, gets a second entry there, or it would hardly ever be
        recognized. Lists are then ordered by score plus a bonus for each term; the scores themselves do not change.

        Args:
            words: Written names and terms of one or several words.
        """
        refused: list[str] = []
        additions: dict[str, str] = {}
        for phrase in words:
            parts = DEFAULT_NORMALIZER(phrase).split()
            entries = [self._entries_for(part) for part in parts]
            if parts and None not in entries:
                self._preferred = tuple(dict.fromkeys((*self._preferred, " ".join(parts))))
                additions.update(pair for entry in entries if entry for pair in entry.items())
            else:
                refused.append(phrase)
        self._add(additions)
        return refused

    def knows(self, word: str) -> bool:
        """Return True where the word has a pronunciation."""
        return _TWIN not in word and self.lookup(word) is not None

    def lookup(self, word: str) -> str | None:
        """Return the first pronunciation of a word as phones separated by spaces, or None."""
        phones = self._decoder.lookup_word(word)
        return str(phones) if phones else None

    def _entries_for(self, word: str) -> dict[str, str] | None:
        """Return the missing dictionary entries of a word, name to phones; None if it has no pronunciation."""
        from audio_llm.asr.pronounce import pronounce

        if not self.knows(word):
            guess = pronounce(word, self.lookup)
            return {word: guess} if guess else None
        rare = self._decoder.get_lm().prob([word]) * math.log(_LOG_BASE) < _ADDED_WORD_NATS
        if not rare or self.lookup(word + _TWIN):
            return {}
        variants = ["", *(f"({number})" for number in range(2, 10))]
        return {word + _TWIN + variant: phones for variant in variants if (phones := self.lookup(word + variant))}

    def _add(self, entries: Mapping[str, str]) -> None:
        for number, (name, phones) in enumerate(entries.items(), 1):
            self._decoder.add_word(name, phones, number == len(entries))  # the search is rebuilt once, at the last
            if _TWIN not in name:
                self._pronunciations[name] = phones
                self._aligner = None

    def _with_preference(self, entries: list[_Entry]) -> list[_Entry]:
        def key(entry: _Entry) -> float:
            padded = f" {entry.text} "
            return entry.score + _PREFERENCE_NATS * sum(f" {phrase} " in padded for phrase in self._preferred)

        return sorted(entries, key=key, reverse=True) if self._preferred else entries

    def _align(self, pcm: bytes, text: str) -> float | None:
        if not pcm or not text.split() or not all(self.knows(word) for word in text.split()):
            return None
        aligner = self._run_aligner(pcm, text)
        if aligner is None:
            return None
        return float(sum(_nats(segment.ascore) for segment in aligner.seg()))

    def align_words(self, waveform: np.ndarray, text: str) -> tuple[Word, ...]:
        """Return the words of a text with their times, by forced alignment; empty where that fails.

        Args:
            waveform: (T,) float32 at 16 kHz.
            text: Lower-case words of the dictionary.
        """
        aligner = self._run_aligner(_pcm(waveform), text)
        return tuple(_words(aligner)) if aligner is not None else ()

    def _run_aligner(self, pcm: bytes, text: str) -> Any:
        if self._aligner is None:
            beams = dict.fromkeys(("beam", "wbeam", "pbeam"), _ALIGNMENT_BEAM)
            self._aligner = _new_decoder(lm=None, compallsen=True, bestpath=False, **beams)
            for word, phones in self._pronunciations.items():
                self._aligner.add_word(word, phones, False)
        aligner = self._aligner
        aligner.set_align_text(text)
        _forget_past(aligner)
        aligner.start_utt()
        try:
            aligner.process_raw(pcm, full_utt=True)
        except RuntimeError as error:  # the engine's error for a text that does not fit
            logger.debug("no alignment of %r: %s", text, error)
            return None
        finally:
            aligner.end_utt()
        return aligner if aligner.hyp() is not None else None


def _new_decoder(**options: Any) -> Any:
    from pocketsphinx import Decoder

    return Decoder(loglevel="FATAL", cmn="batch", **options)


def _make_pauses_free(decoder: Any) -> None:
    """Add the fillers to the language model; without them a pause costs list entries as much as an unknown word.

    Measured: the oracle WER of 20 is 15.7 % instead of 17.6 % on 88 sentences of one speaker, 40.2 % instead of 44.4 %
    on 60 of LibriSpeech; the best path's own errors stay the same.
    """
    model = decoder.get_lm()
    for filler in _FILLERS:
        model.add_word(filler, _FILLER_WEIGHT)


def _forget_past(decoder: Any) -> None:
    """Reset noise removal and mean normalization, whose state would otherwise carry over between utterances."""
    decoder.reinit_feat()


def _pcm(waveform: np.ndarray) -> bytes:
    return (np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def _nats(linear: float) -> float:
    """Undo the exponent and the shift of a pocketsphinx score."""
    return math.log(linear) * _SCORE_SCALE if linear > 0.0 else -math.inf


def _distinct(decoder: Any, best: str, count: int) -> list[_Entry]:
    """Return distinct texts: the best path of the engine first, the others by score.

    The best path ignores pauses, so that the words on both sides of a pause are neighbors. In the engine's
    N-best search a pause hides the previous word from the language model. So the two scores are on
    different scales, and the best text is at times missing among the entries, or there with a needlessly poor path
    (in a fifth to two fifths of the lists of real speech). In the engine's comparison it is no worse than any
    entry: it then gets the top entry's score, a lower bound on the entries' scale.
    """
    scores: dict[str, float] = {}
    entries = decoder.nbest()
    for _, entry in zip(range(count * _ENTRIES_PER_HYPOTHESIS), entries or (), strict=False):
        text = _text(entry.hypstr) if entry is not None and entry.hypstr else ""
        if text:
            scores[text] = max(scores.get(text, -math.inf), _nats(entry.score))
        if len(scores) >= 2 * count:
            break
    top = max(scores.values(), default=_nats(decoder.hyp().score))
    first = _Entry(best, max(scores.pop(best, top), top))
    rest = sorted((_Entry(text, score) for text, score in scores.items()), key=lambda e: -e.score)
    return [first, *rest][:count]


def _text(words: str) -> str:
    """Return the engine's words without the suffix of second entries."""
    return words.replace(_TWIN, "").strip()


def _words(decoder: Any) -> Iterator[Word]:
    for segment in decoder.seg():
        text = _text(segment.word.split("(")[0])
        if not text or text[0] in "<[+":
            continue
        start = segment.start_frame / FRAMES_PER_SECOND
        end = (segment.end_frame + 1) / FRAMES_PER_SECOND
        yield Word(text, start, end, min(1.0, float(segment.prob)) if segment.prob > 0 else None)
