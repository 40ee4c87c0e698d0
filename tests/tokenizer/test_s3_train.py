"""Training of the tokenizer on synthetic voices that utter vowels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.asr.ctc import CtcRecognizer, save_ctc
from audio_llm.asr.ctc_model import SYMBOLS, CtcConfig, CtcModel
from audio_llm.errors import ConfigError, DataError
from audio_llm.simulation.noisy import NoisyConfig
from audio_llm.simulation.speech_pack import SpeechPack, Utterance, write_speech_pack
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.tokenizer.s3_model import S3Config, S3Network
from audio_llm.tokenizer.s3_train import S3TrainingConfig, _loss, _Utterances, adopt, pack_teacher, train_s3
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.shards import ShardReader

torch.set_num_threads(1)
DEGRADED = NoisyConfig(silent_prob=0.0, clean_prob=0.2, snr_db=(10.0, 25.0), room_prob=0.1)
CTC = CtcConfig(channels=4, width=16, layers=3, heads=2, feedforward=32, kernel=5, fold=1, dropout=0.0)


def settings(model: S3Config, steps: int, **changes: object) -> S3TrainingConfig:
    loop = TrainingConfig(steps, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=10)
    config = S3TrainingConfig(model, loop, DEGRADED, batch_seconds=4.0, validation_items=4)
    return replace(config, **changes)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def validated(folder: Path) -> list[dict[str, float]]:
    return [row["validation"] for row in rows(folder) if "validation" in row]


@pytest.fixture(scope="module")
def silent_words(tmp_path_factory: pytest.TempPathFactory, speech_pack: Path) -> Path:
    """Return a pack of two utterances without words."""
    folder = tmp_path_factory.mktemp("no-words")
    pack = SpeechPack(speech_pack)
    utterances = [Utterance(f"u{n}", "low", "made", "", 8000, 40.0, pack.pcm(n)) for n in range(2)]
    write_speech_pack(folder, utterances, pack.noises)
    return folder


@pytest.fixture(scope="module")
def recognizer() -> CtcRecognizer:
    torch.manual_seed(3)
    return CtcRecognizer(CtcModel(CTC), "tiny")


def test_training_lowers_the_loss_and_leaves_a_tokenizer(speech_pack: Path, tmp_path: Path, tiny: S3Config) -> None:
    out = tmp_path / "out"
    result = train_s3(speech_pack, speech_pack, out, settings(tiny, 30), device="cpu", provenance={"made": "here"})
    assert result.steps == 30
    losses = [values["loss"] for values in validated(out)]
    assert len(losses) == 3
    assert losses[-1] < 0.6 * rows(out)[0]["loss"]
    assert losses[-1] < losses[0]
    values = validated(out)[-1]
    assert values.keys() == {"loss", "wer_clean", "wer_spoilt", "changed", "entropy_bits"}
    assert values["wer_clean"] > 0.0
    assert 0.0 <= values["changed"] <= 1.0
    assert 0.5 < values["entropy_bits"] <= np.log2(80)
    tokenizer = S3Tokenizer.load(out / "best")
    assert tokenizer.network.config == tiny
    assert hub.load_model(out / "best").provenance["made"] == "here"
    pcm = SpeechPack(speech_pack).pcm(0).astype(np.float32) / 32768.0
    tokens = tokenizer.encode(torch.from_numpy(pcm)[None], torch.tensor([len(pcm)]))
    assert len(tokens.tokens.unique()) > 1
    again = train_s3(speech_pack, speech_pack, out, settings(tiny, 32), device="cpu", resume=True)
    assert again.steps == 32


def test_without_noise_both_views_are_equal(speech_pack: Path, tiny: S3Config) -> None:
    config = settings(tiny, 1, degraded=NoisyConfig(clean_prob=1.0, silent_prob=0.0, room_prob=0.0, clipped_prob=0.0))
    data = _Utterances(speech_pack, config)
    batch = data.collate([(0, 1), (3, 2)])
    clean, degraded = batch.mel.split(2)
    assert torch.equal(clean, degraded)
    assert batch.lengths.tolist()[:2] == batch.lengths.tolist()[2:]
    assert batch.target_lengths.tolist() == [5, 4]  # "a e i" and "ae o"
    assert "".join(SYMBOLS[number] for number in batch.targets) == "a e iae o"
    torch.manual_seed(0)
    network = S3Network(tiny)
    output = network(batch.mel, batch.lengths)
    with_consistency = _loss(output, batch, config)
    without = _loss(output, batch, replace(config, consistency_weight=0.0))
    assert with_consistency.item() == pytest.approx(without.item(), abs=1e-5)


def test_the_consistency_loss_draws_the_degraded_view_towards_the_clean_one(speech_pack: Path, tiny: S3Config) -> None:
    config = settings(tiny, 1)
    data = _Utterances(speech_pack, config)
    batch = data.collate([(0, 1), (3, 2)])
    torch.manual_seed(0)
    output = S3Network(tiny).eval()(batch.mel, batch.lengths)
    bounded = output.quantized.bounded
    bounded.retain_grad()
    without = _loss(output, batch, replace(config, consistency_weight=0.0))
    (_loss(output, batch, replace(config, consistency_weight=2.0)) - without).backward()
    assert bounded.grad is not None
    assert not bounded.grad[:2].any()
    assert bounded.grad[2:].any()
    assert not bounded.grad[3, int(output.lengths[3]) :].any()  # nothing beyond its end


def test_batches_hold_every_utterance_and_not_too_much_sound(speech_pack: Path, tiny: S3Config) -> None:
    config = settings(tiny, 1)
    data = _Utterances(speech_pack, config)
    samples = SpeechPack(speech_pack).samples
    batches = data.batches(0, config)
    assert sorted(row for batch in batches for row, _ in batch) == list(range(10))
    assert all(max(samples[row] for row, _ in batch) * len(batch) <= 4.0 * 16_000 for batch in batches)
    assert data.batches(0, config) == batches
    assert data.batches(1, config) != batches
    with pytest.raises(DataError, match="short enough"):
        _Utterances(speech_pack, replace(config, max_seconds=0.5))


def test_a_teacher_helps_with_utterances_without_words(
    speech_pack: Path, silent_words: Path, recognizer: CtcRecognizer, tmp_path: Path, tiny: S3Config
) -> None:
    assert pack_teacher(silent_words, recognizer, tmp_path / "teacher") == 2
    letters = ShardReader(tmp_path / "teacher")[1]["log_probs"]
    expected = recognizer.log_probs([SpeechPack(silent_words).pcm(1).astype(np.float32) / 32768.0])[0]
    np.testing.assert_allclose(letters, expected, atol=5e-3)
    with pytest.raises(DataError, match="with words"):
        train_s3(silent_words, speech_pack, tmp_path / "none", settings(tiny, 2), device="cpu")
    config = settings(tiny, 12, teacher_weight=1.0)
    train_s3(silent_words, speech_pack, tmp_path / "taught", config, teacher=tmp_path / "teacher", device="cpu")
    losses = [row["loss"] for row in rows(tmp_path / "taught") if "loss" in row]
    assert losses[-1] < losses[0]
    data = _Utterances(silent_words, config, tmp_path / "teacher")
    batch = data.collate([(0, 1), (1, 2)])
    assert batch.teacher.shape[2] == len(SYMBOLS)
    torch.testing.assert_close(batch.teacher[1, : len(letters)].sum(-1), torch.ones(len(letters)), atol=0.02, rtol=0)
    assert batch.targets.tolist() == []


def test_a_teacher_of_another_pack_is_refused(
    speech_pack: Path, silent_words: Path, recognizer: CtcRecognizer, tmp_path: Path, tiny: S3Config
) -> None:
    pack_teacher(silent_words, recognizer, tmp_path / "teacher")
    with pytest.raises(DataError, match="2 utterances, the pack has 10"):
        train_s3(speech_pack, speech_pack, tmp_path / "out", settings(tiny, 2), teacher=tmp_path / "teacher")


def test_packs_without_words_or_none_at_all_are_refused(
    speech_pack: Path, silent_words: Path, tmp_path: Path, tiny: S3Config
) -> None:
    for pack, tuning in ((silent_words, speech_pack), (speech_pack, silent_words)):
        with pytest.raises(DataError, match="labeled speech"):
            train_s3(pack, tuning, tmp_path / "out", settings(tiny, 2), device="cpu")
    with pytest.raises(DataError, match="nowhere"):
        train_s3(tmp_path / "nowhere", speech_pack, tmp_path / "out", settings(tiny, 2), device="cpu")


def test_the_layers_of_a_recognizer_are_adopted(tmp_path: Path, recognizer: CtcRecognizer, tiny: S3Config) -> None:
    torch.manual_seed(9)
    network, model = S3Network(tiny), recognizer._model
    narrow = network.narrow.weight.detach().clone()
    adopt(network, model)
    for block, source in zip([*network.before, *network.after], model.blocks[:2], strict=True):
        for name, value in block.state_dict().items():
            assert torch.equal(value, source.state_dict()[name]), name
    assert torch.equal(network.front.first.weight, model.front.first.weight)
    assert torch.equal(network.front.project.weight, model.front.project.weight)
    assert torch.equal(network.output.weight, model.output.weight)
    assert torch.equal(network.narrow.weight, narrow)
    for changes in ({"width": 20}, {"before": 3}, {"kernel": 7}):
        with pytest.raises(ConfigError, match="cannot start"):
            adopt(S3Network(replace(tiny, **changes)), model)


def test_of_a_recognizer_that_folds_two_frames_the_mean_is_adopted(tiny: S3Config) -> None:
    torch.manual_seed(9)
    network, model = S3Network(tiny), CtcModel(replace(CTC, fold=2))
    adopt(network, model)
    first, second = model.front.project.weight.chunk(2, dim=1)
    torch.testing.assert_close(network.front.project.weight, first + second)
    torch.testing.assert_close(network.output.bias, model.output.bias.view(2, -1).mean(0))


def test_training_starts_from_a_recognizer_or_a_tokenizer(
    speech_pack: Path, tmp_path: Path, recognizer: CtcRecognizer, tiny: S3Config
) -> None:
    folder = save_ctc(recognizer._model, tmp_path / "ctc", "Tiny.\n")
    config = settings(tiny, 1)
    config = replace(config, training=replace(config.training, learning_rate=1e-9))
    train_s3(speech_pack, speech_pack, tmp_path / "one", config, device="cpu", start_from=folder)
    started = S3Tokenizer.load(tmp_path / "one/best").network
    torch.testing.assert_close(started.output.weight, recognizer._model.output.weight, atol=1e-3, rtol=1e-3)
    other = replace(config, model=replace(tiny, width=24))
    train_s3(speech_pack, speech_pack, tmp_path / "two", other, device="cpu", start_from=tmp_path / "one/best")
    continued = S3Tokenizer.load(tmp_path / "two/best").network
    assert continued.config == tiny
    torch.testing.assert_close(continued.narrow.weight, started.narrow.weight, atol=1e-6, rtol=0)
