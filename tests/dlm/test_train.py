from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm.dlm import vocab
from audio_llm.dlm.decode import greedy
from audio_llm.dlm.model import DenoisingLM, ModelConfig, load
from audio_llm.dlm.noise import NoiseConfig
from audio_llm.dlm.pack import CONFUSIONS_NAME, PackedPairs, pack, read_packed
from audio_llm.dlm.train import DlmTrainConfig, _example, batches, sequence_loss, to_tensors, train_dlm
from audio_llm.errors import DataError
from audio_llm.simulation.confusions import Confusions
from audio_llm.training.config import load_config
from audio_llm.training.loop import TrainingConfig

pytest.importorskip("accelerate")
torch.set_num_threads(1)

HYPOTHESES = [
    "the hat sad",
    "a big dock",
    "we when home",
    "it reigns",
    "by the see",
    "of coarse",
    "to night",
    "i sea ewe",
]
TRUE = ["the cat sat", "a big dog", "we went home", "it rains", "by the sea", "of course", "tonight", "i see you"]


def packed(pairs: int, texts: int, seed: int = 0) -> PackedPairs:
    rng = np.random.default_rng(seed)
    references = ["ab " * int(size) for size in rng.integers(2, 30, size=pairs + texts)]
    references = [reference.strip() for reference in references]
    hypotheses = [(r + " c", r + " d", r + " e") if i < pairs else () for i, r in enumerate(references)]
    lengths = np.array([max(len(r), len(h[0]) if h else 0) for r, h in zip(references, hypotheses, strict=True)])
    return PackedPairs(references, hypotheses, np.arange(pairs + texts) < pairs, lengths)


def config(**changes: object) -> DlmTrainConfig:
    values: dict = {
        "model": ModelConfig(16, 32, 2, 1, 1),
        "training": TrainingConfig(6, warmup_steps=2, log_every=1, validate_every=3),
        "batch_characters": 200,
        "validation_sentences": 2,
    }
    return DlmTrainConfig(**{**values, **changes})


