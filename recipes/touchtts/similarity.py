"""Speaker similarity of synthesized speech to its reference, by a speaker encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from audio_llm.errors import DataError
from audio_llm.touchtts.data import UtterancePack
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.tse.speaker import SpeakerEncoder, embed

SENTENCES = ("The weather was fine, and we went out to sea.", "Nobody knows where the old road leads.")
_LEAST_S = 1.5  # shortest utterance that is used, in seconds
_ENROLLED_BY = 5  # utterances of a speaker at most, besides the reference and one more


def similarity(speech: TouchTTS, pack: UtterancePack, encoder: SpeakerEncoder, main_voice: str) -> Iterator[str]:
    """Yield a table of the similarity of speech to the speaker of its reference and to the others.

    Each speaker is enrolled by the mean of some utterances; another utterance is the reference.

    Args:
        speech: The synthesizer.
        pack: Utterances of speakers that are in no training.
        encoder: The speaker encoder.
        main_voice: The learned voice, which is left out.

    Raises:
        DataError: There are not two speakers with three utterances each.
    """
    waveforms: dict[str, list[np.ndarray]] = {}
    for row in np.argsort(-pack.samples, kind="stable").tolist():
        if pack.voices[row] != main_voice and pack.samples[row] >= _LEAST_S * speech.sample_rate:
            waveforms.setdefault(pack.speakers[row], []).append(pack.pcm(row).astype(np.float32) / 32768.0)
    speakers = [recordings for recordings in waveforms.values() if len(recordings) >= 3]
    if len(speakers) < 2:
        message = f"{len(speakers)} speakers with three utterances of {_LEAST_S} s"
        raise DataError(message, remedy="pack utterances of more speakers")
    enrolled = torch.stack([_embedding(encoder, recordings[2 : 2 + _ENROLLED_BY]) for recordings in speakers])
    usual = [speech.synthesize(text) for text in SENTENCES]
    tokens = [one.tokens[0] for one in usual]  # the same words and prosody in every voice
    references = [speech.reference(recordings[0]) for recordings in speakers]
    synthesized = torch.stack(
        [_embedding(encoder, [speech.sound(sentence, voice) for sentence in tokens]) for voice in references]
    )
    yield "| voice | similarity to the speaker | to the other speakers | identified as the speaker |"
    yield "|---|---|---|---|"
    references_only = torch.stack([_embedding(encoder, recordings[:1]) for recordings in speakers])
    yield _line("the reference itself", references_only, enrolled)
    second_recordings = torch.stack([_embedding(encoder, recordings[1:2]) for recordings in speakers])
    yield _line("another recording of the speaker", second_recordings, enrolled)
    yield _line("speech with the reference", synthesized, enrolled)
    yield _line("speech with another speaker's reference", synthesized.roll(1, 0), enrolled)
    main_embedding = _embedding(encoder, [one.waveform for one in usual])
    yield _line(f"speech of {main_voice}", main_embedding.expand(len(speakers), -1), enrolled)


@torch.inference_mode()
def _embedding(encoder: SpeakerEncoder, sounds: list[np.ndarray]) -> torch.Tensor:
    """Return the unit-length speaker embedding (256,)."""
    vectors = torch.stack([embed(encoder, torch.from_numpy(sound)[None])[0] for sound in sounds])
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def _line(name: str, voices: torch.Tensor, enrolled: torch.Tensor) -> str:
    """Return a row of the table, of a vector (P, 256) for each speaker."""
    cosines = voices @ enrolled.T
    same, count = cosines.diagonal(), len(enrolled)
    different = (cosines.sum() - same.sum()) / (count * (count - 1))
    right = int((cosines.argmax(1) == torch.arange(count)).sum())
    return f"| {name} | {float(same.mean()):.2f} | {float(different):.2f} | {right} of {count} |"
