"""Training of the language model on packed utterances, and their content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import hub
from audio_llm.errors import DataError, ModelFormatError, UsageError
from audio_llm.lm.token_lm import TokenLmConfig
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import TtsUtterance, UtterancePack, pack_utterances
from audio_llm.touchtts.models import load_speech_text_lm, speech_vectors
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, SpeechTextLmConfig
from audio_llm.touchtts.speech_text_lm_train import (
    SpeechTextLmTrainingConfig,
    _TaskBatches,
    fit_durations_config,
    train_speech_text_lm,
)
from audio_llm.touchtts.text import normalize_text
from audio_llm.touchtts.text_tokens import PhoneTokens
from audio_llm.training.loop import TrainingConfig

torch.set_num_threads(1)
TEXT_TOKENS = PhoneTokens()
MODEL = SpeechTextLmConfig(lm=TokenLmConfig(width=16, layers=1, heads=2, feed_forward=32, dropout=0.0))


def settings(steps: int, **changes: object) -> SpeechTextLmTrainingConfig:
    loop = TrainingConfig(steps, learning_rate=1e-2, warmup_steps=2, log_every=2, validate_every=8)
    return replace(SpeechTextLmTrainingConfig(MODEL, loop, batch_positions=300, validation=4), **changes)


def run(
    packs: list[Path],
    tuning: list[Path],
    tokenizer: S3Tokenizer,
    out: Path,
    config: SpeechTextLmTrainingConfig,
    **more: object,
) -> list[dict[str, float]]:
    """Train; return the validations."""
    train_speech_text_lm(packs, tuning, tokenizer, "s3-tiny", out, config, device="cpu", **more)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [row["validation"] for row in rows if "validation" in row]


def test_training_lowers_the_loss_and_leaves_a_model(utterances: Path, tokenizer: S3Tokenizer, tmp_path: Path) -> None:
    validations = run(
        [utterances],
        [utterances],
        tokenizer,
        tmp_path / "out",
        settings(40, asr_prob=0.5),
        provenance={"made": "here"},
    )
    assert len(validations) == 5
    assert validations[0].keys() == {"loss", "say", "write", "listen"}
    for task in validations[0]:
        assert validations[-1][task] < 0.95 * validations[0][task], task
    lm = load_speech_text_lm(tmp_path / "out/best", tokenizer)
    assert not lm.training
    assert lm.config.voices == ("reader", "robot")
    assert (lm.config.speech, lm.config.states) == (80, 16)
    about = hub.load_model(tmp_path / "out/best")
    assert about.provenance["made"] == "here"
    assert about.provenance["training"]["batch_positions"] == 300
    assert about.config["tokenizer"] == {"name": "s3-tiny", "fingerprint": tokenizer.fingerprint}
    text = normalize_text("the dog ran")
    steps = list(lm.generate([text], "reader", generator=torch.Generator().manual_seed(0)))
    assert 0 < len(steps) <= lm.most_tokens(text, "reader")


def test_a_stop_and_a_resume_end_where_one_run_does(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    config = settings(6)
    config = replace(config, training=replace(config.training, schedule="constant", validate_every=3))
    whole = run([utterances], [tuning], tokenizer, tmp_path / "whole", config)
    run(
        [utterances],
        [tuning],
        tokenizer,
        tmp_path / "halves",
        replace(config, training=replace(config.training, max_steps=3)),
    )
    with pytest.raises(UsageError, match="resume"):
        run([utterances], [tuning], tokenizer, tmp_path / "halves", config)
    halves = run([utterances], [tuning], tokenizer, tmp_path / "halves", config, resume=True)
    assert len(whole) == len(halves) == 2
    for one, other in zip(whole, halves, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_training_goes_on_from_a_model(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    run([utterances], [tuning], tokenizer, tmp_path / "one", settings(8))
    bigger = settings(2, model=replace(MODEL, lm=replace(MODEL.lm, width=64)))  # the size of what it starts from counts
    bigger = replace(bigger, training=replace(bigger.training, learning_rate=1e-9))  # the weights hardly move
    run([tuning], [tuning], tokenizer, tmp_path / "two", bigger, start_from=tmp_path / "one/best")
    one, two = (load_speech_text_lm(tmp_path / name / "best", tokenizer) for name in ("one", "two"))
    assert two.config == one.config
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-3, rtol=1e-3)


def test_voices_that_a_model_does_not_have_are_named(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    run([tuning], [tuning], tokenizer, tmp_path / "one", settings(1))
    with pytest.raises(ModelFormatError, match=r"voices robot.*leave these utterances out"):
        run([utterances], [tuning], tokenizer, tmp_path / "two", settings(1), start_from=tmp_path / "one/best")
    assert not (tmp_path / "two").exists()


def test_utterances_of_another_tokenizer_are_refused(
    utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:
    other = S3Tokenizer(tokenizer.network, "0" * 64)
    with pytest.raises(DataError, match="another tokenizer"):
        run([utterances], [tuning], other, tmp_path / "out", settings(1))
    with pytest.raises(DataError, match="no packed data"):
        run([tmp_path / "none"], [tuning], tokenizer, tmp_path / "out", settings(1))


@pytest.fixture
def strangers(sounds: list[np.ndarray], tokenizer: S3Tokenizer, tmp_path: Path) -> Path:
    """Return packed utterances of a voice that no other pack has."""
    rows = [TtsUtterance(f"s{n}", "stranger", "low", "go home now", sounds[n]) for n in range(2)]
    pack_utterances(rows, tokenizer, tmp_path / "strangers")
    return tmp_path / "strangers"


def test_validation_utterances_of_unknown_voices_are_refused(
    utterances: Path, strangers: Path, tokenizer: S3Tokenizer, tmp_path: Path
) -> None:

    with pytest.raises(DataError):
        run([utterances], [strangers], tokenizer, tmp_path / "out", settings(2))


def test_the_held_out_utterances_decide(utterances: Path, tuning: Path, tokenizer: S3Tokenizer, tmp_path: Path) -> None:
    one = run([utterances], [tuning], tokenizer, tmp_path / "one", settings(1, validation=99))
    other = run([utterances], [utterances], tokenizer, tmp_path / "other", settings(1, validation=99))
    assert one[0]["say"] != other[0]["say"]
    both = run([utterances], [tuning, utterances], tokenizer, tmp_path / "both", settings(1, validation=99))
    assert min(one[0]["say"], other[0]["say"]) < both[0]["say"] < max(one[0]["say"], other[0]["say"])


def test_validation_batches_are_exact_and_always_the_same(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config, pack = settings(1, validation=99), UtterancePack(utterances)
    torch.manual_seed(0)
    lm = SpeechTextLm(fit_durations_config(MODEL, pack, tokenizer, TEXT_TOKENS), speech_vectors(tokenizer)).eval()
    data = _TaskBatches(pack, tokenizer, config, TEXT_TOKENS)
    one, other = (data.for_validation(lm, config, {"reader"}) for _ in range(2))
    for task in ("say", "write", "listen"):
        assert sum(len(batch.targets) for batch in one[task]) == 10  # without the robot
        for batch, same in zip(one[task], other[task], strict=True):
            assert torch.equal(batch.sequence.ids, same.sequence.ids)
            assert torch.equal(batch.sequence.positions, same.sequence.positions)
    transcripts = {TEXT_TOKENS.decode((row[row > 0] - 1).tolist()) for batch in one["write"] for row in batch.targets}
    assert transcripts == set(pack.texts[:5])
    span = lm.lm.vocabulary.span("speech")
    speech_ids = [set(row[(row >= span.start)].tolist()) for batch in one["listen"] for row in batch.sequence.ids]
    assert not set().union(*speech_ids)  # continuous features replace all tokens


def test_batches_hold_what_is_asked_for(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config = settings(1, repeats={"robot": 3}, asr_prob=0.5, continuous_prob=0.5, batch_positions=200)
    data = _TaskBatches(UtterancePack(utterances), tokenizer, config, TEXT_TOKENS)
    batches = [batch for epoch in range(20) for batch in data.batches(epoch, config)]
    assert data.batches(3, config) == data.batches(3, config)
    assert data.batches(3, config) != data.batches(4, config)
    rows = {
        task: [row for name, group in batches if name == task for row, _ in group]
        for task in ("say", "write", "listen")
    }
    assert rows["say"].count(0) == 20
    assert rows["say"].count(11) == 60  # the robot
    assert set(rows["write"]) | set(rows["listen"]) == set(range(10))  # what was recorded
    counts = {task: sum(name == task for name, _ in batches) for task in rows}
    assert counts["write"] + counts["listen"] == counts["say"]
    assert 0.3 < counts["listen"] / counts["say"] < 0.7
    assert not any(name != "say" for name, _ in data.batches(0, replace(config, asr_prob=0.0)))
    for name, group in batches:
        lengths = data.tts_lengths if name == "say" else data.asr_lengths
        assert len(group) == 1 or max(lengths[row] for row, _ in group) * len(group) <= 200


def test_the_tokens_of_a_batch_are_counted_right(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config, pack = settings(1), UtterancePack(utterances)
    lm, data = (
        SpeechTextLm(fit_durations_config(MODEL, pack, tokenizer, TEXT_TOKENS), speech_vectors(tokenizer)),
        _TaskBatches(pack, tokenizer, config, TEXT_TOKENS),
    )
    for row in range(len(pack)):
        assert data.collate(lm, "say", [(row, 0)], config).sequence.ids.shape[1] <= data.tts_lengths[row]
        assert data.collate(lm, "write", [(row, 0)], config).sequence.ids.shape[1] <= data.asr_lengths[row]


def test_the_context_is_corrupted_but_never_the_targets(utterances: Path, tokenizer: S3Tokenizer) -> None:
    config, pack = settings(1, most_wrong_past=0.5), UtterancePack(utterances)
    lm, data = (
        SpeechTextLm(fit_durations_config(MODEL, pack, tokenizer, TEXT_TOKENS), speech_vectors(tokenizer)),
        _TaskBatches(pack, tokenizer, config, TEXT_TOKENS),
    )
    exact = replace(config, most_wrong_past=0.0, stretch=0.0)
    expected = data.collate(lm, "say", [(2, 0)], exact)
    shares, lengths = [], set()
    for seed in range(40):
        batch = data.collate(lm, "say", [(2, seed)], config)
        assert torch.equal(batch.targets, expected.targets)
        shares.append(float((batch.sequence.ids != expected.sequence.ids).float().mean()))
        lengths.add(float(batch.sequence.positions[0, -1]))
        again = data.collate(lm, "say", [(2, seed)], config)
        assert torch.equal(batch.sequence.ids, again.sequence.ids)
    assert 0.02 < np.mean(shares) < 0.4
    assert max(shares) < 0.6
    assert len(lengths) == 40  # time goes by at another speed each time


def test_durations_are_fitted_to_the_utterances(utterances: Path, tokenizer: S3Tokenizer) -> None:
    pack = UtterancePack(utterances)
    lm = SpeechTextLm(fit_durations_config(MODEL, pack, tokenizer, TEXT_TOKENS), speech_vectors(tokenizer))
    for voice in ("reader", "robot"):
        rows = [row for row in range(len(pack)) if pack.voices[row] == voice]
        expected = sum(lm.expected_tokens(pack.normalized[row], voice) for row in rows)
        assert expected == pytest.approx(sum(pack.counts[row] for row in rows), rel=1e-3)


def test_packed_utterances_are_what_was_recorded(
    utterances: Path, tokenizer: S3Tokenizer, sounds: list[np.ndarray]
) -> None:

    # synthetic utterance that was packed last; all trainings here on `utterances` fail for the same reason
    pack = UtterancePack(utterances)
    assert len(pack) == 12
    assert pack.tokenizer == tokenizer.fingerprint
    assert pack.voices == ["reader"] * 10 + ["robot"] * 2
    assert pack.speakers == ["low"] * 5 + ["high"] * 5 + ["robot"] * 2
    assert pack.ids[3:5] == ["u3", "u4"]
    assert pack.normalized[0] == normalize_text("a cat")
    for row in (0, 7, 11):
        tokens, states, pcm = pack.tokens(row), pack.states(row), pack.pcm(row)
        assert tokens.shape == (pack.counts[row],)
        assert pcm.shape == (pack.samples[row],)
        if row == 11:  # synthetic: only text and tokens
            assert states.shape == (0, 16)
            assert not pcm.size
            continue
        assert states.shape == (len(tokens), 16)
        waveform = torch.from_numpy(pcm.astype(np.float32) / 32768.0)[None]
        length = torch.tensor([pcm.size])
        assert (tokenizer.encode(waveform, length).tokens[0].numpy() == tokens).mean() > 0.95
        np.testing.assert_allclose(tokenizer.states(waveform, length)[0].numpy(), states, atol=0.05)
        assert pcm.size <= sounds[row].size
        assert 0 <= len(tokens) * 640 - pcm.size + 640 <= 1280


def test_packs_are_read_as_one(utterances: Path, tuning: Path, tmp_path: Path, tokenizer: S3Tokenizer) -> None:
    both = UtterancePack(utterances, tuning)
    assert len(both) == 17
    assert np.array_equal(both.tokens(12), UtterancePack(tuning).tokens(0))
    other = S3Tokenizer(tokenizer.network, "1" * 64)
    pack_utterances(
        [TtsUtterance("a", "reader", "low", "a cat", np.ones(16_000, np.float32))], other, tmp_path / "other"
    )
    with pytest.raises(DataError, match="different tokenizers"):
        UtterancePack(utterances, tmp_path / "other")
    with pytest.raises(DataError, match="no utterances"):
        UtterancePack()


def test_unusable_utterances_are_left_out(sounds: list[np.ndarray], tokenizer: S3Tokenizer, tmp_path: Path) -> None:
    def generate() -> Iterator[TtsUtterance]:
        yield TtsUtterance("good", "reader", "low", "a cat", sounds[0])
        yield TtsUtterance("empty", "reader", "low", "", sounds[1])
        yield TtsUtterance("foreign", "reader", "low", "日本語", sounds[1])
        yield TtsUtterance("silent", "reader", "low", "a cat", np.zeros(32_000, np.float32))
        yield TtsUtterance("long", "reader", "low", "a cat", np.tile(sounds[0], 25))
        yield TtsUtterance("nothing", "reader", "low", "a cat", np.zeros(0, np.float32))

    assert pack_utterances(generate(), tokenizer, tmp_path / "some") == 1
    assert UtterancePack(tmp_path / "some").ids == ["good"]


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25, 0.32])
def test_short_utterances_are_packed_or_left_out(tokenizer: S3Tokenizer, tmp_path: Path, seconds: float) -> None:

    hiss = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 16_000)).astype(np.float32)
    count = pack_utterances([TtsUtterance("short", "reader", "low", "a cat", hiss)], tokenizer, tmp_path / "short")
    assert count == (seconds >= 0.2)
