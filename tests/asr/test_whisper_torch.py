"""The Whisper back end, on tiny random models built here and loaded from their folder like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from audio_llm.asr.base import SAMPLE_RATE
from audio_llm.asr.whisper_times import token_starts, warp, words_of_tokens
from audio_llm.asr.whisper_torch import WhisperRecognizer
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError

SPACE = "Ġ"
WORDS = [consonant + vowel for consonant in "bdfg" for vowel in "aeiou"]
MARKS = ["startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech"]


def build_tokenizer() -> WhisperTokenizer:
    """Return a byte-level BPE with one token for each of `WORDS`, and Whisper's marks."""
    vocabulary, merges = {symbol: number for number, symbol in enumerate([SPACE, *"abdefgiou"])}, []
    for consonant in "bdfg":
        vocabulary[SPACE + consonant] = len(vocabulary)
        merges.append((SPACE, consonant))
    for word in WORDS:
        vocabulary[SPACE + word] = len(vocabulary)
        merges.append((SPACE + word[0], word[1]))
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{mark}|>" for mark in [*MARKS, "notimestamps"]]})
    tokenizer.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(5)])
    return tokenizer


def build_model(folder: Path, multilingual: bool, seed: int = 0) -> Path:
    """Save a random Whisper of 2 + 2 layers that writes `WORDS` and nothing else."""
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=32,
        init_std=0.4,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=32,
        suppress_tokens=[number for token, number in ids.items() if len(token) < 3],
        begin_suppress_tokens=[ids[SPACE], end],
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        alignment_heads=[[0, 1], [1, 0]],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def sound(pitch_hz: float, duration_s: float = 2.0) -> np.ndarray:
    """Return a buzz with some noise, (T,) float32 at 16 kHz."""
    time = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * pitch_hz * k * time) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * tones * (1 + np.sin(8 * time)) + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("whisper") / "tiny-multilingual", multilingual=True)


@pytest.fixture(scope="module")
def english_folder(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("whisper") / "tiny.en", multilingual=False, seed=1)


@pytest.fixture(scope="module")
def recognizer(folder) -> WhisperRecognizer:
    return WhisperRecognizer.load(folder, offline=True)


@pytest.mark.parametrize("nbest", [1, 5, 8])
def test_hypotheses_are_distinct_and_ranked(recognizer, nbest):
    result = recognizer.recognize(sound(120), nbest=nbest, id="a")
    scores = [hypothesis.score for hypothesis in result.hypotheses]
    assert result.id == "a"
    assert len(set(result.texts)) == nbest
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == nbest
    assert all(np.isfinite(score) and score < 0 for score in scores)
    assert set(" ".join(result.texts).split()) <= set(WORDS)  # no mark, no time stamp, no suppressed piece


def test_score_of_a_returned_text_is_the_score_of_its_beam(recognizer):
    result = recognizer.recognize(sound(150), nbest=8)
    rescored = recognizer.score(sound(150), result.texts)
    assert rescored == pytest.approx([hypothesis.score for hypothesis in result.hypotheses], abs=1e-3)


