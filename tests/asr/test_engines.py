"""Recognizers by name: what a name stands for, what is installed, and options that cannot act."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import audio_llm
from audio_llm.asr.engines import ResolvedRecognizer, load_recognizer, resolve_recognizer
from audio_llm.asr.vad import VadOptions
from audio_llm.asr.whisper import WhisperOptions
from audio_llm.asr.whisper_decode import DecodeOptions
from audio_llm.errors import ModelNotFoundError, UsageError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder of installed models."""
    monkeypatch.setenv("AUDIO_LLM_CACHE", str(tmp_path / "models"))
    return tmp_path / "models"


def install(cache: Path, folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, cache / name))


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from asr.tiny_whisper import make_transformers_whisper

    return make_transformers_whisper(tmp_path_factory.mktemp("whisper") / "hf")


def test_auto_is_base_before_tiny_en_before_pocketsphinx(
    cache: Path, tiny_whisper: Path, tiny_whisper_en: Path
) -> None:
    assert resolve_recognizer("auto") == ResolvedRecognizer("sphinx", None)
    install(cache, tiny_whisper_en, "whisper-tiny.en")
    assert resolve_recognizer("auto") == ResolvedRecognizer("whisper", "whisper-tiny.en")
    install(cache, tiny_whisper, "whisper-base")
    assert resolve_recognizer("auto") == ResolvedRecognizer("whisper", "whisper-base")


@pytest.mark.parametrize(
    "options",
    [WhisperOptions(language="de"), WhisperOptions(task="translate"), WhisperOptions(multilingual=True)],
)
def test_auto_takes_no_english_only_model_for_other_languages(
    cache: Path, tiny_whisper: Path, tiny_whisper_en: Path, options: WhisperOptions
) -> None:
    install(cache, tiny_whisper_en, "whisper-tiny.en")
    assert resolve_recognizer("auto", options=WhisperOptions(language="en")) == ResolvedRecognizer(
        "whisper", "whisper-tiny.en"
    )
    with pytest.raises(ModelNotFoundError, match="`audio-llm models get whisper-base`"):
        resolve_recognizer("auto", options=options)
    install(cache, tiny_whisper, "whisper-base")
    assert resolve_recognizer("auto", options=options) == ResolvedRecognizer("whisper", "whisper-base")


@pytest.mark.parametrize("options", [WhisperOptions(), WhisperOptions(hotwords=("Whitby",), language="en")])
def test_auto_is_pocketsphinx_where_that_can_do_what_is_asked(cache: Path, options: WhisperOptions) -> None:
    assert resolve_recognizer("auto", options=options) == ResolvedRecognizer("sphinx", None)


@pytest.mark.parametrize(
    "options", [WhisperOptions(prompt="x"), WhisperOptions(vad=False), WhisperOptions(batch_size=9)]
)
def test_auto_names_the_missing_model_where_pocketsphinx_cannot(cache: Path, options: WhisperOptions) -> None:
    with pytest.raises(ModelNotFoundError, match="`audio-llm models get whisper-base`"):
        resolve_recognizer("auto", options=options)


@pytest.mark.parametrize(
    "name", ["whisper-tiny.en", "tiny.en", "openai/whisper-tiny.en", "faster-whisper-tiny.en", "Tiny.EN"]
)
def test_every_alias_of_an_installed_model_loads_it(cache: Path, tiny_whisper_en: Path, name: str) -> None:
    install(cache, tiny_whisper_en, "whisper-tiny.en")
    assert resolve_recognizer(name) == ResolvedRecognizer("whisper", name)
    recognizer = load_recognizer(name)
    assert (recognizer.name, recognizer.version) == ("whisper", "whisper-tiny.en")
    assert (
        resolve_recognizer("whisper", name) == resolve_recognizer("auto", name) == ResolvedRecognizer("whisper", name)
    )


def test_the_folder_of_a_ctranslate2_model_is_whisper(cache: Path, tiny_whisper: Path) -> None:
    assert resolve_recognizer(str(tiny_whisper)) == ResolvedRecognizer("whisper", str(tiny_whisper))
    assert load_recognizer(str(tiny_whisper)).name == "whisper"


