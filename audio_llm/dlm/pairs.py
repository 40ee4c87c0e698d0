"""Training pairs: a synthesized or recorded sentence, degraded, and its hypotheses by a recognizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audio_llm.asr.base import Recognizer
from audio_llm.nbest import NBest
from audio_llm.simulation import mono
from audio_llm.simulation.augment import Augmentation, degrade, draw_voice
from audio_llm.text import Normalizer


@dataclass(frozen=True)
class PairItem:
    """Everything that determines a pair, except the recognizer.

    Attributes:
        text_id: Id of the sentence, `book:number`, or id of the recording.
        reference: Normalized words.
        text: Text to synthesize; unused for a recording.
        voice: Name of the voice; empty for a recording.
        audio: Path of the recording; empty for synthesized speech.
        seed: Random seed of this pair.
    """

    text_id: str
    reference: str
    text: str
    voice: str
    audio: str
    seed: int


@dataclass(frozen=True)
class Sound:
    """A waveform with the settings that produced it.

    Attributes:
        waveform: (T,) float32 at 16 kHz.
        settings: The drawn settings, as plain values.
    """

    waveform: np.ndarray
    settings: dict[str, float | str]


def item_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on the parts only."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_sound(item: PairItem, augmentation: Augmentation, noises: Sequence[np.ndarray] = ()) -> Sound:
    """Synthesize and degrade a text, or read a recording.

    Args:
        item: A text is synthesized and degraded; a recording is read and stays unchanged.
        augmentation: Ranges of the random settings.
        noises: Recordings of noise, each (N,) float32 at 16 kHz; without any, colored noise is generated.
    """
    if item.audio:
        from audio_llm import audio

        return Sound(audio.read(item.audio), {})
    from audio_llm.tts import synthesize

    rng = np.random.default_rng(item.seed)
    voice = draw_voice(augmentation, rng)
    shift = voice["voice_shift"]
    spoken = mono.shift_voice(synthesize(item.text, item.voice, voice["speed"] / shift), shift)
    waveform, settings = degrade(spoken, augmentation, rng, noises)
    return Sound(waveform, {**voice, **settings})


def make_pair(
    item: PairItem,
    recognizer: Recognizer,
    augmentation: Augmentation,
    normalizer: Normalizer,
    nbest: int,
    noises: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Return the pair as one JSON object.

    Its `hypotheses` are normalized like the reference, distinct, best first, with the recognizer's scores in nats.
    """
    sound = make_sound(item, augmentation, noises)
    recognized = recognizer.recognize(sound.waveform, nbest, item.text_id)
    row: dict[str, Any] = {
        "id": f"{item_seed(item.text_id, item.voice, item.seed, recognizer.version):016x}",
        "text_id": item.text_id,
        "reference": item.reference,
        "hypotheses": _normalized(recognized, normalizer),
        "asr": recognizer.version,
        "duration": round(sound.waveform.size / mono.SAMPLE_RATE, 3),
        "seed": item.seed,
    }
    if item.audio:
        row["audio"] = Path(item.audio).name
    else:
        row["voice"] = item.voice
        row["augmentation"] = sound.settings
    return row


def _normalized(recognized: NBest, normalizer: Normalizer) -> list[dict[str, Any]]:
    scores: dict[str, float | None] = {}
    for hypothesis in recognized.hypotheses:
        text = normalizer(hypothesis.text)
        if text not in scores:
            scores[text] = None if hypothesis.score is None else round(hypothesis.score, 3)
    return [{"text": text, "score": score} for text, score in scores.items()]
