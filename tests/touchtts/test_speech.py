"""Speech: a stream equals the whole, comes as early as possible, and errors come before any sound."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_llm import audio
from audio_llm.codec.mel import SAMPLE_RATE
from audio_llm.errors import AudioFileError, AudioLLMError, UsageError
from audio_llm.touchtts.models import TouchModel
from audio_llm.touchtts.speech import PAUSE_S, Chunk, Speech, TouchTTS
from audio_llm.touchtts.text import UnspeakableError, normalize_text

torch.set_num_threads(1)
TEXT = "Hello there, my friend. How are you? I am well."
TOKEN = 640  # samples


@pytest.fixture
def tts(model: TouchModel) -> TouchTTS:
    return TouchTTS(model)


class Source:
    """Replaces the language model: generates a number of tokens of each sentence, and counts those requested.

    Args:
        counts: Tokens of each sentence.
    """

    def __init__(self, *counts: int) -> None:
        self.counts, self.asked, self.seeds = counts, 0, []

    def __call__(self, sentence: object, reference: object, seed: int, number: int) -> Iterator[int]:
        self.seeds.append((seed, number))
        for index in range(self.counts[number]):
            self.asked += 1
            yield (17 * index + 5 * number + 3) % 80


def with_tokens(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, *counts: int) -> Source:
    source = Source(*counts)
    monkeypatch.setattr(tts, "_tokens", source)
    return source


def whole(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.waveform for chunk in chunks])


def clear(speech: np.ndarray) -> np.ndarray:
    """Return a waveform that is neither silent nor clipped."""
    assert np.abs(speech).max() < 1.0
    assert not speech.size or speech.std() > 1e-4
    return speech


@pytest.mark.parametrize("chunk", [5, 10, 25])
@pytest.mark.parametrize(
    "counts",
    [(3, 4, 2), (5, 10, 25), (0, 1, 0), (1, 0, 30), (12, 33, 7), (50, 61, 28)],
    ids=lambda c: "-".join(map(str, c)),
)
def test_a_stream_equals_whole_speech(
    tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, chunk: int, counts: tuple[int, ...]
) -> None:
    with_tokens(tts, monkeypatch, *counts)
    chunks = list(tts.stream(TEXT, chunk=chunk))
    result = tts.synthesize(TEXT, chunk=chunk)
    pauses = 2 * int(PAUSE_S * SAMPLE_RATE)
    assert result.waveform.shape == (TOKEN * sum(counts) + pauses,)
    assert result.waveform.dtype == np.float32
    np.testing.assert_allclose(whole(chunks), clear(result.waveform), atol=1e-4, rtol=0)
    assert [len(tokens) for tokens in result.tokens] == list(counts)


@pytest.mark.parametrize("reference_chunk", [5, 10])
def test_a_stream_with_a_reference_equals_whole_speech(
    tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, sounds: list[np.ndarray], tmp_path: Path, reference_chunk: int
) -> None:
    with_tokens(tts, monkeypatch, 13, 4, 20)
    audio.write(tmp_path / "me.wav", np.concatenate(sounds[:2]), SAMPLE_RATE)
    one = tts.synthesize(TEXT, tmp_path / "me.wav", chunk=reference_chunk).waveform
    chunks = list(tts.stream(TEXT, tmp_path / "me.wav", chunk=reference_chunk))
    np.testing.assert_allclose(whole(chunks), clear(one), atol=1e-4, rtol=0)
    assert one.shape == (TOKEN * 37 + 2 * int(PAUSE_S * SAMPLE_RATE),)
    assert np.abs(one - tts.synthesize(TEXT, "reader", chunk=reference_chunk).waveform).max() > 1e-3


def test_the_model_itself_streams_its_whole_speech(tts: TouchTTS) -> None:
    result, chunks = tts.synthesize(TEXT, seed=4, chunk=10), list(tts.stream(TEXT, seed=4))
    np.testing.assert_allclose(whole(chunks), clear(result.waveform), atol=1e-4, rtol=0)
    last = {chunk.sentence: chunk.tokens for chunk in chunks}
    assert list(last.values()) == [len(tokens) for tokens in result.tokens]
    assert [sentence.text for sentence in result.sentences] == ["Hello there, my friend.", "How are you?", "I am well."]
    for sentence, tokens in zip(result.sentences, result.tokens, strict=True):
        assert 0 <= min(tokens) <= max(tokens) < 80
        assert len(tokens) <= tts.model.lm.most_tokens(sentence, "reader")


def test_without_chunks_a_sentence_is_a_piece(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tokens(tts, monkeypatch, 30, 12, 0)
    chunks = list(tts.stream(TEXT, chunk=None))
    assert [chunk.sentence for chunk in chunks] == [0, 1, 2]
    result = tts.synthesize(TEXT)
    np.testing.assert_array_equal(whole(chunks), result.waveform)
    in_chunks = tts.synthesize(TEXT, chunk=5).waveform
    assert np.abs(result.waveform - in_chunks).max() > 1e-3  # attention over the whole sentence differs


@pytest.mark.parametrize("chunk", [3, 10])
def test_the_first_sound_comes_as_soon_as_it_can(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    source, ahead = with_tokens(tts, monkeypatch, 60, 60, 60), tts.model.flow.config.lookahead
    stream = tts.stream(TEXT, chunk=chunk)
    assert source.asked == 0
    first = next(stream)
    assert source.asked == chunk + ahead
    assert first.waveform.size > 0
    assert (first.start_s, first.tokens, first.sentence) == (0.0, chunk + ahead, 0)
    for count in range(2, 5):
        assert next(stream).tokens == source.asked == count * chunk + ahead
    assert [number for _, number in source.seeds] == [0]  # the next sentence is not begun
    stream.close()


def test_sound_comes_after_exactly_the_tokens_that_it_needs(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tokens(tts, monkeypatch, 40, 0, 0)
    late = (tts.model.vocoder.config.lookahead * 320 + 240) / SAMPLE_RATE  # what the vocoder waits for
    chunks = [chunk for chunk in tts.stream(TEXT, chunk=10) if chunk.sentence == 0]
    ends = [chunk.start_s + chunk.waveform.size / SAMPLE_RATE for chunk in chunks]
    assert ends[:3] == pytest.approx([0.4 - late, 0.8 - late, 1.2 - late])


@pytest.mark.parametrize("counts", [(23, 7, 9), (0, 5, 0)])
def test_starts_add_up_and_pauses_lie_between(
    tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...]
) -> None:
    with_tokens(tts, monkeypatch, *counts)
    chunks, start = list(tts.stream(TEXT)), 0
    for chunk in chunks:
        assert chunk.start_s == pytest.approx(start / SAMPLE_RATE)
        start += chunk.waveform.size
    assert [chunk.sentence for chunk in chunks] == sorted(chunk.sentence for chunk in chunks)
    speech, pause = whole(chunks), int(PAUSE_S * SAMPLE_RATE)
    end = 0
    for number, count in enumerate(counts):
        end += TOKEN * count
        if number < 2:
            assert not speech[end : end + pause].any()
            end += pause
    assert end == speech.size
    assert not any(chunk.truncated for chunk in chunks)


def test_speech_that_was_cut_off_is_marked(
    tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    longest = tts.model.lm.most_tokens(normalize_text("How are you?"), "reader")
    with_tokens(tts, monkeypatch, 3, longest, 3)
    with caplog.at_level(logging.WARNING, "audio_llm"):
        result = tts.synthesize(TEXT)
    assert result.truncated == (1,)
    assert "cut off at the longest duration: 'How are you?'" in caplog.text
    chunks = list(tts.stream(TEXT))
    marked = [chunk for chunk in chunks if chunk.truncated]
    assert [chunk.sentence for chunk in marked] == [1]
    assert marked[0] is [chunk for chunk in chunks if chunk.sentence == 1][-1]


def test_a_model_that_never_ends_is_cut_off(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "audio_llm.touchtts.speech_text_lm.draw_without_loops",
        lambda logits, history, sampling, generator: logits[:, 1:].argmax(-1) + 1,
    )
    result = tts.synthesize("Go home.", speed=2.0)
    assert result.truncated == (0,)
    assert len(result.tokens[0]) == tts.model.lm.most_tokens(result.sentences[0], "reader")
    assert [chunk.truncated for chunk in tts.stream("Go home.", speed=2.0)][-1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, UnspeakableError, "nothing to pronounce"),
        ({"text": "😀"}, UnspeakableError, "grinning face"),
        ({"voice": "nobody"}, UsageError, r"'nobody'.*reader, robot"),
        ({"voice": Path("no/file.wav")}, UsageError, "reader, robot"),
        ({"speed": 0.49}, UsageError, "0.49"),
        ({"speed": 2.01}, UsageError, "2.01"),
        ({"speed": float("nan")}, UsageError, "nan"),
        ({"voice": "short.wav"}, AudioFileError, "0.3 s of speech"),
        ({"voice": "less.wav"}, AudioFileError, "0.9 s of speech"),
        ({"voice": "silent.wav"}, AudioFileError, "0.0 s of speech"),
        ({"voice": "empty.wav"}, AudioFileError, "0.0 s of speech"),
        ({"voice": "text.wav"}, AudioFileError, "cannot be read as sound"),
    ],
)
def test_errors_come_before_the_first_piece_is_asked_for(
    tts: TouchTTS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict, error: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hiss = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    for name, sound in (
        ("short", hiss[:4800]),
        ("less", hiss[:14_400]),
        ("silent", np.zeros(48_000)),
        ("empty", hiss[:0]),
    ):
        audio.write(f"{name}.wav", sound, SAMPLE_RATE)
    Path("text.wav").write_text("these are words, and no sound at all; these are words")
    given = {"text": TEXT, **arguments}
    with pytest.raises(error, match=message):
        tts.stream(**given)
    with pytest.raises(error, match=message):
        tts.synthesize(**given)


@pytest.mark.parametrize("chunk", [0, -5])
def test_chunks_of_nothing_are_refused(tts: TouchTTS, chunk: int) -> None:

    with pytest.raises(UsageError, match="chunk"):
        tts.stream(TEXT, chunk=chunk)
    with pytest.raises(UsageError, match="chunk"):
        tts.synthesize(TEXT, chunk=chunk)


def test_an_error_of_a_stream_ends_it_and_leaves_the_model_whole(
    tts: TouchTTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tts.synthesize(TEXT, chunk=10).waveform
    stream = tts.stream(TEXT)
    next(stream)
    stream.close()
    np.testing.assert_array_equal(tts.synthesize(TEXT, chunk=10).waveform, before)
    both = zip(tts.stream(TEXT), tts.stream(TEXT, "robot"), strict=False)  # two streams at once
    first = [one.waveform for one, _ in itertools.islice(both, 3)]
    np.testing.assert_allclose(np.concatenate(first), before[: sum(map(len, first))], atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sound_that_is_not_finite_is_an_error(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    with torch.no_grad():
        tts.model.vocoder.leave.bias[3] = value
        tts.model.vocoder.leave.bias[400] = value
    for call in (lambda: tts.synthesize("Hello."), lambda: list(tts.stream("Hello."))):
        with pytest.raises(AudioLLMError, match="not finite"):
            call()


def test_loud_sound_is_clipped(tts: TouchTTS) -> None:
    with torch.no_grad():
        tts.model.vocoder.leave.bias[:321] += 6.0
    for sound in (tts.synthesize("Hello.").waveform, whole(list(tts.stream("Hello.")))):
        assert np.abs(sound).max() == 1.0


def test_the_same_seed_is_the_same_speech(tts: TouchTTS) -> None:
    one, same, other = (tts.synthesize(TEXT, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.waveform, same.waveform)
    assert one.tokens == same.tokens
    assert one.tokens != other.tokens
    torch.manual_seed(77)  # the global generator has no influence
    np.random.seed(77)
    np.testing.assert_array_equal(tts.synthesize(TEXT, seed=3).waveform, one.waveform)


@pytest.mark.parametrize("other", [1, 1 << 16, 1 << 20, 1 << 32])
def test_another_seed_is_another_speech(tts: TouchTTS, other: int) -> None:

    assert tts.synthesize(TEXT, seed=0).tokens != tts.synthesize(TEXT, seed=other).tokens


def test_a_large_seed_is_a_seed(tts: TouchTTS) -> None:

    assert tts.synthesize("Hello.", seed=1 << 50).waveform.size


def test_sentences_are_drawn_apart(tts: TouchTTS) -> None:
    result = tts.synthesize("Hello there. Hello there.")
    assert result.tokens[0] != result.tokens[1]
    assert result.tokens[0] == tts.synthesize("Hello there.").tokens[0]


def test_voice_and_speed_change_the_speech(tts: TouchTTS) -> None:
    usual = tts.synthesize(TEXT, "reader")
    assert usual.tokens == tts.synthesize(TEXT).tokens  # the first voice is the usual one
    assert usual.tokens != tts.synthesize(TEXT, "robot").tokens
    fast, slow = (len(tts.synthesize(TEXT, speed=speed).waveform) for speed in (2.0, 0.5))
    assert 3.0 * fast < slow < 4.2 * fast  # pauses stay as they are
    assert tts.synthesize(TEXT, speed=2.0).tokens == usual.tokens  # the same tokens
    assert tts.voices == ["reader", "robot"]
    assert tts.sample_rate == SAMPLE_RATE


def test_the_voice_changes_the_sound(tts: TouchTTS) -> None:
    tokens = list(range(30))
    reader, robot = (tts.sound(tokens, tts.voice(name)) for name in ("reader", "robot"))
    assert reader.shape == robot.shape == (30 * TOKEN,)
    assert np.abs(reader - robot).max() > 1e-3
    assert tts.sound([], tts.voice()).shape == (0,)
    other = tts.sound([*tokens[:-1], 70], tts.voice("reader"))
    assert np.abs(reader - other).max() > 1e-3
    assert not np.allclose(reader, tts.sound(tokens, tts.voice("reader"), seed=1))


def test_a_reference_gives_an_embedding_and_a_prompt(tts: TouchTTS, sounds: list[np.ndarray]) -> None:
    low, high = (tts.reference(np.concatenate(recordings)) for recordings in (sounds[:3], sounds[5:8]))
    assert low.lm_voice == "reader"
    assert low.embedding.shape == (1, 16)
    assert low.tokens.shape == (1, 50)
    assert low.mel.shape == (1, 100, 80)
    assert not torch.allclose(low.embedding, high.embedding)
    louder = tts.reference(3.0 * np.concatenate(sounds[:3]))
    torch.testing.assert_close(louder.embedding, low.embedding, atol=1e-3, rtol=1e-2)  # the level does not count
    short = tts.reference(np.concatenate(sounds[:1]))
    assert 24 <= short.tokens.shape[1] < 50
    assert short.mel.shape[1] == 2 * short.tokens.shape[1]
    cut = short.in_chunks(10)
    assert cut.tokens.shape[1] == short.tokens.shape[1] // 10 * 10
    assert cut.mel.shape[1] == 2 * cut.tokens.shape[1]
    assert short.in_chunks(99).tokens.shape == (1, 0)


def test_a_voice_named_like_a_file_is_the_voice(tts: TouchTTS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reader").write_text("no sound")
    assert torch.equal(tts.voice("reader").embedding, tts.model.voices["reader"])


def test_without_a_reader_a_reference_takes_the_first_voice(model: TouchModel, sounds: list[np.ndarray]) -> None:
    config = replace(model.lm.config, voices=("anna", "robot"))
    model.lm.config = config
    assert TouchTTS(model).reference(np.concatenate(sounds[:2])).lm_voice == "anna"


def test_long_text_is_synthesized_to_its_end(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tokens(tts, monkeypatch, *[2] * 40)
    result = tts.synthesize("I am well. " * 40)
    assert len(result.sentences) == 40
    assert isinstance(result, Speech)


def test_what_is_not_pronounced_goes_to_the_log(tts: TouchTTS, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "audio_llm"):
        tts.stream("Hello 😀 there.")
    assert "not pronounced: grinning face" in caplog.text


def test_a_network_is_not_needed(model_folder: Path, no_network: None) -> None:
    speech = TouchTTS.load(model_folder)
    assert speech.synthesize("Hello there.").waveform.size
    assert len(list(speech.stream("Hello there."))) > 0


def test_the_cost_of_a_chunk_does_not_grow(tts: TouchTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tokens(tts, monkeypatch, 200, 0, 0)
    seen: list[int] = []
    velocity = tts.model.flow._velocity
    monkeypatch.setattr(
        tts.model.flow,
        "_velocity",
        lambda inputs, mask, *rest: (seen.append(mask.shape[-1]), velocity(inputs, mask, *rest))[1],
    )
    list(tts.stream(TEXT, chunk=10))
    assert max(seen) == 20 + 40  # its own frames, and two chunks for 30 of the past
    assert len(seen) == 20 * tts.model.flow.config.steps


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.3, 2.0])
def test_a_stream_at_another_speed_is_the_speech_at_that_speed(tts: TouchTTS, speed: float) -> None:
    speech = tts.synthesize(TEXT, speed=speed, chunk=5)
    np.testing.assert_allclose(whole(list(tts.stream(TEXT, speed=speed, chunk=5))), speech.waveform, atol=1e-4)
