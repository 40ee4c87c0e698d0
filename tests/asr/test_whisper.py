"""Whisper on CTranslate2: loading, recordings of any length, languages, prompts, and what it does to odd sound."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asr.fake_whisper import FakeWhisper, always, fake_recognizer
from asr.stretches import assert_times
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm.asr.base import Stretch
from audio_llm.asr.whisper import WhisperOptions, WhisperRecognizer
from audio_llm.asr.whisper_decode import DecodeOptions
from audio_llm.asr.whisper_tokens import CONTEXT_TOKENS
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError
from audio_llm.installed import InstalledFile, Manifest, file_sha256, write_manifest

RATE = 16_000
SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
PROJECT = Path(__file__).parents[2]
UNCHECKED = DecodeOptions(beam_size=2, checks=False)  # the texts of random weights are unlikely

Talk = Callable[..., np.ndarray]
Hiss = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def recognizer(tiny_whisper: Path) -> WhisperRecognizer:
    return WhisperRecognizer.load(tiny_whisper, compute="float32", threads=1)


@pytest.fixture(scope="module")
def english(tiny_whisper_en: Path) -> WhisperRecognizer:
    return WhisperRecognizer.load(tiny_whisper_en, compute="float32", threads=2)


def run(
    recognizer: WhisperRecognizer, waveform: np.ndarray, nbest: int = 1, block: int = 0, **options: Any
) -> list[Stretch]:
    """Recognize a recording in blocks of so many samples; 0: in one."""
    recognizer.configure(WhisperOptions(**{"decode": UNCHECKED, **options}))
    size = block or max(1, len(waveform))
    blocks = (waveform[start : start + size] for start in range(0, len(waveform), size))
    return list(recognizer.recognize_stream(blocks, nbest, "x"))


def plain(stretches: list[Stretch]) -> list[tuple[Any, ...]]:
    return [(part.start_s, part.end_s, part.nbest, part.language, part.language_probability) for part in stretches]


# ---- loading


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named_with_the_command_that_gets_a_model(
    tiny_whisper: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_whisper, tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match=rf"{name} is missing .*`audio-llm models get whisper-base`"):
        WhisperRecognizer.load(folder)


@pytest.mark.parametrize("cut", ["empty", "half", "text", "header"])
def test_a_damaged_model_is_named(tiny_whisper: Path, tmp_path: Path, cut: str) -> None:
    folder = Path(shutil.copytree(tiny_whisper, tmp_path / "model"))
    content = (folder / "model.bin").read_bytes()
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "header": b"\x63\0\0\0" + content[4:],
    }
    (folder / "model.bin").write_bytes(damaged[cut])
    with pytest.raises(ModelFormatError, match=r"model.bin: no readable Whisper: .*\(get the model again\)"):
        WhisperRecognizer.load(folder)


def test_an_installed_file_that_was_changed_is_named(tiny_whisper: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_whisper, tmp_path / "model"))
    names = ("model.bin", "config.json", "tokenizer.json")
    files = {name: InstalledFile((folder / name).stat().st_size, file_sha256(folder / name)) for name in names}
    origin = {"repository": "someone/tiny"}
    write_manifest(folder, Manifest("tiny", "ctranslate2-whisper", "MIT", "hub", origin, False, files))
    assert WhisperRecognizer.load(folder).version == f"tiny@{files['model.bin'].sha256[:12]}"
    content = bytearray((folder / "model.bin").read_bytes())
    content[-1] ^= 1
    (folder / "model.bin").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"model\.bin: has another SHA-256"):
        WhisperRecognizer.load(folder)


def test_an_unknown_language_is_refused(tiny_whisper: Path, tiny_whisper_en: Path) -> None:
    with pytest.raises(UsageError, match="the model does not know the language 'klingon'"):
        WhisperRecognizer.load(tiny_whisper, options=WhisperOptions(language="klingon"))
    with pytest.raises(UsageError, match="an English-only model does not know the language 'de'"):
        WhisperRecognizer.load(tiny_whisper_en, options=WhisperOptions(language="de"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (WhisperOptions(task="translate"), "an English-only model does not translate .*whisper-base"),
        (WhisperOptions(multilingual=True), "an English-only model detects no languages .*whisper-base"),
        (WhisperOptions(batch_size=0), "give 1 or more"),
        (WhisperOptions(decode=DecodeOptions(beam_size=0)), "give 1 or more"),
    ],
)
def test_what_an_english_only_model_cannot_do_is_an_error(
    tiny_whisper_en: Path, options: WhisperOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        WhisperRecognizer.load(tiny_whisper_en, options=options)


def test_a_language_is_either_given_or_detected(recognizer: WhisperRecognizer) -> None:
    with pytest.raises(UsageError, match="the language is given, so none is detected"):
        recognizer.configure(WhisperOptions(language="de", multilingual=True))


def test_a_format_that_the_device_does_not_compute_in_names_those_it_does(tiny_whisper: Path) -> None:
    with pytest.raises(UsageError, match=r"this cpu does not compute in float16 \(use --compute with one of .*int8"):
        WhisperRecognizer.load(tiny_whisper, compute="float16")


def test_the_number_of_threads_comes_from_the_environment(tiny_whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, workers in (("3", 3), ("1", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert WhisperRecognizer.load(tiny_whisper)._workers == workers
    assert WhisperRecognizer.load(tiny_whisper, threads=2)._workers == 2


def test_neither_torch_nor_transformers_is_imported(tiny_whisper: Path, tmp_path: Path) -> None:
    script = f"""
