"""Tokens by k-means on a speech model, on tiny random models built here and loaded from their folder like any other."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from audio_llm import hub
from audio_llm.errors import DataError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.tokenizer.kmeans import Reservoir, kmeans
from audio_llm.tokenizer.ssl_kmeans import KIND, SslKmeansTokenizer, fit_ssl_kmeans
from audio_llm.tokenizer.ssl_model import SslEncoder, SslModelStamp, read_stamp

torch.set_num_threads(1)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.3,
}
GROUP, LAYER = {"feat_extract_norm": "group"}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES = {  # class, its configuration, whether waveforms are normalized; as wav2vec2-base, XLS-R, HuBERT, WavLM large
    "wav2vec2-group": (Wav2Vec2Model, Wav2Vec2Config(**SIZES, **GROUP), True),
    "xls-r": (Wav2Vec2Model, Wav2Vec2Config(**SIZES, **LAYER, conv_bias=True), True),
    "hubert-group": (HubertModel, HubertConfig(**SIZES, **GROUP), False),
    "hubert-layer": (HubertModel, HubertConfig(**SIZES, feat_extract_norm="layer", conv_bias=True), True),
    "hubert-batch-norm": (HubertModel, HubertConfig(**SIZES, **LAYER, conv_pos_batch_norm=True), True),
    "wavlm-group": (WavLMModel, WavLMConfig(**SIZES, **GROUP), False),
    "wavlm-layer": (WavLMModel, WavLMConfig(**SIZES, **LAYER), False),
}


def build_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Save a random speech model of 3 layers."""
    network_class, config, normalize = FAMILIES[family]
    torch.manual_seed(seed)
    network = network_class(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):  # as training leaves it
            module.running_mean += 0.5
    network.save_pretrained(folder, safe_serialization=True)
    Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def sounds(*samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noise whose color changes, of these lengths, zeros after each end, and the lengths."""
    lengths, size = torch.tensor(samples), max(samples)
    noise = torch.randn(len(samples), size + 1, generator=torch.Generator().manual_seed(seed))
    mix = torch.sin(2 * torch.pi * 3 * torch.arange(size) / 16_000)
    waveforms = 0.1 * (noise[:, 1:] + mix * noise[:, :-1]) * (1.2 + mix.roll(1000)) + 0.02
    return waveforms * (torch.arange(size) < lengths[:, None]), lengths


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one folder a family."""
    root = tmp_path_factory.mktemp("ssl")
    return {family: build_model(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Return sounds to fit centers to, (T,) float32 each."""
    waveforms, lengths = sounds(16_000, 9000, 12_345, seed=7)
    return [waveform[:length].numpy() for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]


@pytest.fixture(scope="module")
def fitted(folders: dict[str, Path], speech: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model directory of a tokenizer of 12 centers on layer 2 of the XLS-R-like model."""
    output = tmp_path_factory.mktemp("fitted") / "tokenizer"
    return fit_ssl_kmeans(speech, folders["xls-r"], output, layer=2, clusters=12).folder


def make_tokenizer(folder: Path, layer: int = 2, size: int = 20) -> SslKmeansTokenizer:
    """Return a tokenizer whose centers are hidden states of noise, so that many tokens are in use."""
    encoder = SslEncoder.load(folder, layer)
    hidden, _ = encoder.encode(*sounds(320 * size + 80, seed=3))
    return SslKmeansTokenizer(encoder, hidden[0])


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, SslKmeansTokenizer]:
    """Return one tokenizer a family."""
    return {family: make_tokenizer(folder) for family, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    """Compares with the whole model and the feature extractor in the same folder."""
    network = FAMILIES[family][0].from_pretrained(folders[family]).eval()
    waveforms, _ = sounds(8000)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[family])
    inputs = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    outputs = []  # of the layers themselves: what transformers calls the last hidden state has changed over time
    for layer in network.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        states = network(inputs, output_hidden_states=True).hidden_states
    for number in (1, 2, 3):
        hidden, counts = SslEncoder.load(folders[family], number).encode(waveforms, torch.tensor([8000]))
        assert counts.tolist() == [24]
        output = outputs[number - 1]
        torch.testing.assert_close(hidden, output[0] if isinstance(output, tuple) else output, atol=1e-4, rtol=1e-4)
        if number < 3:
            torch.testing.assert_close(hidden, states[number], atol=1e-4, rtol=1e-4)
            assert (hidden - states[number - 1]).abs().max() > 0.1
            assert (hidden - states[number + 1]).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_one_by_one(tokenizers: dict[str, SslKmeansTokenizer], family: str) -> None:
    tokenizer = tokenizers[family]
    waveforms, lengths = sounds(16_000, 399, 5555, 400, 9000)
    behind = torch.arange(16_000) >= lengths[:, None]
    together = tokenizer.encode(waveforms + 0.3 * behind, lengths)  # nor does it matter what lies after the end
    assert together.tokens.dtype == together.lengths.dtype == torch.int64
    assert together.lengths.tolist() == [49, 0, 17, 1, 27]
    assert len(together.tokens.unique()) > 8
    hidden, _ = tokenizer.encoder.encode(waveforms, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = tokenizer.encode(waveforms[row : row + 1, :samples], lengths[row : row + 1])
        count = int(alone.lengths[0])
        assert torch.equal(together.tokens[row, :count], alone.tokens[0])
        assert not together.tokens[row, count:].any()
        single, _ = tokenizer.encoder.encode(waveforms[row : row + 1, :samples], lengths[row : row + 1])
        torch.testing.assert_close(hidden[row, :count], single[0], atol=1e-4, rtol=1e-4)
        assert not hidden[row, count:].any()


@pytest.mark.parametrize("family", ["wav2vec2-group", "hubert-group", "wavlm-group", "hubert-batch-norm"])
def test_padding_would_change_a_group_norm(tokenizers: dict[str, SslKmeansTokenizer], family: str) -> None:
    """The reason for running these one by one."""
    encoder = tokenizers[family].encoder
    assert encoder.one_by_one
    waveforms, lengths = sounds(4000, 16_000)
    right, counts = encoder.encode(waveforms, lengths)
    in_a_batch = SslEncoder(encoder.network, encoder.layer, encoder.stamp)
    in_a_batch.one_by_one = False
    wrong, _ = in_a_batch.encode(waveforms, lengths)
    assert (wrong - right)[0, : int(counts[0])].abs().max() > 1e-2
    torch.testing.assert_close(wrong[1], right[1], atol=1e-4, rtol=1e-4)


def test_models_with_layer_norm_run_in_a_batch(tokenizers: dict[str, SslKmeansTokenizer]) -> None:
    one_by_one = {family for family, tokenizer in tokenizers.items() if tokenizer.encoder.one_by_one}
    assert one_by_one == {"wav2vec2-group", "hubert-group", "wavlm-group", "hubert-batch-norm"}


def test_the_count_depends_on_the_length_alone(tokenizers: dict[str, SslKmeansTokenizer]) -> None:
    tokenizer = tokenizers["xls-r"]
    assert tokenizer.frame_rate == 50.0
    lengths = [0, 1, 9, 399, 400, 719, 720, 721, 1039, 1040, 15_999, 16_000, 16_080]
    expected = [max(0, (size - 400) // 320 + 1) for size in lengths]
    waveforms, samples = sounds(*lengths)
    for scale in (1.0, 0.001, 0.0):
        assert tokenizer.encode(scale * waveforms, samples).lengths.tolist() == expected
    for size, count in zip(lengths, expected, strict=True):
        assert tokenizer.encode(waveforms[-1:, :size], torch.tensor([size])).tokens.shape == (1, count)
    assert tokenizer.encode(waveforms[:0], samples[:0]).tokens.shape == (0, 0)


def test_a_token_is_the_nearest_center(tokenizers: dict[str, SslKmeansTokenizer]) -> None:
    tokenizer = tokenizers["xls-r"]
    waveforms, lengths = sounds(16_000)
    hidden, _ = tokenizer.encoder.encode(waveforms, lengths)
    squares = (hidden[0, :, None].double() - tokenizer.centers[None].double()).square().sum(-1)
    assert tokenizer.encode(waveforms, lengths).tokens[0].tolist() == squares.argmin(1).tolist()
    assert tokenizer.size == 20


def test_large_common_values_hide_no_difference(folders: dict[str, Path]) -> None:
    encoder = SslEncoder.load(folders["xls-r"], 2)
    waveforms, lengths = sounds(6480, seed=3)
    hidden, _ = encoder.encode(waveforms, lengths)
    common = torch.zeros(encoder.width)
    common[3] = 3000.0  # XLS-R has such channels
    encoder.network.encoder.register_forward_hook(
        lambda _, __, output: output.__class__(last_hidden_state=output.last_hidden_state + common)
    )
    tokens = SslKmeansTokenizer(encoder, hidden[0] + common).encode(waveforms, lengths).tokens
    assert tokens.tolist() == [list(range(20))]


@pytest.mark.parametrize("family", FAMILIES)
def test_waveforms_are_normalized_as_the_model_expects(folders: dict[str, Path], family: str) -> None:
    """Compares with the feature extractor in the same folder, one utterance at a time."""
    encoder = SslEncoder.load(folders[family], 2)
    seen: list[Tensor] = []
    encoder.network.feature_extractor.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    waveforms, lengths = sounds(4000, 9000)
    waveforms = 0.2 * waveforms + 0.3
    encoder.encode(waveforms, lengths)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[family])
    for row, waveform, length in zip(seen, waveforms, lengths.tolist(), strict=True):
        expected = extractor(waveform[:length].numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
        torch.testing.assert_close(row[:length], expected, atol=1e-5, rtol=1e-4)
        assert not row[length:].any()
    normalized = abs(float(seen[0][:4000].std()) - 1.0) < 1e-3
    assert normalized == FAMILIES[family][2]


def test_fitting_writes_a_tokenizer(folders: dict[str, Path], fitted: Path) -> None:
    loaded = hub.load_model(fitted, KIND)
    stamp = read_stamp(folders["xls-r"])
    model = {"name": "xls-r", "fingerprint": stamp.fingerprint, "normalize": True}
    assert loaded.config == {"layer": 2, "frame_rate": 50.0, "size": 12, "model": model}
    assert loaded.tensors.keys() == {"centres"}
    assert loaded.provenance["frames"] == loaded.provenance["used"] == 49 + 27 + 38
    assert hub.verify_model(fitted).problem is None
    assert stamp.fingerprint in (fitted / "README.md").read_text()
    tokenizer = SslKmeansTokenizer.load(fitted, folders["xls-r"])
    assert (tokenizer.size, tokenizer.frame_rate, tokenizer.encoder.layer) == (12, 50.0, 2)
    assert torch.equal(tokenizer.centers, loaded.tensors["centres"])
    tokens = tokenizer.encode(*sounds(16_000, 9000)).tokens
    assert len(tokens.unique()) > 6
    assert torch.equal(tokens, SslKmeansTokenizer.load(fitted, folders["xls-r"]).encode(*sounds(16_000, 9000)).tokens)


def test_fitting_is_repeatable_and_draws_by_its_seed(
    folders: dict[str, Path], fitted: Path, speech: list[np.ndarray], tmp_path: Path
) -> None:
    def fit(name: str, **changes: Any) -> Tensor:
        result = fit_ssl_kmeans(iter(speech), folders["xls-r"], tmp_path / name, layer=2, clusters=12, **changes)
        return hub.load_model(result.folder).tensors["centres"]

    centers = hub.load_model(fitted).tensors["centres"]
    assert torch.equal(fit("again"), centers)
    assert not torch.equal(fit("seed", seed=1), centers)
    few = fit("few", most_frames=50)
    assert few.shape == centers.shape
    assert hub.load_model(tmp_path / "few").provenance["used"] == 50
    assert not torch.equal(few, centers)


def test_what_is_too_short_is_counted_and_what_is_long_is_cut(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_llm.tokenizer.ssl_kmeans._PIECE_SAMPLES", 3200)
    waveforms, _ = sounds(7000)
    waveform = waveforms[0].numpy()
    result = fit_ssl_kmeans(
        [waveform[:399], waveform, waveform[:0]], folders["hubert-group"], tmp_path / "x", layer=1, clusters=4
    )
    assert (result.frames, result.used, result.skipped, result.unused) == (9 + 9 + 1, 19, 2, 0)
    assert result.distance > 0.0
    with pytest.raises(DataError, match="9 frames"):
        fit_ssl_kmeans([waveform[:3200]], folders["hubert-group"], tmp_path / "y", layer=1, clusters=10)
    with pytest.raises(UsageError, match="10 centers"):
        fit_ssl_kmeans([waveform], folders["hubert-group"], tmp_path / "y", layer=1, clusters=10, most_frames=9)
    with pytest.raises(DataError, match="not a number"):
        fit_ssl_kmeans([waveform * np.nan], folders["hubert-group"], tmp_path / "y", layer=1, clusters=4)
    assert not (tmp_path / "y").exists()


def test_centers_of_another_model_are_refused(folders: dict[str, Path], fitted: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "xls-r", "xls-r", seed=1)
    with pytest.raises(ModelFormatError, match="not to the one") as caught:
        SslKmeansTokenizer.load(fitted, other)
    assert "xls-r" in str(caught.value)
    assert caught.value.remedy
    with pytest.raises(ModelFormatError, match="belong"):
        SslKmeansTokenizer.load(fitted, folders["wavlm-layer"])
    copy = shutil.copytree(folders["xls-r"], tmp_path / "copy")  # the same model under another name
    assert SslKmeansTokenizer.load(fitted, copy).fingerprint == (
        SslKmeansTokenizer.load(fitted, folders["xls-r"]).fingerprint
    )
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(copy)
    with pytest.raises(ModelFormatError, match="do_normalize"):
        SslKmeansTokenizer.load(fitted, copy)


def test_a_directory_that_is_no_such_tokenizer_is_refused(
    folders: dict[str, Path], fitted: Path, tmp_path: Path
) -> None:
    loaded = hub.load_model(fitted)
    codec = hub.save_model(tmp_path / "codec", loaded.config, loaded.tensors, "codec", "No tokenizer.\n")
    with pytest.raises(ModelFormatError, match="codec"):
        SslKmeansTokenizer.load(codec, folders["xls-r"])
    for name, config, tensors in (
        ("size", {**loaded.config, "size": 13}, loaded.tensors),
        ("rate", {**loaded.config, "frame_rate": 25.0}, loaded.tensors),
        ("width", loaded.config, {"centres": loaded.tensors["centres"][:, :16]}),
        ("name", loaded.config, {"centers": loaded.tensors["centres"]}),
        ("key", {"layer": 2}, loaded.tensors),
    ):
        folder = hub.save_model(tmp_path / name, config, tensors, KIND, "Wrong.\n")
        with pytest.raises(ModelFormatError, match=name):  # the folder
            SslKmeansTokenizer.load(folder, folders["xls-r"])


def test_the_fingerprint_covers_centers_layer_and_model(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = SslEncoder.load(folders["xls-r"], 2)
    centers = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    stamp = encoder.stamp
    other = SslEncoder.load(build_model(tmp_path / "other", "xls-r", seed=1), 2)
    prints = [
        SslKmeansTokenizer(encoder, centers).fingerprint,
        SslKmeansTokenizer(encoder, centers.flip(0)).fingerprint,
        SslKmeansTokenizer(SslEncoder.load(folders["xls-r"], 1), centers).fingerprint,
        SslKmeansTokenizer(other, centers).fingerprint,
        SslKmeansTokenizer(
            SslEncoder(encoder.network, 2, SslModelStamp(stamp.name, stamp.fingerprint, False)), centers
        ).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert SslKmeansTokenizer(encoder, centers.clone()).fingerprint == prints[0]


@pytest.mark.parametrize("layer", [0, -1, 4])
def test_a_layer_that_is_not_there_is_refused(folders: dict[str, Path], layer: int) -> None:
    with pytest.raises(UsageError, match=f"no layer {layer} in a model of 3"):
        SslEncoder.load(folders["xls-r"], layer)


@pytest.mark.parametrize("name", ["facebook/wav2vec2-xls-r-300m", "hubert-base", "./no/such/folder"])
def test_a_hub_name_is_refused_without_a_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelNotFoundError, match="hub") as caught:
        SslEncoder.load(name)
    assert "models get" in (caught.value.remedy or "")


def test_folders_that_are_no_speech_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["xls-r"], tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")

    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match) as caught:
            SslEncoder.load(copy, 2)
        assert "copy" in str(caught.value)
        assert "\n" not in str(caught.value)

    part = {name: tensor for name, tensor in weights.items() if "layers.1.attention.k_proj.weight" not in name}
    save_file(part, copy / "model.safetensors", metadata={"format": "pt"})
    refused(ModelFormatError, r"1 weights are missing .*, first encoder\.layers\.1\.attention\.k_proj\.weight")
    wrong = {**weights, "feature_projection.projection.bias": torch.zeros(31)}
    save_file(wrong, copy / "model.safetensors", metadata={"format": "pt"})
    refused(ModelFormatError, r"1 weights .* another shape, first feature_projection\.projection\.bias")
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(ModelFormatError, "can be read")
    (copy / "model.safetensors").unlink()
    refused(ModelNotFoundError, "no weights")
    torch.save(weights, copy / "pytorch_model.bin")
    refused(ModelFormatError, "pickles")
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    for changes in ({"do_normalize": None}, {"sampling_rate": 8000}):
        (copy / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))
        refused(ModelFormatError, "preprocessor_config")
    (copy / "preprocessor_config.json").unlink()
    refused(ModelNotFoundError, "preprocessor_config")
    for text, match in (('{"model_type": "whisper"}', "type whisper"), ("[]", "mapping"), ("{", "readable")):
        (copy / "config.json").write_text(text)
        refused(ModelFormatError, match)
    (copy / "config.json").unlink()
    refused(ModelNotFoundError, "config.json")


def test_published_files_have_other_names_inside(folders: dict[str, Path], tmp_path: Path) -> None:
    """XLS-R is published with its training heads, and with the weight norm's old names."""
    torch.manual_seed(0)
    network = Wav2Vec2ForPreTraining(FAMILIES["xls-r"][1])
    base = Wav2Vec2Model.from_pretrained(folders["xls-r"])
    network.wav2vec2.load_state_dict(base.state_dict())
    network.save_pretrained(tmp_path / "heads")
    shutil.copy(folders["xls-r"] / "preprocessor_config.json", tmp_path / "heads")
    path = tmp_path / "heads" / "model.safetensors"
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(path).items()
        if "masked_spec_embed" not in name
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in old
    save_file(old, path, metadata={"format": "pt"})
    published, saved = (SslEncoder.load(folder, 2) for folder in (tmp_path / "heads", folders["xls-r"]))
    assert torch.equal(published.encode(*sounds(8000))[0], saved.encode(*sounds(8000))[0])


def test_weights_may_come_in_parts_and_as_halves(folders: dict[str, Path], tmp_path: Path) -> None:
    base = Wav2Vec2Model.from_pretrained(folders["xls-r"])
    base.half().save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    shutil.copy(folders["xls-r"] / "preprocessor_config.json", tmp_path / "parts")
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 2
    encoder = SslEncoder.load(tmp_path / "parts", 2)
    hidden, expected = encoder.encode(*sounds(8000))[0], SslEncoder.load(folders["xls-r"], 2).encode(*sounds(8000))[0]
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, expected, atol=0.1, rtol=0.1)
    content = parts[-1].read_bytes()
    parts[-1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_stamp(tmp_path / "parts").fingerprint != encoder.stamp.fingerprint
    parts[-1].unlink()
    with pytest.raises(ModelNotFoundError, match=parts[-1].name):
        read_stamp(tmp_path / "parts")


def test_kmeans_finds_the_clusters() -> None:
    generator = np.random.default_rng(0)
    heaps = 10.0 * generator.standard_normal((30, 5)).astype(np.float32)
    points = torch.from_numpy(np.repeat(heaps, 40, 0) + 0.1 * generator.standard_normal((1200, 5)).astype(np.float32))
    clusters = kmeans(points, 30, np.random.default_rng(1))
    assert torch.cdist(torch.from_numpy(heaps), clusters.centers).min(1).values.max() < 0.2
    assert clusters.unused == 0
    assert clusters.distance == pytest.approx(0.05, rel=0.1)


def test_a_center_without_points_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    def far_away(points: Tensor, clusters: int, _: Callable) -> Tensor:
        return torch.cat([points[:1], torch.full((clusters - 1, points.shape[1]), 1e3)])

    monkeypatch.setattr("audio_llm.tokenizer.kmeans._first_centers", far_away)
    generator = np.random.default_rng(0)
    points = torch.from_numpy(generator.standard_normal((200, 3)).astype(np.float32))
    clusters = kmeans(points, 8, generator)
    assert clusters.unused == 0
    assert clusters.centers.abs().max() < 5.0


def test_fewer_different_frames_than_centers_come_to_an_end() -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]).repeat(20, 1)
    clusters = kmeans(points, 7, np.random.default_rng(0))
    assert clusters.unused == 4
    assert clusters.distance == pytest.approx(0.0, abs=1e-9)
    assert torch.isfinite(clusters.centers).all()


def test_every_frame_has_the_same_chance_to_be_drawn() -> None:
    hits = np.zeros(40)
    generator = np.random.default_rng(0)
    for _ in range(500):
        sample = Reservoir(10, 1, generator)
        for start, end in ((0, 7), (7, 30), (30, 30), (30, 40)):
            sample.add(np.arange(start, end, dtype=np.float32)[:, None])
        drawn = sample.frames()[:, 0].astype(int)
        assert len(set(drawn)) == 10
        hits[drawn] += 1
    assert sample.seen == 40
    assert 85 < hits.min() < hits.max() < 165  # 125 expected, standard deviation 9.7
