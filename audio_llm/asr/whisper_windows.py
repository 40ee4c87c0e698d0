"""Windows of speech to recognized stretches: encoding, language detection, decoding, word times, omissions.

The decoder sometimes ends a text before the end of the window. So words are aligned with the sound, and speech without
words is decoded once more as a separate window.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Stretch
from audio_llm.asr.hotwords import listed_spelling
from audio_llm.asr.vad import VadOptions
from audio_llm.asr.whisper_decode import Candidate, Decoded, DecodeOptions, WhisperDecoder
from audio_llm.asr.whisper_features import log_mel
from audio_llm.asr.whisper_tokens import CONTEXT_TOKENS, Task, WhisperTokens
from audio_llm.asr.whisper_words import AlignedText, align_texts, in_order
from audio_llm.asr.windows import Piece, Window
from audio_llm.nbest import Hypothesis, NBest, Word

logger = logging.getLogger(__name__)

_LEAST_PIECE_S = 1.3  # a shorter piece, padding included, may hold no word
_LEAST_REST_S = 3.0  # sound after the last word of a piece that is longer than a pause

Language = tuple[str, float | None]  # code, and its probability where it was detected


@dataclass(frozen=True)
class WhisperOptions:
    """Recognition options.

    Attributes:
        language: Language code; None detects it from the first windows with speech.
        multilingual: Detect the language of every window.
        task: `transcribe`, or `translate` into English.
        prompt: Context text before every window: style, spelling, topic.
        hotwords: Names and terms to prefer.
        decode: Beam size and checks of the text.
        batch_size: Number of windows that each worker decodes together.
        vad: Recognize detected speech only; otherwise everything, cut every 30 s.
        vad_options: Thresholds of the voice activity detection.
    """

    language: str | None = None
    multilingual: bool = False
    task: Task = "transcribe"
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch_size: int = 1
    vad: bool = True
    vad_options: VadOptions = field(default_factory=VadOptions)


class WindowRecognizer:
    """Recognizes windows; may be called from several threads.

    Args:
        model: A `ctranslate2.models.Whisper`.
        tokens: Tokenizer of the model.
        bands: Mel bands of its features, 80 or 128.
        options: Recognition options.
    """

    def __init__(self, model: Any, tokens: WhisperTokens, bands: int, options: WhisperOptions) -> None:
        self._model, self._tokens, self._bands, self._options = model, tokens, bands, options
        self._context = tokens.encode(context_text(options))
        if len(self._context) > CONTEXT_TOKENS:
            count = len(self._context)
            logger.warning("prompt and hotwords have %d tokens, of which the last %d count", count, CONTEXT_TOKENS)
        self._decoder = WhisperDecoder(model, tokens, options.decode)

    def encode(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Return the encoder's output: (B, 1500, D) float32."""
        import ctranslate2

        features = np.stack([log_mel(waveform, self._bands) for waveform in waveforms])
        encoded = self._model.encode(ctranslate2.StorageView.from_array(features), to_cpu=True)
        return np.asarray(encoded)

    def detect(self, encoded: np.ndarray) -> list[dict[str, float]]:
        """Return the probability of each language code for every window."""
        import ctranslate2

        if not self._tokens.multilingual:
            return [{"en": 1.0}] * len(encoded)
        results = self._model.detect_language(ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded)))
        return [{token.strip("<|>"): float(value) for token, value in result} for result in results]

    def recognize(
        self, windows: Sequence[Window], known: Language | None, nbest: int, again: bool = True
    ) -> list[Stretch]:
        """Recognize windows.

        Args:
            windows: Windows of one recording, in order.
            known: Their language; None detects it for each window.
            nbest: Maximum number of distinct hypotheses per window.
            again: Decode omitted speech once more; has no effect where windows hold more than detected speech.

        Returns:
            Recognized stretches in order of time, rejected ones included.
        """
        encoded = self.encode([window.waveform for window in windows])
        languages = [known] * len(windows) if known is not None else best_languages(self.detect(encoded))
        prompts = [self._tokens.prompt(code, self._options.task, self._context) for code, _ in languages]
        speech = [window.speech_probability for window in windows]
        decoded = self._decoder.decode(encoded, prompts, nbest, self._context, speech)
        aligned = self._align(windows, encoded, decoded, [code for code, _ in languages])
        stretches: list[Stretch] = []
        for window, language, result, text in zip(windows, languages, decoded, aligned, strict=True):
            recognized = list(_stretches(window, language, result, text))
            if again and self._options.vad and not result.rejected:
                for start_s, end_s in left_out(window, text.words if text else ()):
                    recognized += self.recognize([window.part(start_s, end_s)], language, nbest, again=False)
            stretches += _apart(sorted(recognized, key=lambda stretch: stretch.start_s))
        return [_spelled(stretch, self._options.hotwords) for stretch in stretches]

    def _align(
        self, windows: Sequence[Window], encoded: np.ndarray, decoded: Sequence[Decoded], languages: Sequence[str]
    ) -> list[AlignedText | None]:
        """Align the best text of each window, None where there is none."""
        texts: list[AlignedText | None] = [None] * len(windows)
        for language in dict.fromkeys(languages):
            chosen = [
                number
                for number, result in enumerate(decoded)
                if languages[number] == language and result.candidates and not result.rejected
            ]
            if not chosen:
                continue
            alignments = align_texts(
                self._model,
                self._tokens,
                encoded[chosen],
                self._tokens.alignment_start(language, self._options.task),
                [decoded[number].candidates[0].ids for number in chosen],
                [windows[number].waveform.size / SAMPLE_RATE for number in chosen],
                language,
            )
            for number, text in zip(chosen, alignments, strict=True):
                texts[number] = text
        return texts