def pair(hypotheses: list[str], reference: str) -> dict:
    return {"reference": reference, "hypotheses": [{"text": text, "score": -1.0} for text in hypotheses]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pairs = [pair([h, h + " so"], t) for h, t in zip(HYPOTHESES, TRUE, strict=True)]
    pairs += [{"reference": "failed", "error": "X"}, pair([], "silence"), pair([""], "empty")]
    pack(pairs, ["some more words", "another text here"], pairs[:3] + pairs[-2:], folder, hypotheses=2)
    return folder


def test_packing_stores_pairs_and_texts_and_skips_pairs_without_hypotheses(data: Path) -> None:
    train = read_packed(data / "train")
    assert train.references == [*TRUE, "some more words", "another text here"]
    assert train.hypotheses == [*((h, h + " so") for h in HYPOTHESES), (), ()]
    assert train.is_pair.tolist() == [True] * 8 + [False] * 2
    assert train.lengths[0] == 11
    assert read_packed(data / "tune").references == TRUE[:3]
    confusions = Confusions.load(data / CONFUSIONS_NAME)
    assert "see" in dict(confusions.table["sea"])
    assert len(confusions.error_rates) == 8


def test_pairs_of_another_recognizer_are_packed_and_teach_no_confusions(tmp_path: Path) -> None:
    pairs, further = [pair(["see"], "sea")], [pair(["kat", "kad"], "cat"), pair([""], "dog")]
    pack(pairs, ["a text"], pairs, tmp_path, other_pairs=further, copies=3)
    train = read_packed(tmp_path / "train")
    assert train.references == ["sea"] * 3 + ["cat", "a text"]
    assert train.hypotheses == [("see",)] * 3 + [("kat", "kad"), ()]
    confusions = Confusions.load(tmp_path / CONFUSIONS_NAME)
    assert "see" in dict(confusions.table["sea"])
    assert "kat" not in dict(confusions.table.get("cat", ()))
    assert len(confusions.error_rates) == 1


def test_an_epoch_is_deterministic_and_another_differs() -> None:
    data, settings = packed(20, 100), config()
    first, again, second = (list(batches(data, settings, epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert list(batches(data, config(training=TrainingConfig(6, seed=1)), 0)) != first


def test_every_text_once_and_pairs_in_their_fraction() -> None:
    data = packed(20, 300)
    drawn = Counter(row for batch in batches(data, config(pair_fraction=0.25), 0) for row, _ in batch)
    assert all(drawn[row] == 1 for row in range(20, 320))
    assert sum(drawn[row] for row in range(20)) == 100
    assert not any(row < 20 for b in batches(data, config(pair_fraction=0.0), 0) for row, _ in b)


def test_pairs_alone_and_texts_alone_are_used_once() -> None:
    for data in (packed(30, 0), packed(0, 30)):
        drawn = [row for batch in batches(data, config(), 0) for row, _ in batch]
        assert sorted(drawn) == list(range(30))


def test_batches_hold_their_limit_of_characters_and_similar_lengths() -> None:
    data = packed(50, 500)
    drawn_batches = [[row for row, _ in batch] for batch in batches(data, config(batch_characters=400), 0)]
    sizes = [len(rows) * data.lengths[rows].max() for rows in drawn_batches]
    assert max(sizes) <= 400
    assert np.mean(sizes) > 250
    padding = 1 - sum(data.lengths[rows].sum() for rows in drawn_batches) / sum(sizes)
    assert padding < 0.15
    alone = list(batches(data, config(batch_characters=1), 0))
    assert all(len(batch) == 1 for batch in alone)


def test_every_epoch_draws_new_noise_that_its_seed_reproduces() -> None:
    data = packed(0, 40)
    confusions = Confusions({"ab": (("cd", 1.0),)}, (0.4,))

    def noisy(epoch: int) -> dict[int, str]:
        rows = (pair for batch in batches(data, config(), epoch) for pair in batch)
        return {row: _example(data, row, seed, confusions, config())[0] for row, seed in rows}

    first, second = noisy(0), noisy(1)
    assert first == noisy(0)
    assert sum(first[row] != second[row] for row in first) > 20
    assert sum(first[row] != data.references[row] for row in first) > 20


def test_pairs_use_the_best_hypothesis_with_its_probability_and_their_reference() -> None:
    data = packed(1, 0)
    settings = config(first_prob=0.4, noise=NoiseConfig(substitution_prob=0.0))
    drawn = [_example(data, 0, seed, Confusions({}, ()), settings) for seed in range(2000)]
    assert {reference for _, reference in drawn} == {data.references[0]}
    counts = Counter(data.hypotheses[0].index(hypothesis) for hypothesis, _ in drawn)
    first = 0.4 + 0.6 / 3  # the rest is drawn evenly from all
    assert abs(counts[0] - first * 2000) < 3 * (2000 * first * (1 - first)) ** 0.5
    assert counts[1] > 300
    assert counts[2] > 300


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_mean_over_characters_whatever_the_padding(smoothing: float) -> None:
    torch.manual_seed(0)
    model = DenoisingLM(ModelConfig(16, 32, 2, 1, 1)).eval()
    batch = to_tensors(HYPOTHESES[:3], TRUE[:3])
    with torch.no_grad():
        together = sequence_loss(model, batch, smoothing).item()
        total = count = 0.0
        for hypothesis, true in zip(HYPOTHESES[:3], TRUE[:3], strict=True):
            source, lengths, target_in, target_out = to_tensors([hypothesis], [true])
            rows = model(source, lengths, target_in)[0]
            chosen = rows[torch.arange(len(rows)), target_out[0]]
            spread = rows[:, vocab.FIRST_SYMBOL :].mean(-1)
            total -= ((1 - smoothing) * chosen + smoothing * spread)[:-1].sum().item() + chosen[-1].item()
            count += len(true) + 1
        padded = [
            torch.nn.functional.pad(tensor, (0, 7), value=vocab.PAD) if tensor.ndim == 2 else tensor for tensor in batch
        ]
        wider = sequence_loss(model, tuple(padded), smoothing).item()
    assert together == pytest.approx(total / count, rel=1e-4)
    assert wider == pytest.approx(together, rel=1e-4)
    assert together > (1.0 if smoothing else 0.0)


def test_smoothing_does_not_make_the_end_likely_everywhere() -> None:
    """Otherwise every text could end anywhere for log(smoothing / V), and beam search would prefer the empty text."""

    class Free(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(1, 4, vocab.SIZE))

        def forward(self, source: torch.Tensor, lengths: torch.Tensor, target_in: torch.Tensor) -> torch.Tensor:
            return self.logits.log_softmax(-1)

    model, smoothing = Free(), 0.1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    for _ in range(500):
        optimizer.zero_grad()
        sequence_loss(model, to_tensors(["abc"], ["abc"]), smoothing).backward()
        optimizer.step()
    probabilities = model.logits.detach()[0].softmax(-1)
    symbols = len(vocab.SYMBOLS)
    targets = vocab.encode("abc")
    assert probabilities[torch.arange(3), targets].tolist() == pytest.approx(
        [1 - smoothing + smoothing / symbols] * 3, rel=1e-3
    )
    assert probabilities[0, targets[1]].item() == pytest.approx(smoothing / symbols, rel=1e-2)
    assert probabilities[:3, [vocab.EOS, vocab.PAD, vocab.BOS, vocab.UNK]].max() < 0.01 * smoothing / symbols
    assert probabilities[3, vocab.EOS] > 0.999


def test_loss_flows_into_every_parameter() -> None:
    torch.manual_seed(0)
    model = DenoisingLM(ModelConfig(16, 32, 2, 1, 1))
    sequence_loss(model, to_tensors(HYPOTHESES, TRUE), 0.05).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert model.pointer_gate.weight.grad is not None
    assert model.pointer_gate.weight.grad.abs().sum() > 0


def test_a_tiny_model_learns_eight_pairs_by_heart() -> None:
    torch.manual_seed(0)
    model = DenoisingLM(ModelConfig(32, 64, 2, 1, 1, dropout=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = to_tensors(HYPOTHESES, TRUE)
    for step in range(300):
        loss = sequence_loss(model, batch, 0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19 and loss.item() < 0.02:
            break
    corrected = greedy(model.eval(), HYPOTHESES)
    assert [candidate.text for candidate in corrected] == TRUE
    assert all(candidate.finished for candidate in corrected)
    assert min(candidate.log_prob for candidate in corrected) > -2.0


def test_training_writes_a_model_directory_and_resumes(data: Path, tmp_path: Path) -> None:
    settings = config(pair_fraction=0.5)
    half = train_dlm(
        data, tmp_path / "run", config(pair_fraction=0.5, training=TrainingConfig(3, log_every=1)), device="cpu"
    )
    assert half.steps == 3
    result = train_dlm(data, tmp_path / "run", settings, resume=True, device="cpu")
    assert result.steps == 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    validations = [row["validation"] for row in rows if "validation" in row]
    assert len(validations) == 2
    assert set(validations[0]) == {"loss", "wer_before", "wer", "kept"}
    assert validations[0]["wer_before"] == pytest.approx(3 / 6)  # "the cat sat" and "a big dog"
    model = load(tmp_path / "run" / "best")
    assert model.config == settings.model

    again = train_dlm(data, tmp_path / "more", settings, device="cpu", start_from=tmp_path / "run" / "best")
    assert again.steps == 6


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        train_dlm(tmp_path / "nothing-here", tmp_path / "run", config())


def test_probabilities_and_fractions_also_load_under_their_former_keys() -> None:
    former = ["pair_share=0.5", "first_share=0.4", "noise.substitution_share=0.2", "noise.clean_prob=0.1"]
    loaded = load_config(DlmTrainConfig, None, former)
    assert (loaded.pair_fraction, loaded.first_prob) == (0.5, 0.4)
    assert loaded.noise == NoiseConfig(substitution_prob=0.2, clean_prob=0.1)
