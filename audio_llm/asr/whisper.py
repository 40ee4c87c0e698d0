"""Whisper on CTranslate2: the recognizer of this project; needs neither torch nor transformers.

A recording is divided at pauses by voice activity detection, its stretches are packed into windows of up to 30 s, and
windows are decoded in batches. For N-best lists every stretch is a window of its own, since ten
hypotheses of 30 s contain hardly more than one or two variants of each sentence.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Capabilities, Stretch
from audio_llm.asr.segment import Segment
from audio_llm.asr.vad import SpeechDetector, speech_segments
from audio_llm.asr.whisper_tokens import CONTEXT_TOKENS, WhisperTokens
from audio_llm.asr.whisper_windows import (
    Language,
    WhisperOptions,
    WindowRecognizer,
    best_languages,
    context_text,
    mean_probabilities,
)
from audio_llm.asr.whisper_words import align_texts
from audio_llm.asr.windows import Piece, Window, cut_segments, pack_windows
from audio_llm.errors import MissingDependencyError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.installed import checked_files
from audio_llm.nbest import NBest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MIN_SAMPLES = SAMPLE_RATE // 50  # shorter waveforms give an empty list
_SILENCE_PEAK = 1e-5  # quieter than -100 dBFS counts as silence
_DETECTION_WINDOWS = 3  # windows whose language probabilities are averaged
Compute = Literal["auto", "int8", "float32", "float16"]
__all__ = ["Compute", "WhisperOptions", "WhisperRecognizer"]


class WhisperRecognizer:
    """Recognizes with a Whisper model in CTranslate2's format.

    A hypothesis' score is log p(text, end mark | window) in nats, summed over its tokens; lists are ranked by the score
    per token, as Whisper's beam search does.

    Args:
        model: A `ctranslate2.models.Whisper`.
        tokens: Tokenizer of the model.
        bands: Mel bands of its features, 80 or 128.
        version: Name of the model with the beginning of its weights' hash.
        options: Recognition options.
        workers: Number of batches that the model decodes concurrently.
    """

    name = "whisper"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=True, word_preference=True)

    def __init__(
        self,
        model: Any,
        tokens: WhisperTokens,
        bands: int,
        version: str,
        options: WhisperOptions | None = None,
        workers: int = 1,
    ) -> None:
        options = options or WhisperOptions()
        self.version = version
        self._workers = workers
        self._model, self._tokens, self._bands = model, tokens, bands
        self._detectors: list[SpeechDetector] = []  # loaded and not in use
        self.configure(options)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str = "cpu",
        compute: Compute = "auto",
        threads: int | None = None,
        options: WhisperOptions | None = None,
    ) -> WhisperRecognizer:
        """Load a model from a folder with `model.bin` and `tokenizer.json`.

        Args:
            folder: Model folder in CTranslate2's format; files that `audio-llm models get` installed are checked.
            device: `cpu` or `cuda`.
            compute: Number format; `auto`: int8 on a CPU, float16 on a GPU.
            threads: CPU threads, each decoding its own windows: two of them are 1.5 to 3 times as fast as two for one
                window (measured). None: OMP_NUM_THREADS, else the number of cores.
            options: Recognition options.

        Raises:
            ModelNotFoundError: A file is missing.
            ModelFormatError: A file was changed or is damaged, or holds another kind of network.
            UsageError: The device does not compute in this format, or the model does not know the language.
            MissingDependencyError: ctranslate2 is not installed.
        """
        folder = Path(folder)
        workers = (threads or _cores()) if device == "cpu" else 1
        model = _open(folder, device, compute, workers)
        tokens = WhisperTokens.load(folder, bool(model.is_multilingual))
        return cls(model, tokens, int(model.n_mels), _version(folder), options, workers)

    @property
    def options(self) -> WhisperOptions:
        """Recognition options."""
        return self._options

    def configure(self, options: WhisperOptions) -> None:
        """Change the recognition options.

        Raises:
            UsageError: The model does not know the language, does not translate, or cannot detect languages, or the
                language is both given and detected.
        """
        language = self._tokens.check_language(options.language)
        if options.task == "translate" and not self._tokens.multilingual:
            remedy = "use a multilingual model, such as whisper-base"
            raise UsageError("an English-only model does not translate", remedy=remedy)
        if options.multilingual and not self._tokens.multilingual:
            remedy = "use a multilingual model, such as whisper-base"
            raise UsageError("an English-only model detects no languages", remedy=remedy)
        if options.multilingual and options.language is not None:
            remedy = "leave out the language, or do not ask for several"
            raise UsageError("the language is given, so none is detected", remedy=remedy)
        if options.batch_size < 1 or options.decode.beam_size < 1:
            raise UsageError("batch and beam hold nothing", remedy="give 1 or more")
        self._options = replace(options, language=language if self._tokens.multilingual else "en")
        self._windows = WindowRecognizer(self._model, self._tokens, self._bands, self._options)

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Prefer names and terms (see `Recognizer.prefer`), as many as fit into the prompt."""
        taken: list[str] = []
        refused: list[str] = []
        for word in words:
            context = context_text(replace(self._options, hotwords=(*taken, word)))
            fits = len(self._tokens.encode(context)) <= CONTEXT_TOKENS
            (taken if fits else refused).append(word)
        self.configure(replace(self._options, hotwords=tuple(taken)))
        return refused

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance, without voice activity detection (see `Recognizer.recognize`).

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1, at most 30 s.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.

        Raises:
            UsageError: The waveform is longer than 30 s.
        """
        if _is_silent(waveform):
            return NBest(id, ())
        piece = Piece(
            offset_s=0.0, start_s=0.0, duration_s=waveform.size / SAMPLE_RATE, speech_probability=1.0
        )  # the caller has already cut one utterance
        stretches = self._windows.recognize([Window(waveform, (piece,))], self._known(), nbest, again=False)
        return next((replace(stretch.nbest, id=id) for stretch in stretches if not stretch.rejected), NBest(id, ()))

    def recognize_stream(
        self, blocks: Iterable[np.ndarray], nbest: int = 1, id: str = "", sound: bool = False
    ) -> Iterator[Stretch]:
        """Recognize a recording of any length (see `Recognizer.recognize_stream`); memory does not grow with it."""
        windows = iter(self._cut(blocks, apart=nbest > 1 or sound))
        known = self._known()
        if known is None and not self._options.multilingual:
            first = list(itertools.islice(windows, _DETECTION_WINDOWS))
            if not first:
                return
            encoded = self._windows.encode([window.waveform for window in first])
            known = best_languages(mean_probabilities(self._windows.detect(encoded)))[0]
            logger.info("language: %s (probability %.2f)", *known)
            windows = itertools.chain(first, windows)
        numbers = itertools.count()
        jobs = (functools.partial(self._windows.recognize, batch, known, nbest) for batch in self._batches(windows))
        for stretches in _in_order(jobs, self._workers):
            for stretch in stretches:
                yield replace(stretch, nbest=replace(stretch.nbest, id=f"{id}#{next(numbers)}"))

    def _known(self) -> Language | None:
        return None if self._options.language is None else (self._options.language, None)

    def _batches(self, windows: Iterator[Window]) -> Iterator[list[Window]]:
        while batch := list(itertools.islice(windows, self._options.batch_size)):
            yield batch

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | audio) of the tokens of each text (see `Recognizer.score`).

        Token probabilities are normalized over text tokens only: the end mark and timestamps, between which and text
        the model would also have to decide, do not count.

        Args:
            waveform: (T,) float32 at 16 kHz, at most 30 s.
            texts: As the model would write them: its probabilities depend on capitals and punctuation. A text that is
                empty or has more tokens than the decoder has positions gives None.
        """
        scores: list[float | None] = [None] * len(texts)
        ids = [self._tokens.encode(text) for text in texts]
        usable = [number for number, tokens in enumerate(ids) if 0 < len(tokens) <= _MAX_TEXT_TOKENS]
        if not usable or waveform.size < _MIN_SAMPLES:
            return scores
        encoded = self._windows.encode([waveform])
        language = self._options.language or best_languages(self._windows.detect(encoded))[0][0]
        mark = self._tokens.alignment_start(language, self._options.task)
        duration_s = waveform.size / SAMPLE_RATE
        for start in range(0, len(usable), self._options.batch_size):
            part = usable[start : start + self._options.batch_size]
            same = np.repeat(encoded, len(part), axis=0)
            chosen = [ids[number] for number in part]
            aligned = align_texts(self._model, self._tokens, same, mark, chosen, [duration_s] * len(part), language)
            for number, text in zip(part, aligned, strict=True):
                scores[number] = float(text.log_probs.sum())
        return scores

    def _cut(self, blocks: Iterable[np.ndarray], apart: bool) -> Iterator[Window]:
        """Return the windows to decode: packed ones, or one for each stretch."""
        segments = self._speech(blocks) if self._options.vad else cut_segments(blocks)
        segments = (segment for segment in segments if not _is_silent(segment.waveform))
        if not apart:
            return pack_windows(segments)
        return (window for segment in segments for window in pack_windows([segment]))

    def _speech(self, blocks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """Yield stretches of speech; recordings that are recognized concurrently have separate detectors."""
        detector = self._detectors.pop() if self._detectors else SpeechDetector()
        yield from speech_segments(blocks, self._options.vad_options, detector)
        self._detectors.append(detector)


def _is_silent(waveform: np.ndarray) -> bool:
    """Return whether a waveform is too short or too quiet to recognize."""
    return waveform.size < _MIN_SAMPLES or float(np.abs(waveform).max()) < _SILENCE_PEAK


_MAX_TEXT_TOKENS = 440  # longest scored text: the decoder's positions less those of the prompt


def _open(folder: Path, device: str, compute: Compute, workers: int) -> Any:
    try:
        import ctranslate2
    except ImportError:
        raise MissingDependencyError("Whisper needs ctranslate2", remedy="pip install ctranslate2") from None
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            remedy = "give a folder in CTranslate2's format, or get a model with `audio-llm models get whisper-base`"
            raise ModelNotFoundError(f"{name} is missing", path=folder, remedy=remedy)
    checked_files(folder)
    resolved = {"auto": "int8" if device == "cpu" else "float16"}.get(compute, compute)
    known = ctranslate2.get_supported_compute_types(device)
    if resolved not in known:
        remedy = f"use --compute with one of {', '.join(sorted(known & {'int8', 'float32', 'float16'}))}"
        raise UsageError(f"this {device} does not compute in {resolved}", remedy=remedy)
    try:
        return ctranslate2.models.Whisper(
            str(folder), device=device, compute_type=resolved, inter_threads=workers, intra_threads=1
        )
    except (RuntimeError, ValueError) as error:
        remedy = "get the model again"
        raise ModelFormatError(f"no readable Whisper: {error}", path=folder / "model.bin", remedy=remedy) from None


def _cores() -> int:
    """Return the number of threads: $OMP_NUM_THREADS, else the number of cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(jobs: Iterator[Callable[[], T]], workers: int) -> Iterator[T]:
    """Run jobs in threads, one more at a time than there are workers; yield their results in order.

    Where `jobs` raises, the results of those before come first.
    """
    if workers == 1:
        yield from (job() for job in jobs)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        failure: Exception | None = None
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(next(jobs)))
                except StopIteration:
                    break
                except Exception as error:  # from reading the recording: earlier results are not lost
                    failure = error
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if failure is not None:
                raise failure
        finally:  # also if the consumer of the results stops
            for future in waiting:
                future.cancel()


def _version(folder: Path) -> str:
    """Return the name of a model with the beginning of its weights' SHA-256, if that is recorded."""
    from audio_llm.installed import read_manifest, weights_sha256

    manifest = read_manifest(folder)
    return f"{manifest.name}@{weights_sha256(manifest)[:12]}" if manifest else folder.resolve().name
