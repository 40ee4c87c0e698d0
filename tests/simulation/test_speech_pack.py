"""Packs of utterances and noises return what was written, except what is filtered out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audio_llm.errors import DataError
from audio_llm.simulation.speech_pack import SpeechPack, Utterance, clean_targets, write_speech_pack


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


UTTERANCES = [
    Utterance("a-1", "anna", "one", "the cat", 8000, 40.0, noise(16_000, 1)),
    Utterance("a-2", "anna", "one", "", 4000, 30.0, noise(5, 2)),
    Utterance("b-1", "büke", "two", "déjà vu", 7500, 20.0, (3000 * noise(800, 3)).astype(np.int16)),
    Utterance("c-1", "carl", "two", "the dog", 8000, 0.0, noise(24_000, 4)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    counts = write_speech_pack(tmp_path / "pack", iter(UTTERANCES), iter([noise(900, 9), np.ones(7, np.int16)]))
    assert counts == {"speech": 4, "noise": 2}
    return tmp_path / "pack"


def test_a_pack_gives_back_what_was_put_in(folder: Path) -> None:
    pack = SpeechPack(folder)
    assert len(pack) == 4
    assert pack.ids == ["a-1", "a-2", "b-1", "c-1"]
    assert pack.speakers == ["anna", "anna", "büke", "carl"]
    assert pack.corpora == ["one", "one", "two", "two"]
    assert pack.words == ["the cat", "", "déjà vu", "the dog"]
    assert pack.samples.tolist() == [16_000, 5, 800, 24_000]
    assert pack.bandwidths_hz.tolist() == [8000.0, 4000.0, 7500.0, 8000.0]
    assert pack.hours == pytest.approx(40_805 / 16_000 / 3600)
    for number, utterance in enumerate(UTTERANCES):
        pcm = pack.pcm(number)
        assert pcm.dtype == np.int16
        if utterance.waveform.dtype == np.int16:
            np.testing.assert_array_equal(pcm, utterance.waveform)
        else:
            np.testing.assert_allclose(pcm / 32768.0, utterance.waveform, atol=0.51 / 32768)
    assert [len(sound) for sound in pack.noises] == [900, 7]
    np.testing.assert_allclose(pack.noises[0] / 32768.0, noise(900, 9), atol=0.51 / 32768)
    assert pack.noises[1].tolist() == [1] * 7


def test_loud_sound_is_clipped_and_does_not_turn_over(tmp_path: Path) -> None:
    loud = replace(UTTERANCES[0], waveform=np.array([1.0, -1.0, 3.0, -3.0], np.float32))
    write_speech_pack(tmp_path, [loud], [noise(5)])
    assert SpeechPack(tmp_path).pcm(0).tolist() == [32767, -32768, 32767, -32768]


@pytest.mark.parametrize(
    ("least_db", "labelled", "left"),
    [
        (0.0, False, ["a-1", "a-2", "b-1", "c-1"]),
        (30.0, False, ["a-1", "a-2", "c-1"]),  # where it is unknown it stays
        (30.1, False, ["a-1", "c-1"]),
        (0.0, True, ["a-1", "b-1", "c-1"]),
        (30.0, True, ["a-1", "c-1"]),
    ],
)
def test_what_is_not_good_enough_is_left_out(folder: Path, least_db: float, labelled: bool, left: list[str]) -> None:
    whole, pack = SpeechPack(folder), SpeechPack(folder, least_db, labelled)
    assert pack.ids == left
    for number, name in enumerate(left):
        position = whole.ids.index(name)
        np.testing.assert_array_equal(pack.pcm(number), whole.pcm(position))
        assert pack.samples[number] == whole.samples[position] == len(pack.pcm(number))
        assert pack.words[number] == whole.words[position]
        assert pack.speakers[number] == whole.speakers[position]
        assert pack.bandwidths_hz[number] == whole.bandwidths_hz[position]
    assert len(pack.noises) == 2


def test_a_pack_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    write_speech_pack(tmp_path / "pack", [UTTERANCES[1]], [noise(5)])
    for demands in ((31.0, False), (0.0, True)):
        with pytest.raises(DataError, match="lower the demands"):
            SpeechPack(tmp_path / "pack", *demands)
    with pytest.raises(DataError, match="nowhere"):
        SpeechPack(tmp_path / "nowhere")


def test_an_utterance_is_its_own_target_where_there_is_no_other(folder: Path, tmp_path: Path) -> None:
    pack = SpeechPack(folder)
    np.testing.assert_array_equal(pack.target(3), pack.pcm(3))
    both = [replace(utterance, target=0.5 * utterance.waveform) for utterance in UTTERANCES[:2]]
    write_speech_pack(tmp_path / "both", both, [noise(5)])
    pack = SpeechPack(tmp_path / "both")
    np.testing.assert_allclose(pack.target(0), 0.5 * pack.pcm(0), atol=1.0)
    np.testing.assert_allclose(pack.pcm(0) / 32768.0, UTTERANCES[0].waveform, atol=0.51 / 32768)


def test_a_refined_pack_differs_in_its_targets_alone(folder: Path, tmp_path: Path) -> None:
    inputs: list[np.ndarray] = []

    def clean(waveform: np.ndarray) -> np.ndarray:
        inputs.append(waveform)
        return -0.5 * waveform

    assert clean_targets(folder, tmp_path / "new", clean) == 4
    old, new = SpeechPack(folder), SpeechPack(tmp_path / "new")
    assert all(waveform.dtype == np.float32 and np.abs(waveform).max() < 1.0 for waveform in inputs)
    for name in ("ids", "speakers", "corpora", "words"):
        assert getattr(new, name) == getattr(old, name)
    assert new.bandwidths_hz.tolist() == old.bandwidths_hz.tolist()
    assert SpeechPack(tmp_path / "new", 30.0).ids == SpeechPack(folder, 30.0).ids
    for number in range(4):
        np.testing.assert_array_equal(new.pcm(number), old.pcm(number))
        np.testing.assert_allclose(new.target(number), -0.5 * old.pcm(number), atol=0.51)
    for one, other in zip(new.noises, old.noises, strict=True):
        np.testing.assert_array_equal(one, other)
    # refined once more it is the recording again that is cleaned
    clean_targets(tmp_path / "new", tmp_path / "newer", lambda waveform: 0.25 * waveform)
    np.testing.assert_allclose(SpeechPack(tmp_path / "newer").target(0), 0.25 * old.pcm(0), atol=0.51)
