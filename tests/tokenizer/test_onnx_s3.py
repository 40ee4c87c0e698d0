"""Published S3Tokenizer files, replaced here by small graphs with the same inputs and outputs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_llm.errors import MissingDependencyError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.tokenizer.onnx_s3 import VARIANTS, OnnxS3Tokenizer, whisper_log_mel

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx_graphs import INT32, INT64, build_s3  # noqa: E402

torch.set_num_threads(1)


def sounds(*samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noise that comes and goes, of these lengths, zeros after each end, and the lengths."""
    lengths, size = torch.tensor(samples), max(samples)
    time_s = torch.arange(size) / 16_000
    noise = torch.randn(len(samples), size, generator=torch.Generator().manual_seed(seed))
    waveforms = 0.1 * noise * (1.1 + torch.sin(2 * torch.pi * 4 * time_s))
    return waveforms * (torch.arange(size) < lengths[:, None]), lengths


def tokens_of(tokenizer: OnnxS3Tokenizer, samples: int) -> list[int]:
    """Return the tokens of a sound of so many samples."""
    return tokenizer.encode(*sounds(samples)).tokens[0].tolist()


@pytest.mark.parametrize("samples", [400, 401, 16_000, 33_333, 480_000])
@pytest.mark.parametrize("level", [1.0, 0.001])
def test_features_are_whispers(samples: int, level: float) -> None:
    from transformers import WhisperFeatureExtractor

    waveform = level * sounds(samples)[0][0]
    extractor = WhisperFeatureExtractor(feature_size=128)
    expected = extractor(waveform.numpy(), sampling_rate=16_000, padding="longest", return_tensors="pt").input_features[
        0
    ]
    mel = whisper_log_mel(waveform)
    assert mel.dtype == torch.float32
    assert mel.shape == expected.shape == (128, samples // 160)
    torch.testing.assert_close(mel, expected, atol=1e-4, rtol=0.0)


def test_features_equal_those_of_a_window_that_whisper_pads() -> None:
    """Whisper itself pads sounds with zeros to 30 s: all frames but the last are the same."""
    from transformers import WhisperFeatureExtractor

    waveform = sounds(24_000)[0][0]
    extractor = WhisperFeatureExtractor(feature_size=128)
    expected = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert expected.shape == (128, 3000)
    torch.testing.assert_close(whisper_log_mel(waveform)[:, :148], expected[:, :148], atol=1e-3, rtol=0.0)


def test_features_keep_eight_decades() -> None:
    waveform = torch.zeros(32_000)
    assert whisper_log_mel(waveform).unique().tolist() == [-1.5]  # log10 of the floor is -10
    waveform[16_000:] = sounds(16_000)[0][0]
    mel = whisper_log_mel(waveform)
    assert mel.max() - mel.min() == pytest.approx(2.0)
    assert mel[:, :50].unique().numel() == 1


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 200, 201, 399, 560])
def test_features_of_short_sounds(samples: int) -> None:
    mel = whisper_log_mel(sounds(max(1, samples))[0][0, :samples])
    assert mel.shape == (128, samples // 160)
    assert torch.isfinite(mel).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path: Path, variant: str) -> None:
    rate, size = VARIANTS[variant].frame_rate, VARIANTS[variant].size
    path = build_s3(tmp_path / "a.onnx", stride=round(100 / rate), size=size)
    tokenizer = OnnxS3Tokenizer(path, variant)
    assert (tokenizer.size, tokenizer.frame_rate) == (size, rate)
    assert variant == f"{variant[:2]}_{rate:g}hz"
    assert size == (4096 if variant.startswith("v1") else 3**8)
    assert tokenizer.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    samples = [0, 159, 160, 479, 480, 640, 16_000, 16_160, 20_000]
    tokens = tokenizer.encode(*sounds(*samples))
    assert tokens.tokens.dtype == tokens.lengths.dtype == torch.int64
    expected = [-(-(count // 160) // round(100 / rate)) for count in samples]
    assert tokens.lengths.tolist() == expected
    assert tokens.tokens.shape == (len(samples), max(expected))
    assert len(tokens.tokens.unique()) > 10


def test_a_batch_equals_one_by_one(tmp_path: Path) -> None:
    tokenizer = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx"), "v2_25hz")
    waveforms, lengths = sounds(9000, 0, 170, 16_000)
    behind = torch.arange(16_000) >= lengths[:, None]
    together = tokenizer.encode(waveforms + 0.3 * behind, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = tokenizer.encode(waveforms[row : row + 1, :samples], lengths[row : row + 1])
        count = int(alone.lengths[0])
        assert together.lengths[row] == count
        assert torch.equal(together.tokens[row, :count], alone.tokens[0])
        assert not together.tokens[row, count:].any()
    assert tokenizer.encode(waveforms[:0], lengths[:0]).tokens.shape == (0, 0)


@pytest.mark.parametrize("variant", ["v1_50hz", "v2_25hz"])
def test_tokens_of_a_long_sound_are_aligned(tmp_path: Path, variant: str) -> None:
    """The graph sees one frame alone, so that windows must give the same as a single pass over all frames."""
    stride, size = round(100 / VARIANTS[variant].frame_rate), VARIANTS[variant].size
    tokenizer = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx", stride=stride, size=size), variant)
    for samples in (480_000, 480_160, 480_800, 896_000, 896_320, 70 * 16_000 + 555):
        waveforms, _ = sounds(samples)
        mel = whisper_log_mel(waveforms[0])
        expected = (mel[20, ::stride] * 1000.0).abs().long() % size
        assert torch.equal(tokenizer.encode(waveforms, torch.tensor([samples])).tokens[0], expected)


def test_windows_of_30_s_overlap_by_4_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph numbers the tokens of each window, which shows which of them were kept."""
    tokenizer = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx", positions=True), "v2_25hz")
    assert tokens_of(tokenizer, 30 * 16_000) == list(range(750))
    assert tokens_of(tokenizer, 30 * 16_000 + 159) == list(range(750))
    # 30 s and one frame: a second window begins at 26 s, and its first 2 s come from the first one
    assert tokens_of(tokenizer, 30 * 16_000 + 160) == [*range(700), *range(50, 101)]
    middle = list(range(50, 700))
    assert tokens_of(tokenizer, 70 * 16_000) == [*range(700), *middle, *range(50, 450)]
    assert tokens_of(tokenizer, 82 * 16_000) == [*range(700), *middle, *range(50, 750)]
    frames = []
    run = tokenizer._run
    monkeypatch.setattr(tokenizer, "_run", lambda mel: (frames.append(mel.shape[1]), run(mel))[1])
    assert tokens_of(tokenizer, 82 * 16_000 + 160)[-53:] == [698, 699, *range(50, 101)]
    assert frames == [3000, 3000, 3000, 401]


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (1, 1, -1)])
def test_an_output_may_have_further_axes_of_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tokenizer = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx", positions=True, shape=shape), "v3_25hz")
    assert tokens_of(tokenizer, 16_000) == list(range(25))


def test_a_file_of_another_rate_is_refused(tmp_path: Path) -> None:
    path = build_s3(tmp_path / "speech_tokenizer_v1_50hz.onnx", stride=4, size=4096)
    with pytest.raises(ModelFormatError, match="25 tokens of 1 s, but v1_50hz gives 50") as caught:
        OnnxS3Tokenizer(path, "v1_50hz")
    assert caught.value.path == path
    assert caught.value.remedy
    OnnxS3Tokenizer(path, "v1_25hz")  # its name does not matter


@pytest.mark.parametrize("offset", [-1, 4096])
def test_tokens_that_the_variant_has_not_are_refused(tmp_path: Path, offset: int) -> None:
    path = build_s3(tmp_path / "a.onnx", positions=True, offset=offset)
    with pytest.raises(ModelFormatError, match=f"token {offset}, but v1_25hz has 4096"):
        OnnxS3Tokenizer(path, "v1_25hz")


def test_a_token_out_of_range_is_noticed_later_too(tmp_path: Path) -> None:
    tokenizer = OnnxS3Tokenizer(build_s3(tmp_path / "a.onnx", positions=True), "v1_25hz")
    tokenizer.size = 200
    with pytest.raises(ModelFormatError, match="token 200"):
        tokens_of(tokenizer, 10 * 16_000)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"bands": 80}, r"\[1, 128, T\].*not feats tensor\(float\) \[1, 80, 'T'\]"),
        ({"length_type": INT64}, r"int32.*feats_length tensor\(int64\)"),
        ({"shape": (5, -1)}, r"int32 \(5, 5\), not a row of 25 whole numbers"),
        ({"as_float": True}, "float32"),
    ],
)
def test_networks_with_other_inputs_or_outputs_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = build_s3(tmp_path / "a.onnx", **changes)
    with pytest.raises(ModelFormatError, match=match):
        OnnxS3Tokenizer(path, "v2_25hz")


def test_open_sizes_are_taken(tmp_path: Path) -> None:
    path = build_s3(tmp_path / "a.onnx", bands="bands", positions=True)
    assert tokens_of(OnnxS3Tokenizer(path, "v2_25hz"), 1600) == [0, 1, 2]


def test_a_network_without_length_is_refused(tmp_path: Path) -> None:
    model = onnx.load(build_s3(tmp_path / "a.onnx"))
    del model.graph.input[1]
    model.graph.initializer.append(onnx.helper.make_tensor("feats_length", INT32, [1], [100]))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ModelFormatError, match="their length"):
        OnnxS3Tokenizer(tmp_path / "a.onnx", "v2_25hz")


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ModelNotFoundError, match=r"a\.onnx: no such file"):
        OnnxS3Tokenizer(path, "v2_25hz")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ModelFormatError, match="onnxruntime cannot read it") as caught:
        OnnxS3Tokenizer(path, "v2_25hz")
    assert "\n" not in str(caught.value)
    fixed = onnx.load(build_s3(path))
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3000
    onnx.save(fixed, path)
    with pytest.raises(ModelFormatError, match=r"\[1, 128, 3000\]"):
        OnnxS3Tokenizer(path, "v2_25hz")
    build_s3(path, shape=(7, -1))
    with pytest.raises(ModelFormatError, match="fails on 100 frames"):
        OnnxS3Tokenizer(path, "v2_25hz")


@pytest.mark.parametrize("variant", ["", "v2", "speech_tokenizer_v2", "V2_25HZ"])
def test_a_variant_is_not_guessed(tmp_path: Path, variant: str) -> None:
    with pytest.raises(UsageError, match="v1_50hz, v1_25hz, v2_25hz, v3_25hz"):
        OnnxS3Tokenizer(build_s3(tmp_path / "speech_tokenizer_v2.onnx"), variant)


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_s3(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'audio-llm\[export\]'"):
        OnnxS3Tokenizer(path, "v2_25hz")


def test_tokens_do_not_depend_on_the_run(tmp_path: Path) -> None:
    path = build_s3(tmp_path / "a.onnx")
    one, other = OnnxS3Tokenizer(path, "v2_25hz"), OnnxS3Tokenizer(str(path), "v2_25hz")
    assert np.array_equal(tokens_of(one, 20_000), tokens_of(other, 20_000))
    assert one.fingerprint == other.fingerprint
    assert OnnxS3Tokenizer(build_s3(tmp_path / "b.onnx", offset=1, size=6560), "v2_25hz").fingerprint != (
        one.fingerprint
    )
