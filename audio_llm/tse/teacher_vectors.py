"""The teacher's speaker vectors of all speakers in a pack, stored next to the sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from audio_llm.errors import DataError, ModelFormatError
from audio_llm.simulation.scene_plan import Voice
from audio_llm.simulation.sources import read_sources
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards
from audio_llm.tse.frames import SAMPLE_RATE
from audio_llm.tse.speaker import SpeakerEncoder, embed

VECTORS = "vectors"  # folder of a pack
_CLEAN_S = 6.0  # of an utterance that are encoded
_CLEAN_UTTERANCES = 8  # of one speaker


def load_teacher(state: Mapping[str, Tensor]) -> SpeakerEncoder:
    """Return the teacher from a Resemblyzer state dictionary.

    Raises:
        ModelFormatError: The weights belong to another network.
    """
    teacher = SpeakerEncoder()
    weights = {name: state[name] for name in teacher.state_dict() if name in state}
    try:
        teacher.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFormatError(f"not a speaker encoder's weights: {error}", remedy="give Resemblyzer's") from None
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def speaker_vector(teacher: SpeakerEncoder, utterances: Sequence[np.ndarray]) -> np.ndarray:
    """Return the teacher's unit vector (256,) float32 of a speaker: the mean over clean utterances, each (T,)."""
    size = round(_CLEAN_S * SAMPLE_RATE)
    sounds = [sound[:size].astype(np.float32) for sound in utterances[:_CLEAN_UTTERANCES]]
    vectors = [embed(teacher, torch.from_numpy(sound)[None])[0] for sound in sounds]
    return functional.normalize(torch.stack(vectors).mean(0), dim=0).numpy()


def write_vectors(pack: Path, teacher: SpeakerEncoder) -> int:
    """Add the teacher's vector of every speaker to a pack; return the number of vectors."""
    voices = read_sources(pack).voices
    rows: Iterable[dict[str, np.ndarray]] = (
        {
            "speaker": encode_text(voice.name),
            "corpus": encode_text(voice.corpus),
            "vector": speaker_vector(teacher, voice.utterances),
        }
        for voice in voices
    )
    return write_shards(rows, pack / VECTORS)


def read_vectors(pack: Path, voices: Sequence[Voice]) -> Tensor:
    """Return the vectors (V, 256) of these speakers.

    Raises:
        DataError: The pack has no vectors, or a speaker's is missing.
    """
    by_speaker = {
        (decode_text(row["speaker"]), decode_text(row["corpus"])): row["vector"] for row in ShardReader(pack / VECTORS)
    }
    missing = [voice.name for voice in voices if (voice.name, voice.corpus) not in by_speaker]
    if missing:
        raise DataError(f"no vector of {missing[0]!r}", path=pack / VECTORS, remedy="run the stage that adds them")
    return torch.from_numpy(np.stack([by_speaker[voice.name, voice.corpus] for voice in voices]))