def left_out(window: Window, words: Sequence[Word]) -> list[tuple[float, float]]:
    """Return the spans of a window, in seconds, where the text ends before the speech.

    Args:
        window: The window, of pieces with speech.
        words: Its words in order, times in the window; no words in a window of one piece are not an omission.
    """
    if not words and len(window.pieces) == 1:
        return []
    ends_s: dict[int, float] = {}
    for word in words:
        ends_s[window.piece_at((word.start_s + word.end_s) / 2)] = word.end_s
    spans: list[tuple[float, float]] = []
    for index, piece in enumerate(window.pieces):
        end_s = piece.offset_s + piece.duration_s
        last_word_s = ends_s.get(index)
        if last_word_s is None and piece.duration_s >= _LEAST_PIECE_S:
            spans.append((piece.offset_s, end_s))
        elif last_word_s is not None and end_s - last_word_s >= _LEAST_REST_S:
            spans.append((last_word_s, end_s))
    return _joined(spans, window)


def _joined(spans: Sequence[tuple[float, float]], window: Window) -> list[tuple[float, float]]:
    """Join spans that only inserted silence separates."""
    joined: list[tuple[float, float]] = []
    for start_s, end_s in spans:
        follows = joined and window.piece_at(start_s) - window.piece_at(joined[-1][1] - 1e-3) == 1
        at_edges = joined and start_s == window.pieces[window.piece_at(start_s)].offset_s
        if follows and at_edges:
            joined[-1] = (joined[-1][0], end_s)
        else:
            joined.append((start_s, end_s))
    return joined


def _stretches(window: Window, language: Language, result: Decoded, text: AlignedText | None) -> Iterator[Stretch]:
    """Yield the recognized stretches of one window."""
    if not result.candidates:
        return
    hypotheses = tuple(Hypothesis(each.text, each.score) for each in result.candidates)
    about = Stretch(
        start_s=window.start_s,
        end_s=window.end_s,
        nbest=NBest("", hypotheses),
        waveform=window.waveform,
        language=language[0],
        language_probability=language[1],
        notes=result.notes,
        rejected=result.rejected,
    )
    if text is None or not text.words:
        yield about
    else:
        yield from by_piece(window, result.candidates, text, about)


