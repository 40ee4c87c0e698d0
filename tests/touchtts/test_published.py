"""Published networks from a user's files: S3Tokenizer and CAM++, replaced by small graphs here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import audio, hub
from audio_llm.codec.vocoder import KIND as VOCODER
from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError
from audio_llm.tokenizer.onnx_s3 import OnnxS3Tokenizer
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import TtsUtterance, UtterancePack, pack_utterances, trim_and_level
from audio_llm.touchtts.flow import FlowConfig, FlowNetwork
from audio_llm.touchtts.flow_train import FlowTrainingConfig, train_flow
from audio_llm.touchtts.models import (
    TouchModel,
    assemble,
    load_flow,
    load_touchtts,
    save_touchtts,
    tokenizer_name,
    voice_of,
)
from audio_llm.touchtts.recognizer import TouchRecognizer
from audio_llm.touchtts.speaker_vectors import CamPlusPlus, kaldi_filter_bank
from audio_llm.touchtts.speech import TouchTTS
from audio_llm.touchtts.speech_text_lm import SpeechTextLmConfig
from audio_llm.touchtts.speech_text_lm_train import SpeechTextLmTrainingConfig, train_speech_text_lm
from audio_llm.training.loop import TrainingConfig
from audio_llm.training.shards import ShardReader, write_shards

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from onnx_graphs import build_campplus, build_s3

torch.set_num_threads(1)
TEXTS = ("a cat", "the dog ran", "we see it", "go home now", "he is here")
LOOP = TrainingConfig(2, warmup_steps=1, log_every=1, validate_every=2)


def hiss(seconds: float, seed: int = 0) -> np.ndarray:
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.1 * noise * (1.1 + np.sin(2 * np.pi * 4 * time_s))).astype(np.float32)


def synthesize_utterances(sounds: list[np.ndarray]) -> Iterator[TtsUtterance]:
    for number, sound in enumerate(sounds):
        yield TtsUtterance(f"u{number}", "reader", "low" if number < 5 else "high", TEXTS[number % 5], sound)
    yield TtsUtterance("r", "robot", "robot", "the dog ran again", sounds[0], is_synthetic=True)


@pytest.fixture
def speaker(tmp_path: Path) -> CamPlusPlus:
    return CamPlusPlus(build_campplus(tmp_path / "campplus.onnx"))


@pytest.fixture
def published(tmp_path: Path) -> OnnxS3Tokenizer:
    return OnnxS3Tokenizer(build_s3(tmp_path / "speech_tokenizer_v2.onnx"), "v2_25hz")


@pytest.mark.parametrize("seconds", [0.03, 0.5, 2.0])
def test_features_are_kaldis(seconds: float) -> None:
    waveform = hiss(seconds)
    features = kaldi_filter_bank(waveform)
    frames = 1 + (len(waveform) - 400) // 160
    assert features.shape == (frames, 80)
    # the definition, frame by frame: offset, pre-emphasis, Povey's window, power, triangles on the mel scale
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    mels = 1127.0 * np.log(1.0 + np.array([20.0, 8000.0]) / 700.0)
    edges = np.linspace(*mels, 82)
    bins = 1127.0 * np.log(1.0 + np.arange(257) * 16_000 / 512 / 700.0)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.minimum(rising, falling).clip(0.0)
    for frame in {0, frames // 2, frames - 1}:
        part = waveform[160 * frame : 160 * frame + 400].astype(np.float64)
        part = part - part.mean()
        part = part - 0.97 * np.concatenate([part[:1], part[:-1]])
        power = np.abs(np.fft.rfft(part * window, 512)) ** 2
        expected = np.log(np.maximum(filters @ power, 1.1920929e-07))
        np.testing.assert_allclose(features[frame], expected, atol=2e-3)


def test_a_speaker_vector_does_not_depend_on_the_level(speaker: CamPlusPlus, sounds: list[np.ndarray]) -> None:
    one, louder, other = (speaker.encode(sound) for sound in (sounds[0], 3.0 * sounds[0], sounds[7]))
    assert one.shape == (192,)
    assert one.dtype == np.float32
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    assert one @ louder > 0.999
    assert one @ other < one @ louder
    assert speaker.fingerprint == CamPlusPlus(speaker.path).fingerprint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bands": 40}, r"\[B, T, 80\], not fbank"),
        ({"width": 256}, "not 192 numbers"),
        ({"inputs": 2}, "the input should be features"),
        ({"finite": False}, "not finite"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, changes: dict[str, int], match: str) -> None:
    with pytest.raises(ModelFormatError, match=match) as caught:
        CamPlusPlus(build_campplus(tmp_path / "a.onnx", **changes))
    assert caught.value.path == tmp_path / "a.onnx"


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"a\.onnx: no such file .*CAM\+\+"):
        CamPlusPlus(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelFormatError, match="cannot read it"):
        CamPlusPlus(tmp_path / "a.onnx")


def test_packs_hold_tokens_of_the_file_and_vectors(
    published: OnnxS3Tokenizer, speaker: CamPlusPlus, sounds: list[np.ndarray], tmp_path: Path
) -> None:
    assert pack_utterances(synthesize_utterances(sounds), published, tmp_path / "talks", speaker) == 11
    pack = UtterancePack(tmp_path / "talks")
    assert pack.tokenizer == published.fingerprint
    assert pack.speaker == ("campplus.onnx", speaker.fingerprint)
    for row in (0, 7):
        waveform = torch.from_numpy(pack.pcm(row).astype(np.float32) / 32768.0)
        tokens = published.encode(waveform[None], torch.tensor([len(waveform)])).tokens[0].numpy()
        assert len(tokens) == pack.counts[row]
        assert pack.tokens(row).max() > 1000  # more than the package's own tokenizer has
        assert pack.states(row).size == 0
        assert pack.vector(row) @ speaker.encode(waveform.numpy()) > 0.99
    assert pack.vector(10).size == 0  # a synthetic voice has no speaker vector
    pack_utterances(synthesize_utterances(sounds[:1]), published, tmp_path / "others")
    assert UtterancePack(tmp_path / "others").vector(0).size == 0
    pack_utterances(list(synthesize_utterances(sounds[:1]))[1:], published, tmp_path / "programs")
    both = UtterancePack(tmp_path / "talks", tmp_path / "programs")  # synthetic utterances need no speaker encoder
    assert both.speaker == pack.speaker
    with pytest.raises(DataError, match="different speaker encoders"):
        UtterancePack(tmp_path / "talks", tmp_path / "others")


def test_another_token_rate_is_refused(tmp_path: Path, sounds: list[np.ndarray]) -> None:
    fast = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx", stride=2, size=4096), "v1_50hz")
    with pytest.raises(ModelFormatError, match=r"50 tokens a second.*one of 25"):
        pack_utterances(synthesize_utterances(sounds), fast, tmp_path / "talks")


@pytest.fixture
def trained(
    model: TouchModel, published: OnnxS3Tokenizer, speaker: CamPlusPlus, sounds: list[np.ndarray], tmp_path: Path
) -> Path:
    """Return a model directory of parts that were trained, a little, on published tokens and vectors."""
    utterances = tmp_path / "talks"
    pack_utterances(synthesize_utterances(sounds), published, utterances, speaker)
    name = published.path.name
    small = model.lm.config.lm
    lm = SpeechTextLmTrainingConfig(SpeechTextLmConfig(lm=small), LOOP, batch_positions=300, validation=4, asr_prob=0.5)
    train_speech_text_lm([utterances], [utterances], published, name, tmp_path / "lm", lm, device="cpu")
    flow = FlowTrainingConfig(replace(model.flow.config, speech=1000), LOOP, batch=4, epoch_batches=2, validation=4)
    train_flow([utterances], [utterances], published, name, tmp_path / "flow", flow, device="cpu")
    vocoder = model.vocoder
    hub.save_model(tmp_path / "vocoder", asdict(vocoder.config), vocoder.state_dict(), VOCODER, "Tiny.\n")
    parts = (tmp_path / "lm/best", tmp_path / "flow/best", tmp_path / "vocoder")
    whole, _ = assemble(*parts, published, UtterancePack(utterances), "reader")
    save_touchtts(tmp_path / "touch", whole, name, "Tiny.\n")
    return tmp_path / "touch"


def test_a_model_is_trained_on_published_networks_and_speaks(trained: Path, sounds: list[np.ndarray]) -> None:
    model = load_touchtts(trained)
    assert isinstance(model.tokenizer, OnnxS3Tokenizer)
    assert hub.load_model(trained).config["tokenizer"]["variant"] == "v2_25hz"
    assert model.lm.config.speech == model.flow.config.speech == 6561
    assert model.lm.config.states == 0
    assert (model.flow.config.speaker_file, model.speaker is None) == ("campplus.onnx", False)
    tts = TouchTTS(model)
    assert np.abs(tts.synthesize("The dog ran.").waveform).max() > 0
    reference = trained.parent / "me.wav"
    audio.write(reference, hiss(2.0), 16_000)
    assert model.speaker is not None
    vector = model.speaker.encode(trim_and_level(audio.read(reference)))
    expected = model.flow.reference(torch.from_numpy(vector)[None])
    torch.testing.assert_close(tts.voice(reference).embedding, expected, atol=1e-4, rtol=0)
    ways = [TouchRecognizer(model, "tiny", way).score(sounds[0], ["a cat"]) for way in ("tokens", "continuous")]
    assert ways[0] == ways[1]  # without continuous features the input is tokens
    assert ways[0][0] < 0.0


@pytest.mark.parametrize("samples", [19_200, 19_520, 20_003, 25_000])
def test_a_stream_after_a_reference_equals_whole_speech(trained: Path, samples: int) -> None:
    # these tokenizers begin another token where the mel spectrum has no frames for it
    reference = trained.parent / "me.wav"
    audio.write(reference, hiss(samples / 16_000), 16_000)
    tts = TouchTTS.load(trained)
    reference_voice = tts.voice(reference)
    assert reference_voice.mel.shape[1] == 2 * reference_voice.tokens.shape[1]
    at_once = tts.synthesize("The dog ran home.", reference, chunk=10).waveform
    pieces = np.concatenate([chunk.waveform for chunk in tts.stream("The dog ran home.", reference, chunk=10)])
    np.testing.assert_allclose(pieces, at_once, atol=1e-4)


def test_a_file_is_named_by_the_name_that_it_was_given_by(tmp_path: Path, home: Path) -> None:
    file = build_s3(tmp_path / "0a1b2c")
    (tmp_path / "tokenizer.onnx").symlink_to(file)
    assert tokenizer_name(tmp_path / "tokenizer.onnx") == "tokenizer.onnx"
    assert tokenizer_name(home / "s3-tiny") == "s3-tiny"
    assert tokenizer_name("tokenizer-s3-small") == "tokenizer-s3-small"


def test_packs_of_before_speaker_files_are_read(
    utterances: Path, tokenizer: S3Tokenizer, flow: FlowNetwork, tmp_path: Path
) -> None:
    reader = ShardReader(utterances)
    rows = ({name: array for name, array in row.items() if name != "vector"} for row in reader)
    write_shards(rows, tmp_path / "old", extra={"tokenizer": tokenizer.fingerprint})
    pack = UtterancePack(tmp_path / "old")
    assert pack.speaker == ("", "")
    sounds = [voice_of(flow, one.pcm(3), one.vector(3)) for one in (pack, UtterancePack(utterances))]
    assert torch.equal(*sounds)


def test_without_the_speaker_encoder_learned_voices_speak_and_references_name_the_missing_file(trained: Path) -> None:
    (trained.parent / "campplus.onnx").unlink()
    tts = TouchTTS.load(trained)
    assert len(tts.synthesize("Hi.").waveform)
    audio.write(trained.parent / "me.wav", hiss(2.0), 16_000)
    with pytest.raises(ModelNotFoundError, match=r"campplus\.onnx is the speaker encoder.*next to the model directory"):
        tts.voice(trained.parent / "me.wav")
    build_campplus(trained.parent / "campplus.onnx", bands="C")
    with pytest.raises(ModelFormatError, match=r"another 'campplus\.onnx'"):
        load_touchtts(trained)


def test_without_its_tokenizer_a_model_says_which_file_is_missing(trained: Path) -> None:
    file = trained.parent / "speech_tokenizer_v2.onnx"
    file.unlink()
    with pytest.raises(ModelNotFoundError, match=r"speech_tokenizer_v2\.onnx: no such file"):
        load_touchtts(trained)
    build_s3(file, positions=True)
    with pytest.raises(ModelFormatError, match=r"another 'speech_tokenizer_v2\.onnx'"):
        load_touchtts(trained)


def test_a_flow_is_trained_further_with_its_own_speaker_encoder(
    utterances: Path, tokenizer: S3Tokenizer, speaker: CamPlusPlus, sounds: list[np.ndarray], tmp_path: Path
) -> None:
    pack_utterances(synthesize_utterances(sounds), tokenizer, tmp_path / "talks", speaker)
    config = FlowTrainingConfig(
        FlowConfig(80, width=16, layers=1, heads=2, feed_forward=32), LOOP, batch=4, epoch_batches=2, validation=4
    )
    own_pack = [tmp_path / "talks"]
    train_flow(own_pack, own_pack, tokenizer, "s3-tiny", tmp_path / "flow", config, device="cpu")
    assert load_flow(tmp_path / "flow/best", tokenizer).config.speaker_sha256 == speaker.fingerprint
    with pytest.raises(DataError, match=r"with the campplus\.onnx that the flow was trained with"):
        train_flow(
            [utterances], own_pack, tokenizer, "s3-tiny", tmp_path / "on", config, start_from=tmp_path / "flow/best"
        )
    with pytest.raises(DataError, match=r"with the campplus\.onnx that the flow was trained with"):
        train_flow(own_pack, [utterances], tokenizer, "s3-tiny", tmp_path / "on", config)
