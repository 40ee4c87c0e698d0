"""The recognizers that are compared: this project's, faster-whisper with the same weights, and pocketsphinx."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from audio_llm import hub
from audio_llm.asr.engines import load_recognizer
from audio_llm.asr.whisper import WhisperOptions, WhisperRecognizer

Hypotheses = list[str]  # texts, best first
Recognize = Callable[[np.ndarray], Hypotheses]
SYSTEMS = ("audio-llm", "faster-whisper", "sphinx")
NBEST = 10


def load(system: str, model: str, beam: int, nbest: int, threads: int) -> Recognize:
    """Return a function from (T,) float32 at 16 kHz of English speech to texts."""
    if system == "faster-whisper":
        return _faster_whisper(model, beam, threads)
    if system == "sphinx":
        sphinx = load_recognizer("sphinx")
        return lambda waveform: [" ".join(s.nbest.best for s in sphinx.recognize_stream([waveform]) if s.nbest.best)]
    recognizer = load_whisper(model, threads)

    def recognize(waveform: np.ndarray) -> Hypotheses:
        if nbest > 1:  # one stretch per utterance, as cut in the test sets
            return list(recognizer.recognize(waveform, nbest).texts)
        stretches = recognizer.recognize_stream([waveform])
        return [" ".join(stretch.nbest.best for stretch in stretches if not stretch.rejected)]

    return recognize


def load_whisper(model: str, threads: int, language: str | None = "en") -> WhisperRecognizer:
    """Return a Whisper of this project without word times."""
    options = WhisperOptions(language=language)
    return WhisperRecognizer.load(hub.find_model(model), threads=threads, options=options)


def load_with_words(system: str, model: str, words: Sequence[str], threads: int) -> Recognize:
    """Return a system that prefers these words."""
    if system == "faster-whisper":
        return _faster_whisper(model, 5, threads, ", ".join(words) or None)
    recognizer = load_whisper(model, threads)
    recognizer.prefer(words)
    return lambda waveform: [recognizer.recognize(waveform, 1).best]


def _faster_whisper(model: str, beam: int, threads: int, hotwords: str | None = None) -> Recognize:
    from faster_whisper import WhisperModel

    whisper = WhisperModel(str(hub.find_model(model)), device="cpu", compute_type="int8", cpu_threads=threads)

    def recognize(waveform: np.ndarray) -> Hypotheses:
        segments, _ = whisper.transcribe(waveform, language="en", beam_size=beam, hotwords=hotwords)
        return [" ".join(segment.text.strip() for segment in segments)]

    return recognize
