"""The public page: every name is there, takes files and arrays, and gives typed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audio_llm as al
from audio_llm.errors import AudioFileError, ConfigError, UsageError
from audio_llm.pipeline.train import TrainingParts

SAMPLES = Path(__file__).parents[1] / "samples"
SPEECH = SAMPLES / "speech" / "librispeech-8280-266249-0031.flac"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return 2 s of speech."""
    audio = al.read_audio(SPEECH)
    assert audio.sample_rate == 16_000
    return audio.waveform[:32_000]


def test_every_public_name_exists_and_no_other_does() -> None:
    assert len(al.__all__) == len(set(al.__all__)) == 29
    for name in al.__all__:
        assert getattr(al, name) is not None
    assert set(al.__all__) <= set(dir(al))
    with pytest.raises(AttributeError, match="no attribute 'transcripe'"):
        al.transcripe  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, audio_llm; print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_file_and_its_waveform_are_transcribed_alike(no_installed_models: None, speech: np.ndarray) -> None:
    audio = al.read_audio(SPEECH)
    from_file = al.transcribe(SPEECH, recognizer="sphinx")
    from_array = al.transcribe(audio.waveform, audio.sample_rate, recognizer="sphinx")
    assert from_file.text
    assert from_array.text == from_file.text == al.transcribe(audio, recognizer="sphinx").text
    with pytest.raises(UsageError, match="leave sample_rate out"):
        al.transcribe(SPEECH, 16_000, recognizer="sphinx")
    stereo = np.stack([speech, speech], axis=1)
    assert al.transcribe(stereo, 16_000, recognizer="sphinx").duration_s == pytest.approx(2.0)


def test_a_recognizer_gives_lists_and_a_transcriber_takes_it(no_installed_models: None, speech: np.ndarray) -> None:
    recognizer = al.Recognizer.load("sphinx")
    nbest = recognizer.recognize(speech, nbest=3)
    assert isinstance(nbest, al.NBest)
    assert 1 <= len(nbest.hypotheses) <= 3
    transcript = al.Transcriber(recognizer).transcribe([speech], "two seconds")
    assert isinstance(transcript, al.Transcript)
    assert transcript.name == "two seconds"


def test_lists_are_read_corrected_and_written(tmp_path: Path) -> None:
    lists = al.read_nbest(SAMPLES / "nbest" / "sphinx.jsonl")[:3]
    corrections = al.correct(lists, "phrase")
    assert [type(each) for each in corrections] == [al.Correction] * 3
    assert corrections == al.Corrector.load("phrase").correct(lists)
    assert al.write_nbest(tmp_path / "lists.jsonl", lists) == 3
    assert al.read_nbest(tmp_path / "lists.jsonl") == lists


def test_word_errors_are_counted_with_a_named_normalizer() -> None:
    counts = al.wer(["one two three", "Four!"], ["one too three", "4"])
    assert isinstance(counts, al.ErrorCounts)
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.words) == (1, 0, 0, 4)
    assert counts.rate == 0.25
    assert al.wer(["Four!"], ["4"], normalizer="raw").errors == 1
    with pytest.raises(UsageError, match="is named 'none'"):
        al.wer(["a"], ["a"], normalizer="none")


def test_noise_is_removed_from_files_and_arrays_alike(tmp_path: Path, speech: np.ndarray) -> None:
    al.write_audio(tmp_path / "in.wav", np.stack([speech, speech[::-1]], axis=1), 16_000)
    source = al.read_audio(tmp_path / "in.wav")
    assert source.waveform.shape == (32_000, 2)
    enhanced = al.enhance(tmp_path / "in.wav")
    assert isinstance(enhanced, al.Audio)
    assert (enhanced.waveform.shape, enhanced.sample_rate, enhanced.duration_s) == ((32_000, 2), 16_000, 2.0)
    np.testing.assert_array_equal(al.enhance(source.waveform, 16_000).waveform, enhanced.waveform)
    np.testing.assert_allclose(al.enhance(source, mix=1.0).waveform, source.waveform, atol=1e-6)
    enhanced.save(tmp_path / "out.flac")
    np.testing.assert_allclose(al.read_audio(tmp_path / "out.flac").waveform, enhanced.waveform, atol=1e-4)
    enhancer = al.Enhancer.load("mask-small")
    one = enhancer.enhance(speech, 16_000)
    assert one.waveform.shape == (32_000,)
    blocks = enhancer.stream((speech[start : start + 5_000, None] for start in range(0, 32_000, 5_000)), 16_000)
    np.testing.assert_allclose(np.concatenate(list(blocks))[:, 0], one.waveform, atol=1e-5)
    assert al.enhance(np.zeros(0, np.float32), 8_000).duration_s == 0.0


