"""The CTC recognizer: exact scores, search and alignment against brute force, training on toy speech."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import features, hub
from audio_llm.align import count_edits
from audio_llm.asr import ctc, ctc_data, ctc_train
from audio_llm.asr.ctc_model import (
    BLANK,
    PRESETS,
    SYMBOLS,
    CtcConfig,
    CtcModel,
    decode_symbols,
    encode_symbols,
    frames_needed,
)
from audio_llm.asr.ctc_search import SearchSettings, WordPrior, prefix_beam
from audio_llm.errors import AudioLLMError, ConfigError, DataError, ModelFormatError
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import save_ngram
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.shards import ShardReader, decode_text, encode_text, write_shards
from audio_llm.tts.engines import PHONES, Phone

torch.set_num_threads(1)
LITTLE = CtcConfig(channels=4, width=32, layers=2, heads=2, feedforward=64, kernel=5)


def make_model(fold: int = 2) -> CtcModel:
    torch.manual_seed(0)
    return CtcModel(CtcConfig(channels=4, width=32, layers=2, heads=2, feedforward=64, kernel=5, fold=fold)).eval()


def make_log_probs(frames: int, symbols: str, seed: int = 0) -> np.ndarray:
    """Random log-probabilities in which only the blank and the given symbols are likely."""
    logits = np.full((frames, len(SYMBOLS)), -60.0)
    places = [BLANK, *(SYMBOLS.index(symbol) for symbol in symbols)]
    logits[:, places] = np.random.default_rng(seed).normal(0, 1.5, (frames, len(places)))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def brute_force(log_probs: np.ndarray, symbols: str) -> dict[str, float]:
    """Total probability of every symbol sequence, by going through all paths."""
    totals: dict[str, float] = {}
    places = [BLANK, *(SYMBOLS.index(symbol) for symbol in symbols)]
    for path in itertools.product(places, repeat=len(log_probs)):
        text = "".join(SYMBOLS[k] for k, _ in itertools.groupby(path) if k != BLANK)
        probability = math.exp(sum(log_probs[n, k] for n, k in enumerate(path)))
        totals[text] = totals.get(text, 0.0) + probability
    return totals


def make_speech(text: str, rng: np.random.Generator) -> np.ndarray:
    """A made-up language: each letter is 120 ms of a chord of its own, a space is 120 ms of near silence."""
    pieces = []
    for symbol in text:
        time_s = np.arange(1920) / 16_000
        pitch = 300.0 + 140.0 * (SYMBOLS.index(symbol) - 3)
        loud = 0.0 if symbol == " " else 0.3
        pieces.append(loud * np.sin(2 * np.pi * pitch * time_s) + 0.2 * loud * np.sin(4 * np.pi * pitch * time_s))
        pieces.append(np.zeros(480))
    sound = np.concatenate(pieces)
    return (sound + 0.003 * rng.standard_normal(sound.size)).astype(np.float32)


def test_symbols() -> None:
    assert decode_symbols(encode_symbols("  Don't  STOP ") or []) == "don't stop"
    assert encode_symbols("café") == encode_symbols("cafe")
    assert encode_symbols("route 66") is None
    assert encode_symbols("") == []
    assert frames_needed(encode_symbols("hello") or []) == 6


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_batch_equals_one_by_one(fold: int) -> None:
    model = make_model(fold)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([97, 64, 33, 5, 1])
    batch = torch.randn(5, 97, 80, generator=generator) * features.valid_mask(lengths, 97)[:, :, None]
    output = model(batch, lengths, halfway=True)
    assert output.lengths.tolist() == [25, 16, 9, 2, 1]
    assert output.log_probs.shape == (5, 25, 29)
    for i, length in enumerate(lengths.tolist()):
        alone = model(batch[i : i + 1, :length], lengths[i : i + 1], halfway=True)
        size = int(alone.lengths)
        assert alone.log_probs.shape[1] == size
        torch.testing.assert_close(output.log_probs[i, :size], alone.log_probs[0], atol=2e-5, rtol=0)
        assert output.halfway is not None
        assert alone.halfway is not None
        torch.testing.assert_close(output.halfway[i, :size], alone.halfway[0], atol=2e-5, rtol=0)


def test_dropout_only_on_demand() -> None:
    model = make_model()
    mel, lengths = torch.randn(1, 50, 80, generator=torch.Generator().manual_seed(0)), torch.tensor([50])
    plain = model(mel, lengths).log_probs
    assert torch.equal(plain, model(mel, lengths).log_probs)
    assert not torch.equal(plain, model(mel, lengths, dropout=0.3).log_probs)
    model.train()
    assert torch.equal(plain, model(mel, lengths, dropout=0.0).log_probs)


def test_presets_fit_the_size_limit() -> None:
    sizes = {name: sum(p.numel() for p in CtcModel(config).parameters()) for name, config in PRESETS.items()}
    assert 4_500_000 < sizes["small"] <= 5_500_000
    assert sizes["tiny"] < 2_000_000
    with pytest.raises(ConfigError):
        CtcConfig(width=30, heads=4)
    with pytest.raises(ConfigError):
        CtcConfig(kernel=4)


@pytest.mark.parametrize("seed", range(4))
def test_scores_search_and_alignment_against_brute_force(seed: int) -> None:
    log_probs = make_log_probs(6, "ab", seed)
    totals = brute_force(log_probs, "ab")
    texts = ["", "a", "ab", "aa", "aba", "bbb"]
    for text, score in zip(texts, ctc._exact_scores(log_probs, texts), strict=True):
        assert score == pytest.approx(math.log(totals[text]), abs=1e-9)
    found = ["".join(SYMBOLS[k] for k in numbers) for numbers in prefix_beam(log_probs, 100, least=-50.0)]
    assert found[:8] == sorted(totals, key=lambda text: -totals[text])[:8]
    states = np.array([0, SYMBOLS.index("a"), 0, SYMBOLS.index("a"), 0, SYMBOLS.index("b"), 0])
    path = ctc._viterbi(log_probs, states)
    best = max(
        sum(log_probs[n, k] for n, k in enumerate(p))
        for p in itertools.product([0, SYMBOLS.index("a"), SYMBOLS.index("b")], repeat=6)
        if "".join(SYMBOLS[k] for k, _ in itertools.groupby(p) if k != BLANK) == "aab"
    )
    assert sum(log_probs[n, states[s]] for n, s in enumerate(path)) == pytest.approx(best)


def make_prior(**settings: float) -> WordPrior:
    texts = ["a b ab", "ab ab a", "b ab", "ab b b a", "a ab b"]
    return WordPrior(train_ngram(texts), SearchSettings(**settings))


@pytest.mark.parametrize("seed", range(4))
def test_search_with_a_language_model_against_brute_force(seed: int) -> None:
    log_probs = make_log_probs(6, "ab ", seed)
    prior = make_prior(language_weight=0.7, word_reward=0.4, unknown_reward=-1.5)
    sums: dict[str, float] = {}
    for text, total in brute_force(log_probs, "ab ").items():
        if text == " ".join(text.split()):
            sums[text] = math.log(total) + prior.text(text)
    found = ctc.CtcPosteriors(log_probs).search(400, prior)
    assert [text for text, _ in found[:8]] == sorted(sums, key=lambda text: -sums[text])[:8]
    for text, score in found[:8]:
        assert score == pytest.approx(sums[text], abs=1e-6)


def test_a_prior_is_the_sum_of_its_words() -> None:
    prior = make_prior(language_weight=0.7, word_reward=0.4, unknown_reward=-1.5)
    words = ["ab", "bb", "a"]  # the second is unknown
    steps = [prior.word(words[:n], word) for n, word in enumerate(words)]
    assert prior.text("ab bb a") == pytest.approx(sum(steps) + prior.end(words), abs=1e-5)
    assert prior.beginning("a") == prior.beginning("") == 0.0
    assert prior.beginning("bb") == prior.word((), "bb")
    assert prior.text("") == pytest.approx(prior.end(()), abs=1e-5)


def test_the_settings_of_the_search_travel_with_the_model(tmp_path: Path) -> None:
    texts = ["a b ab", "ab ab a", "b ab"]
    save_ngram(train_ngram(texts), tmp_path / "words", "# words\n")
    search = SearchSettings(30, "words", hub.fingerprint(tmp_path / "words"), 0.5, 1.0, -2.0)
    folder = ctc.save_ctc(make_model(), tmp_path / "model", "# m\n", search=search)
    assert ctc.read_search(folder) == search
    rng = np.random.default_rng(1)
    waveform = 0.1 * rng.standard_normal(16_000).astype(np.float32)
    loaded, plain = ctc.CtcRecognizer.load(folder), ctc.CtcRecognizer.load(folder, search=False)
    assert loaded.version.startswith(plain.version + "-")
    (best, *_), (log_probs,) = loaded.recognize(waveform).hypotheses, plain.log_probs([waveform])
    prior = WordPrior(train_ngram(texts), search)
    assert best.score == pytest.approx(plain.score(waveform, [best.text])[0] + prior.text(best.text), abs=0.05)
    assert best.text == ctc.CtcPosteriors(log_probs).search(30, prior)[0][0]
    save_ngram(train_ngram(["other"]), tmp_path / "words", "# words\n")
    with pytest.raises(ModelFormatError, match="another model than the 'words'"):
        ctc.CtcRecognizer.load(folder)
    (folder / ctc.SETTINGS_NAME).write_text('{"beams": 3}')
    with pytest.raises(ModelFormatError):
        ctc.CtcRecognizer.load(folder)


def test_many_texts_at_once_score_as_the_loss_does_even_unlikely_ones() -> None:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 6.0, (120, len(SYMBOLS))))
    log_probs = logits.log_softmax(dim=1).numpy()
    texts = ["".join(rng.choice(list(SYMBOLS[2:]), size=size)) for size in (1, 5, 17, 40, 58)]
    texts += ["aabbcc ddee", decode_symbols([k for k, _ in itertools.groupby(log_probs.argmax(1)) if k != BLANK])]
    sharp = log_probs * 60.0  # no distribution any more, but as unlikely as a text can be
    for scores in (log_probs, sharp):
        found = ctc._exact_scores(scores, texts)
        for text, score in zip(texts, found, strict=True):
            numbers = torch.tensor([encode_symbols(text)])
            sizes = torch.tensor([len(scores)]), torch.tensor([numbers.shape[1]])
            loss = torch.nn.functional.ctc_loss(torch.from_numpy(scores)[:, None], numbers, *sizes, reduction="sum")
            assert score == pytest.approx(-loss.item(), rel=1e-9), text


def test_texts_that_cannot_be_scored() -> None:
    log_probs = make_log_probs(4, "ab")
    assert ctc._exact_scores(log_probs, ["aaaa", "a1"]) == [None, None]
    assert ctc._exact_scores(np.zeros((0, 29)), ["a"]) == [None]
    assert ctc.align_words(log_probs, "aaaa") == ()


def test_word_times() -> None:
    symbols = "\0ab\0 \0\0cc\0"
    log_probs = np.full((len(symbols), len(SYMBOLS)), -10.0)
    for n, symbol in enumerate(symbols):
        log_probs[n, SYMBOLS.index(symbol)] = -0.1
    one, two = ctc.align_words(log_probs, "ab c")
    assert (one.text, one.start_s, one.end_s) == ("ab", 0.04, 0.12)
    assert (two.text, two.start_s, two.end_s) == ("c", 0.28, 0.36)
    assert type(one.start_s) is type(one.end_s) is float
    assert one.confidence == pytest.approx(math.exp(-0.1))


def test_silence_and_nothing_give_an_empty_list() -> None:
    recognizer = ctc.CtcRecognizer(make_model(), "test")
    for waveform in (np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(16_000, np.float32)):
        assert recognizer.recognize(waveform, id="x").hypotheses == ()
        assert recognizer.score(waveform, ["a"]) == [None]
    assert recognizer.greedy_batch([np.zeros(0, np.float32)]) == [""]
    assert recognizer.greedy_batch([]) == []


def test_distortion_follows_its_seed_and_leaves_the_outside_alone() -> None:
    recognizer = ctc.CtcRecognizer(make_model(), "test")
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(size).astype(np.float32) for size in (9000, 16_000, 4000)]
    plain = recognizer.log_probs(waveforms)
    state = torch.get_rng_state()
    for distortion in (ctc.Distortion(dropout=0.3), ctc.Distortion(time_masks=3, band_masks=2)):
        once, again = (recognizer.log_probs(waveforms, distortion) for _ in range(2))
        for left, right, clean in zip(once, again, plain, strict=True):
            np.testing.assert_array_equal(left, right)
            assert not np.allclose(left, clean, atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())
    for alone, waveform in zip(plain, waveforms, strict=True):
        np.testing.assert_allclose(recognizer.log_probs([waveform])[0], alone, atol=1e-4)


def make_pack(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = ["".join(rng.choice(list("abcde"), rng.integers(2, 4))) for _ in range(rng.integers(1, 4))]
        waveform = torch.from_numpy(make_speech(" ".join(words), rng))
        mel, _ = features.log_mel(waveform[None], torch.tensor([len(waveform)]))
        rows.append({"mel": features.to_uint8(mel[0]).numpy(), "text": encode_text(" ".join(words))})
    write_shards(rows, folder)


def training(steps: int, rate: float = 4e-3) -> ctc_train.CtcTrainingConfig:
    loop = TrainingConfig(max_steps=steps, learning_rate=rate, warmup_steps=20, validate_every=steps, log_every=5)
    return ctc_train.CtcTrainingConfig(LITTLE, loop, batch_seconds=16, time_masks=1, band_masks=1, band_mask=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctc")
    make_pack(folder / "pack", 160, 0)
    make_pack(folder / "tune", 20, 1)
    result = ctc_train.train_ctc(
        [folder / "pack"], folder / "tune", folder / "out", training(160), device="cpu", provenance={"seed": 0}
    )
    assert result.best_value < 0.35
    return folder / "out"


def test_trained_on_toy_speech_it_recognizes_new_words(trained: Path) -> None:
    recognizer = ctc.CtcRecognizer.load(trained / "best")
    rng = np.random.default_rng(9)
    texts = ["abc de", "dead bee", "cab ace"]
    waveforms = [make_speech(text, rng) for text in texts]
    lists = [recognizer.recognize(waveform, 4, text) for text, waveform in zip(texts, waveforms, strict=True)]
    right = sum(word in heard.best.split() for text, heard in zip(texts, lists, strict=True) for word in text.split())
    assert right >= 4
    for nbest, waveform in zip(lists, waveforms, strict=True):
        assert len(set(nbest.texts)) == len(nbest.texts) == 4
        scores = [hypothesis.score for hypothesis in nbest.hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert recognizer.score(waveform, nbest.texts) == pytest.approx(scores)
        times = [time for word in nbest.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert times[-1] <= len(waveform) / 16_000 + 0.04
        assert " ".join(word.text for word in nbest.words) == nbest.best
    crossed = [recognizer.score(waveform, texts) for waveform in waveforms]
    for row, scores in enumerate(crossed):
        assert int(np.argmax(np.array(scores, dtype=float))) == row  # the true text fits its own sound best


def test_a_pack_is_recognized_repeatedly_with_more_errors(trained: Path) -> None:
    network = ctc.load_network(trained / "best")
    rows = ctc_train.recognize_packed(network, trained.parent / "tune", passes=2, dropout=0.3, seed=1)
    again = ctc_train.recognize_packed(network, trained.parent / "tune", passes=2, dropout=0.3, seed=1)
    assert rows == again
    assert all(len(texts) == 2 for _, texts in rows)
    errors = [sum(count_edits(r.split(), t[n].split()).errors for r, t in rows) for n in (0, 1)]
    words = sum(len(reference.split()) for reference, _ in rows)
    assert errors[0] < errors[1]
    assert errors[0] / words < 0.4


def test_a_model_directory_is_checked(trained: Path, tmp_path: Path) -> None:
    first = ctc.CtcRecognizer.load(trained / "best")
    copy = ctc.save_ctc(make_model(), tmp_path / "other", "# card\n")
    assert ctc.CtcRecognizer.load(copy).version != first.version
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelFormatError):
        ctc.CtcRecognizer.load(copy)


def test_training_resumes_exactly(tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", 24, 0)
    packs = [tmp_path / "pack"]

    class StoppedError(Exception):
        pass

    def losses(folder: Path) -> list[float]:
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    config = training(10)
    ctc_train.train_ctc(packs, packs[0], tmp_path / "straight", config, device="cpu")
    original, calls = ctc_train.ctc_loss, itertools.count()

    def stopping(*args: object) -> torch.Tensor:
        if next(calls) == 8:
            raise StoppedError
        return original(*args)  # type: ignore[arg-type]

    halves = dataclasses.replace(config, training=dataclasses.replace(config.training, save_every=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctc_train, "ctc_loss", stopping)
        with pytest.raises(StoppedError):
            ctc_train.train_ctc(packs, packs[0], tmp_path / "halves", halves, device="cpu")
    ctc_train.train_ctc(packs, packs[0], tmp_path / "halves", halves, device="cpu", resume=True)
    assert losses(tmp_path / "halves") == losses(tmp_path / "straight")


def test_a_training_goes_on_from_a_model_of_any_size(trained: Path, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", 8, 0)
    other = dataclasses.replace(training(1, rate=1e-9), model=CtcConfig(width=16, heads=2))
    ctc_train.train_ctc(
        [tmp_path / "pack"], tmp_path / "pack", tmp_path / "out", other, device="cpu", start_from=trained / "best"
    )
    one, two = (ctc.load_network(folder / "best") for folder in (trained, tmp_path / "out"))
    assert two.config == one.config
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-3, rtol=1e-3)


def test_batches_cover_all_once_and_differ_by_epoch(tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", 40, 0)
    data = ctc_train.Utterances([tmp_path / "pack"], 20.0)
    config = training(10)
    first, second = data.batches(1, config), data.batches(2, config)
    assert sorted(i for batch in first for i in batch.items) == list(range(40))
    assert first == data.batches(1, config)
    assert first != second
    assert all(len(b.items) * max(data.frames[i] for i in b.items) <= 1600 for b in first)
    one, other = data.collate(first[0], config), data.collate(ctc_train.Batch(first[0].items, 5), config)
    assert torch.equal(one.mel, data.collate(first[0], config).mel)
    assert one.mel.shape != other.mel.shape or not torch.equal(one.mel, other.mel)
    with pytest.raises(DataError, match=r"at most 0\.1 s"):
        ctc_train.Utterances([tmp_path / "pack"], 0.1)


def write_recordings(folder: Path, count: int) -> list[dict[str, str]]:
    import soundfile

    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        text = ["abc de", "bee", "dead cab"][number % 3]
        soundfile.write(folder / f"{number}.wav", make_speech(text, rng), 16_000)
        rows.append({"audio_filepath": f"{number}.wav", "text": text.title() + "!", "id": f"r{number}"})
    return rows


def test_phones_are_labeled_at_the_middle_of_each_frame() -> None:
    phones = [Phone("pau", 0.05), Phone("sh", 0.08), Phone("strange", 0.1)]
    labels = ctc_data.phone_labels(phones, 12).tolist()
    pause, hiss = 1 + PHONES.index("pau"), 1 + PHONES.index("sh")
    assert labels == [pause] * 4 + [hiss] * 3 + [0] * 5  # middles at 12.5 ms, 22.5 ms, ...; the last ones unknown
    assert ctc_data.phone_labels((), 3).tolist() == [0, 0, 0]


def test_the_middle_layer_learns_phones_where_they_are_known() -> None:
    torch.manual_seed(0)
    model = CtcModel(dataclasses.replace(LITTLE, phones=3))
    mel, lengths = torch.randn(2, 40, 80), torch.tensor([40, 40])
    mel[0, :20] += 2.0
    phones = torch.zeros(2, 40, dtype=torch.int64)
    phones[0, :20], phones[0, 20:] = 2, 3  # those of the second utterance are not known
    batch = ctc_train.CtcBatch(mel, lengths, torch.tensor([2, 3]), torch.tensor([1, 1]), phones)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = ctc_train.phone_loss(model(mel, lengths, halfway=True), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    found = model(mel, lengths, halfway=True).phones
    assert found.shape == (2, 10, 3)
    assert found[0].argmax(1).tolist() == [1] * 5 + [2] * 5
    assert model(mel, lengths).phones is None
    plain = CtcModel(LITTLE)(mel, lengths, halfway=True)
    assert ctc_train.phone_loss(plain, batch).item() == 0.0


def test_pack_is_resumable_and_the_same_every_time(tmp_path: Path) -> None:
    rows = write_recordings(tmp_path, 6)
    items = ctc_data.items_from_rows([*rows, {"audio_filepath": "none.wav"}], tmp_path, copies=2, seed=3)
    assert [item.id for item in items[:2]] == ["r0/0", "r0/1"]
    assert items[0].words == "abc de"
    config = ctc_data.PackConfig(shard_items=4)
    report = ctc_data.pack(items, tmp_path / "a", config)
    assert (report.items, report.left, report.skipped) == (12, 0, {})
    stopped = ctc_data.pack(items, tmp_path / "b", config, max_minutes=0)
    assert (stopped.left, (tmp_path / "b" / "index.json").exists()) == (3, False)
    ctc_data.pack(items, tmp_path / "b", config)
    os.remove(tmp_path / "b" / "00001.json")  # as if it had been killed after writing the shard
    ctc_data.pack(items, tmp_path / "b", config)
    for path in sorted((tmp_path / "a").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    reader = ShardReader(tmp_path / "a")
    assert [decode_text(row["id"]) for row in reader] == [item.id for item in items]
    assert not np.array_equal(reader[0]["mel"], reader[1]["mel"])  # the copy has another voice
    with pytest.raises(DataError, match="other items or settings"):
        ctc_data.pack(items, tmp_path / "a", ctc_data.PackConfig(shard_items=5))


def test_plans_are_hashed_under_the_keys_of_earlier_versions(tmp_path: Path) -> None:
    item = ctc_data.SpeechItem("x", "")
    ctc_data.pack([item], tmp_path, ctc_data.CLEAN)
    former = {"noisy_prob": "noisy_share", "room_prob": "room_share"}
    clean = {former.get(key, key): value for key, value in dataclasses.asdict(ctc_data.CLEAN.recorded).items()}
    settings = {"max_seconds": 20.0, "recorded": clean, "shard_items": 200, "spoken": clean}
    digest = hashlib.sha256((json.dumps(settings, sort_keys=True) + repr(item)).encode()).hexdigest()
    assert (tmp_path / "plan.txt").read_text() == digest


def test_pack_counts_what_it_leaves_out(tmp_path: Path) -> None:
    rows = write_recordings(tmp_path, 3)
    rows[1]["text"] = "§ 5"
    rows[2]["text"] = "far too many letters for so short a sound " * 4
    items = ctc_data.items_from_rows(rows, tmp_path, normalizer="basic")
    report = ctc_data.pack(items, tmp_path / "pack", ctc_data.CLEAN)
    assert report.items == 1
    assert report.skipped == {"symbols that are not letters": 1, "more letters than frames": 1}
    broken = [ctc_data.SpeechItem(str(n), "a", audio=str(tmp_path / "none.wav")) for n in range(3)]
    with pytest.raises(AudioLLMError, match="3 of 3 items failed"):
        ctc_data.pack(broken, tmp_path / "broken", ctc_data.CLEAN)
    with pytest.raises(DataError, match="nothing to pack"):
        ctc_data.pack([], tmp_path / "empty")


@pytest.mark.slow
def test_two_workers_make_the_same_pack(tmp_path: Path) -> None:
    items = ctc_data.items_from_rows(write_recordings(tmp_path, 6), tmp_path, copies=2)
    config = ctc_data.PackConfig(shard_items=3)
    for name, workers in (("a", 1), ("b", 2)):
        assert ctc_data.pack(items, tmp_path / name, config, workers).items == 12
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