def test_score_is_the_probability_of_each_token_in_turn(folder, recognizer):
    """Against a plain loop over the tokens, one forward pass each."""
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    ids = build_tokenizer().get_vocab()
    features = WhisperFeatureExtractor()(sound(150), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    sequence = [ids[f"<|{mark}|>"] for mark in ("startoftranscript", "en", "transcribe", "notimestamps")]
    total = 0.0
    for token in (f"{SPACE}ba", f"{SPACE}du", "<|endoftext|>"):
        with torch.no_grad():
            logits = model(input_features=features, decoder_input_ids=torch.tensor([sequence])).logits[0, -1]
        total += float(logits.log_softmax(-1)[ids[token]])
        sequence.append(ids[token])
    assert recognizer.score(sound(150), ["ba du"])[0] == pytest.approx(total, abs=1e-4)


def test_scores_depend_on_the_sound_and_not_on_the_batch(recognizer):
    texts = ["ba du", "fi", "", "go ga go ga go ga", *WORDS[:14]]  # more than one batch
    together = recognizer.score(sound(150), texts)
    alone = [recognizer.score(sound(150), [text])[0] for text in texts[:5]]
    assert together[:5] == pytest.approx(alone, abs=1e-4)
    other = recognizer.score(sound(300), texts)
    assert max(abs(a - b) for a, b in zip(together, other, strict=True)) > 1e-2


def test_a_text_too_long_for_the_decoder_has_no_score(recognizer):
    limit = 32 - 4  # places of the decoder less the prompt; the end mark is predicted, not read
    scores = recognizer.score(sound(150), ["ba " * limit, "ba " * (limit + 1), "ba"])
    assert scores[1] is None
    assert None not in (scores[0], scores[2])


@pytest.mark.parametrize("duration_s", [0.2, 2.0, 7.3, 30.0])
def test_words_are_monotone_and_inside_the_sound(recognizer, duration_s):
    result = recognizer.recognize(sound(150, duration_s), nbest=2)
    assert [word.text for word in result.words] == result.best.split()
    times = [time for word in result.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= duration_s
    assert all(0 < word.confidence <= 1 for word in result.words)


def test_word_times_leave_the_fast_attention_in_place(recognizer):
    before = recognizer._model.config._attn_implementation
    recognizer.recognize(sound(150), nbest=2)
    assert recognizer._model.config._attn_implementation == before != "eager"


def test_warp_follows_the_cheap_frames():
    cost = np.ones((3, 10))
    cost[0, :4] = cost[1, 4:7] = cost[2, 7:] = 0
    assert warp(cost).tolist() == [0, 4, 7]
    crowded = warp(np.ones((6, 2)))  # more tokens than frames
    assert crowded.tolist() == sorted(crowded.tolist())
    assert crowded[0] == 0
    assert crowded[-1] <= 1


def test_token_starts_follow_the_attention():
    generator = np.random.default_rng(0)
    edges = [0, 20, 55, 70, 110, 150]  # the frames where five tokens begin, and the end
    attention = generator.uniform(0, 0.3, (4, 7, 150))
    attention[:2, :, 0] += 5  # some heads rest on the first frame
    for token in range(5):
        attention[:, token + 2, edges[token] : edges[token + 1]] += 1
    attention /= attention.sum(axis=-1, keepdims=True)
    starts = token_starts(attention.astype(np.float32), prompt_length=2)
    assert np.abs(starts - edges[:-1]).max() <= 3


def test_words_take_the_times_of_their_tokens():
    words = words_of_tokens(["so", "some", "some one", "some one"], [0.1, 0.2, 0.5, 0.7, 1.4], [-1.0, -3.0, 0, 0], 1.0)
    assert [(word.text, word.start_s, word.end_s) for word in words] == [("some", 0.1, 0.5), ("one", 0.5, 1.0)]
    assert words[0].confidence == pytest.approx(np.exp(-2.0))
    assert words_of_tokens([], [0.0], [], 1.0) == ()


def test_english_only_models_have_no_language_in_their_prompt(english_folder):
    recognizer = WhisperRecognizer.load(english_folder, offline=True)
    assert len(recognizer._prompt.tokens) == 2
    result = recognizer.recognize(sound(150), nbest=5)
    assert len(set(result.texts)) == 5
    assert recognizer.score(sound(150), result.texts) == pytest.approx([h.score for h in result.hypotheses], abs=1e-3)
    with pytest.raises(UsageError, match="English-only"):
        WhisperRecognizer.load(english_folder, offline=True, language="de")


def test_the_language_changes_the_prompt(folder, recognizer):
    german = WhisperRecognizer.load(folder, offline=True, language="de")
    assert german.score(sound(150), ["ba"]) != pytest.approx(recognizer.score(sound(150), ["ba"]), abs=1e-3)
    with pytest.raises(UsageError, match="'xx'"):
        WhisperRecognizer.load(folder, offline=True, language="xx")


def test_without_alignment_heads_the_upper_layers_are_used(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    del settings["alignment_heads"]
    (copy / "generation_config.json").write_text(json.dumps(settings))
    recognizer = WhisperRecognizer.load(copy, offline=True)
    assert recognizer._alignment_heads == [(1, 0), (1, 1)]
    assert recognizer.recognize(sound(150), nbest=1).words


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros(1), np.zeros(SAMPLE_RATE), np.full(800, 0.1)])
def test_nothing_to_hear_gives_an_empty_list(recognizer, waveform):
    result = recognizer.recognize(waveform.astype(np.float32), id="x")
    assert (result.id, result.hypotheses, result.words) == ("x", (), ())


def test_the_model_own_mark_for_silence_gives_an_empty_list(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    mark = build_tokenizer().get_vocab()["<|nospeech|>"]
    recognizer = WhisperRecognizer.load(copy, offline=True)
    with torch.no_grad():  # the state behind the start mark is what the silence mark should be nearest to
        encoded = recognizer._encode(sound(150))
        rows = torch.tensor([recognizer._prompt.tokens[:1]])
        state = recognizer._model.model.decoder(input_ids=rows, encoder_hidden_states=encoded).last_hidden_state[0, 0]
    weights["model.decoder.embed_tokens.weight"][mark] = state * 5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert WhisperRecognizer.load(copy, offline=True).recognize(sound(150)).hypotheses == ()
    assert recognizer.recognize(sound(150)).hypotheses


def test_more_than_a_window_is_refused(recognizer):
    with pytest.raises(UsageError, match="30 s"):
        recognizer.recognize(sound(150, 30.1))


def test_half_precision_gives_nearly_the_same_scores(folder, recognizer):
    half = WhisperRecognizer.load(folder, offline=True)
    half._model.half()
    result = half.recognize(sound(150), nbest=5)
    assert len(set(result.texts)) == 5
    assert result.words
    assert recognizer.score(sound(150), result.texts) == pytest.approx(half.score(sound(150), result.texts), abs=0.1)


def test_nothing_can_be_preferred(recognizer):
    assert recognizer.prefer(["Whitby"]) == ["Whitby"]
    assert not recognizer.capabilities.word_preference


def test_pickled_weights_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"copy.*pickles.*safetensors"):
        WhisperRecognizer.load(copy, offline=True)


def test_damaged_and_incomplete_models_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["model.encoder.conv1.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="conv1"):
        WhisperRecognizer.load(copy, offline=True)
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelFormatError, match="copy"):
        WhisperRecognizer.load(copy, offline=True)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        WhisperRecognizer.load(copy, offline=True)
    (copy / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelFormatError, match="type t5"):
        WhisperRecognizer.load(copy, offline=True)
    (copy / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="copy"):
        WhisperRecognizer.load(copy, offline=True)


@pytest.mark.parametrize("part", ["tokenizer.json", "preprocessor_config.json"])
def test_a_missing_part_is_an_error_of_one_line(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / part).unlink()
    with pytest.raises((ModelNotFoundError, ModelFormatError), match="copy") as caught:
        WhisperRecognizer.load(copy, offline=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "nobody/no-such-whisper", "no-such-whisper"])
def test_a_missing_model_says_what_to_do(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match=r"no-such-whisper|folder") as caught:
        WhisperRecognizer.load(name, offline=True)
    assert caught.value.remedy
