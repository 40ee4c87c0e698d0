"""One recording to a transcript: blocks -> stretches of speech -> N-best lists -> corrected text with word times."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from audio_llm import __version__
from audio_llm.asr.base import SAMPLE_RATE, Recognizer, Stretch
from audio_llm.audio import BlockReader, probe, readable_twice
from audio_llm.audio_channels import EACH, Excerpt, channel_name
from audio_llm.correction import Correction, Corrector, protect
from audio_llm.errors import UsageError
from audio_llm.nbest import NBest, Word
from audio_llm.pipeline.formats import RejectedText, Transcript, TranscriptSegment, align_words
from audio_llm.pipeline.preprocess import Preprocessor
from audio_llm.pipeline.unfinished import UnfinishedFolder, UnfinishedRecording
from audio_llm.pipeline.worker import as_worker

_NO_SOUND = np.zeros(0, np.float32)


class Transcriber:
    """Transcribes recordings; stores text only, so memory does not grow with the duration.

    Args:
        recognizer: The recognizer.
        corrector: The corrector; None retains the recognizer's best text.
        nbest: Number of hypotheses.
        protected: Words and terms that a correction must not remove.
        refused: Those of `protected` that the recognizer cannot bias toward.
        preprocessor: Processes the audio before it is recognized.

    Attributes:
        excerpt: Default excerpt of files.
        about: Recognizer, options, corrector and version, for the JSON form of transcripts.
        on_segment: Called with each speech segment as soon as it is recognized, unless a corrector runs.
        unfinished: Partial results from which a transcription resumes after a crash; not used with a corrector or a
            preprocessor, whose state would be lost.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        corrector: Corrector | None = None,
        nbest: int = 5,
        protected: Iterable[str] = (),
        refused: Sequence[str] = (),
        preprocessor: Preprocessor | None = None,
    ) -> None:
        self.refused = tuple(refused)
        self.excerpt = Excerpt()
        self.about: Mapping[str, Any] = {"recognizer": recognizer.version, "audio_llm": __version__}
        self.on_segment: Callable[[TranscriptSegment], None] | None = None
        self.unfinished: UnfinishedFolder | None = None
        self._recognizer = recognizer
        self._corrector = as_worker(corrector) if corrector is not None else None
        self._nbest = nbest
        self._preprocessor = preprocessor
        self._protected = frozenset(protected)

    @property
    def ahead(self) -> int:
        """How many recordings may be started before the first of them is finished."""
        return self._corrector.ahead if self._corrector is not None else 0

    def ready(self) -> None:
        """Wait until all models are loaded; errors of a corrector in a separate process are raised here.

        Raises:
            AudioLLMError: A model could not be loaded.
        """
        if self._corrector is not None:
            self._corrector.ready()

    def close(self) -> None:
        """End the corrector's process, if there is one."""
        if self._corrector is not None:
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
            name: Name of the transcript; if empty, the path.
            progress: Called with the seconds of audio just finished.
            excerpt: The part of a file to read; times in the transcript are those of the file. With channel `each`,
                every channel is transcribed separately and named in its segments. None uses `self.excerpt`.

        Raises:
            AudioFileError: The file cannot be read as audio, has no such channel, or ends before the excerpt.
            UsageError: An excerpt of something other than a file, or one channel for a `preprocessor` that needs all.
        """
        return self.begin(source, name, progress, excerpt).finish()

    def stream(
        self, source: str | os.PathLike[str] | Iterable[np.ndarray], excerpt: Excerpt | None = None
    ) -> Iterator[TranscriptSegment]:
        """Yield each speech segment of one recording as soon as it is recognized and corrected.

        Args:
            source: As for `transcribe`.
            excerpt: As for `transcribe`; one channel or the mix of all.

        Raises:
            AudioFileError: The file cannot be read as audio, has no such channel, or ends before the excerpt.
            UsageError: The channel is `each`, or an excerpt of something other than a file.
        """
        excerpt = excerpt or self.excerpt
        if excerpt.channel == EACH or (excerpt != Excerpt() and not isinstance(source, str | os.PathLike)):
            raise UsageError("a stream is of one channel, and excerpts are of files", remedy="use transcribe")
        if not isinstance(source, str | os.PathLike):
            yield from self._stream_blocks(source, "", 0.0)
            return
        channel = excerpt.channel if self._preprocessor is None or self._preprocessor.mono else EACH
        with BlockReader(source, channel=channel, start_s=excerpt.start_s, end_s=excerpt.end_s) as reader:
            yield from self._stream_blocks(reader, os.fspath(source), reader.start_s)

    def _stream_blocks(self, blocks: Iterable[np.ndarray], name: str, start_s: float) -> Iterator[TranscriptSegment]:
        for stretch in self._recognize(self._preprocess(blocks), name):
            if _counts(stretch):
                yield _finish_segment(self._begin_segment(_moved(stretch, start_s)), self._protected)

    def begin(
        self,
        source: str | os.PathLike[str] | Iterable[np.ndarray],
        name: str = "",
        progress: Callable[[float], None] | None = None,
        excerpt: Excerpt | None = None,
    ) -> PendingTranscript:
        """Recognize one recording and start its correction; arguments and errors as for `transcribe`."""
        excerpt = excerpt or self.excerpt
        if not isinstance(source, str | os.PathLike):
            if excerpt != Excerpt():
                raise UsageError("an excerpt can be read of files only", remedy="cut the waveform before")
            return self._begin_blocks(self._preprocess(source), name, progress)
        name = name or os.fspath(source)
        if self._preprocessor is not None and not self._preprocessor.mono:
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
    ) -> PendingTranscript:
        if self.unfinished is not None and self._corrector is None and self._preprocessor is None:
            unfinished = self.unfinished.begin(source, excerpt)
            if unfinished is not None:
                with unfinished:
                    return self._go_on(source, name, progress, excerpt, unfinished)
        with BlockReader(source, channel=excerpt.channel, start_s=excerpt.start_s, end_s=excerpt.end_s) as reader:
            pending = self._begin_blocks(self._preprocess(reader), name, progress)
            pending.shift_times(reader.start_s)
            pending.warnings = reader.warnings
            return pending

    def _go_on(
        self,
        source: str | os.PathLike[str],
        name: str,
        progress: Callable[[float], None] | None,
        excerpt: Excerpt,
        unfinished: UnfinishedRecording,
    ) -> PendingTranscript:
        """Recognize what an earlier run did not, and store every stretch in case this run is interrupted too."""
        earlier = [
            dataclasses.replace(stretch, nbest=_numbered(stretch.nbest, name, number))
            for number, stretch in enumerate(unfinished.stretches)
        ]
        skipped_s = unfinished.start_s - excerpt.start_s
        if progress is not None and skipped_s:
            progress(skipped_s)
        with BlockReader(source, channel=excerpt.channel, start_s=unfinished.start_s, end_s=excerpt.end_s) as reader:
            pending = self._begin_blocks(
                reader, name, progress, lambda stretch: unfinished.add(_moved(stretch, reader.start_s)), len(earlier)
            )
            pending.shift_times(reader.start_s)
            pending.warnings = reader.warnings
        pending.duration_s += skipped_s
        pending.rejected[:0] = [_rejected(stretch) for stretch in earlier if stretch.rejected]
        pending.segments[:0] = [_Segment(stretch, None) for stretch in earlier if _counts(stretch)]
        if earlier:
            pending.warnings += (f"an earlier run was interrupted: resumed at {unfinished.start_s:.1f} s",)
        return pending

    def _begin_each(
        self,
        source: str | os.PathLike[str],
        name: str,
        progress: Callable[[float], None] | None,
        excerpt: Excerpt,
    ) -> PendingTranscript:
        """Recognize the channels one after another: reading again is cheap, holding long channels in memory is not."""
        with readable_twice(source) as path:
            count = max(1, probe(path).channels)
            advance = None if progress is None else lambda seconds: progress(seconds / count)
            pending: list[PendingTranscript] = []
            for index in range(count):
                label = channel_name(index, count)
                one = self._begin_file(
                    path, f"{name}#{label}", advance, dataclasses.replace(excerpt, channel=index + 1)
                )
                one.segments = [dataclasses.replace(segment, channel=label) for segment in one.segments]
                pending.append(one)
        segments = [segment for one in pending for segment in one.segments]
        segments.sort(key=lambda segment: segment.stretch.start_s)
        rejected = [text for one in pending for text in one.rejected]
        warnings = tuple(dict.fromkeys(line for one in pending for line in one.warnings))
        duration_s = max(one.duration_s for one in pending)
        return PendingTranscript(name, duration_s, segments, self._protected, warnings, rejected, self.about)

    def _preprocess(self, blocks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        if self._preprocessor is None:
            return blocks
        return self._preprocessor.process(block if block.ndim == 2 else block[:, None] for block in blocks)

    def _begin_blocks(
        self,
        blocks: Iterable[np.ndarray],
        name: str,
        progress: Callable[[float], None] | None,
        keep: Callable[[Stretch], None] | None = None,
        before: int = 0,
    ) -> PendingTranscript:
        """Recognize; `keep` is called with every stretch, `before` is the number of those of an earlier run."""
        meter = _Meter(progress)
        segments: list[_Segment] = []
        rejected: list[RejectedText] = []
        for number, stretch in enumerate(self._recognize(meter.count(blocks), name), before):
            if before:
                stretch = dataclasses.replace(stretch, nbest=_numbered(stretch.nbest, name, number))
            if keep is not None:
                keep(stretch)
            if stretch.rejected:
                rejected.append(_rejected(stretch))
            elif _counts(stretch):
                segments.append(self._begin_segment(stretch))
                if self.on_segment is not None and self._corrector is None:
                    self.on_segment(_finish_segment(segments[-1], self._protected))
            meter.reached(stretch.end_s)
        meter.reached(meter.seconds)
        return PendingTranscript(name, meter.seconds, segments, self._protected, rejected=rejected, about=self.about)

    def _recognize(self, blocks: Iterable[np.ndarray], name: str) -> Iterator[Stretch]:
        count = max(self._nbest, self._corrector.hypotheses if self._corrector else 1)
        return self._recognizer.recognize_stream(blocks, count, name, sound=self._corrector is not None)

    def _begin_segment(self, stretch: Stretch) -> _Segment:
        correction = self._corrector.submit(stretch.nbest, stretch.waveform) if self._corrector is not None else None
        stretch = dataclasses.replace(
            stretch,
            nbest=dataclasses.replace(stretch.nbest, hypotheses=stretch.nbest.hypotheses[: self._nbest]),
            waveform=_NO_SOUND,
        )
        return _Segment(stretch, correction)


@dataclasses.dataclass(frozen=True)
class _Segment:
    """One stretch of speech without its waveform, and its future correction."""

    stretch: Stretch
    correction: Future[Correction] | None
    channel: str | None = None


@dataclasses.dataclass
class PendingTranscript:
    """Transcript of a recognized recording whose corrections may be pending.

    Attributes:
        name: Name of the transcript.
        duration_s: Seconds of sound.
        segments: Stretches of speech.
        protected: Terms that a correction must not remove.
        warnings: Problems with the sound file.
        rejected: Rejected text.
        about: Recognizer, options, corrector and version.
    """

    name: str
    duration_s: float
    segments: list[_Segment]
    protected: frozenset[str]
    warnings: tuple[str, ...] = ()
    rejected: list[RejectedText] = dataclasses.field(default_factory=list)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def shift_times(self, start_s: float) -> None:
        """Add `start_s`, the start of the excerpt, to all times."""
        if start_s:
            self.segments = [
                dataclasses.replace(segment, stretch=_moved(segment.stretch, start_s)) for segment in self.segments
            ]
            self.rejected = [
                dataclasses.replace(text, start_s=text.start_s + start_s, end_s=text.end_s + start_s)
                for text in self.rejected
            ]

    def done(self) -> bool:
        """Return whether `finish` returns without waiting."""
        return all(segment.correction is None or segment.correction.done() for segment in self.segments)

    def finish(self) -> Transcript:
        """Wait for the corrections; return the transcript."""
        segments = tuple(_finish_segment(segment, self.protected) for segment in self.segments)
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


def _finish_segment(segment: _Segment, protected: Iterable[str]) -> TranscriptSegment:
    """Wait for the correction of a segment; return the segment of the transcript."""
    stretch, correction = segment.stretch, None
    text, words = stretch.nbest.best, stretch.nbest.words
    if segment.correction is not None:
        correction = protect(segment.correction.result(), protected)
        if correction.text != text:
            text, words = correction.text, align_words(words, correction.text)
    return TranscriptSegment(
        start_s=stretch.start_s,
        end_s=stretch.end_s,
        text=text,
        words=words,
        nbest=stretch.nbest,
        correction=correction,
        channel=segment.channel,
        language=stretch.language,
        language_probability=stretch.language_probability,
        notes=stretch.notes,
    )


class _Meter:
    """Counts the sound that was read and reports the progress."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self._progress = progress
        self._samples = 0
        self._reported_s = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of sound that were read."""
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


def _moved(stretch: Stretch, seconds: float) -> Stretch:
    """Return a stretch with all times shifted by the start of the excerpt."""
    nbest = dataclasses.replace(stretch.nbest, words=tuple(_shifted(word, seconds) for word in stretch.nbest.words))
    return dataclasses.replace(stretch, start_s=stretch.start_s + seconds, end_s=stretch.end_s + seconds, nbest=nbest)


def _numbered(nbest: NBest, name: str, number: int) -> NBest:
    return dataclasses.replace(nbest, id=f"{name}#{number}")


def _counts(stretch: Stretch) -> bool:
    """Return whether a stretch is part of the transcript."""
    return bool(stretch.nbest.best.strip()) and not stretch.rejected


def _rejected(stretch: Stretch) -> RejectedText:
    return RejectedText(stretch.start_s, stretch.end_s, stretch.nbest.best, stretch.rejected)
