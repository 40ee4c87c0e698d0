"""Speech recognition, error correction, speech enhancement, target speaker extraction and text-to-speech."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_llm.asr import base
    from audio_llm.asr.whisper import WhisperOptions
    from audio_llm.gense.enhance import Enhancement
    from audio_llm.pipeline.formats import Transcript
    from audio_llm.tse.extract import Extraction

__version__ = "0.1.0"
__all__ = ["Recognizer", "__version__", "enhance", "extract", "load", "transcribe"]


class Recognizer:
    """Speech recognizers by name."""

    @staticmethod
    def load(name: str = "auto", device: str = "cpu", language: str | None = None) -> base.Recognizer:
        """Load a recognizer.

        Args:
            name: `auto` for the best installed one, `whisper-base`, another Whisper or its folder, `sphinx`, ...
            device: `cpu`, `cuda` or `auto`.
            language: Language code; None lets Whisper detect it.

        Returns:
            A recognizer of (T,) float32 waveforms at 16 kHz: `recognize(waveform, nbest=5)` returns an N-best list,
            `score(waveform, texts)` returns log p(text | audio) of given texts.

        Raises:
            ModelNotFoundError: There is no such model.
            UsageError: No recognizer has that name, or it does not know the language.
        """
        from audio_llm.asr.engines import load_recognizer

        return load_recognizer(name, device=device, options=_whisper_options(language))


def enhance(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mix: float = 0.0,
    model: str | os.PathLike[str] = "mask-small",
    device: str = "cpu",
) -> Enhancement:
    """Remove the noise from a recording; for many recordings, reuse one `gense.enhance.Enhancer`.

    Args:
        path: The recording; channels are enhanced separately.
        output: The sound file to write, with the same duration, sample rate and channels.
        mix: Fraction of the original recording in the output, 0 to 1.
        model: A model directory or a name.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Report of every chunk, and warnings.

    Raises:
        AudioFileError: A file cannot be read or written, or holds no sound.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.gense.enhance import Enhancer

    return Enhancer.load(model, device=device).enhance(path, output, mix)


def extract(
    mixture: str | os.PathLike[str],
    enroll: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mix: float = 0.0,
    model: str | os.PathLike[str] = "tse-small",
    device: str = "cpu",
) -> Extraction:
    """Isolate one speaker in a binaural recording, enrolled by a few seconds recorded while facing the speaker.

    Args:
        mixture: The recording, left ear first.
        enroll: The enrollment: binaural sound file of 1 to 10 s recorded while facing the speaker.
        output: The two-channel sound file to write, with the same duration and sample rate.
        mix: Fraction of the original recording in the output, 0 to 1.
        model: A model directory or a name.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Counts and warnings.

    Raises:
        AudioFileError: A file cannot be read or written, or the enrollment is too short or silent.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.tse.extract import extract as extract_file

    return extract_file(mixture, enroll, output, mix, model, device)


def load(name_or_dir: str | os.PathLike[str], device: str = "cpu") -> Any:
    """Return the object of a model directory: a corrector, a recognizer, an enhancer, a codec or a tokenizer.

    Args:
        name_or_dir: A folder, or the name of a model shipped with the package or downloaded before.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelFormatError: It is damaged, or of a kind that has no object.
    """
    from audio_llm.pipeline.load import load_model_object

    return load_model_object(name_or_dir, device)


def transcribe(
    path: str | os.PathLike[str],
    recognizer: str = "auto",
    correct: str | None = None,
    model: str | None = None,
    nbest: int | None = None,
    device: str = "cpu",
    language: str | None = None,
) -> Transcript:
    """Transcribe one sound file; for many files, reuse one `pipeline.transcribe.Transcriber`.

    Args:
        path: The file, or `-` for standard input.
        recognizer: `auto` for the best installed one, `whisper-base`, another Whisper, `sphinx`, `ctc` or `espnet`.
        correct: `dlm` to correct the text, None for no correction.
        model: The recognizer's model; None uses its default.
        nbest: Number of hypotheses; None: 5 with a corrector, else 1.
        device: `cpu`, `cuda` or `auto`.
        language: Language code; None lets Whisper detect it.

    Returns:
        Text, word times, hypotheses and corrections.

    Raises:
        AudioFileError: The file cannot be read as sound.
        ModelNotFoundError: There is no such model.
    """
    from audio_llm.pipeline.load import load_transcriber

    options = _whisper_options(language)
    transcriber = load_transcriber(recognizer, model, correct or "none", nbest=nbest, device=device, options=options)
    return transcriber.transcribe(path)


def _whisper_options(language: str | None) -> WhisperOptions | None:
    if language is None:
        return None
    from audio_llm.asr.whisper import WhisperOptions

    return WhisperOptions(language=language)
