"""The public names: files or arrays in, typed results out. `audio_llm` exports them, each loaded on first use."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_llm import nbest as lists_of
from audio_llm.audio import SAMPLE_RATE, resample, write
from audio_llm.metrics import ErrorCounts, word_errors
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer
from audio_llm.waveforms import Audio, Source, as_audio

if TYPE_CHECKING:
    from audio_llm.asr import base
    from audio_llm.asr.whisper import WhisperOptions
    from audio_llm.correction import Correction
    from audio_llm.correction import Corrector as CorrectorProtocol
    from audio_llm.hub import ModelInfo
    from audio_llm.pipeline.formats import Transcript
    from audio_llm.pipeline.train import RunOptions, TrainingParts
    from audio_llm.tokenizer.base import SemanticTokenizer
    from audio_llm.training.loop import TrainingResult


def transcribe(
    source: Source,
    sample_rate: int | None = None,
    recognizer: str = "auto",
    corrector: str | None = None,
    language: str | None = None,
    nbest: int | None = None,
    device: str = "cpu",
) -> Transcript:
    """Transcribe one recording; for many, build one `Transcriber` and reuse it.

    Args:
        source: A sound or video file, `-` for standard input, (T,) or (T, C) float in -1..1, or audio.
        sample_rate: Sample rate of an array in Hz.
        recognizer: `auto` for the best one installed, `whisper-base`, another Whisper, `sphinx`, `ctc` or `espnet`.
        corrector: `dlm`, `ger` or `phrase`; None retains the recognizer's text.
        language: Code of the spoken language; None lets Whisper detect it.
        nbest: Hypotheses per segment; None: 5 with a corrector, else 1.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Text, segments, word timestamps, hypotheses and corrections.

    Raises:
        AudioFileError: The file cannot be read as audio.
        ModelNotFoundError: There is no such model.
        UsageError: A name is unknown, or the recognizer does not support an option.
    """
    from audio_llm.pipeline.load import load_transcriber

    options = _whisper_options(language)
    transcriber = load_transcriber(recognizer, None, corrector or "none", nbest=nbest, device=device, options=options)
    if isinstance(source, str | os.PathLike) and sample_rate is None:
        return transcriber.transcribe(source)
    audio = as_audio(source, sample_rate)
    mono = audio.waveform.mean(axis=1) if audio.waveform.ndim == 2 else audio.waveform
    return transcriber.transcribe([resample(mono, audio.sample_rate, SAMPLE_RATE)], "waveform")


def correct(
    lists: Sequence[NBest], corrector: str = "ger", model: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> list[Correction]:
    """Correct N-best lists; for many calls, load one `Corrector` and reuse it.

    Args:
        lists: N-best lists from `Recognizer.recognize` or `read_nbest`.
        corrector: `ger`, `phrase` or `dlm`.
        model: The corrector's model; None selects the one that ships, for pocketsphinx's lists.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        ModelNotFoundError: There is no such model.
        UsageError: No corrector has that name.
    """
    return Corrector.load(corrector, model, device).correct(lists)


def enhance(
    source: Source,
    sample_rate: int | None = None,
    model: str | os.PathLike[str] = "mask-small",
    mix: float = 0.0,
    device: str = "cpu",
) -> Audio:
    """Remove noise from a recording; for many, load one `Enhancer` and reuse it.

    Args:
        source: A sound file, (T,) or (T, C) float in -1..1, or audio. Each channel is enhanced separately.
        sample_rate: Sample rate of an array in Hz.
        model: A model directory or name; `gense-small` resynthesizes speech.
        mix: Fraction of the input in the output, 0 to 1.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Audio of the same length, rate and channels; its report is a tuple of `ChunkReport`.

    Raises:
        AudioFileError: The file cannot be read, or contains no audio.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.gense.enhance import Enhancer

    return Enhancer.load(model, device=device).enhance(source, sample_rate, mix)


