"""How near speech comes to a voice that it was asked to sound like, in the ears of a speaker encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from audio_llm.errors import DataError
from audio_llm.touchtts.data import TalkPack
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.tse.speaker import SpeakerEncoder, embed

SENTENCES = ("The weather was fine, and we went out to sea.", "Nobody knows where the old road leads.")
_LEAST_S = 1.5  # of a talk
_KNOWN_BY = 5  # talks of a person, at most, beside the reference and one more


def likeness(speech: TouchTTS, pack: TalkPack, encoder: SpeakerEncoder, main_voice: str) -> Iterator[str]:
    """Yield a table: who the encoder takes speech for that was asked to sound like a person of the pack.

    Each person is known by the mean of some talks, and lends one other talk as the reference.

    Args:
        speech: Who speaks.
        pack: Talks of people that nothing has learned from.
        encoder: Who judges.
        main_voice: Left out: the voice that the model has learned.

    Raises:
        DataError: There are not two people with three talks each.
    """
    talks: dict[str, list[np.ndarray]] = {}
    for row in np.argsort(-pack.samples, kind="stable").tolist():
        if pack.voices[row] != main_voice and pack.samples[row] >= _LEAST_S * speech.sample_rate:
            talks.setdefault(pack.speakers[row], []).append(pack.pcm(row).astype(np.float32) / 32768.0)
    people = [own for own in talks.values() if len(own) >= 3]
    if len(people) < 2:
        raise DataError(f"{len(people)} people with three talks of {_LEAST_S} s", remedy="pack talks of more people")
    known = torch.stack([_voice(encoder, own[2 : 2 + _KNOWN_BY]) for own in people])
    usual = [speech.speak(text) for text in SENTENCES]
    tokens = [one.tokens[0] for one in usual]  # the same words and the same way to talk in every voice
    lent = [speech.reference(own[0]) for own in people]
    said = torch.stack([_voice(encoder, [speech.sound(own, who) for own in tokens]) for who in lent])
    yield "| voice | likeness to the person | to the others | taken for the person |"
    yield "|---|---|---|---|"
    yield _line("the reference itself", torch.stack([_voice(encoder, own[:1]) for own in people]), known)
    yield _line("another recording of the person", torch.stack([_voice(encoder, own[1:2]) for own in people]), known)
    yield _line("speech with the reference", said, known)
    yield _line("speech with another one's reference", said.roll(1, 0), known)
    own_voice = _voice(encoder, [one.waveform for one in usual])
    yield _line(f"speech of {main_voice}", own_voice.expand(len(people), -1), known)


@torch.inference_mode()
def _voice(encoder: SpeakerEncoder, sounds: list[np.ndarray]) -> torch.Tensor:
    """Return the unit vector (256,) of a person."""
    vectors = torch.stack([embed(encoder, torch.from_numpy(sound)[None])[0] for sound in sounds])
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def _line(name: str, voices: torch.Tensor, known: torch.Tensor) -> str:
    """Return a row of the table, for a vector (P, 256) of each person."""
    alike = voices @ known.T
    own, count = alike.diagonal(), len(known)
    others = (alike.sum() - own.sum()) / (count * (count - 1))
    right = int((alike.argmax(1) == torch.arange(count)).sum())
    return f"| {name} | {float(own.mean()):.2f} | {float(others):.2f} | {right} of {count} |"
