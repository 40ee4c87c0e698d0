"""Text to waveform with the programs flite and festival, and with TouchTTS."""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.errors import AudioLLMError, MissingDependencyError, UsageError

SAMPLE_RATE = 16_000  # Hz, of every returned waveform
_APT = "apt-get install flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"


@dataclass(frozen=True)
class Voice:
    """A voice of an engine.

    Attributes:
        name: `engine:voice`.
        engine: `flite`, `festival` or `touchtts`.
        engine_name: Name of the voice in the engine.
        speaker: Name of the speaker, shared by the synthesizers of one speaker.
    """

    name: str
    engine: str
    engine_name: str
    speaker: str


PHONES = (  # of the flite voices; the first is a pause  # noqa: SIM905
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
).split()


@dataclass(frozen=True)
class Phone:
    """A phone of synthesized speech.

    Attributes:
        symbol: Mostly one of `PHONES`.
        end_s: Its end in seconds; it begins at the end of the previous one.
    """

    symbol: str
    end_s: float


@dataclass(frozen=True)
class SynthesizedSpeech:
    """Speech of an engine.

    Attributes:
        waveform: (T,) float32 at 16 kHz in -1..1; empty for a text without a letter or digit.
        phones: Its phones with times; empty for engines that do not report them (festival, TouchTTS).
    """

    waveform: np.ndarray
    phones: tuple[Phone, ...] = ()


VOICES = {
    voice.name: voice
    for voice in (
        Voice("flite:rms", "flite", "rms", "rms"),
        Voice("flite:slt", "flite", "slt", "slt"),
        Voice("flite:awb", "flite", "awb", "awb"),
        Voice("flite:kal16", "flite", "kal16", "kal"),
        Voice("festival:kal", "festival", "kal_diphone", "kal"),
        Voice("festival:ked", "festival", "ked_diphone", "ked"),
        Voice("festival:slt", "festival", "cmu_us_slt_arctic_hts", "slt"),
    )
}


_NETWORK = "touchtts"
_MODEL = "touchtts-small"


class SynthesisError(AudioLLMError):
    """An engine failed or did not finish on one text."""


def list_voices(names: list[str] | None = None) -> list[Voice]:
    """Return the voices of these names, or all of the programs, after checking that their engines are installed.

    A name `touchtts:VOICE` is a voice of the model `touchtts-small`, which is loaded once in a process.

    Raises:
        UsageError: Unknown voice. espeak-ng is refused by name: the embedded recognizer has a word error rate of 75 to
            88 % on it, so that pairs made with it teach a corrector to invent text.
        MissingDependencyError: The engine is not installed.
    """
    voices = []
    for name in names if names is not None else list(VOICES):
        if name.startswith(f"{_NETWORK}:"):
            voices.append(_network_voice(name))
            continue
        if name not in VOICES:
            hint = "espeak-ng is not used: its word error rate is above 75 %; " if name.startswith("espeak") else ""
            raise UsageError(f"unknown voice {name!r}", remedy=f"{hint}use one of {', '.join(VOICES)}")
        _program(VOICES[name].engine)
        voices.append(VOICES[name])
    return voices


def synthesize(text: str, voice: str, speed: float = 1.0, timeout_s: float = 60.0) -> np.ndarray:
    """Synthesize a text.

    Args:
        text: The text.
        voice: A name of `VOICES`, or `touchtts:VOICE`.
        speed: Rate of speech; 2.0 halves the duration at unchanged pitch.
        timeout_s: Limit for the engine's process in seconds.

    Returns:
        (T,) float32 at 16 kHz in -1..1; empty for a text without a letter or digit.

    Raises:
        UsageError: Unknown voice, or a speed outside 0.3 to 3 (0.5 to 2 with TouchTTS).
        MissingDependencyError: The engine is not installed.
        SynthesisError: The engine failed or exceeded the time limit.
    """
    return speak(text, voice, speed, timeout_s).waveform