def by_piece(window: Window, candidates: Sequence[Candidate], text: AlignedText, about: Stretch) -> Iterator[Stretch]:
    """Divide the text of a window among its pieces by word times, which are converted to those of the recording.

    Args:
        window: The window.
        candidates: Its texts, best first; of a window with several pieces only the best is used.
        text: The best text, aligned.
        about: Fields that all stretches share.
    """
    of_piece: dict[int, list[int]] = {}
    for number, word in enumerate(text.words):
        index = max([window.piece_at((word.start_s + word.end_s) / 2), *of_piece])
        of_piece.setdefault(index, []).append(number)
    parts = _divided(candidates[0].text, [[text.words[number] for number in indices] for indices in of_piece.values()])
    for (index, numbers), part in zip(of_piece.items(), parts, strict=True):
        piece = window.pieces[index]
        hypotheses = about.nbest.hypotheses
        if len(window.pieces) > 1:
            hypotheses = (Hypothesis(part, float(sum(text.scores[number] for number in numbers))),)
        words = _placed([text.words[number] for number in numbers], piece)
        first = max(0, round(piece.offset_s * SAMPLE_RATE))
        waveform = window.waveform[first : first + round(piece.duration_s * SAMPLE_RATE)]
        nbest = NBest("", hypotheses, words=words)
        yield replace(about, start_s=piece.start_s, end_s=piece.end_s, nbest=nbest, waveform=waveform)


def _divided(text: str, groups: Sequence[Sequence[Word]]) -> list[str]:
    """Return the part of a text for each group of words, with the spaces of the text."""
    starts: list[int] = []
    at = 0
    for words in groups:
        for number, word in enumerate(words):
            position = text.find(word.text, at)
            if position < 0:  # bytes that are not a character
                return [" ".join(each.text for each in group) for group in groups]
            if number == 0:
                starts.append(position)
            at = position + len(word.text)
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip([0, *starts[1:]], ends, strict=True)]


def _placed(words: Sequence[Word], piece: Piece) -> tuple[Word, ...]:
    """Return words of a window at their times in the recording, within their piece."""
    offset_s, start_s = piece.offset_s, piece.start_s
    inside = [replace(word, start_s=word.start_s - offset_s, end_s=word.end_s - offset_s) for word in words]
    return tuple(
        replace(word, start_s=start_s + word.start_s, end_s=min(start_s + word.end_s, piece.end_s))
        for word in in_order(inside, piece.duration_s)
    )


def _apart(stretches: Sequence[Stretch]) -> list[Stretch]:
    """End every stretch before the next one begins."""
    ends = [min(one.end_s, following.start_s) for one, following in itertools.pairwise(stretches)]
    return [*(replace(one, end_s=end_s) for one, end_s in zip(stretches, ends, strict=False)), *stretches[-1:]]


def _spelled(stretch: Stretch, hotwords: Sequence[str]) -> Stretch:
    """Return a stretch whose texts spell listed names as in the list."""
    if not hotwords:
        return stretch
    hypotheses = tuple(
        replace(each, text=" ".join(listed_spelling(each.text.split(), hotwords))) for each in stretch.nbest.hypotheses
    )
    texts = listed_spelling([word.text for word in stretch.nbest.words], hotwords)
    words = tuple(replace(word, text=text) for word, text in zip(stretch.nbest.words, texts, strict=True))
    return replace(stretch, nbest=replace(stretch.nbest, hypotheses=hypotheses, words=words))


def context_text(options: WhisperOptions) -> str:
    """Return the context text of every window."""
    listed = ", ".join(options.hotwords)
    return " ".join(part for part in (options.prompt.strip(), listed and f"Glossary: {listed}.") if part)


def mean_probabilities(probabilities: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the mean over windows, as one."""
    codes = probabilities[0].keys()
    return [{code: float(np.mean([each.get(code, 0.0) for each in probabilities])) for code in codes}]


def best_languages(probabilities: Sequence[dict[str, float]]) -> list[Language]:
    """Return the most probable language of each window."""
    return [max(each.items(), key=lambda item: item[1]) for each in probabilities]