import sys
import numpy as np
import audio_llm.pipeline.transcribe, audio_llm.asr.whisper
from audio_llm.asr.engines import load_recognizer
from audio_llm.pipeline.transcribe import Transcriber
sound = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
options = audio_llm.asr.whisper.WhisperOptions(vad=False)
Transcriber(load_recognizer({str(tiny_whisper)!r}, options=options)).transcribe([sound])
list(load_recognizer({str(tiny_whisper)!r}).recognize_stream([sound]))
print("HEAVY", *(name for name in ("torch", "transformers") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["HEAVY"]


# ---- one utterance


@pytest.mark.parametrize("samples", [0, 1, 319])
def test_hardly_any_sound_gives_an_empty_list(recognizer: WhisperRecognizer, samples: int) -> None:
    recognizer.configure(WhisperOptions(vad=False))
    sound = np.full(samples, 0.5, np.float32)
    assert recognizer.recognize(sound, id="x").hypotheses == ()
    assert list(recognizer.recognize_stream([sound])) == []


def test_digital_silence_gives_nothing_with_and_without_detection(recognizer: WhisperRecognizer) -> None:
    silence = np.zeros(3 * RATE, np.float32)
    assert recognizer.recognize(silence).hypotheses == ()
    for vad in (True, False):
        assert run(recognizer, silence, vad=vad) == []


def test_more_than_a_window_is_refused_as_one_utterance(recognizer: WhisperRecognizer, hiss: Hiss) -> None:
    with pytest.raises(UsageError, match=r"31.00 s of sound do not fit .*cut it into windows first"):
        recognizer.recognize(hiss(31))
    assert recognizer.recognize(hiss(30)).hypotheses


def test_hypotheses_are_distinct_and_ranked_by_score_per_token(english: WhisperRecognizer, hiss: Hiss) -> None:
    english.configure(WhisperOptions(decode=UNCHECKED))
    for seed in range(4):
        result = english.recognize(hiss(2, seed), nbest=10, id="x")
        assert result.id == "x"
        assert 2 <= len(result.hypotheses) <= 10
        assert len(set(result.texts)) == len(result.texts)
        means = [each.score / (len(each.text.split()) + 1) for each in result.hypotheses if each.score is not None]
        assert means == sorted(means, reverse=True)
        assert len(means) == len(result.hypotheses)
        assert len(english.recognize(hiss(2, seed), nbest=3).hypotheses) <= 3


def test_words_are_those_of_the_best_hypothesis(english: WhisperRecognizer, hiss: Hiss) -> None:
    english.configure(WhisperOptions(decode=UNCHECKED))
    for seconds in (0.02, 0.03, 0.5, 3, 30):
        result = english.recognize(hiss(seconds))
        assert [word.text for word in result.words] == result.best.split()
        assert all(word.confidence is not None and 0 < word.confidence <= 1 for word in result.words)
        assert all(0 <= word.start_s < word.end_s <= seconds + 1e-9 for word in result.words)


def test_texts_are_scored_and_what_cannot_be_scored_is_none(english: WhisperRecognizer, hiss: Hiss) -> None:
    english.configure(WhisperOptions(decode=UNCHECKED))
    scores = english.score(hiss(1), ["fa be", "", "fa be", "ba " * 441, "fa"])
    assert [score is None for score in scores] == [False, True, False, True, False]
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)
    assert all(score < 0 for score in scores if score is not None)
    assert english.score(np.zeros(0, np.float32), ["fa"]) == [None]


# ---- recordings


@pytest.mark.parametrize("options", [{}, {"vad": False}])
def test_the_division_into_blocks_does_not_matter(
    english: WhisperRecognizer, talk: Talk, options: dict[str, Any]
) -> None:
    waveform = talk(range(6), (0.4, 2.0, 0.8))
    whole = run(english, waveform, **options)
    assert whole
    for block in (777, 16_000, 123_457):
        assert plain(run(english, waveform, block=block, **options)) == plain(whole)


def test_stretches_are_numbered_from_zero(english: WhisperRecognizer, talk: Talk) -> None:
    stretches = run(english, talk(range(8)), nbest=2)
    assert [part.nbest.id for part in stretches] == [f"x#{number}" for number in range(len(stretches))]
    assert len(stretches) >= 6


@pytest.mark.parametrize("nbest", [1, 4])
def test_texts_do_not_depend_on_batches_and_workers(tiny_whisper_en: Path, talk: Talk, nbest: int) -> None:
    waveform = talk(range(12), (0.9, 2.5))
    found = []
    for batch_size, threads in ((1, 1), (4, 1), (1, 2), (3, 2)):
        recognizer = WhisperRecognizer.load(tiny_whisper_en, compute="float32", threads=threads)
        found.append(run(recognizer, waveform, nbest=nbest, batch_size=batch_size))
    for other in found[1:]:
        assert [part.nbest.texts for part in other] == [part.nbest.texts for part in found[0]]
        for one, two in zip(found[0], other, strict=True):
            assert (two.start_s, two.end_s) == (one.start_s, one.end_s)
            times = [word.start_s for word in two.nbest.words]
            assert times == pytest.approx([word.start_s for word in one.nbest.words], abs=0.1)


def test_stretches_come_while_the_recording_goes_on(english: WhisperRecognizer, talk: Talk) -> None:
    english.configure(WhisperOptions(decode=UNCHECKED))
    read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(20):
            read += 1
            yield talk(range(6), (1.0,))

    stretches = english.recognize_stream(blocks())
    next(stretches)
    assert read < 12
    stretches.close()  # type: ignore[attr-defined]


def test_two_recordings_at_the_same_time_do_not_disturb_each_other(english: WhisperRecognizer, talk: Talk) -> None:
    sounds = (talk(range(5), (0.4, 2.0)), talk((3, 2, 1, 0, 4, 5), (2.1, 0.7)))
    alone = [plain(run(english, sound, nbest=2)) for sound in sounds]
    streams = [english.recognize_stream(np.array_split(sound, 40), 2, "x") for sound in sounds]
    together: list[list[Stretch]] = [[], []]
    for pair in itertools.zip_longest(*streams):
        for found, stretch in zip(together, pair, strict=True):
            found += [stretch] if stretch is not None else []
    assert [plain(found) for found in together] == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_recognized_before_an_error_has_come_out(tiny_whisper: Path, hiss: Hiss, workers: int) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always(""), vad=False, language="en")
    recognizer._workers = workers
    count = itertools.count()

    def write(prompt: list[int], options: dict[str, Any]) -> list[tuple[str, float, float]]:
        if next(count) == 3:
            raise RuntimeError("out of memory")
        return [("ba be", -0.1, 0.0)]

    model.write = write
    found = []
    with pytest.raises(RuntimeError, match="out of memory"):  # noqa: PT012
        for stretch in recognizer.recognize_stream([hiss(200)]):
            found.append(stretch.nbest.best)
    assert found == ["ba be"] * len(found)
    assert 4 - workers <= len(found) <= 2 + workers  # two workers may take windows in any order


