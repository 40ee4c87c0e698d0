"""One recording to a transcript: blocks -> stretches of speech -> N-best lists -> corrected text with word times."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_llm import __version__, hub
from audio_llm.asr import engines
from audio_llm.asr.base import SAMPLE_RATE, Recognizer, Stretch
from audio_llm.audio import BlockReader, probe, readable_twice
from audio_llm.audio_channels import EACH, Excerpt, channel_name
from audio_llm.correction import Correction, Corrector, Edit
from audio_llm.doctor import resolve_device
from audio_llm.errors import ModelFormatError, UsageError
from audio_llm.nbest import NBest, Word
from audio_llm.pipeline.beside import CorrectorBeside, load_beside
from audio_llm.pipeline.correct import CORRECTORS, list_length, load_corrector
from audio_llm.pipeline.formats import RejectedText, Transcript, TranscriptSegment, align_words
from audio_llm.pipeline.front import Front
from audio_llm.text import DEFAULT_NORMALIZER

if TYPE_CHECKING:
    from audio_llm.asr.whisper import Compute, WhisperOptions

_AHEAD = 8  # recordings
_NO_SOUND = np.zeros(0, np.float32)


class Transcriber:
    """Turns recordings into transcripts; keeps text only, so memory does not grow with the sound's length.

    Args:
        recognizer: Speech to N-best lists.
        corrector: N-best lists to corrected texts; None leaves the recogniser's best.
        nbest: Hypotheses to ask for.
        protected: Words and terms that a correction must not take away.
        refused: Those of them that the recogniser could not take, for the record.
        front: Changes the sound before it is recognised.

    Attributes:
        excerpt: What is read of a file where a call does not say.
        about: What a transcript is made with, for its JSON form.
        on_segment: Called with each stretch of speech as soon as it is recognized, where no corrector runs.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        corrector: Corrector | None = None,
        nbest: int = 5,
        protected: Iterable[str] = (),
        refused: Sequence[str] = (),
        front: Front | None = None,
    ) -> None:
        self.refused = tuple(refused)
        self.excerpt = Excerpt()
        self.about: Mapping[str, Any] = {"recognizer": recognizer.version, "audio_llm": __version__}
        self.on_segment: Callable[[TranscriptSegment], None] | None = None
        self._recognizer = recognizer
        self._corrector = corrector
        self._nbest = nbest
        self._front = front
        self._protected = frozenset(protected)

    @property
    def ahead(self) -> int:
        """How many recordings may be begun before the first of them is finished."""
        return _AHEAD if isinstance(self._corrector, CorrectorBeside) else 0

    def ready(self) -> None:
        """Wait until all models are loaded; where one is loaded beside, its error comes from here.

        Raises:
            AudioLLMError: A model could not be loaded.
        """
        if isinstance(self._corrector, CorrectorBeside):
            self._corrector.ready()

    def close(self) -> None:
        """End what runs beside."""
        if isinstance(self._corrector, CorrectorBeside):
            self._corrector.close()

    def transcribe(
        self,
        source: str | os.PathLike[str] | Iterable[np.ndarray],
        name: str = "",
        progress: Callable[[float], None] | None = None,
        excerpt: Excerpt | None = None,
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            source: A sound or video file, `-` for standard input, or blocks of (T,) float32 at 16 kHz in -1..1.
            name: Name of the transcript; empty takes the path.
            progress: Called with the seconds of sound just finished.
            excerpt: What is read of a file; times in the transcript are those of the file. With the channel `each`
                every channel is transcribed for itself, and its segments carry its name. None takes `self.excerpt`.

        Raises:
            AudioFileError: The file cannot be read as sound, has no such channel, or ends before the excerpt.
            UsageError: An excerpt of what is no file, or one channel for a `front` that needs all.
        """
        return self.begin(source, name, progress, excerpt).finish()

    def stream(
        self, source: str | os.PathLike[str] | Iterable[np.ndarray], excerpt: Excerpt | None = None
    ) -> Iterator[TranscriptSegment]:
        """Yield each stretch of speech of one recording as soon as it is recognized and corrected.

        Args:
            source: As for `transcribe`.
            excerpt: As for `transcribe`, of one channel or the mix of all.

        Raises:
            AudioFileError: The file cannot be read as sound, has no such channel, or ends before the excerpt.
            UsageError: `each` channel, or an excerpt of what is no file.
        """
        excerpt = excerpt or self.excerpt
        if excerpt.channel == EACH or (excerpt != Excerpt() and not isinstance(source, str | os.PathLike)):
            raise UsageError("a stream is of one channel, and excerpts are of files", remedy="use transcribe")
        if not isinstance(source, str | os.PathLike):
            yield from self._stream_blocks(source, "", 0.0)
            return
        channel = excerpt.channel if self._front is None or self._front.mono else EACH
        with BlockReader(source, channel=channel, start_s=excerpt.start_s, end_s=excerpt.end_s) as reader:
            yield from self._stream_blocks(reader, os.fspath(source), reader.start_s)

    def _stream_blocks(self, blocks: Iterable[np.ndarray], name: str, start_s: float) -> Iterator[TranscriptSegment]:
        for stretch in self._recognize(self._through_front(blocks), name):
            if stretch.nbest.best.strip() and not stretch.rejected:
                yield _finish_part(_at(self._begin_stretch(stretch), start_s), self._protected)

    def begin(
        self,
        source: str | os.PathLike[str] | Iterable[np.ndarray],
        name: str = "",
        progress: Callable[[float], None] | None = None,
        excerpt: Excerpt | None = None,
    ) -> Begun:
        """Recognise one recording, and have it corrected; arguments and errors as for `transcribe`."""
        excerpt = excerpt or self.excerpt
        if not isinstance(source, str | os.PathLike):
            if excerpt != Excerpt():
                raise UsageError("an excerpt is taken of files only", remedy="cut the waveform before")
            return self._begin_blocks(self._through_front(source), name, progress)
        name = name or os.fspath(source)
        if self._front is not None and not self._front.mono:
            if excerpt.channel != Excerpt().channel:
                raise UsageError("--extract needs all channels", remedy="leave --channel out")
            return self._begin_file(source, name, progress, dataclasses.replace(excerpt, channel=EACH))
        if excerpt.channel == EACH:
            return self._begin_each(source, name, progress, excerpt)
        return self._begin_file(source, name, progress, excerpt)

    def _begin_file(
        self,
        source: str | os.PathLike[str],
        name: str,
        progress: Callable[[float], None] | None,
        excerpt: Excerpt,
    ) -> Begun:
        with BlockReader(source, channel=excerpt.channel, start_s=excerpt.start_s, end_s=excerpt.end_s) as reader:
            begun = self._begin_blocks(self._through_front(reader), name, progress)
            begun.parts = [_at(part, reader.start_s) for part in begun.parts]
            begun.rejected = [_rejected_at(text, reader.start_s) for text in begun.rejected]
            begun.warnings = reader.warnings
            return begun

    def _begin_each(
        self,
        source: str | os.PathLike[str],
        name: str,
        progress: Callable[[float], None] | None,
        excerpt: Excerpt,
    ) -> Begun:
        """Recognise the channels one after another: reading again costs little, holding a silent one may cost all."""
        with readable_twice(source) as path:
            count = max(1, probe(path).channels)
            share = None if progress is None else lambda seconds: progress(seconds / count)
            begun: list[Begun] = []
            for index in range(count):
                label = channel_name(index, count)
                one = self._begin_file(path, f"{name}#{label}", share, dataclasses.replace(excerpt, channel=index + 1))
                one.parts = [dataclasses.replace(part, channel=label) for part in one.parts]
                begun.append(one)
        parts = sorted((part for one in begun for part in one.parts), key=lambda part: part.stretch.start_s)
        rejected = [text for one in begun for text in one.rejected]
        warnings = tuple(dict.fromkeys(line for one in begun for line in one.warnings))
        duration_s = max(one.duration_s for one in begun)
        return Begun(name, duration_s, parts, self._protected, warnings, rejected, self.about)

    def _through_front(self, blocks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        if self._front is None:
            return blocks
        return self._front.through(block if block.ndim == 2 else block[:, None] for block in blocks)

    def _begin_blocks(self, blocks: Iterable[np.ndarray], name: str, progress: Callable[[float], None] | None) -> Begun:
        meter = _Meter(progress)
        parts: list[_Part] = []
        rejected: list[RejectedText] = []
        for stretch in self._recognize(meter.count(blocks), name):
            if stretch.rejected:
                rejected.append(RejectedText(stretch.start_s, stretch.end_s, stretch.nbest.best, stretch.rejected))
            elif stretch.nbest.best.strip():
                parts.append(self._begin_stretch(stretch))
                if self.on_segment is not None and self._corrector is None:
                    self.on_segment(_finish_part(parts[-1], self._protected))
            meter.reached(stretch.end_s)
        meter.reached(meter.seconds)
        return Begun(name, meter.seconds, parts, self._protected, rejected=rejected, about=self.about)

    def _recognize(self, blocks: Iterable[np.ndarray], name: str) -> Iterator[Stretch]:
        count = max(self._nbest, self._corrector.hypotheses if self._corrector else 1)
        return self._recognizer.recognize_stream(blocks, count, name, sound=self._corrector is not None)

    def _begin_stretch(self, stretch: Stretch) -> _Part:
        correction = self._correct(stretch.nbest, stretch.waveform)
        stretch = dataclasses.replace(
            stretch,
            nbest=dataclasses.replace(stretch.nbest, hypotheses=stretch.nbest.hypotheses[: self._nbest]),
            waveform=_NO_SOUND,
        )
        return _Part(stretch, correction)

    def _correct(self, heard: NBest, waveform: np.ndarray) -> Future[Correction] | None:
        if self._corrector is None or isinstance(self._corrector, CorrectorBeside):
            return self._corrector.submit(heard, waveform) if self._corrector else None
        correction: Future[Correction] = Future()
        correction.set_result(self._corrector.correct([heard], [waveform])[0])
        return correction


@dataclasses.dataclass(frozen=True)
class _Part:
    """One stretch of speech without its sound, and what the corrector will return."""

    stretch: Stretch
    correction: Future[Correction] | None
    channel: str | None = None


@dataclasses.dataclass
class Begun:
    """A recording that is recognised, its corrections perhaps still under way.

    Attributes:
        name: Name of the transcript.
        duration_s: Seconds of sound.
        parts: Stretches of speech.
        protected: Terms that a correction must not take away.
        warnings: What was odd about the file.
        rejected: Recognized text that does not count.
        about: What the transcript is made with.
    """

    name: str
    duration_s: float
    parts: list[_Part]
    protected: frozenset[str]
    warnings: tuple[str, ...] = ()
    rejected: list[RejectedText] = dataclasses.field(default_factory=list)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def done(self) -> bool:
        """Return whether `finish` need not wait."""
        return all(part.correction is None or part.correction.done() for part in self.parts)

    def finish(self) -> Transcript:
        """Wait for the corrections; return the transcript."""
        segments = tuple(_finish_part(part, self.protected) for part in self.parts)
        return Transcript(
            name=self.name,
            duration_s=self.duration_s,
            text=" ".join(segment.text for segment in segments if segment.text),
            recognized=" ".join(segment.nbest.best for segment in segments),
            segments=segments,
            corrections=tuple(segment.correction for segment in segments if segment.correction is not None),
            warnings=self.warnings,
            rejected=tuple(self.rejected),
            about=self.about,
        )


def _finish_part(part: _Part, protected: Iterable[str]) -> TranscriptSegment:
    """Wait for the correction of a part; return it as a segment."""
    stretch, correction = part.stretch, None
    text, words = stretch.nbest.best, stretch.nbest.words
    if part.correction is not None:
        correction = protect(part.correction.result(), protected)
        if correction.text != text:
            text, words = correction.text, align_words(words, correction.text)
    return TranscriptSegment(
        start_s=stretch.start_s,
        end_s=stretch.end_s,
        text=text,
        words=words,
        nbest=stretch.nbest,
        correction=correction,
        channel=part.channel,
        language=stretch.language,
        language_probability=stretch.language_probability,
        notes=stretch.notes,
    )


def protect(correction: Correction, terms: Iterable[str]) -> Correction:
    """Take back the edits that remove a listed term; all of them where they cannot be told apart.

    Args:
        correction: What a corrector returned.
        terms: Words or sequences of words, compared without case and punctuation.

    Returns:
        The correction itself where it removes no term.
    """
    wanted = [term for term in (DEFAULT_NORMALIZER(term).split() for term in terms) if term]
    source = DEFAULT_NORMALIZER(correction.input).split()
    result = DEFAULT_NORMALIZER(correction.text).split()
    lost = [term for term in wanted if _count(term, result) < _count(term, source)]
    if correction.kept or not lost:
        return correction
    reason = f"kept for {', '.join(sorted(' '.join(term) for term in lost))}"
    if _apply(source, correction.edits) == result:
        harmless = tuple(
            edit
            for edit in correction.edits
            if not any(_count(term, _apply(source, [edit])) < _count(term, source) for term in lost)
        )
        text = _apply(source, harmless)
        if harmless and not any(_count(term, text) < _count(term, source) for term in lost):
            text_reason = f"{correction.reason}, {reason}"
            return dataclasses.replace(correction, text=" ".join(text), edits=harmless, reason=text_reason)
    return dataclasses.replace(correction, text=correction.input, kept=True, reason=reason, edits=())


def load_transcriber(
    recognizer: str = engines.AUTO,
    model: str | None = None,
    correct: str = "none",
    correct_model: str | None = None,
    decode: str | None = None,
    nbest: int | None = None,
    words: Iterable[str] = (),
    device: str = "cpu",
    offline: bool = False,
    beside: bool = False,
    front: Front | None = None,
    options: WhisperOptions | None = None,
    compute: Compute = "auto",
) -> Transcriber:
    """Load a recognizer and a corrector by name.

    Args:
        recognizer: As for `asr.engines.load_recognizer`. With a corrector `auto` is pocketsphinx, for which the
            shipped correctors are trained.
        model: The recognizer's model; None takes its own.
        correct: `none` or one of `pipeline.correct.CORRECTORS`.
        correct_model: The corrector's model; None takes its own.
        decode: How the corrector decodes (see `load_corrector`).
        nbest: Hypotheses to ask for; None: 5 where a corrector runs, else 1. Whisper decodes every stretch of speech
            by itself where there are several, which takes longer.
        words: Names and terms to prefer; corrections do not take them away.
        device: `cpu`, `cuda` or `auto`.
        offline: Download nothing.
        beside: Correct in a process of its own where that saves time: beside pocketsphinx, with two cores or more. A
            program that asks for it must guard its main module (see `multiprocessing`).
        front: Changes the sound before it is recognised.
        options: How Whisper recognizes.
        compute: Format in which Whisper computes.

    Raises:
        UsageError: A name is unknown, or the recognizer cannot do what `options` asks.
        ModelNotFoundError: There is no such model.
    """
    words = tuple(words)
    if correct != "none" and recognizer == engines.AUTO and model is None:
        recognizer = "sphinx"
    loaded = engines.load_recognizer(recognizer, model, device, offline, options, compute)
    corrector: Corrector | None = None
    if correct != "none" and beside and recognizer == "sphinx" and (os.cpu_count() or 1) > 1:
        hypotheses = list_length(correct, correct_model, loaded, decode)
        corrector = load_beside(recognizer, words, correct, correct_model, decode, device, hypotheses)
    elif correct != "none":
        corrector = load_corrector(correct, correct_model, loaded, decode, device)
    refused = tuple(loaded.prefer(words)) if words else ()
    count = nbest or (5 if corrector is not None else 1)
    transcriber = Transcriber(loaded, corrector, count, protected=words, refused=refused, front=front)
    transcriber.about = _about(loaded, corrector, words, options)
    return transcriber


def _about(
    recognizer: Recognizer, corrector: Corrector | None, words: Sequence[str], options: WhisperOptions | None
) -> dict[str, Any]:
    """Return what a transcript is made with."""
    about: dict[str, Any] = {"recognizer": recognizer.version, "audio_llm": __version__}
    if options is not None:
        about["language"] = options.language or "auto"
        about["task"] = options.task
        if options.prompt:
            about["prompt"] = options.prompt
    if words:
        about["hotwords_sha256"] = hashlib.sha256("\n".join(words).encode()).hexdigest()
    if corrector is not None:
        about["corrector"] = corrector.name
    return about


def load_model_object(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Any:
    """Return the ready object of a model directory by its kind (see `audio_llm.load`)."""
    folder = hub.find_model(name_or_dir)
    kind = hub.model_kind(folder)
    name = {"ger-phrase": "phrase"}.get(kind, kind)
    if name in CORRECTORS:
        return load_corrector(name, str(folder), device=device)
    if kind == "touchtts":  # which is a recogniser too, and more than that
        from audio_llm.touchtts.speech import TouchTTS

        return TouchTTS.load(folder, resolve_device(device))
    if kind in engines.ENGINES:
        return engines.load_recognizer(kind, str(folder), device)
    if kind in ("mask", "gense"):
        from audio_llm.gense.enhance import Enhancer

        return Enhancer.load(folder, device=device)
    if kind == "codec":
        from audio_llm.codec.codec import SpeechCodec

        return SpeechCodec.load(folder, resolve_device(device))
    if kind == "s3-tokenizer":
        from audio_llm.tokenizer.s3 import S3Tokenizer

        return S3Tokenizer.load(folder, resolve_device(device))
    kinds = [*CORRECTORS, "ctc", "mask", "gense", "codec", "s3-tokenizer", "touchtts"]
    remedy = f"kinds with one: {', '.join(kinds)}; hub.load_model reads any"
    raise ModelFormatError(f"there is no ready object for the kind {kind!r}", path=folder, remedy=remedy)


class _Meter:
    """Counts the sound that went in and reports what is finished."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self._progress = progress
        self._samples = 0
        self._reported_s = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of sound so far."""
        return self._samples / SAMPLE_RATE

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self._samples += len(block)
            yield block

    def reached(self, seconds: float) -> None:
        if self._progress is not None and seconds > self._reported_s:
            self._progress(seconds - self._reported_s)
            self._reported_s = seconds


def _shifted(word: Word, seconds: float) -> Word:
    return dataclasses.replace(word, start_s=word.start_s + seconds, end_s=word.end_s + seconds)


def _at(part: _Part, seconds: float) -> _Part:
    """Return a part of an excerpt with the times of the file."""
    if not seconds:
        return part
    stretch = part.stretch
    nbest = dataclasses.replace(stretch.nbest, words=tuple(_shifted(word, seconds) for word in stretch.nbest.words))
    start_s, end_s = stretch.start_s + seconds, stretch.end_s + seconds
    return dataclasses.replace(part, stretch=dataclasses.replace(stretch, start_s=start_s, end_s=end_s, nbest=nbest))


def _rejected_at(text: RejectedText, seconds: float) -> RejectedText:
    return dataclasses.replace(text, start_s=text.start_s + seconds, end_s=text.end_s + seconds)


def _apply(words: Sequence[str], edits: Iterable[Edit]) -> list[str]:
    out = list(words)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        out[edit.start : edit.end] = edit.after.split()
    return out


def _count(term: Sequence[str], words: Sequence[str]) -> int:
    return sum(words[start : start + len(term)] == list(term) for start in range(len(words) - len(term) + 1))
