"""Talks: utterances with text and semantic tokens, packed; what all parts of TouchTTS learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from audio_llm.codec.codec import to_level
from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.mono import trim_silence
from audio_llm.simulation.sources import to_pcm
from audio_llm.tokenizer.base import SemanticTokenizer
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.tokenizer.s3_model import TOKEN_RATE
from audio_llm.touchtts.speaker_vectors import CamPlusPlus
from audio_llm.touchtts.text import UnspeakableError, normalize_text
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards

logger = logging.getLogger(__name__)

MARGIN_S = 0.06  # of silence that is left before and behind an utterance
LONGEST_S = 20.0  # longer utterances are left out
_BATCH_S = 60.0  # of sound that is tokenized at once
_TEXTS = ("id", "voice", "speaker", "text")


@dataclass(frozen=True)
class TtsUtterance:
    """An utterance and what is said in it.

    Attributes:
        id: Its name.
        voice: Whose way to talk the language model is to learn: a person, or a kind of people.
        speaker: Who talks.
        text: As written.
        waveform: (T,) float32 at 16 kHz; trimmed and brought to one level when packed.
        is_synthetic: Made by another program: good for learning to say text, not for how a person sounds.
    """

    id: str
    voice: str
    speaker: str
    text: str
    waveform: np.ndarray = field(repr=False)
    is_synthetic: bool = False


def pack_utterances(
    utterances: Iterable[TtsUtterance], tokenizer: SemanticTokenizer, folder: Path, speaker: CamPlusPlus | None = None
) -> int:
    """Write talks with their tokens; return how many there are. Those without anything to say are left out.

    Args:
        talks: What to write.
        tokenizer: Of 25 tokens a second; one of this package also gives what tokens are cut from.
        folder: Where to.
        speaker: What voices sound like to a flow; None: a flow listens to them itself.

    Raises:
        ModelFormatError: The tokenizer gives another number of tokens a second.
    """
    if tokenizer.frame_rate != TOKEN_RATE:
        message = f"the tokenizer gives {tokenizer.frame_rate:g} tokens a second"
        raise ModelFormatError(message, remedy=f"choose one of {TOKEN_RATE:g}, such as v2_25hz")
    extra = {"tokenizer": tokenizer.fingerprint}
    if speaker is not None:
        extra |= {"speaker_file": speaker.path.name, "speaker_sha256": speaker.fingerprint}
    return write_shards(_rows(utterances, tokenizer, speaker), folder, extra=extra)


class UtterancePack:
    """Packed talks.

    Args:
        folders: As written by `pack_utterances`, read as one.

    Attributes:
        tokenizer: Fingerprint of what made the tokens.
        speaker: Name and fingerprint of the file that tells what recorded voices sound like; empty without one.
        counts: (N,) int64, tokens of every talk.
        samples: (N,) int64, length of its sound; 0 for synthetic ones.
        voices: Whose way to talk it is.
        speakers: Who talks.
        spoken: What is said.
        texts: As written.

    Raises:
        DataError: A pack is missing or damaged, empty, or two were made by different tokenizers or speaker files.
    """

    def __init__(self, *folders: str | Path) -> None:
        readers = [ShardReader(folder) for folder in folders]
        tokenizers = {reader.extra.get("tokenizer") for reader in readers}
        if len(tokenizers) != 1 or not any(map(len, readers)):
            remedy = "pack talks with one tokenizer"
            raise DataError("no talks, or of different tokenizers", path=folders[0] if folders else None, remedy=remedy)
        self.tokenizer = str(tokenizers.pop())
        self._index = [(reader, row) for reader in readers for row in range(len(reader))]
        self.counts, self.samples = (
            np.concatenate([reader.lengths(name) for reader in readers]) for name in ("tokens", "pcm")
        )
        self.speaker = _speaker([reader for reader in readers if reader.lengths("pcm").any()])
        texts = {name: [decode_text(row) for reader in readers for row in reader.column(name)] for name in _TEXTS}
        self.ids, self.voices, self.speakers, self.texts = (texts[name] for name in _TEXTS)
        self.normalized = [normalize_text(text) for text in self.texts]

    def __len__(self) -> int:
        return len(self._index)

    def tokens(self, number: int) -> np.ndarray:
        """Return the tokens of a talk: (T,) int32."""
        return self._row(number)["tokens"]

    def states(self, number: int) -> np.ndarray:
        """Return what its tokens were cut from: (T, width) float16; (0, width) for a synthetic talk.

        The width is 0 where the tokenizer does not tell.
        """
        return self._row(number)["states"]

    def pcm(self, number: int) -> np.ndarray:
        """Return its sound: (S,) int16 at 16 kHz; empty for a synthetic talk."""
        return self._row(number)["pcm"]

    def vector(self, number: int) -> np.ndarray:
        """Return what its voice sounds like, (192,) float32; empty for a synthetic talk, or without a speaker file."""
        return self._row(number).get("vector", np.zeros(0, np.float32))

    def _row(self, number: int) -> dict[str, np.ndarray]:
        reader, row = self._index[number]
        return reader[row]


def trim_and_level(waveform: np.ndarray) -> np.ndarray:
    """Return speech trimmed, at the level that TouchTTS learns from and speaks at: (T',) float32 at 16 kHz."""
    trimmed = trim_silence(waveform, margin_s=MARGIN_S)
    return np.clip(trimmed * to_level(trimmed), -1.0, 1.0) if trimmed.size else trimmed


def _rows(
    utterances: Iterable[TtsUtterance], tokenizer: SemanticTokenizer, speaker: CamPlusPlus | None
) -> Iterator[dict[str, np.ndarray]]:
    waiting: list[tuple[TtsUtterance, np.ndarray]] = []
    seconds, left_out = 0.0, 0
    for utterance in utterances:
        sound = trim_and_level(utterance.waveform)
        if not 0.2 <= sound.size / 16_000 <= LONGEST_S or not _is_speakable(utterance.text):
            left_out += 1
            continue
        waiting.append((utterance, sound))
        seconds += sound.size / 16_000
        if seconds > _BATCH_S:
            yield from _tokenized(waiting, tokenizer, speaker)
            waiting, seconds = [], 0.0
    if waiting:
        yield from _tokenized(waiting, tokenizer, speaker)
    if left_out:
        logger.warning("%d talks are left out: too short, too long, or nothing in them can be said", left_out)


def _tokenized(
    utterances: list[tuple[TtsUtterance, np.ndarray]], tokenizer: SemanticTokenizer, speaker: CamPlusPlus | None
) -> Iterator[dict[str, np.ndarray]]:
    sounds = [torch.from_numpy(sound) for _, sound in utterances]
    lengths = torch.tensor([len(sound) for sound in sounds])
    waveforms = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    tokens, states = tokenizer.encode(waveforms, lengths), None
    if isinstance(tokenizer, S3Tokenizer) and not all(utterance.is_synthetic for utterance, _ in utterances):
        states = tokenizer.states(waveforms, lengths).half().numpy()
    for index, (utterance, sound) in enumerate(utterances):
        count = int(tokens.lengths[index])
        no_states = np.zeros((0, tokenizer.width if isinstance(tokenizer, S3Tokenizer) else 0), np.float16)
        vector = None if utterance.is_synthetic or speaker is None else speaker.encode(sound)
        yield {
            "tokens": tokens.tokens[index, :count].numpy().astype(np.int32),
            "states": no_states if utterance.is_synthetic or states is None else states[index, :count],
            "vector": np.zeros(0, np.float32) if vector is None else vector,
            "pcm": to_pcm(sound[:0] if utterance.is_synthetic else sound),
            **{name: encode_text(getattr(utterance, name)) for name in _TEXTS},
        }


def _speaker(readers: list[ShardReader]) -> tuple[str, str]:
    """Return name and fingerprint of the file that told what the voices of some packs sound like."""
    speaker_files = {reader.extra.get("speaker_sha256", ""): reader.extra.get("speaker_file", "") for reader in readers}
    if len(speaker_files) > 1:
        remedy = "pack all recorded talks with one file, or all without"
        raise DataError("different files tell what voices sound like", path=readers[0].folder, remedy=remedy)
    return next(((name, sha256) for sha256, name in speaker_files.items()), ("", ""))


def _is_speakable(text: str) -> bool:
    try:
        return bool(normalize_text(text).symbols)
    except UnspeakableError:
        return False