def test_packed_windows_give_a_stretch_for_each_utterance(english: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0, 1, 2), (2.0,))
    apart = run(english, waveform, nbest=2)
    packed = run(english, waveform)
    assert len(apart) >= 3
    own = {(part.start_s, part.end_s) for part in apart}
    assert {(part.start_s, part.end_s) for part in packed} <= own
    for part in packed:
        size = part.waveform.size
        start = round(part.start_s * RATE)
        assert np.array_equal(part.waveform, waveform[start : start + size])
        assert size / RATE == pytest.approx(part.end_s - part.start_s)
        assert [word.text for word in part.nbest.words] == part.nbest.best.split()


def test_without_detection_every_sample_is_recognized_once(tiny_whisper: Path, hiss: Hiss) -> None:
    recognizer, _ = fake_recognizer(tiny_whisper, always("ba"), vad=False)
    for seconds in (0.5, 29.99, 30.0, 30.01, 75.3):
        sound = hiss(seconds)
        stretches = list(recognizer.recognize_stream([sound]))
        assert np.array_equal(np.concatenate([part.waveform for part in stretches]), sound)
        assert [part.start_s for part in stretches[1:]] == [part.end_s for part in stretches[:-1]]
        assert stretches[-1].end_s == pytest.approx(seconds)


