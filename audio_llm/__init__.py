"""Speech recognition with error correction, enhancement, text to speech and target-speech extraction.

Functions take files or arrays and return typed results. Arrays are float32 in -1..1, (T,) or (T, C). Every name is
loaded on first use, so that `import audio_llm` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_llm.api import (
        Corrector,
        Recognizer,
        Tokenizer,
        correct,
        enhance,
        extract,
        list_models,
        load,
        read_audio,
        read_nbest,
        synthesize,
        train,
        transcribe,
        wer,
        write_audio,
        write_nbest,
    )
    from audio_llm.codec.codec import SpeechCodec as Codec
    from audio_llm.correction import Correction
    from audio_llm.gense.enhance import Enhancer
    from audio_llm.manifest import read_manifest
    from audio_llm.metrics import ErrorCounts
    from audio_llm.nbest import NBest
    from audio_llm.pipeline.formats import Transcript
    from audio_llm.pipeline.train import RunOptions
    from audio_llm.pipeline.transcribe import Transcriber
    from audio_llm.touchtts.speech import TouchTTS as Synthesizer
    from audio_llm.tse.extract import TargetSpeaker
    from audio_llm.waveforms import Audio

__version__ = "0.1.0"
__all__ = [
    "Audio",
    "Codec",
    "Correction",
    "Corrector",
    "Enhancer",
    "ErrorCounts",
    "NBest",
    "Recognizer",
    "RunOptions",
    "Synthesizer",
    "TargetSpeaker",
    "Tokenizer",
    "Transcriber",
    "Transcript",
    "__version__",
    "correct",
    "enhance",
    "extract",
    "list_models",
    "load",
    "read_audio",
    "read_manifest",
    "read_nbest",
    "synthesize",
    "train",
    "transcribe",
    "wer",
    "write_audio",
    "write_nbest",
]

_ELSEWHERE = {
    "Audio": "audio_llm.waveforms:Audio",
    "Codec": "audio_llm.codec.codec:SpeechCodec",
    "Correction": "audio_llm.correction:Correction",
    "Enhancer": "audio_llm.gense.enhance:Enhancer",
    "ErrorCounts": "audio_llm.metrics:ErrorCounts",
    "NBest": "audio_llm.nbest:NBest",
    "RunOptions": "audio_llm.pipeline.train:RunOptions",
    "Synthesizer": "audio_llm.touchtts.speech:TouchTTS",
    "TargetSpeaker": "audio_llm.tse.extract:TargetSpeaker",
    "Transcriber": "audio_llm.pipeline.transcribe:Transcriber",
    "Transcript": "audio_llm.pipeline.formats:Transcript",
    "read_manifest": "audio_llm.manifest:read_manifest",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'audio_llm' has no attribute {name!r}")
    module, _, attribute = _ELSEWHERE.get(name, f"audio_llm.api:{name}").partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