def speak(text: str, voice: str, speed: float = 1.0, timeout_s: float = 60.0) -> SynthesizedSpeech:
    """Synthesize a text, with the times of its phones; arguments and errors as for `synthesize`."""
    if not 0.3 <= speed <= 3.0:
        raise UsageError(f"a speed of {speed} is outside 0.3 to 3", remedy="give a value near 1")
    (known,) = list_voices([voice])
    if not any(character.isalnum() for character in text):
        return SynthesizedSpeech(np.zeros(0, np.float32))
    if known.engine == _NETWORK:
        return SynthesizedSpeech(_network().synthesize(text, known.engine_name, speed).waveform)
    with tempfile.TemporaryDirectory(prefix="audio-llm-tts-") as folder:
        out = Path(folder) / "speech.wav"
        source = Path(folder) / "text.txt"
        source.write_text(text, encoding="utf-8")
        command, stdin = _COMMANDS[known.engine](known, source, out, 1.0 / speed)
        try:
            printed = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, check=True).stdout
        except subprocess.TimeoutExpired:
            raise SynthesisError(
                f"{voice} did not finish in {timeout_s:g} s on {text[:60]!r}", remedy="split the text into sentences"
            ) from None
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace")[-200:]
            raise SynthesisError(f"{voice} failed on {text[:60]!r}: {reason}") from None
        if not out.exists():
            raise SynthesisError(f"{voice} produced no sound for {text[:60]!r}")
        return SynthesizedSpeech(_read_16k(out), _phones(printed.decode()) if known.engine == "flite" else ())


def _network_voice(name: str) -> Voice:
    voice = name.partition(":")[2]
    known = _network().voices
    if voice not in known:
        remedy = f"use one of {', '.join(f'{_NETWORK}:{voice_name}' for voice_name in known)}"
        raise UsageError(f"unknown voice {name!r}", remedy=remedy)
    return Voice(name, _NETWORK, voice, voice)


@functools.cache
def _network() -> Any:
    """Return the TouchTTS model; its package is a system that imports this one, so it is imported here by name."""
    return importlib.import_module("audio_llm.touchtts.speech").TouchTTS.load(_MODEL)


def _phones(printed: str) -> tuple[Phone, ...]:
    """Parse flite's list of phones, `symbol:end` each."""
    fields = (field.rpartition(":") for field in printed.split() if ":" in field)
    return tuple(Phone(symbol, float(end)) for symbol, _, end in fields)


def _flite(voice: Voice, source: Path, out: Path, stretch: float) -> tuple[list[str], bytes]:
    settings = ["--setf", f"duration_stretch={stretch:.4f}"]
    return [_program("flite"), "-voice", voice.engine_name, *settings, "-psdur", "-f", str(source), "-o", str(out)], b""


def _festival(voice: Voice, source: Path, out: Path, stretch: float) -> tuple[list[str], bytes]:
    text = source.read_text(encoding="utf-8").replace("\\", " ").replace('"', " ")
    rate = ""
    if voice.engine_name.endswith("_hts"):  # this kind of voice has its own durations and ignores the parameter
        rate = f'(set! hts_engine_params (cons (list "-r" {1.0 / stretch:.4f}) hts_engine_params))\n'
    commands = (
        f"(voice_{voice.engine_name})\n(Parameter.set 'Duration_Stretch {stretch:.4f})\n{rate}"
        f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{out}" \'riff)\n'
    )
    return [_program("festival"), "--pipe"], commands.encode()


_COMMANDS = {"flite": _flite, "festival": _festival}


@functools.cache
def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingDependencyError(f"the program {name} is not installed", remedy=f"on Debian or Ubuntu: {_APT}")
    return path


def _read_16k(path: Path) -> np.ndarray:
    import soundfile
    import soxr

    waveform, sample_rate = soundfile.read(path, dtype="float32")
    if waveform.ndim > 1:
        waveform = waveform.mean(axis=1)
    if sample_rate != SAMPLE_RATE and waveform.size:
        waveform = soxr.resample(waveform, sample_rate, SAMPLE_RATE)
    return np.asarray(waveform, dtype=np.float32)
