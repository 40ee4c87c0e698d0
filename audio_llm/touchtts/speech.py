"""Text to speech, whole or streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audio_llm import audio
from audio_llm.codec.mel import LOG_FLOOR, N_MELS, SAMPLE_RATE, log_mel
from audio_llm.errors import AudioFileError, AudioLLMError, ModelNotFoundError, UsageError
from audio_llm.lm.sampling import seed_of
from audio_llm.simulation.sources import to_pcm
from audio_llm.touchtts.data import trim_and_level
from audio_llm.touchtts.flow import FRAMES, FlowRun, frames_at_once
from audio_llm.touchtts.models import TouchModel, load_touchtts, voice_of
from audio_llm.touchtts.text import NormalizedText, UnspeakableError, normalize_text, sentences, without_tags
from audio_llm.touchtts.time_stretch import TimeStretch

SLOWEST, FASTEST = 0.5, 2.0
CHUNK = 10  # tokens of 40 ms that are synthesized at a time
PAUSE_S = 0.25  # between sentences
DEFAULT_LM_VOICE = "reader"  # the language model's voice for a reference
_LEAST_REFERENCE_S = 1.0
_MOST_REFERENCE_S = 10.0
_PROMPT = 50  # tokens of a reference that are the prompt of the flow, two seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """A chunk of speech.

    Attributes:
        waveform: (T,) float32 at 16 kHz.
        start_s: Start in seconds.
        tokens: Speech tokens of its sentence generated so far.
        sentence: Index of its sentence, from 0; the pause after a sentence belongs to it.
        truncated: Whether its sentence was cut off here because the model had exceeded the longest duration.
    """

    waveform: np.ndarray = field(repr=False)
    start_s: float
    tokens: int
    sentence: int
    truncated: bool = False


@dataclass(frozen=True)
class Speech:
    """A synthesized text.

    Attributes:
        waveform: (T,) float32 at 16 kHz.
        sentences: Normalized text of each sentence.
        tokens: Speech tokens of each sentence.
        truncated: Indices of the sentences that were cut off.
    """

    waveform: np.ndarray = field(repr=False)
    sentences: tuple[NormalizedText, ...]
    tokens: tuple[tuple[int, ...], ...] = field(repr=False)
    truncated: tuple[int, ...]


class Reference(NamedTuple):
    """A voice to synthesize.

    Attributes:
        lm_voice: Name of the language model's voice.
        embedding: (1, width) float32, voice embedding of the flow.
        tokens: (1, N) int64, prompt of the flow; may be empty.
        mel: (1, 2 N, 80) float32, log-mel frames of the prompt.
    """

    lm_voice: str
    embedding: Tensor
    tokens: Tensor = torch.zeros(1, 0, dtype=torch.int64)
    mel: Tensor = torch.zeros(1, 0, N_MELS)

    def in_chunks(self, chunk: int) -> Reference:
        """Return the same with the prompt cut to whole chunks of that many tokens."""
        count = self.tokens.shape[1] // chunk * chunk
        return self._replace(tokens=self.tokens[:, :count], mel=self.mel[:, : FRAMES * count])


class TouchTTS:
    """A text-to-speech model.

    Args:
        model: All parts of the model.

    Attributes:
        sample_rate: Sample rate of all waveforms in Hz.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: TouchModel) -> None:
        self.model = model

    @classmethod
    def load(cls, name_or_dir: str | Path, device: str = "cpu") -> TouchTTS:
        """Load a model; raises as `models.load_touchtts`."""
        return cls(load_touchtts(name_or_dir, device))

    @property
    def voices(self) -> list[str]:
        """Names of the learned voices."""
        return sorted(self.model.voices)

    def synthesize(
        self, text: str, voice: str | Path | None = None, speed: float = 1.0, seed: int = 0, chunk: int | None = None
    ) -> Speech:
        """Synthesize a text.

        Args:
            text: English text of any length; it is synthesized sentence by sentence.
            voice: A name from `voices`, or a recording to imitate (roughly: the model was trained on few speakers and
                does not clone voices); None selects the first voice.
            speed: Speaking rate, 0.5 to 2, at unchanged pitch.
            seed: Random seed; the same seed gives the same speech.
            chunk: Tokens per synthesis step, with little lookahead, as in `stream`; None: whole sentences, of slightly
                better quality.

        Raises:
            UnspeakableError: Nothing in the text can be pronounced.
            UsageError: Unknown voice, or a speed or chunk out of range.
            AudioFileError: The reference cannot be read, or is too short or silent.
            ModelNotFoundError: The speaker encoder that a reference needs is missing.
        """
        reference, normalized = self.voice(voice), normalized_sentences(text)
        _check(speed, chunk)
        sounds, tokens, truncated = [], [], []
        for number, sentence in enumerate(normalized):
            generated = list(self._tokens(sentence, reference, seed, number))
            tokens.append(tuple(generated))
            if self._is_cut(len(generated), sentence, reference):
                truncated.append(number)
            sounds += [
                self.sound(generated, reference, seed_of(seed, number), chunk, speed),
                _pause(number, normalized),
            ]
        return Speech(_checked(np.concatenate(sounds)), tuple(normalized), tuple(tokens), tuple(truncated))

    def stream(
        self, text: str, voice: str | Path | None = None, speed: float = 1.0, seed: int = 0, chunk: int | None = CHUNK
    ) -> Iterator[Chunk]:
        """Yield speech as it is synthesized; concatenated, it equals what `synthesize` returns for the same `chunk`.

        The first chunk comes after `chunk` + `lookahead` tokens; without chunks, each sentence is one chunk.
        Arguments and errors as for `synthesize`; errors in the arguments are raised at once, not at the first chunk.
        """
        _check(speed, chunk)
        return self._stream(normalized_sentences(text), self.voice(voice), speed, seed, chunk)

    def _stream(
        self, normalized: list[NormalizedText], reference: Reference, speed: float, seed: int, chunk: int | None
    ) -> Iterator[Chunk]:
        start = 0
        for number, sentence in enumerate(normalized):
            generated: list[int] = []
            tokens = self._tokens(sentence, reference, seed, number)
            for sound, last in self._pieces(tokens, generated, reference, seed_of(seed, number), chunk, speed):
                if last:
                    sound = np.concatenate([sound, _pause(number, normalized)])
                truncated = last and self._is_cut(len(generated), sentence, reference)
                yield Chunk(_checked(sound), start / SAMPLE_RATE, len(generated), number, truncated)
                start += len(sound)

    @torch.inference_mode()
    def sound(
        self, tokens: Iterable[int], voice: Reference, seed: int = 0, chunk: int | None = None, speed: float = 1.0
    ) -> np.ndarray:
        """Return the waveform (T,) float32 for speech tokens, 640 samples per token at speed 1.

        Args:
            tokens: Tokens of one utterance.
            voice: The voice.
            seed: Random seed.
            chunk: As for `synthesize`.
            speed: As for `synthesize`.
        """
        given = torch.tensor([list(tokens)], dtype=torch.int64, device=voice.embedding.device)
        if not given.shape[1]:
            return np.zeros(0, np.float32)
        return _samples(self.model.vocoder(TimeStretch(speed).step(self._mel(given, voice, seed, chunk))))

    def voice(self, name: str | Path | None = None) -> Reference:
        """Return a voice: a learned one by name, or the voice of a recording.

        Raises:
            UsageError: No voice or file has that name.
            AudioFileError: The recording has too little speech, or cannot be read.
            ModelNotFoundError: The speaker encoder that a reference needs is missing.
        """
        name = self.voices[0] if name is None else name
        if str(name) in self.model.voices:
            sound = self.model.voices[str(name)]
            empty = Reference(str(name), sound)
            return empty._replace(tokens=empty.tokens.to(sound.device), mel=empty.mel.to(sound.device))
        if not Path(name).is_file():
            remedy = f"use one of {', '.join(self.voices)}, or a recording"
            raise UsageError(f"unknown voice {str(name)!r}", remedy=remedy)
        return self.reference(audio.read(name), name)

    @torch.inference_mode()
    def reference(self, waveform: np.ndarray, name: str | Path = "the reference") -> Reference:
        """Return the voice of a recording (T,) float32 at 16 kHz.

        Raises:
            AudioFileError: The recording has too little speech.
            ModelNotFoundError: The speaker encoder that a reference needs is missing.
        """
        speech = trim_and_level(waveform)[: int(_MOST_REFERENCE_S * SAMPLE_RATE)]
        if speech.size < _LEAST_REFERENCE_S * SAMPLE_RATE:
            seconds = speech.size / SAMPLE_RATE
            remedy = f"give a recording with {_LEAST_REFERENCE_S:g} s of speech or more"
            raise AudioFileError(f"there are {seconds:.1f} s of speech in it", path=name, remedy=remedy)
        voices = self.model.lm.config.voices
        file = self.model.flow.config.speaker_file
        if file and self.model.speaker is None:
            message = f"{file} is the speaker encoder that this model needs for a recording, and is missing"
            raise ModelNotFoundError(message, path=name, remedy="put that file next to the model directory")
        vector = None if self.model.speaker is None else self.model.speaker.encode(speech)
        sound = voice_of(self.model.flow, to_pcm(speech), vector)
        waveforms = torch.from_numpy(speech)[None].to(sound.device)
        tokens = self.model.tokenizer.encode(waveforms, torch.tensor([speech.size], device=sound.device)).tokens[
            :, :_PROMPT
        ]
        count = FRAMES * tokens.shape[1]
        mel = log_mel(waveforms)[:, :count]
        mel = torch.nn.functional.pad(mel, (0, 0, 0, count - mel.shape[1]), value=LOG_FLOOR)
        return Reference(DEFAULT_LM_VOICE if DEFAULT_LM_VOICE in voices else voices[0], sound, tokens, mel)

    def _mel(self, tokens: Tensor, voice: Reference, seed: int, chunk: int | None) -> Tensor:
        if chunk is not None:
            shown = voice.in_chunks(chunk)
            return frames_at_once(self.model.flow, voice.embedding, tokens, chunk, seed, shown.tokens, shown.mel)
        run = FlowRun(self.model.flow, voice.embedding, seed)
        mel = run.next_frames(torch.cat([voice.tokens, tokens], dim=1), tokens[:, :0], voice.mel)
        return mel[:, voice.mel.shape[1] :]

    def _pieces(
        self,
        tokens: Iterator[int],
        generated: list[int],
        reference: Reference,
        seed: int,
        chunk: int | None,
        speed: float,
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield waveforms, and whether each is the last, as early as possible; fill `generated` with the tokens."""
        if chunk is None:
            generated += tokens
            yield self.sound(generated, reference, seed, speed=speed), True
            return
        run, state = FlowRun(self.model.flow, reference.embedding, seed, chunk), self.model.vocoder.first_state()
        time_stretch, prompt = TimeStretch(speed), reference.in_chunks(chunk)
        for first in range(0, prompt.tokens.shape[1], chunk):
            prompt_tokens, following = prompt.tokens[:, first : first + chunk], prompt.tokens[:, first + chunk :]
            mel = prompt.mel[:, FRAMES * first : FRAMES * (first + chunk)]
            run.next_frames(prompt_tokens, following[:, : self.model.flow.config.lookahead], mel)
        ahead, done, more = self.model.flow.config.lookahead, 0, True
        while True:
            while more and len(generated) < done + chunk + ahead:
                token = next(tokens, None)
                more = token is not None
                generated += [] if token is None else [token]
            last = not more and len(generated) <= done + chunk
            parts = generated[done : done + chunk], generated[done + chunk :][:ahead]
            mel = run.next_frames(*(torch.tensor([part], dtype=torch.int64) for part in parts))
            sound, state = self.model.vocoder.step(time_stretch.step(mel), state, last)
            yield _samples(sound), last
            done += len(parts[0])
            if last:
                return

    def _tokens(self, sentence: NormalizedText, reference: Reference, seed: int, number: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(seed, number))
        for (token,) in self.model.lm.generate([sentence], reference.lm_voice, generator=generator):
            yield token

    def _is_cut(self, count: int, sentence: NormalizedText, reference: Reference) -> bool:
        cut = count >= self.model.lm.most_tokens(sentence, reference.lm_voice)
        if cut:
            logger.warning("cut off at the longest duration: %r", sentence.text[:60])
        return cut


def normalized_sentences(text: str) -> list[NormalizedText]:
    """Return the normalized sentences of a text; what cannot be pronounced is logged.

    Raises:
        UnspeakableError: Nothing in the text can be pronounced.
    """
    normalized: list[NormalizedText] = []
    plain, tags = without_tags(text)
    left_out = dict.fromkeys(tags)
    for sentence in sentences(plain):
        try:
            normalized.append(normalize_text(sentence))
            left_out |= dict.fromkeys(normalized[-1].left_out)
        except UnspeakableError as error:
            logger.info("%s", error)
            left_out[sentence[:20]] = None
    if not normalized:
        normalize_text(text)  # raises an error that names its characters
        raise UnspeakableError("nothing to pronounce", remedy="give English words")
    if left_out:
        logger.warning("not pronounced: %s", ", ".join(list(left_out)[:10]))
    return normalized


def _samples(sound: Tensor) -> np.ndarray:
    return np.asarray(sound[0].cpu().numpy())


def _check(speed: float, chunk: int | None) -> None:
    if not SLOWEST <= speed <= FASTEST:
        raise UsageError(f"a speed of {speed:g} is outside {SLOWEST:g} to {FASTEST:g}", remedy="give a value near 1")
    if chunk is not None and chunk < 1:
        raise UsageError(f"a chunk of {chunk} tokens", remedy="give 1 or more")


def _pause(number: int, normalized: list[NormalizedText]) -> np.ndarray:
    """Return the silence after a sentence; none after the last one."""
    return np.zeros(int(PAUSE_S * SAMPLE_RATE) if number + 1 < len(normalized) else 0, np.float32)


def _checked(waveform: np.ndarray) -> np.ndarray:
    if not np.isfinite(waveform).all():
        raise AudioLLMError("the model produced a waveform that is not finite", remedy="get the model again")
    return np.clip(waveform, -1.0, 1.0)
