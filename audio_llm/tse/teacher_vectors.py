"""The teacher's vectors: what its speaker encoder makes of everybody in a pack, kept beside the sound."""

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
_CLEAN_S = 6.0  # of one utterance for its vector
_CLEAN_UTTERANCES = 8  # of one person


def load_teacher(state: Mapping[str, Tensor]) -> SpeakerEncoder:
    """Return the teacher of a Resemblyzer state dictionary.

    Raises:
        ModelFormatError: It is that of another network.
    """
    teacher = SpeakerEncoder()
    own = {name: state[name] for name in teacher.state_dict() if name in state}
    try:
        teacher.load_state_dict(own)
    except RuntimeError as error:
        raise ModelFormatError(f"not a speaker encoder's weights: {error}", remedy="give Resemblyzer's") from None
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def person_vector(teacher: SpeakerEncoder, utterances: Sequence[np.ndarray]) -> np.ndarray:
    """Return the teacher's unit vector (256,) float32 of a person: the mean over clean utterances, each (T,)."""
    size = round(_CLEAN_S * SAMPLE_RATE)
    sounds = [sound[:size].astype(np.float32) for sound in utterances[:_CLEAN_UTTERANCES]]
    vectors = [embed(teacher, torch.from_numpy(sound)[None])[0] for sound in sounds]
    return functional.normalize(torch.stack(vectors).mean(0), dim=0).numpy()


def write_vectors(pack: Path, teacher: SpeakerEncoder) -> int:
    """Add the teacher's vector of every person to a pack; return how many there are."""
    voices = read_sources(pack).voices
    rows: Iterable[dict[str, np.ndarray]] = (
        {
            "speaker": encode_text(voice.name),
            "corpus": encode_text(voice.corpus),
            "vector": person_vector(teacher, voice.utterances),
        }
        for voice in voices
    )
    return write_shards(rows, pack / VECTORS)


def read_vectors(pack: Path, voices: Sequence[Voice]) -> Tensor:
    """Return the vectors (V, 256) of these people.

    Raises:
        DataError: The pack has no vectors, or not of all.
    """
    found = {
        (decode_text(row["speaker"]), decode_text(row["corpus"])): row["vector"] for row in ShardReader(pack / VECTORS)
    }
    missing = [voice.name for voice in voices if (voice.name, voice.corpus) not in found]
    if missing:
        raise DataError(f"no vector of {missing[0]!r}", path=pack / VECTORS, remedy="run the stage that adds them")
    return torch.from_numpy(np.stack([found[voice.name, voice.corpus] for voice in voices]))