@given(st.lists(st.tuples(st.integers(320, 60_000), st.floats(0, 0.5)), min_size=1, max_size=4), st.booleans())
@settings(max_examples=25)
def test_words_lie_in_order_within_the_recording(parts: list[tuple[int, float]], apart: bool) -> None:
    recognizer = _shared()
    rng = np.random.default_rng(sum(size for size, _ in parts))
    sounds = [level * rng.standard_normal(size) for size, level in parts]
    waveform = np.concatenate([*sounds, np.zeros(500)]).astype(np.float32)
    recognizer.configure(WhisperOptions(vad=False, decode=UNCHECKED))
    assert_times(list(recognizer.recognize_stream([waveform], 2 if apart else 1)), len(waveform) / RATE)


def _shared() -> WhisperRecognizer:
    return _SHARED[0]


_SHARED: list[WhisperRecognizer] = []


@pytest.fixture(autouse=True, scope="module")
def _share(tiny_whisper_en: Path) -> None:
    """Lend a recognizer to the tests that draw their examples."""
    _SHARED[:] = [WhisperRecognizer.load(tiny_whisper_en, compute="float32", threads=1)]


def test_a_recording_cut_anywhere_is_recognized_to_its_end(english: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0, 1, 2), (0.3, 0.8))
    rng = np.random.default_rng(0)
    for cut in rng.integers(1, len(waveform), 60):
        part = waveform[:cut]
        assert_times(run(english, part, vad=bool(cut % 2)), len(part) / RATE)


@pytest.mark.parametrize("milliseconds", [10, 15, 20, 25, 30, 39, 40, 41, 60])
def test_a_last_stretch_of_one_frame_does_not_end_the_process(
    english: WhisperRecognizer, hiss: Hiss, milliseconds: int
) -> None:
    short = hiss(milliseconds / 1000)
    assert_times(run(english, short, vad=False), milliseconds / 1000)
    english.score(short, ["fa be"])
    long = np.concatenate([hiss(20), np.zeros(RATE // 10, np.float32), hiss(9.9), short])
    assert_times(run(english, long, vad=False), len(long) / RATE)


def test_quiet_speech_is_recognized_as_loud_speech(english: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0, 1))
    loud, quiet = (run(english, sound, nbest=2) for sound in (waveform, waveform * 10 ** (-30 / 20)))
    assert quiet[0].start_s == pytest.approx(loud[0].start_s, abs=0.2)
    assert quiet[-1].end_s == pytest.approx(loud[-1].end_s, abs=0.4)


@pytest.mark.parametrize("level_db", [-70, -55, -40])
def test_a_noise_floor_gives_no_text(english: WhisperRecognizer, hiss: Hiss, level_db: int) -> None:
    """Amplified by the detection, hiss stays hiss; also where it is all there is between two utterances."""
    assert run(english, hiss(30, level=10 ** (level_db / 20))) == []


# ---- languages


def test_the_language_is_detected_from_the_first_windows_with_its_probability(
    recognizer: WhisperRecognizer, talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="audio_llm"):
        stretches = run(recognizer, talk((0, 1)))
    (language,) = {part.language for part in stretches}
    (probability,) = {part.language_probability for part in stretches}
    assert probability is not None
    assert 1 / 99 < probability <= 1
    assert f"language: {language} (probability {probability:.2f})" in caplog.text


def test_leading_silence_does_not_change_the_language(recognizer: WhisperRecognizer, talk: Talk) -> None:
    waveform = talk((0, 1, 2))
    late = np.concatenate([np.zeros(40 * RATE + 5, np.float32), waveform])
    one, two = run(recognizer, waveform), run(recognizer, late)
    assert {part.language for part in one} == {part.language for part in two}
    assert two[0].language_probability == pytest.approx(one[0].language_probability, abs=0.1)
    assert two[0].start_s == pytest.approx(one[0].start_s + 40, abs=0.1)


def test_a_given_language_is_forced_and_not_detected(tiny_whisper: Path, hiss: Hiss) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("ba"), vad=False, language="FR")
    stretches = list(recognizer.recognize_stream([hiss(70)]))
    assert {(part.language, part.language_probability) for part in stretches} == {("fr", None)}
    assert {tuple(prompt) for prompt in model.prompts} == {tuple(model.tokens.prompt("fr", "transcribe"))}
    assert model._detected == 0


def test_the_language_is_the_mean_over_several_windows(tiny_whisper: Path, hiss: Hiss) -> None:
    """One window that is music or another language does not decide."""
    recognizer, model = fake_recognizer(tiny_whisper, always("ba"), vad=False)
    model.languages = [{"en": 0.3, "de": 0.7}, {"en": 0.9, "de": 0.1}, {"en": 0.9, "de": 0.1}]
    stretches = list(recognizer.recognize_stream([hiss(100)]))
    assert {part.language for part in stretches} == {"en"}
    assert stretches[0].language_probability == pytest.approx(0.7)
    assert len(stretches) > 3
    assert model._detected == 3


def test_every_window_has_its_own_language_where_several_are_expected(tiny_whisper: Path, hiss: Hiss) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("ba"), vad=False, multilingual=True)
    model.languages = [{"en": 0.8, "de": 0.2}, {"en": 0.1, "de": 0.9}]
    stretches = list(recognizer.recognize_stream([hiss(100)]))
    found = [(part.language, part.language_probability) for part in stretches]
    assert found == [(("en", 0.8), ("de", 0.9))[number % 2] for number in range(len(found))]
    marks = [prompt[1] for prompt in model.prompts]
    assert marks[:2] == [model.tokens.languages["en"], model.tokens.languages["de"]]
    assert model.starts[1][1] == model.tokens.languages["de"]  # words are aligned in it as well


