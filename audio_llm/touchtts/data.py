"""Utterances with text and semantic tokens, packed in shards: the training data of all parts of TouchTTS."""

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

MARGIN_S = 0.06  # silence that is left at both ends of an utterance
LONGEST_S = 20.0  # longer utterances are left out
_BATCH_S = 60.0  # sound that is tokenized at once, in seconds
_TEXTS = ("id", "voice", "speaker", "text")


@dataclass(frozen=True)
class TtsUtterance:
    """An utterance and its text.

    Attributes:
        id: Name of the utterance.
        voice: Voice that the language model learns: one speaker, or a group of speakers.
        speaker: The individual speaker.
        text: Original text, before normalization.
        waveform: (T,) float32 at 16 kHz; trimmed and leveled when packed.
        is_synthetic: Whether another synthesizer spoke it: it teaches the language model, not how a speaker sounds.
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
    """Write utterances with their tokens; return how many. Utterances without pronounceable text are left out.

    Args:
        utterances: The utterances to write.
        tokenizer: Tokenizer of 25 tokens a second; one of this package also gives its continuous features.
        folder: Folder of the shards.
        speaker: Speaker encoder whose vectors are stored for the flow; None: the flow uses mel spectra instead.

    Raises:
        ModelFormatError: The tokenizer has another token rate.
    """
    if tokenizer.frame_rate != TOKEN_RATE:
        message = f"the tokenizer gives {tokenizer.frame_rate:g} tokens a second"
        raise ModelFormatError(message, remedy=f"choose one of {TOKEN_RATE:g}, such as v2_25hz")
    extra = {"tokenizer": tokenizer.fingerprint}
    if speaker is not None:
        extra |= {"speaker_file": speaker.path.name, "speaker_sha256": speaker.fingerprint}
    return write_shards(_rows(utterances, tokenizer, speaker), folder, extra=extra)


class UtterancePack:
    """Packed utterances.

    Args:
        folders: Folders written by `pack_utterances`, read as one.

    Attributes:
        tokenizer: Fingerprint of the tokenizer.
        speaker: Name and fingerprint of the speaker encoder's file; empty without one.
        counts: (N,) int64, tokens of each utterance.
        samples: (N,) int64, samples of each waveform; 0 for synthetic utterances.
        voices: Voice of each utterance.
        speakers: Speaker of each utterance.
        normalized: Normalized texts.
        texts: Original texts.

    Raises:
        DataError: A pack is missing, damaged or empty, or two have different tokenizers or speaker encoders.
    """

    def __init__(self, *folders: str | Path) -> None:
        readers = [ShardReader(folder) for folder in folders]
        tokenizers = {reader.extra.get("tokenizer") for reader in readers}
        if len(tokenizers) != 1 or not any(map(len, readers)):
            remedy = "pack all utterances with one tokenizer"
            raise DataError(
                "no utterances, or of different tokenizers", path=folders[0] if folders else None, remedy=remedy
            )
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
        """Return the tokens of an utterance: (T,) int32."""
        return self._row(number)["tokens"]

    def states(self, number: int) -> np.ndarray:
        """Return the tokenizer's continuous features: (T, width) float16; (0, width) for a synthetic utterance.

        The width is 0 where the tokenizer has no such features.
        """
        return self._row(number)["states"]

    def pcm(self, number: int) -> np.ndarray:
        """Return the waveform: (S,) int16 at 16 kHz; empty for a synthetic utterance."""
        return self._row(number)["pcm"]

    def vector(self, number: int) -> np.ndarray:
        """Return the speaker vector, (192,) float32; empty for a synthetic utterance, or without a speaker encoder."""
        return self._row(number).get("vector", np.zeros(0, np.float32))

    def _row(self, number: int) -> dict[str, np.ndarray]:
        reader, row = self._index[number]
        return reader[row]


def trim_and_level(waveform: np.ndarray) -> np.ndarray:
    """Return speech without silence at its ends, at the level of the training data: (T',) float32 at 16 kHz."""
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
        logger.warning("%d utterances are left out: too short, too long, or without pronounceable text", left_out)


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
    """Return name and fingerprint of the file of the speaker encoder that some packs were made with."""
    speaker_files = {reader.extra.get("speaker_sha256", ""): reader.extra.get("speaker_file", "") for reader in readers}
    if len(speaker_files) > 1:
        remedy = "pack all recorded utterances with one speaker encoder, or all without"
        raise DataError("packs of different speaker encoders", path=readers[0].folder, remedy=remedy)
    return next(((name, sha256) for sha256, name in speaker_files.items()), ("", ""))


def _is_speakable(text: str) -> bool:
    try:
        return bool(normalize_text(text).symbols)
    except UnspeakableError:
        return False
