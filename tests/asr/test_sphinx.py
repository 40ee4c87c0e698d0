"""The embedded recognizer on the sample recordings: repeatable lists, comparable scores, preferred names."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from audio_llm import audio
from audio_llm.align import count_edits
from audio_llm.asr.sphinx import SphinxRecognizer
from audio_llm.nbest import NBest
from audio_llm.text import get_normalizer

SAMPLES = Path(__file__).parents[2] / "samples" / "speech"
RATE = 16_000
WASH = "kathleen-arctic-a0240-1592711567.ogg"
GOLLY = "kathleen-arctic-a0421-1592706042.ogg"
GREGSON = "kathleen-arctic-a0172-1592713389.ogg"


@pytest.fixture(scope="module")
def recognizer() -> SphinxRecognizer:
    return SphinxRecognizer()


@cache
def sound(name: str) -> np.ndarray:
    return audio.read(SAMPLES / name)


def manifest() -> list[tuple[str, str]]:
    """Return name and spoken text of every sample."""
    lines = (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    normalize = get_normalizer("spoken")
    return [(row["audio_filepath"], normalize(row["text"])) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def washed(recognizer: SphinxRecognizer) -> NBest:
    return recognizer.recognize(sound(WASH), 5, "wash")


def test_the_same_sound_gives_the_same_list_whatever_came_before(recognizer: SphinxRecognizer, washed: NBest) -> None:
    recognizer.recognize(sound(GOLLY) * 0.2, 5, "loudness and noise of another recording")
    assert recognizer.recognize(sound(WASH), 5, "wash") == washed
    assert SphinxRecognizer().recognize(sound(WASH), 5, "wash") == washed


def test_lists_are_distinct_ranked_and_timed(washed: NBest) -> None:
    assert washed.id == "wash"
    assert "hands of me" in washed.best
    check_list(washed, 5, sound(WASH))


def check_list(nbest: NBest, count: int, waveform: np.ndarray) -> None:
    """Fail where texts repeat, scores ascend, or the words are not those of the best text one after another."""
    scores = [hypothesis.score for hypothesis in nbest.hypotheses if hypothesis.score is not None]
    assert 1 < len(set(nbest.texts)) == len(nbest.texts) == len(scores) <= count
    assert all(map(math.isfinite, scores))
    assert scores == sorted(scores, reverse=True)
    assert " ".join(word.text for word in nbest.words) == nbest.best
    times = [time for word in nbest.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= len(waveform) / RATE


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(0, np.float32),
        np.ones(1, np.float32),
        np.zeros(RATE, np.float32),
        np.full(RATE, 1e-5, np.float32),
        np.full(RATE // 20, 0.1, np.float32),
    ],
    ids=["empty", "one sample", "silence", "below -80 dBFS", "50 ms"],
)
def test_silence_gives_an_empty_list_of_sphinx(recognizer: SphinxRecognizer, waveform: np.ndarray) -> None:
    nbest = recognizer.recognize(waveform, 5, "quiet")
    assert (nbest.id, nbest.hypotheses, nbest.words) == ("quiet", (), ())


def test_scores_of_given_texts_do_not_depend_on_their_order(recognizer: SphinxRecognizer) -> None:
    texts = ["wash your hands of me", "by golly the boy wins", "wash your hands", "wash your qqqq of me"]
    scores = recognizer.score(sound(WASH), texts)
    assert scores[3] is None
    assert all(score is not None and math.isfinite(score) for score in scores[:3])
    assert scores[0] == max(score for score in scores if score is not None)
    assert recognizer.score(sound(WASH), texts[::-1]) == scores[::-1]
    recognizer.score(sound(GOLLY), texts[:1])
    assert recognizer.score(sound(WASH), texts) == scores


def test_scores_depend_on_the_sound(recognizer: SphinxRecognizer) -> None:
    (own,) = recognizer.score(sound(WASH), ["wash your hands of me"])
    (other,) = recognizer.score(sound(GOLLY), ["wash your hands of me"])
    assert own != other


def test_what_cannot_be_aligned_has_no_score(recognizer: SphinxRecognizer) -> None:
    long_text = " ".join(["wash your hands of me"] * 20)
    assert recognizer.score(sound(WASH), ["", "  ", long_text]) == [None, None, None]
    assert recognizer.score(np.zeros(0, np.float32), ["wash"]) == [None]
    assert recognizer.score(np.zeros(1, np.float32), ["wash"]) == [None]
    assert recognizer.score(sound(WASH), []) == []


@pytest.fixture(scope="module")
def left(recognizer: SphinxRecognizer) -> NBest:
    return recognizer.recognize(sound(GREGSON), 20)


def test_the_name_is_not_recognized_unless_preferred(left: NBest) -> None:
    assert "left the outer door" in left.best
    assert not any(name in text.split() for text in left.texts for name in ("gregson", "grexen"))


@pytest.mark.parametrize("name", ["Gregson", "Grexen"], ids=["rare in the language model", "not in the dictionary"])
def test_a_preferred_name_is_recognized(name: str) -> None:
    recognizer = SphinxRecognizer()
    assert recognizer.prefer([name]) == []
    nbest = recognizer.recognize(sound(GREGSON), 5)
    assert nbest.best == f"{name.lower()} had left the outer door slightly ajar"
    assert [word.text for word in nbest.words] == nbest.best.split()
    assert not any("#" in text for text in nbest.texts)
    assert len(set(nbest.texts)) == len(nbest.texts) == 5
    assert recognizer.score(sound(GREGSON), [nbest.best])[0] is not None
    assert "hands of me" in recognizer.recognize(sound(WASH)).best  # and nothing else is recognized as the name


def test_a_preferred_reading_is_taken_from_the_list_with_its_own_times(left: NBest) -> None:
    recognizer = SphinxRecognizer()
    (wanted,) = [hypothesis for hypothesis in left.hypotheses[1:5] if "had like the" in hypothesis.text]
    assert recognizer.prefer(["Had like"]) == []
    after = recognizer.recognize(sound(GREGSON), 5)
    assert after.hypotheses[0] == wanted  # its score is as before: the bonus only orders
    assert after.hypotheses[1] == left.hypotheses[0]
    assert [word.text for word in after.words] == wanted.text.split()
    assert 0 <= after.words[0].start_s < after.words[-1].end_s <= len(sound(GREGSON)) / RATE


def test_words_without_a_pronunciation_are_returned_as_given() -> None:
    recognizer = SphinxRecognizer()
    words = ["Gregson", "Ελλάς", "", "...", "Dr. Grexen-Smythe", "東京 station", "4", "Gregson"]
    assert recognizer.prefer(words) == ["Ελλάς", "", "...", "東京 station"]
    assert recognizer.knows("grexen")
    assert recognizer.prefer(["GREXEN"]) == []
    assert not recognizer.knows("gregson#")


@pytest.mark.slow
def test_the_true_text_scores_above_the_texts_of_other_recordings(recognizer: SphinxRecognizer) -> None:
    samples = [(name, text) for name, text in manifest() if all(map(recognizer.knows, text.split()))]
    assert len(samples) >= 10
    texts = [text for _, text in samples]
    won = compared = 0
    for name, text in samples:
        scores = dict(zip(texts, recognizer.score(sound(name), texts), strict=True))
        own = scores.pop(text)
        assert own is not None
        won += sum(other is None or own > other for other in scores.values())
        compared += len(scores)
    assert won / compared > 0.95


@pytest.mark.slow
def test_half_a_minute_has_a_finite_score(recognizer: SphinxRecognizer) -> None:
    samples = [(name, text) for name, text in manifest() if name.startswith("librispeech")]
    samples = (samples * 2)[:8]
    waveform = np.concatenate([sound(name) for name, _ in samples])
    assert waveform.size > 30 * RATE
    (score,) = recognizer.score(waveform, [" ".join(text for _, text in samples)])
    assert score is not None
    assert math.isfinite(score)


@pytest.mark.slow
@pytest.mark.parametrize("name, text", manifest())
def test_every_sample_gives_a_ranked_list(recognizer: SphinxRecognizer, name: str, text: str) -> None:
    nbest = recognizer.recognize(sound(name), 20)
    check_list(nbest, 20, sound(name))
    assert count_edits(text.split(), nbest.best.split()).error_rate < 1
