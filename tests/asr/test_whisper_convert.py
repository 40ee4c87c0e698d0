"""Whisper weights from CTranslate2 to transformers: round trips of random models, real weights, damaged files."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asr.tiny_whisper import (
    LANGUAGE_CODES,
    TIMESTAMPS,
    WORDS,
    convert_to_ctranslate2,
    make_tokenizer,
    make_transformers_whisper,
)
from safetensors import safe_open
from transformers import WhisperForConditionalGeneration

from audio_llm.asr.whisper_convert import read_ctranslate2, to_transformers
from audio_llm.asr.whisper_features import log_mel
from audio_llm.asr.whisper_torch import WhisperRecognizer
from audio_llm.audio import read
from audio_llm.errors import AudioLLMError, ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.hub import file_sha256

SPEECH = Path(__file__).parents[2] / "samples/speech"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[bool, Path]:
    """Return random transformers models, by whether they are multilingual."""
    folder = tmp_path_factory.mktemp("transformers")
    return {kind: make_transformers_whisper(folder / str(kind), multilingual=kind) for kind in (True, False)}


@pytest.fixture(scope="module")
def ctranslate2_folder(sources, tmp_path_factory) -> Path:
    return convert_to_ctranslate2(sources[True], tmp_path_factory.mktemp("ctranslate2") / "float32")


def load(folder: Path) -> WhisperForConditionalGeneration:
    network: Any = WhisperForConditionalGeneration.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    model, report = network
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model: WhisperForConditionalGeneration) -> torch.Tensor:
    features = torch.from_numpy(log_mel(read(next(SPEECH.glob("*.flac")))))[None]
    tokens = torch.arange(model.config.vocab_size - 10, model.config.vocab_size)[None]
    with torch.no_grad():
        return model(input_features=features, decoder_input_ids=tokens).logits


@pytest.mark.parametrize("multilingual", [True, False])
def test_float32_weights_come_back_exactly(sources, tmp_path, multilingual):
    folder = convert_to_ctranslate2(sources[multilingual], tmp_path / "ctranslate2")
    before, after = load(sources[multilingual]), load(to_transformers(folder, tmp_path / "output"))
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]), name
    assert torch.equal(logits(before), logits(after))
    settings = before.config.to_dict().keys() - {"init_std", "dtype", "architectures", "_name_or_path"}
    assert {key: after.config.to_dict()[key] for key in settings} == {
        key: before.config.to_dict()[key] for key in settings
    }
    expected, found = before.generation_config.to_dict(), after.generation_config.to_dict()
    assert {key: found[key] for key in expected if expected[key] is not None} == {
        key: value for key, value in expected.items() if value is not None
    }


@pytest.mark.parametrize(("quantization", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_weights_come_back_within_their_rounding(sources, tmp_path, quantization, tolerance):
    folder = convert_to_ctranslate2(sources[True], tmp_path / "ctranslate2", quantization)
    before, after = load(sources[True]).state_dict(), load(to_transformers(folder, tmp_path / "output")).state_dict()
    for name, weight in before.items():
        assert torch.allclose(after[name], weight, rtol=tolerance, atol=1e-7), name
    with safe_open(tmp_path / "output/model.safetensors", "np") as stored:
        names = stored.keys()
        types = {stored.get_slice(name).get_dtype() for name in names}
    assert types == {"F16" if quantization == "float16" else "F32"}


@pytest.mark.parametrize(("quantization", "steps"), [("int8", 127), ("int8_float16", 127), ("int16", 512)])
def test_integer_weights_come_back_within_half_a_step(sources, tmp_path, quantization, steps):
    folder = convert_to_ctranslate2(sources[True], tmp_path / "ctranslate2", quantization)
    before, after = load(sources[True]).state_dict(), load(to_transformers(folder, tmp_path / "output")).state_dict()
    for name, weight in before.items():
        error = float((after[name] - weight).abs().max())
        assert error <= 0.51 * float(weight.abs().max()) / steps + 1e-3 * (weight.ndim == 1), name


def test_weights_of_one_row_have_one_scale(sources, tmp_path):
    """A row's error depends on its own largest value, not on that of the matrix."""
    folder = convert_to_ctranslate2(sources[True], tmp_path / "ctranslate2", "int8")
    weight = load(sources[True]).state_dict()["model.decoder.layers.0.fc1.weight"].numpy()
    error = np.abs(read_ctranslate2(folder)["decoder/layer_0/ffn/linear_0/weight"] - weight)
    assert (error.max(axis=1) <= 0.51 * np.abs(weight).max(axis=1) / 127).all()