def test_a_speaker_is_extracted_from_files_and_arrays_alike() -> None:
    mixture, enrollment = (al.read_audio(SAMPLES / "binaural" / f"{name}.flac") for name in ("mixture", "enrollment"))
    extracted = al.extract(SAMPLES / "binaural" / "mixture.flac", SAMPLES / "binaural" / "enrollment.flac")
    assert extracted.waveform.shape == mixture.waveform.shape
    again = al.extract(mixture.waveform, enrollment.waveform, mixture.sample_rate)
    np.testing.assert_allclose(again.waveform, extracted.waveform, atol=1e-6)
    speaker = al.TargetSpeaker.enroll(enrollment)
    blocks = np.concatenate(list(speaker.stream([mixture.waveform[:20_000], mixture.waveform[20_000:]], 16_000)))
    np.testing.assert_allclose(blocks, extracted.waveform, atol=1e-5)
    assert speaker.extract(np.zeros((0, 2), np.float32), 16_000).waveform.shape == (0, 2)
    with pytest.raises(UsageError, match="leave sample_rate out"):
        al.extract(mixture, enrollment, 16_000)
    with pytest.raises(AudioFileError, match="too short"):
        al.TargetSpeaker.enroll(enrollment.waveform[:8_000], enrollment.sample_rate)


def test_text_becomes_audio() -> None:
    audio = al.synthesize("Good morning.", seed=1)
    assert audio.sample_rate == 16_000
    assert 0.3 < audio.duration_s < 5.0
    synthesizer = al.Synthesizer.load("touchtts-small")
    np.testing.assert_array_equal(synthesizer.synthesize("Good morning.", seed=1).waveform, audio.waveform)


def test_speech_becomes_tokens_and_codes(speech: np.ndarray) -> None:
    import torch

    batch, lengths = torch.from_numpy(speech)[None], torch.tensor([len(speech)])
    tokens = al.Tokenizer.load().encode(batch, lengths)
    assert int(tokens.lengths[0]) == tokens.tokens.shape[1] > 10
    codec = al.Codec.load("codec-small")
    codes = codec.encode(batch, lengths)
    assert codec.decode(codes, lengths).shape == batch.shape


def test_models_are_listed_and_loaded() -> None:
    names = {model.name for model in al.list_models()}
    assert {"mask-small", "tse-small", "ger-small"} <= names
    assert isinstance(al.load("mask-small"), al.Enhancer)


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(100, np.float32), None, "no sample rate"),
        (np.zeros((2, 3, 4), np.float32), 16_000, "shape"),
        (np.zeros(100, np.int16), 16_000, "int16"),
        (np.full(100, np.nan, np.float32), 16_000, "NaN"),
        (SPEECH, 16_000, "leave sample_rate out"),
    ],
)
def test_what_is_no_audio_is_refused(source: object, rate: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        al.enhance(source, rate)  # type: ignore[arg-type]


def test_a_model_is_trained_by_the_name_of_its_task(speech_pack: Path, tmp_path: Path) -> None:
    config = {
        "model": {"width": 8, "blocks": 1},
        "training": {"max_steps": 2, "validate_every": 1, "warmup_steps": 1},
        "pairs": {"seconds": 1.0},
        "batch_pairs": 2,
        "validation_pairs": 2,
        "least_dynamics_db": 0.0,
    }
    run = al.RunOptions(device="cpu", max_minutes=5)
    result = al.train("mask", speech_pack, tmp_path / "out", config, dev=speech_pack, run=run)
    assert result.steps == 2
    assert isinstance(al.load(tmp_path / "out" / "best"), al.Enhancer)
    again = al.train("mask", speech_pack, tmp_path / "out", config, dev=speech_pack, run=al.RunOptions(resume=True))
    assert again.steps == 2


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("mast", {}, "unknown training 'mast'"),
        ("mask", {}, "no validation data are named"),
        ("gense", {"dev": "."}, "the training gense needs --tokenizer"),
        ("mask", {"dev": ".", "parts": TrainingParts(llm="x")}, "--llm is not for the training mask"),
        ("dlm", {"dev": "."}, "takes no validation data"),
        ("mask", {"dev": ".", "config": {"no_such": 1}}, "unknown key 'no_such'"),
    ],
)
def test_a_training_that_cannot_run_says_why(task: str, given: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    with pytest.raises((UsageError, ConfigError), match=message):
        al.train(task, tmp_path, tmp_path, run=al.RunOptions(overwrite=True), **given)
    assert (tmp_path / "best").exists()  # nothing is removed before all is known