def extract(
    mixture: Source,
    enrollment: Source,
    sample_rate: int | None = None,
    model: str | os.PathLike[str] = "tse-small",
    mix: float = 0.0,
    device: str = "cpu",
) -> Audio:
    """Extract the speaker enrolled by a recording from a binaural mixture.

    Args:
        mixture: A sound file, (T, 2) float in -1..1, left ear first, or audio.
        enrollment: 1 to 10 s recorded while facing the speaker, in the same form.
        sample_rate: Sample rate of arrays in Hz, the same for both.
        model: A model directory or name.
        mix: Fraction of the mixture in the output, 0 to 1.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Audio of the same length and rate, both ears; its report is a tuple of warnings.

    Raises:
        AudioFileError: A file cannot be read, or the enrollment is too short or silent.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.tse.extract import TargetSpeaker

    mixture_is_array, enrollment_is_array = (isinstance(each, np.ndarray) for each in (mixture, enrollment))
    if not enrollment_is_array and not mixture_is_array:
        mixture = as_audio(mixture, sample_rate)  # which refuses a rate that nothing needs
    speaker = TargetSpeaker.enroll(enrollment, sample_rate if enrollment_is_array else None, model, device)
    return speaker.extract(mixture, sample_rate if mixture_is_array else None, mix)


def synthesize(
    text: str,
    voice: str | Path | None = None,
    speed: float = 1.0,
    seed: int = 0,
    model: str | os.PathLike[str] = "touchtts-small",
    device: str = "cpu",
) -> Audio:
    """Turn text into speech; for many texts, load one `Synthesizer` and reuse it.

    Args:
        text: English text of any length.
        voice: A voice of the model by name, or a recording to imitate; None selects the first voice.
        speed: Speaking rate, 0.5 to 2.
        seed: Random seed; the same seed gives the same speech.
        model: A model directory or name.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Audio at 16 kHz; its report is a `touchtts.speech.Speech` with sentences and tokens.

    Raises:
        UnspeakableError: Nothing in the text can be pronounced.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.touchtts.speech import TouchTTS

    speech = TouchTTS.load(Path(model) if isinstance(model, os.PathLike) else model, device).synthesize(
        text, voice, speed, seed
    )
    return Audio(speech.waveform, SAMPLE_RATE, speech)


def wer(references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "spoken") -> ErrorCounts:
    """Count word errors over a set of utterances.

    Args:
        references: Reference texts.
        hypotheses: Recognized texts, in the same order.
        normalizer: `raw`, `basic` (lower case, no punctuation) or `spoken` (digits spelled out as well).

    Returns:
        Counts of substitutions, deletions and insertions; `rate` is the word error rate.

    Raises:
        DataError: The two sequences differ in length.
        UsageError: No normalizer has that name.
    """
    return word_errors(references, hypotheses, get_normalizer(normalizer))


class Recognizer:
    """Recognizers of speech, by name."""

    @staticmethod
    def load(name: str = "auto", device: str = "cpu", language: str | None = None) -> base.Recognizer:
        """Load a recognizer.

        Args:
            name: `auto` for the best one installed, `whisper-base`, another Whisper or its folder, `sphinx`, ...
            device: `cpu`, `cuda` or `auto`.
            language: Code of the spoken language; None lets Whisper detect it.

        Returns:
            A recognizer: `recognize(waveform, nbest=5)` turns (T,) float32 at 16 kHz into an N-best list, and
            `score(waveform, texts)` returns log p(text | audio) of given texts.

        Raises:
            ModelNotFoundError: There is no such model.
            UsageError: No recognizer has that name, or it does not support the language.
        """
        from audio_llm.asr.engines import load_recognizer

        return load_recognizer(name, device=device, options=_whisper_options(language))


class Corrector:
    """Correctors of N-best lists, by name."""

    @staticmethod
    def load(name: str = "ger", model: str | os.PathLike[str] | None = None, device: str = "cpu") -> CorrectorProtocol:
        """Load a corrector.

        Args:
            name: `ger`, `phrase` or `dlm`.
            model: Its model; None selects the one that ships, for pocketsphinx's lists.
            device: `cpu`, `cuda` or `auto`.

        Returns:
            A corrector: `correct(lists)` turns N-best lists into corrections, using waveforms if it needs them.

        Raises:
            ModelNotFoundError: There is no such model.
            UsageError: No corrector has that name.
        """
        from audio_llm.pipeline.correct import load_corrector

        return load_corrector(name, None if model is None else os.fspath(model), device=device)