def test_an_output_layer_of_its_own_is_kept(sources, tmp_path):
    model = load(sources[False])
    model.config.tie_word_embeddings = False
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach() * 0.5)
    shutil.copytree(sources[False], tmp_path / "untied")
    model.save_pretrained(tmp_path / "untied")
    folder = convert_to_ctranslate2(tmp_path / "untied", tmp_path / "ctranslate2")
    after = load(to_transformers(folder, tmp_path / "output"))
    assert torch.equal(logits(after), logits(model))
    assert not torch.equal(logits(after), logits(load(sources[False])))


def test_models_of_128_bands_keep_them(tmp_path):
    source = make_transformers_whisper(tmp_path / "source", multilingual=False, bands=128)
    output = to_transformers(convert_to_ctranslate2(source, tmp_path / "ctranslate2"), tmp_path / "output")
    assert load(output).config.num_mel_bins == 128
    assert json.loads((output / "preprocessor_config.json").read_text())["feature_size"] == 128


def test_equal_biases_are_one_array_with_two_names(sources, tmp_path):
    """The converter stores what is equal once; every name must still be there."""
    model = load(sources[False])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    shutil.copytree(sources[False], tmp_path / "zeros")
    model.save_pretrained(tmp_path / "zeros")
    folder = convert_to_ctranslate2(tmp_path / "zeros", tmp_path / "ctranslate2")
    variables = read_ctranslate2(folder)
    assert variables["encoder/layer_1/ffn/layer_norm/beta"] is variables["decoder/layer_0/ffn/layer_norm/beta"]
    after = load(to_transformers(folder, tmp_path / "output")).state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("multilingual", [True, False])
def test_the_torch_recognizer_gives_the_same_lists_from_converted_weights(sources, tmp_path, multilingual):
    folder = convert_to_ctranslate2(sources[multilingual], tmp_path / "ctranslate2")
    output = to_transformers(folder, tmp_path / "output")
    waveform = read(next(SPEECH.glob("*.ogg")))
    lists = [
        WhisperRecognizer.load(source, offline=True).recognize(waveform, nbest=3)
        for source in (sources[multilingual], output)
    ]
    assert lists[0].hypotheses == lists[1].hypotheses
    assert lists[0].words == lists[1].words
    assert set(lists[0].texts[0].split()) <= set(WORDS)


def test_the_marks_have_the_numbers_of_whisper():
    tokens = make_tokenizer(True).get_vocab()
    assert [tokens[f"<|{mark}|>"] for mark in ("endoftext", "startoftranscript", "en")] == [50257, 50258, 50259]
    assert [tokens[f"<|{mark}|>"] for mark in ("translate", "notimestamps", "0.00")] == [50358, 50363, 50364]
    assert make_tokenizer(False).get_vocab()["<|notimestamps|>"] == 50362
    assert len(LANGUAGE_CODES) == 99
    assert max(tokens.values()) == 50364 + TIMESTAMPS - 1


def test_the_output_says_which_file_it_comes_from(ctranslate2_folder, tmp_path):
    output = to_transformers(ctranslate2_folder, tmp_path / "output")
    with safe_open(output / "model.safetensors", "np") as stored:
        assert stored.metadata()["source_sha256"] == file_sha256(ctranslate2_folder / "model.bin")
    assert (output / "tokenizer.json").read_bytes() == (ctranslate2_folder / "tokenizer.json").read_bytes()


