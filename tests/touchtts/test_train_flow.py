"""Training of the flow on the recorded utterances of a pack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.errors import ConfigError, DataError, UsageError
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import TtsUtterance, UtterancePack, pack_utterances
from audio_llm.touchtts.flow import FlowConfig, FlowNetwork, FlowRun
from audio_llm.touchtts.flow_train import FlowTrainingConfig, Stretches, _Training, train_flow
from audio_llm.touchtts.models import load_flow, speech_vectors
from audio_llm.training.loop import TrainingConfig

torch.set_num_threads(1)
MODEL = FlowConfig(width=16, layers=1, heads=2, feed_forward=32, lookahead=2, left_frames=20, steps=2)


def settings(steps: int, **changes: object) -> FlowTrainingConfig:
    loop = TrainingConfig(steps, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=10)
    config = FlowTrainingConfig(MODEL, loop, tokens=15, batch=4, epoch_batches=20, main_voice="reader", validation=6)
    return replace(config, **changes)


def run(
    packs: list[Path], tuning: list[Path], tokenizer: S3Tokenizer, out: Path, config: FlowTrainingConfig, **more: object
) -> list[dict[str, float]]:
    """Train; return the validations."""
    train_flow(packs, tuning, tokenizer, "s3-tiny", out, config, device="cpu", **more)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [row["validation"] for row in rows if "validation" in row]


def test_training_lowers_the_loss_and_leaves_a_model(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    validations = run([utterances], [tuning], tokenizer, tmp_path / "out", settings(100), provenance={"made": "here"})
    assert len(validations) == 10
    assert validations[0].keys() == {"loss", "full", "chunked"}
    assert validations[-1]["loss"] < 0.95 * validations[0]["loss"]
    assert validations[-1]["loss"] == pytest.approx(
        (validations[-1]["full"] + validations[-1]["chunked"]) / 2, rel=1e-4
    )
    flow = load_flow(tmp_path / "out/best", tokenizer)
    assert not flow.training
    assert flow.config == replace(MODEL, speech=80)
    assert flow.spread.min() >= 0.1
    assert flow.mean.std() > 0.1
    about = hub.load_model(tmp_path / "out/best")
    assert about.provenance["made"] == "here"
    assert about.config["tokenizer"] == {"name": "s3-tiny", "fingerprint": tokenizer.fingerprint}
    frames = FlowRun(flow, torch.zeros(1, 16), chunk=5).next_frames(torch.arange(5)[None], torch.arange(2)[None])
    assert torch.isfinite(frames).all()


def test_a_stop_and_a_resume_end_where_one_run_does(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    config = settings(6)
    config = replace(config, training=replace(config.training, schedule="constant", validate_every=3))
    whole = run([utterances], [tuning], tokenizer, tmp_path / "whole", config)
    half = replace(config, training=replace(config.training, max_steps=3))
    run([utterances], [tuning], tokenizer, tmp_path / "halves", half)
    with pytest.raises(UsageError, match="resume"):
        run([utterances], [tuning], tokenizer, tmp_path / "halves", config)
    halves = run([utterances], [tuning], tokenizer, tmp_path / "halves", config, resume=True)
    assert len(whole) == len(halves) == 2
    for one, other in zip(whole, halves, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_training_goes_on_from_a_model(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    run([utterances], [tuning], tokenizer, tmp_path / "one", settings(10))
    other = settings(1, model=replace(MODEL, width=64, heads=4))  # the size of what it starts from counts
    other = replace(other, training=replace(other.training, learning_rate=1e-9))  # the weights hardly move
    run([utterances], [tuning], tokenizer, tmp_path / "two", other, start_from=tmp_path / "one/best")
    one, two = (load_flow(tmp_path / name / "best", tokenizer) for name in ("one", "two"))
    assert two.config == one.config
    assert torch.equal(two.mean, one.mean)
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-3, rtol=1e-3)


def test_synthetic_talks_are_passed_over(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config = settings(1, main_prob=0.5)
    stretches = Stretches(UtterancePack(utterances), tokenizer, config)
    assert stretches.rows.tolist() == list(range(10))
    rng = np.random.default_rng(0)
    drawn = [stretches._draw(rng, 0.5) for _ in range(200)]
    assert {row for row, _ in drawn} <= set(range(10))


def test_only_synthetic_talks_are_an_error(
    sounds: list[np.ndarray], tokenizer: S3Tokenizer, tuning: Path, tmp_path: Path
) -> None:
    rows = [TtsUtterance(f"r{n}", "robot", "robot", "a cat", sounds[n], True) for n in range(2)]
    pack_utterances(rows, tokenizer, tmp_path / "robots")
    for packs in (([tmp_path / "robots"], [tuning]), ([tuning], [tmp_path / "robots"])):
        with pytest.raises(DataError, match="no recorded utterance"):
            run(*packs, tokenizer, tmp_path / "out", settings(1))
    assert not (tmp_path / "out").exists()


def test_talks_of_another_tokenizer_are_refused(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    other = S3Tokenizer(tokenizer.network, "0" * 64)
    with pytest.raises(DataError, match="another tokenizer"):
        run([utterances], [tuning], other, tmp_path / "out", settings(1))


@pytest.fixture
def crowd(sounds: list[np.ndarray], tokenizer: S3Tokenizer, tmp_path: Path) -> Path:
    """Return utterances of a reader, of a speaker with three, and of a speaker with one."""
    who = ["ann"] * 3 + ["bob"] * 3 + ["cid"]
    voices = {"ann": "reader"}
    rows = [TtsUtterance(f"{n}", voices.get(name, "crowd"), name, "a cat", sounds[n]) for n, name in enumerate(who)]
    pack_utterances(rows, tokenizer, tmp_path / "crowd")
    return tmp_path / "crowd"


def test_the_main_voice_comes_as_often_as_wanted_and_a_reference_is_of_the_same_speaker(
    crowd: Path, tokenizer: S3Tokenizer
) -> None:
    stretches, rng = Stretches(UtterancePack(crowd), tokenizer, settings(1)), np.random.default_rng(0)
    drawn = [stretches._draw(rng, 0.6) for _ in range(600)]
    speaker = stretches.pack.speakers
    assert np.mean([speaker[row] == "ann" for row, _ in drawn]) == pytest.approx(0.6, abs=0.06)
    bob, cid = (sum(speaker[row] == name for row, _ in drawn) for name in ("bob", "cid"))
    assert bob / cid == pytest.approx(3**0.5, rel=0.35)
    for row, reference in drawn:
        assert speaker[row] == speaker[reference]
        assert (row == reference) == (speaker[row] == "cid")  # another utterance, if there is one
    every = Stretches(UtterancePack(crowd), tokenizer, settings(1, main_voice=""))
    assert not len(every._main)
    assert len(every._other_rows) == 3


def collated(utterances: Path, tokenizer: S3Tokenizer, config: FlowTrainingConfig, seeds: range = range(40)) -> tuple:
    torch.manual_seed(0)
    flow = FlowNetwork(replace(MODEL, speech=80), speech_vectors(tokenizer)).eval()
    stretches = Stretches(UtterancePack(utterances), tokenizer, config)
    stretches.measure(flow, 0.6)
    return flow, stretches.collate(flow, seeds, config)


def test_stretches_are_what_was_asked_for(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config = settings(1, drop_prob=0.3, prompt_prob=0.5, longest_prompt=0.4, wrong_tokens=0.0)
    flow, batch = collated(utterances, tokenizer, config, range(200))
    assert batch.tokens.shape == (200, 15)
    assert batch.mel.shape == batch.noise.shape == (200, 30, 80)
    dropped = batch.reference_lengths == 0
    assert 0.2 < dropped.float().mean() < 0.4
    assert (batch.tokens[dropped] == -1).all()
    assert (batch.ahead[dropped] == -1).all()
    assert not batch.known[dropped].any()
    known = batch.known[~dropped].sum(1)
    assert 0.3 < (known > 0).float().mean() < 0.6
    assert known.max() <= 12
    assert not (batch.known[:, 1:] & ~batch.known[:, :-1]).any()  # a beginning
    assert 0.0 <= batch.moment.min() < 0.05
    assert 0.9 < batch.moment.max() < 1.0
    assert float(batch.mel[batch.valid].mean()) == pytest.approx(0.0, abs=0.15)
    assert float(batch.mel[batch.valid].std()) == pytest.approx(1.0, abs=0.2)
    again = collated(utterances, tokenizer, config, range(200))[1]
    assert all(torch.equal(a, b) for a, b in zip(batch[:-1], again[:-1], strict=True))
    assert flow.config.lookahead == batch.ahead.shape[1]


def test_what_lies_ahead_is_what_comes_next(utterances: Path, tokenizer: S3Tokenizer) -> None:
    _, batch = collated(utterances, tokenizer, settings(1, drop_prob=0.0, wrong_tokens=0.0, tokens=5))
    pack = UtterancePack(utterances)
    for row_tokens, ahead in zip(batch.tokens.tolist(), batch.ahead.tolist(), strict=True):
        following = [token for token in ahead if token >= 0]
        assert ahead == following + [-1] * (2 - len(following))
        rows = [pack.tokens(row).tolist() for row in range(10)]
        assert any(
            row[start : start + 5 + len(following)] == row_tokens + following
            and (len(following) == 2 or start + 5 + len(following) == len(row))
            for row in rows
            for start in range(len(row))
        )


def test_wrong_tokens_are_few_and_only_told(utterances: Path, tokenizer: S3Tokenizer) -> None:
    right = collated(utterances, tokenizer, settings(1, wrong_tokens=0.0, drop_prob=0.0))[1]
    wrong = collated(utterances, tokenizer, settings(1, wrong_tokens=0.4, drop_prob=0.0))[1]
    assert torch.equal(right.mel, wrong.mel)
    assert 0.05 < (right.tokens != wrong.tokens)[right.tokens >= 0].float().mean() < 0.35


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_batch_is_worth_what_its_stretches_are_alone(utterances: Path, tokenizer: S3Tokenizer, chunk: int) -> None:
    share = 0.0 if chunk else 1.0
    config = settings(1, tokens=30, full_prob=share, chunks=(5,))
    flow, batch = collated(utterances, tokenizer, config, range(6))
    lengths = batch.valid.sum(1)
    assert len(lengths.unique()) > 1  # some are shorter
    assert batch.chunk == chunk
    module = _Training(flow)
    with torch.no_grad():
        together = module(batch)
        for row in range(6):
            size = int(lengths[row])
            # the tokens behind a stretch that is not the longest are none
            cut = {"tokens": size // 2, "mel": size, "valid": size, "known": size, "noise": size}
            row_tokens = {name: getattr(batch, name)[row : row + 1] for name in batch._fields[:-1]}
            row_tokens |= {name: row_tokens[name][:, :end] for name, end in cut.items()}
            alone = module(batch._replace(**row_tokens))
            torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


def test_only_what_is_neither_known_nor_behind_the_end_counts(utterances: Path, tokenizer: S3Tokenizer) -> None:
    flow, batch = collated(utterances, tokenizer, settings(1, tokens=30, prompt_prob=1.0, drop_prob=0.0), range(6))
    module = _Training(flow)
    with torch.no_grad():
        before = module(batch)
        noise = torch.where(batch.valid[:, :, None], batch.noise, 7.0)
        torch.testing.assert_close(module(batch._replace(noise=noise)), before, atol=1e-5, rtol=1e-5)
        following = module(batch._replace(known=torch.zeros_like(batch.known)))
    assert (following - before).abs().max() > 1e-3


@pytest.mark.parametrize("wrong", [{"chunks": ()}, {"chunks": (0,)}, {"tokens": 0}, {"batch": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        FlowTrainingConfig(**wrong)