class Tokenizer:
    """Semantic tokenizers of speech, by name."""

    @staticmethod
    def load(name: str | os.PathLike[str] = "tokenizer-s3-small", device: str = "cpu") -> SemanticTokenizer:
        """Load a tokenizer.

        Args:
            name: A model directory or name.
            device: `cpu` or `cuda`.

        Returns:
            A tokenizer: `encode(waveforms, lengths)` turns (B, T) at 16 kHz and lengths (B,) into tokens.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        from audio_llm.tokenizer.load import load_tokenizer

        return load_tokenizer(name, device)


def read_audio(path: str | os.PathLike[str]) -> Audio:
    """Read a sound or video file at its own sample rate, with all channels.

    Args:
        path: The file, or `-` for standard input.

    Raises:
        AudioFileError: The file is missing, unreadable, not audio, or contains NaN or infinite samples.
    """
    return as_audio(path)


def write_audio(path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int) -> None:
    """Write a sound file, whole or not at all, in the format that its suffix names.

    Args:
        path: Ends in .wav, .flac (both 16-bit), .ogg, .oga (Vorbis), .opus or .mp3.
        waveform: (T,) or (T, C) float in -1..1; larger values are clipped.
        sample_rate: Hz.

    Raises:
        AudioFileError: Unknown suffix, NaN or infinite samples, or a file that cannot be written.
    """
    write(path, waveform, sample_rate)


def read_nbest(path: str | os.PathLike[str]) -> list[NBest]:
    """Read N-best lists: JSON lines, HyPoradise JSON, or NeMo's beam files.

    Args:
        path: The file, or `-` for JSON lines on standard input.

    Raises:
        DataError: The file is missing or in no such format.
    """
    return list(lists_of.read_nbest(os.fspath(path)))


def write_nbest(path: str | os.PathLike[str], lists: Iterable[NBest]) -> int:
    """Write N-best lists as JSON lines, whole or not at all; return their number.

    Args:
        path: The file.
        lists: N-best lists.
    """
    from audio_llm.pipeline.batch import write_whole

    buffer = io.StringIO()
    count = lists_of.write_nbest(lists, buffer)
    write_whole(Path(path), buffer.getvalue())
    return count


def train(
    task: str,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    dev: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    parts: TrainingParts | None = None,
    run: RunOptions | None = None,
) -> TrainingResult:
    """Train a model on preprocessed shards, which the recipes write; OUTPUT/best becomes its directory.

    Args:
        task: `mask`, `codec`, `vocoder`, `tokenizer`, `gense`, `ctc`, `dlm`, `ger`, `touchtts-lm` or `touchtts-flow`.
        data: Folders of training shards; for `ger` files or folders of N-best lists with references.
        output: Folder of the training: checkpoints, log, and the best model.
        config: YAML file, or plain values by key; None: the built-in settings.
        dev: Validation data of the same form.
        parts: Models and further data that the task needs, `pipeline.train.TrainingParts(tokenizer=...)`.
        run: Time limit, device and so on.

    Returns:
        Steps, minutes, and the best validation value.

    Raises:
        UsageError: No task has that name, or data or parts are missing.
        ConfigError: The configuration has an unknown key or a value of the wrong kind.
    """
    from audio_llm.pipeline.train import train_model

    return train_model(task, data, output, config, dev, (), parts, run)


def list_models() -> list[ModelInfo]:
    """Return the models that ship with the package or are installed."""
    from audio_llm import hub

    return hub.list_models()


def load(name: str | os.PathLike[str], device: str = "cpu") -> Any:
    """Load any model as the object that uses it: a corrector, recognizer, enhancer, codec, ...

    Args:
        name: A folder, or the name of a model that ships or is installed.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelFormatError: It is damaged, or of a kind that cannot be loaded.
    """
    from audio_llm.pipeline.load import load_model_object

    return load_model_object(name, device)


def _whisper_options(language: str | None) -> WhisperOptions | None:
    if language is None:
        return None
    from audio_llm.asr.whisper import WhisperOptions

    return WhisperOptions(language=language)