def test_conversion_needs_neither_torch_nor_transformers(ctranslate2_folder, tmp_path):
    program = (
        "import sys; from audio_llm.asr.whisper_convert import to_transformers; to_transformers(*sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'ctranslate2'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(ctranslate2_folder), str(tmp_path / "output")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert load(tmp_path / "output").config.d_model == 32


@pytest.mark.slow
def test_real_weights_give_the_same_text_and_probabilities(whisper_tiny_en, tmp_path):
    """Greedy texts of ctranslate2 and torch in float32, and log-probabilities of those texts by both."""
    import ctranslate2
    from tokenizers import Tokenizer

    network = load(to_transformers(whisper_tiny_en, tmp_path / "tiny.en"))
    model = ctranslate2.models.Whisper(str(whisper_tiny_en), compute_type="float32", intra_threads=1)
    tokenizer = Tokenizer.from_file(str(Path(whisper_tiny_en) / "tokenizer.json"))
    start = [tokenizer.token_to_id(mark) for mark in ("<|startoftranscript|>", "<|notimestamps|>")]
    paths = sorted(SPEECH.glob("*.flac"))[:2]
    assert len(paths) == 2
    for path in paths:
        mel = log_mel(read(path))[None]
        encoded = model.encode(ctranslate2.StorageView.from_array(mel))
        tokens = model.generate(encoded, [start], beam_size=1)[0].sequences_ids[0]
        with torch.no_grad():
            generated = network.generate(torch.from_numpy(mel), max_new_tokens=200, do_sample=False)[0].tolist()
            inputs = torch.tensor([[*start, *tokens]])
            outputs = network(input_features=torch.from_numpy(mel), decoder_input_ids=inputs).logits
        assert tokenizer.decode(generated) == tokenizer.decode(tokens)
        assert len(tokenizer.decode(tokens)) > 20
        # ctranslate2's probabilities are shares of the text tokens alone: all numbers below the end mark
        text_only = outputs[0, len(start) - 1 : -1, : tokenizer.token_to_id("<|endoftext|>")].log_softmax(-1)
        expected = text_only.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()
        aligned = model.align(encoded, start[:1], [tokens], 3000)[0].text_token_probs
        assert np.abs(np.log(aligned) - expected).max() < 0.01


# --- the binary file ---


def pack_text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def pack_variable(name: str, array: np.ndarray, type_number: int | None = None) -> bytes:
    number = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4}[array.dtype.str[1:]] if type_number is None else type_number
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return pack_text(name) + shape + struct.pack("<BI", number, array.nbytes) + array.tobytes()


def pack_model(*variables: bytes, aliases: tuple[tuple[str, str], ...] = (), version: int = 6) -> bytes:
    header = struct.pack("<I", version) + pack_text("WhisperSpec") + struct.pack("<I", 3)
    pairs = b"".join(pack_text(alias) + pack_text(name) for alias, name in aliases)
    return header + struct.pack("<I", len(variables)) + b"".join(variables) + struct.pack("<I", len(aliases)) + pairs


@pytest.fixture
def read_bytes(tmp_path) -> Callable[[bytes], dict[str, np.ndarray]]:
    def read_content(content: bytes) -> dict[str, np.ndarray]:
        (tmp_path / "model.bin").write_bytes(content)
        return read_ctranslate2(tmp_path)

    return read_content


ROW = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_variables_are_read_with_their_types(read_bytes):
    content = pack_model(
        pack_variable("a", ROW),
        pack_variable("b", ROW.astype(np.float16)),
        pack_variable("c", np.array(-7, np.int16)),
        pack_variable("d", ROW.astype(np.int8)),
        pack_variable("d_scale", np.array([2, 4], np.float32)),
        pack_variable("e", (ROW.view(np.uint32) >> 16).astype(np.uint16).view(np.int16), type_number=5),
        aliases=(("f", "a"), ("g", "d")),
    )
    variables = read_bytes(content)
    assert sorted(variables) == ["a", "b", "c", "d", "e", "f", "g"]
    assert np.array_equal(variables["a"], ROW)
    assert variables["b"].dtype == np.float16
    assert variables["c"].shape == ()
    assert int(variables["c"]) == -7
    assert variables["d"].tolist() == [[0, 0.5, 1], [0.75, 1, 1.25]]
    assert variables["e"].tolist() == ROW.tolist()
    assert variables["f"] is variables["a"]
    assert variables["g"] is variables["d"]