def test_the_folder_of_a_transformers_model_is_whisper_torch(cache: Path, transformers_folder: Path) -> None:
    expected = ResolvedRecognizer("whisper-torch", str(transformers_folder))
    assert resolve_recognizer(str(transformers_folder)) == expected
    assert resolve_recognizer("whisper", str(transformers_folder)) == expected
    assert resolve_recognizer("whisper-torch", str(transformers_folder)) == expected


def test_an_engine_takes_its_own_model(cache: Path) -> None:
    assert resolve_recognizer("sphinx") == ResolvedRecognizer("sphinx", None)
    assert resolve_recognizer("ctc") == ResolvedRecognizer("ctc", "ctc-small")
    assert resolve_recognizer("ctc", "mine") == ResolvedRecognizer("ctc", "mine")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("sfinx", "sphinx"), ("whisper-bse", "whisper-base"), ("wisper", "whisper"), ("atuo", "auto")],
)
def test_an_unknown_name_gets_a_suggestion(cache: Path, name: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown recognizer '{name}' \(did you mean {suggestion}\?\)"):
        resolve_recognizer(name)


def test_a_name_like_no_other_gets_the_list(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"use one of auto, sphinx, .*, or the folder of a Whisper model"):
        resolve_recognizer("qqqqq")


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("sphinx", "x", "the recognizer sphinx has its model inside"),
        ("whisper-torch", None, "the recognizer whisper-torch needs a model"),
        ("espnet", None, "the recognizer espnet needs a model"),
        ("tiny.en", "whisper-base", "'tiny.en' is a model already"),
    ],
)
def test_a_model_where_none_fits_is_an_error(cache: Path, name: str, model: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_recognizer(name, model)


def test_a_model_that_is_not_installed_is_named_with_its_command(cache: Path) -> None:
    for name in ("whisper-base", "base", "whisper"):
        with pytest.raises(ModelNotFoundError, match="`audio-llm models get whisper-base`"):
            resolve_recognizer(name)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        resolve_recognizer("./no/such/folder")


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (WhisperOptions(language="de"), "language"),
        (WhisperOptions(multilingual=True), "multilingual"),
        (WhisperOptions(task="translate"), "task"),
        (WhisperOptions(prompt="x"), "prompt"),
        (WhisperOptions(decode=DecodeOptions(beam_size=7)), "decode"),
        (WhisperOptions(batch_size=9), "batch size"),
        (WhisperOptions(vad=False), "vad"),
        (WhisperOptions(vad_options=VadOptions(pad_s=0.1)), "vad options"),
    ],
)
def test_an_option_that_cannot_act_is_an_error(cache: Path, options: WhisperOptions, option: str) -> None:
    for name in ("sphinx", "ctc"):
        with pytest.raises(UsageError, match=rf"the recognizer {name} has no option {option} \(leave it out"):
            load_recognizer(name, options=options)


def test_a_number_format_that_cannot_act_is_an_error(cache: Path) -> None:
    with pytest.raises(UsageError, match="the recognizer sphinx has no option compute"):
        load_recognizer("sphinx", compute="int8")


def test_pocketsphinx_warns_where_it_was_not_chosen(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_recognizer("sphinx").name == load_recognizer("sphinx", options=WhisperOptions(language="en")).name
    assert caplog.text == ""
    load_recognizer("auto")
    assert caplog.text.count("no Whisper model is installed: pocketsphinx recognizes") == 1


def test_the_public_page_loads_a_recognizer_by_name_or_folder(
    tiny_whisper: Path, talk: Callable[..., np.ndarray]
) -> None:
    waveform = talk((0,))
    for recognizer in (
        audio_llm.Recognizer.load(str(tiny_whisper), language="en"),
        audio_llm.load(tiny_whisper),
    ):
        result = recognizer.recognize(waveform, nbest=5)
        assert 0 <= len(result.hypotheses) <= 5
        likely, unlikely = recognizer.score(waveform, ["ba be", "ba be bi"])
        assert likely is not None
        assert likely > unlikely
    with pytest.raises(UsageError, match="unknown recognizer"):
        audio_llm.Recognizer.load("wisper")