# ---- prompts


def contexts(model: FakeWhisper) -> list[str]:
    """Return the text in front of every window."""
    return [model.tokens.decode(prompt[1 : prompt.index(model.tokens.start)]) for prompt in model.prompts]


def test_the_prompt_precedes_every_window(tiny_whisper: Path, hiss: Hiss) -> None:
    for batch_size in (1, 4):
        recognizer, model = fake_recognizer(
            tiny_whisper, always("du da"), vad=False, prompt="ba be", hotwords=("gogo", "gaga"), batch_size=batch_size
        )
        assert len(list(recognizer.recognize_stream([hiss(140)]))) >= 5
        assert len(contexts(model)) >= 5
        (context,) = set(contexts(model))
        assert context.startswith(" ba be")
        assert context.index("gogo") < context.index("gaga")


def test_preferred_words_replace_those_before_and_keep_the_other_options(tiny_whisper: Path, hiss: Hiss) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("du da"), vad=False, prompt="ba be", language="de")
    assert recognizer.prefer(["gogo"]) == []
    assert recognizer.prefer(["gaga"]) == []
    list(recognizer.recognize_stream([hiss(1)]))
    (context,) = contexts(model)
    assert "gaga" in context
    assert "gogo" not in context
    assert recognizer.options.hotwords == ("gaga",)
    assert (recognizer.options.language, recognizer.options.prompt) == ("de", "ba be")


@pytest.mark.parametrize("nbest", [1, 3])
def test_listed_words_are_written_as_in_the_list(tiny_whisper: Path, hiss: Hiss, nbest: int) -> None:
    written = [("ba gogo da", -0.1, 0.0), ("ba gogo de", -0.2, 0.0)]
    recognizer, _ = fake_recognizer(tiny_whisper, lambda *asked: written, vad=False, language="en")
    recognizer.prefer(["goGo"])
    (stretch,) = recognizer.recognize_stream([hiss(2)], nbest)
    assert stretch.nbest.texts == ("ba goGo da", "ba goGo de")[:nbest]
    assert [word.text for word in stretch.nbest.words] == ["ba", "goGo", "da"]
    assert recognizer.recognize(hiss(2)).best == "ba goGo da"


def test_words_that_do_not_fit_into_the_prompt_are_returned(tiny_whisper: Path, hiss: Hiss) -> None:
    recognizer, model = fake_recognizer(tiny_whisper, always("du da"), vad=False, prompt="ba be")
    words = [f"{first}{second}" for first in ("ba", "be", "bi", "go") for second in "abdefgiou" for _ in range(9)]
    refused = recognizer.prefer(words)
    assert refused
    assert [*recognizer.options.hotwords, *refused] == words
    list(recognizer.recognize_stream([hiss(1)]))
    (context,) = contexts(model)
    assert context.startswith(" ba be")  # nothing of the prompt is pushed out
    assert len(model.prompts[0]) <= 1 + CONTEXT_TOKENS + 4


def test_a_prompt_that_is_too_long_is_a_warning(tiny_whisper: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake_recognizer(tiny_whisper, always(""), prompt="ba " * 300)
    assert "prompt and hotwords have 300 tokens, of which the last 223 count" in caplog.text