def test_a_file_cut_off_anywhere_is_refused(read_bytes):
    content = pack_model(pack_variable("a", ROW), pack_variable("b", ROW), aliases=(("c", "a"),))
    assert len(read_bytes(content)) == 3
    for size in range(len(content)):
        with pytest.raises(ModelFormatError, match=r"model\.bin"):
            read_bytes(content[:size])


def test_every_changed_byte_is_an_error_of_one_line_or_another_value(read_bytes):
    """No change of a byte leads to another exception, or to memory taken for an array that is not there."""
    content = pack_model(pack_variable("a", ROW), aliases=(("c", "a"),))
    refused, lines = 0, []
    for position in range(len(content)):
        for value in (0x00, 0x7F, 0xFF):
            changed = content[:position] + bytes([value]) + content[position + 1 :]
            try:
                sizes = {array.size for array in read_bytes(changed).values()}
            except ModelFormatError as error:
                refused += 1
                lines.append(str(error))
            else:
                assert sizes <= {6}
    assert refused > len(content)
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off"),
        (b"\x80\x04}q\x00." * 20, "binary version 6"),
        (pack_model(version=5), "its version is 5"),
        (struct.pack("<I", 6) + pack_text("TransformerSpec") + bytes(8), "kind TransformerSpec"),
        (struct.pack("<I", 6) + pack_text("WhisperSpec") + struct.pack("<III", 2, 0, 0), "revision 2"),
        (struct.pack("<IHB", 6, 1, 0), "not a string"),
        (pack_model() + b"\0", "1 bytes follow"),
        (pack_model(pack_variable("a", ROW), pack_variable("a", ROW)), "occurs twice"),
        (pack_model(pack_variable("a", ROW, type_number=6)), "unknown type 6"),
        (pack_model(pack_variable("a", ROW, type_number=4)), "cannot have 24 bytes"),
        (pack_model(pack_variable("a", np.zeros((1, 1, 1, 1), np.float32))), "4 dimensions"),
        (pack_model(pack_text("a") + struct.pack("<B2IBI", 2, 2**31, 2, 1, 2**32 - 1)), "cannot have"),
        (pack_model(pack_text("a") + struct.pack("<BIBI", 1, 2**32 - 1, 1, 2**32 - 1)), "4294967295 bytes"),
        (pack_model(pack_variable("a", ROW), aliases=(("b", "c"),)), "alias of c"),
        (pack_model(pack_variable("a", ROW), aliases=(("a", "a"),)), "alias of a"),
        (pack_model(pack_variable("a", ROW * np.float32(np.nan))), "a has values that are not finite"),
        (pack_model(pack_variable("a", ROW.astype(np.int8))), "a is quantized"),
        (pack_model(pack_variable("a", ROW.astype(np.int32))), "a is quantized"),
        (pack_model(pack_variable("a", ROW.astype(np.int8)), pack_variable("a_scale", ROW)), "a is quantized"),
        (
            pack_model(pack_variable("a", ROW.astype(np.int8)), pack_variable("a_scale", np.zeros(2, np.float32))),
            "a_scale has impossible values",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(read_bytes, content, message):
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_bytes(content)
    assert caught.value.remedy


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model\.bin"):
        read_ctranslate2(tmp_path)


# --- the folder ---


@pytest.fixture
def copy(ctranslate2_folder, tmp_path) -> Path:
    return shutil.copytree(ctranslate2_folder, tmp_path / "copy")


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_missing_file_is_named(copy, tmp_path, name):
    (copy / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        to_transformers(copy, tmp_path / "output")
    assert not (tmp_path / "output").exists()


BROKEN_JSON = [b"", b"{", b"3", b"\xff\xfe", b"[" * 100_000, b"[3]"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("config.json", "tokenizer.json", "vocabulary.json") for content in BROKEN_JSON),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}, "added_tokens": []}'),
        ("vocabulary.json", b"{}"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(copy, tmp_path, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match="copy") as caught:
        to_transformers(copy, tmp_path / "output")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    "change",
    [
        {"suppress_ids": [51865]},
        {"suppress_ids_begin": ["a"]},
        {"suppress_ids": 5},
        {"suppress_ids": [True]},
        {"alignment_heads": [[2, 0]]},
        {"alignment_heads": [[0, -1]]},
        {"alignment_heads": [1, 2]},
    ],
)
def test_settings_outside_the_model_are_refused(copy, tmp_path, change):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        to_transformers(copy, tmp_path / "output")


