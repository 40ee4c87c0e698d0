"""The codec: exact lengths, batches equal to single sounds, and nothing passes but the codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_llm import hub
from audio_llm.codec.codec import KIND, Codes, SpeechCodec
from audio_llm.codec.layers import ConvNeXtStack
from audio_llm.codec.model import PRESETS, CodecConfig, CodecNetwork
from audio_llm.errors import ConfigError, ModelFormatError

torch.set_num_threads(1)
KINDS = ("fsq", "vq", "group", "reorganized")
MakeCodec = Callable[..., CodecNetwork]


def sounds(*samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noise of these lengths, zeros after each end, and the lengths."""
    lengths = torch.tensor(samples)
    waveforms = 0.1 * torch.randn(len(samples), max(samples), generator=torch.Generator().manual_seed(seed))
    return waveforms * (torch.arange(max(samples)) < lengths[:, None]), lengths


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 319, 320, 321, 4800])
@pytest.mark.parametrize("fold", [1, 2])
def test_lengths_are_exact(make_codec: MakeCodec, samples: int, fold: int) -> None:
    network = make_codec(fold=fold)
    codec = SpeechCodec(network)
    waveforms, lengths = sounds(samples)
    count = -(-samples // (160 * fold))
    with torch.inference_mode():
        output = network(waveforms, lengths)
    assert output.waveforms.shape == (1, samples)
    assert output.quantized.codes.shape == output.mask.shape == (1, count)
    codes = codec.encode(waveforms, lengths)
    assert codes.codes.shape == (1, count)
    assert codes.lengths.tolist() == [count]
    assert network.code_lengths(lengths).tolist() == [count]
    assert codec.decode(codes, lengths).shape == (1, samples)
    assert codec.frame_rate == 100 / fold


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [1, 2])
def test_codes_of_a_batch_equal_those_of_one_by_one(make_codec: MakeCodec, kind: str, fold: int) -> None:
    codec = SpeechCodec(make_codec(quantizer=kind, fold=fold, encoder_blocks=3))
    waveforms, lengths = sounds(4800, 161, 3199, 1)
    together = codec.encode(waveforms, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = codec.encode(waveforms[row : row + 1, :samples], lengths[row : row + 1])
        count = alone.codes.shape[1]
        assert together.lengths[row] == alone.lengths[0] == count
        assert torch.equal(together.codes[row, :count], alone.codes[0])
        assert not together.codes[row, count:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [1, 2])
def test_a_batch_sounds_as_one_by_one(make_codec: MakeCodec, kind: str, fold: int) -> None:
    network = make_codec(quantizer=kind, fold=fold, decoder_blocks=3)
    waveforms, lengths = sounds(4800, 161, 3199, 1)
    with torch.inference_mode():
        together = network(waveforms, lengths)
        for row, samples in enumerate(lengths.tolist()):
            alone = network(waveforms[row : row + 1, :samples], lengths[row : row + 1])
            count = alone.quantized.codes.shape[1]
            assert together.mask[row].tolist() == [True] * count + [False] * (together.mask.shape[1] - count)
            torch.testing.assert_close(together.waveforms[row, :samples], alone.waveforms[0], atol=1e-5, rtol=1e-4)
            assert not together.waveforms[row, samples:].any()


def test_decoding_a_batch_equals_one_by_one(make_codec: MakeCodec) -> None:
    codec = SpeechCodec(make_codec())
    waveforms, lengths = sounds(3000, 161, 800)
    codes = codec.encode(waveforms, lengths)
    assert codes.lengths.tolist() == [19, 2, 5]
    decoded = codec.decode(codes, lengths)
    for row, samples in enumerate(lengths.tolist()):
        count = codes.lengths[row : row + 1]
        alone = codec.decode(Codes(codes.codes[row : row + 1, : int(count)], count), lengths[row : row + 1])
        torch.testing.assert_close(decoded[row, :samples], alone[0], atol=1e-5, rtol=1e-4)
        assert not decoded[row, samples:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [1, 2])
def test_nothing_but_the_codes_reaches_the_decoder(make_codec: MakeCodec, kind: str, fold: int) -> None:
    network = make_codec(quantizer=kind, fold=fold)
    waveforms, lengths = sounds(3200, 1500)
    with torch.inference_mode():
        output = network(waveforms, lengths)
        decoded = network.decode(output.quantized.codes, network.code_lengths(lengths))[:, : waveforms.shape[1]]
    expected = output.waveforms
    assert expected.abs().max() > 1e-3
    for row, samples in enumerate(lengths.tolist()):
        torch.testing.assert_close(decoded[row, :samples], expected[row, :samples], atol=1e-5, rtol=1e-4)
    assert output.quantized.codes.min() >= 0
    assert output.quantized.codes.max() < network.quantizer.size


def test_sounds_with_equal_codes_come_out_equal(make_codec: MakeCodec) -> None:
    network = make_codec(levels=(2,))  # so coarse that a small change seldom matters
    waveforms, lengths = sounds(1600)
    with torch.inference_mode():
        one, other = network(waveforms, lengths), network(1.0001 * waveforms, lengths)
    assert torch.equal(one.quantized.codes, other.quantized.codes)
    torch.testing.assert_close(one.waveforms, other.waveforms, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_codes_are_another_sound(make_codec: MakeCodec, kind: str) -> None:
    codec = SpeechCodec(make_codec(quantizer=kind))
    waveforms, lengths = sounds(3200)
    codes = codec.encode(waveforms, lengths)
    sound = codec.decode(codes, lengths)
    random = torch.randint(codec.size, codes.codes.shape, generator=torch.Generator().manual_seed(1))
    other = codec.decode(Codes(random, codes.lengths), lengths)
    assert (sound - other).norm() > 0.1 * sound.norm()
    changed = codes.codes.clone()
    changed[0, 10] = (changed[0, 10] + codec.size // 2) % codec.size
    difference = (codec.decode(Codes(changed, codes.lengths), lengths) - sound)[0].abs()
    assert difference[1600:1760].max() > 1e-5  # where the code lies
    assert difference[:800].max() == 0.0  # and not far away: 3 frames of a block, 2 of the overlap
    assert difference[2560:].max() == 0.0


def test_it_is_deterministic_and_depends_on_the_sound(make_codec: MakeCodec) -> None:
    codec = SpeechCodec(make_codec().train())
    waveforms, lengths = sounds(3200)
    first, second = codec.encode(waveforms, lengths), codec.encode(waveforms, lengths)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(codec.decode(first, lengths), codec.decode(second, lengths))
    assert len(first.codes.unique()) > 10
    other = codec.encode(sounds(3200, seed=9)[0], lengths)
    assert not torch.equal(first.codes, other.codes)


def test_a_change_is_local(make_codec: MakeCodec) -> None:
    codec = SpeechCodec(make_codec())
    waveforms, lengths = sounds(8000)
    changed = waveforms.clone()
    changed[:, 4000:4160] = 0.9
    codes, other = codec.encode(waveforms, lengths).codes[0], codec.encode(changed, lengths).codes[0]
    different = torch.nonzero(codes != other)[:, 0]
    assert len(different)
    assert different.min() >= 25 - 6
    assert different.max() <= 25 + 6


@pytest.mark.parametrize("fold", [1, 2])
def test_nothing_at_all_is_no_code(make_codec: MakeCodec, fold: int) -> None:
    codec = SpeechCodec(make_codec(fold=fold))
    nothing = codec.encode(torch.zeros(2, 0), torch.tensor([0, 0]))
    assert nothing.codes.shape == (2, 0)
    assert nothing.lengths.tolist() == [0, 0]
    assert codec.decode(nothing, torch.tensor([0, 0])).shape == (2, 0)
    waveforms, lengths = sounds(1000, 0)
    codes = codec.encode(waveforms, lengths)
    assert codes.lengths.tolist() == [-(-1000 // (160 * fold)), 0]
    decoded = codec.decode(codes, lengths)
    assert torch.isfinite(decoded).all()
    assert not decoded[1].any()


def test_only_padding_is_no_code(make_codec: MakeCodec) -> None:
    codec = SpeechCodec(make_codec())
    nothing = codec.encode(torch.zeros(2, 700), torch.tensor([0, 0]))
    assert nothing.codes.shape == (2, 0)
    assert nothing.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("causal", [False, True])
def test_layers_see_the_past_and_the_future_only_if_they_may(causal: bool) -> None:
    torch.manual_seed(0)
    stack = ConvNeXtStack(8, 2, 2, causal).eval()
    x, mask = torch.randn(2, 30, 8), torch.tensor([[True] * 30, [True] * 20 + [False] * 10])
    changed = x.clone()
    changed[:, 15] += 1.0
    with torch.no_grad():
        different = (stack(x, mask) != stack(changed, mask)).any(-1)
        padded = stack(torch.where(mask[..., None], x, torch.tensor(9.0)), mask)
        alone = stack(x[1:, :20], mask[1:, :20])
    torch.testing.assert_close(padded[1, :20], alone[0], atol=1e-5, rtol=1e-4)
    assert different[0].nonzero()[:, 0].tolist() == list(range(15 if causal else 9, 28 if causal else 22))


def test_silence_is_harmless(make_codec: MakeCodec) -> None:
    network = make_codec().train()
    waveforms = torch.zeros(1, 3200, requires_grad=True)
    output = network(waveforms, torch.tensor([3200]))
    output.waveforms.square().mean().backward()
    assert torch.isfinite(output.waveforms).all()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight(make_codec: MakeCodec, kind: str) -> None:
    network = make_codec(quantizer=kind).train()
    waveforms, lengths = sounds(3200, 1600)
    output = network(waveforms, lengths)
    ((output.waveforms - waveforms).square().mean() + output.quantized.loss).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_presets_have_the_codes_they_are_described_with() -> None:
    assert {name: config.frame_rate for name, config in PRESETS.items()} == {
        "tiny": 100.0,
        "small": 100.0,
        "small-50": 50.0,
        "base": 100.0,
    }
    assert CodecNetwork(PRESETS["tiny"]).quantizer.size == 8192
    for wrong in ({"fold": 0}, {"quantizer": "group", "vector": 7}):
        with pytest.raises(ConfigError, match="fold"):
            CodecConfig(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_codec_is_the_same(make_codec: MakeCodec, tmp_path: Path, kind: str) -> None:
    network = make_codec(quantizer=kind)
    folder = hub.save_model(tmp_path / "tiny", asdict(network.config), network.state_dict(), KIND, "A tiny codec.\n")
    codec = SpeechCodec.load(folder)
    assert codec.network.config == network.config
    assert codec.fingerprint == SpeechCodec(network).fingerprint
    assert codec.size == network.quantizer.size
    waveforms, lengths = sounds(2000)
    codes, expected = codec.encode(waveforms, lengths), SpeechCodec(network).encode(waveforms, lengths)
    assert torch.equal(codes.codes, expected.codes)
    assert torch.equal(codec.decode(codes, lengths), SpeechCodec(network).decode(expected, lengths))
    other = hub.save_model(
        tmp_path / "other", asdict(network.config), make_codec(5, quantizer=kind).state_dict(), KIND, "Another.\n"
    )
    assert SpeechCodec.load(other).fingerprint != codec.fingerprint


def test_another_kind_of_model_is_refused(make_codec: MakeCodec, tmp_path: Path) -> None:
    network = make_codec()
    folder = hub.save_model(tmp_path / "x", asdict(network.config), network.state_dict(), "mask", "Not a codec.\n")
    with pytest.raises(ModelFormatError, match="mask"):
        SpeechCodec.load(folder)
    folder = hub.save_model(tmp_path / "y", asdict(network.config), network.state_dict(), KIND, "A codec.\n")
    document = json.loads((folder / "config.json").read_text())
    document["config"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ModelFormatError, match="fit"):
        SpeechCodec.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_makes_codes_alone(make_codec: MakeCodec, kind: str) -> None:
    network = make_codec(quantizer=kind)
    fingerprint = SpeechCodec(network).fingerprint
    assert len(fingerprint) == 64
    coding = {tensor.data_ptr() for part in network.coding_parts() for tensor in part.state_dict().values()}
    waveforms, lengths = sounds(2000)
    codes = SpeechCodec(network).encode(waveforms, lengths).codes
    for name, tensor in network.state_dict().items():
        saved, decides = tensor.clone(), tensor.data_ptr() in coding
        tensor += 1 if not tensor.is_floating_point() else 0.5 * torch.rand(tensor.shape) + 0.1
        assert (SpeechCodec(network).fingerprint != fingerprint) == decides, name
        if not decides:
            assert torch.equal(SpeechCodec(network).encode(waveforms, lengths).codes, codes)
        tensor.copy_(saved)
    assert SpeechCodec(network).fingerprint == fingerprint
    assert SpeechCodec(make_codec(quantizer=kind, seed=1)).fingerprint != fingerprint