def test_the_older_vocabulary_of_one_token_a_line_is_read(copy, tmp_path):
    tokens = json.loads((copy / "vocabulary.json").read_text())
    (copy / "vocabulary.json").unlink()
    (copy / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert load(to_transformers(copy, tmp_path / "output")).config.vocab_size == 51865


def test_the_tokenizer_of_another_model_is_refused(copy, sources, tmp_path):
    shutil.copy(sources[False] / "tokenizer.json", copy)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: belongs to another model: its token"):
        to_transformers(copy, tmp_path / "output")


def test_the_vocabulary_of_another_model_is_refused(copy, tmp_path):
    tokens = json.loads((copy / "vocabulary.json").read_text())
    (copy / "vocabulary.json").write_text(json.dumps(tokens[:-1]))
    with pytest.raises(ModelFormatError, match="51864 tokens, the weights have 51865"):
        to_transformers(copy, tmp_path / "output")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("decoder/pre_norm", np.array(0, np.int8), "pre_norm is not 1"),
        ("decoder/alibi", np.array(1, np.int8), "alibi is not 0"),
        ("decoder/scale_alibi", np.array(1, np.int8), "no decoder/scale_alibi"),
        ("encoder/num_heads", np.array(5, np.int16), "5 heads"),
        ("encoder/layer_norm/gamma", np.ones(31, np.float32), r"\(31,\), not \(32,\)"),
        ("encoder/layer_norm/gamma", None, "gamma is missing"),
        ("encoder/layer_1/ffn/linear_0/bias", None, "bias is missing"),
        ("encoder/layer_3/ffn/linear_0/bias", np.ones(64, np.float32), "no encoder/layer_3"),
        ("encoder/conv1/weight", np.ones((32, 81, 3), np.float32), "81 bands"),
        ("decoder/embeddings/weight", np.ones((0, 32), np.float32), r"shape \(0, 32\)"),
        ("decoder/project_in/weight", np.ones((32, 32), np.float32), "no decoder/project_in"),
    ],
)
def test_weights_of_another_network_are_refused(ctranslate2_folder, copy, tmp_path, name, array, message):
    variables = read_ctranslate2(ctranslate2_folder) | {name: array}
    packed = [pack_variable(key, value) for key, value in sorted(variables.items()) if value is not None]
    (copy / "model.bin").write_bytes(pack_model(*packed))
    with pytest.raises(ModelFormatError, match=message):
        to_transformers(copy, tmp_path / "output")


def test_a_full_output_folder_is_left_alone(ctranslate2_folder, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        to_transformers(ctranslate2_folder, tmp_path / "output")
    assert (tmp_path / "output/letter.txt").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(ctranslate2_folder, tmp_path, monkeypatch):
    def fail(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(AudioLLMError, match="No space left"):
        to_transformers(ctranslate2_folder, tmp_path / "output")
    assert list(tmp_path.iterdir()) == []
