"""Voice activity detection: speech is kept at any level, all else gives nothing, and blocks do not matter."""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_llm import hub
from audio_llm.asr import vad
from audio_llm.asr.segment import Segment
from audio_llm.asr.vad import FRAME, SpeechDetector, VadOptions, speech_segments
from audio_llm.errors import ModelFormatError, ModelNotFoundError, UsageError

RATE = 16_000
SAMPLES = [
    path
    for pattern in ("kathleen-*.ogg", "librispeech-*.flac")
    for path in sorted((Path(__file__).parents[2] / "samples" / "speech").glob(pattern))
]


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    return SpeechDetector()


def speech(index: int = 0, peak_db: float = -6.0) -> np.ndarray:
    waveform, rate = soundfile.read(SAMPLES[index % len(SAMPLES)], dtype="float32")
    assert rate == RATE
    return (waveform / np.abs(waveform).max() * 10 ** (peak_db / 20)).astype(np.float32)


def floor(seconds: float, level_db: float = -80.0, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (10 ** (level_db / 20) * noise).astype(np.float32)


def sixteen_bit(waveform: np.ndarray) -> np.ndarray:
    return (np.round(waveform * 32768) / 32768).astype(np.float32)


def hum(seconds: float) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * 50 * k * time_s + k) / k for k in range(1, 12))).astype(np.float32)


def musical_noise(seconds: float, level_db: float) -> np.ndarray:
    """Return what a denoiser leaves of a hiss: single bins that come and go."""
    noise = floor(seconds, 0.0)[: int(seconds * RATE) // 256 * 256].reshape(-1, 256)
    spectra = np.fft.rfft(noise)
    power = np.abs(spectra) ** 2
    gated = np.fft.irfft(np.where(power > 5 * power.mean(), spectra, 0.03 * spectra)).reshape(-1)
    return (gated / gated.std() * 10 ** (level_db / 20)).astype(np.float32)


def spans(found: list[Segment]) -> list[tuple[int, int]]:
    starts = [round(segment.start_s * RATE) for segment in found]
    return [(start, start + len(segment.waveform)) for start, segment in zip(starts, found, strict=True)]


def same(one: list[Segment], other: list[Segment]) -> bool:
    return spans(one) == spans(other) and all(
        np.array_equal(a.waveform, b.waveform) for a, b in zip(one, other, strict=True)
    )


# Probabilities of the wheel's own single-frame network, `silero_vad.onnx` of silero-vad 6.2.3, run frame by frame with
# 64 samples of context on samples/speech/librispeech-61-70968-0000.flac: the first 24 frames, then every eighth.
FIRST = "0.0216 0.0164 0.0083 0.0078 0.0068 0.0057 0.0135 0.0097 0.0183 0.6221 0.9677 0.9787 0.9991 0.9996 0.9994"
FIRST += " 0.9998 1.0 1.0 1.0 0.9999 1.0 0.9921 0.9531 0.9982"
EIGHTH = "0.0216 0.0183 1.0 1.0 1.0 1.0 1.0 1.0 1.0 1.0 0.9773 0.9998 1.0 0.9999 1.0 1.0 1.0 1.0 0.9317 0.082"


def test_probabilities_are_those_of_the_published_network(detector: SpeechDetector) -> None:
    path = next(path for path in SAMPLES if "61-70968" in path.name)
    waveform, _ = soundfile.read(path, dtype="float32")
    detector.reset()
    found = detector.probabilities(waveform[: len(waveform) // FRAME * FRAME])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:24], np.array(FIRST.split(), float), atol=2e-3)
    np.testing.assert_allclose(found[::8], np.array(EIGHTH.split(), float), atol=2e-3)


def test_probabilities_do_not_depend_on_the_calls(detector: SpeechDetector) -> None:
    waveform = speech(3)
    detector.reset()
    whole = detector.probabilities(waveform)
    assert len(whole) == -(-len(waveform) // FRAME)
    detector.reset()
    parts = [detector.probabilities(waveform[i : i + 7 * FRAME]) for i in range(0, len(waveform), 7 * FRAME)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert len(detector.probabilities(waveform[:0])) == 0


@pytest.mark.parametrize("level_db", [None, -75.0, -55.0, -35.0, -15.0])
def test_silence_hiss_and_hum_give_nothing(detector: SpeechDetector, level_db: float | None) -> None:
    if level_db is None:
        sounds = [np.zeros(60 * RATE, np.float32), np.full(20 * RATE, 0.2, np.float32)]
    else:
        tone = hum(15)
        tone *= 10 ** (level_db / 20) / tone.std()
        sounds = [floor(30, level_db), np.clip(tone, -1, 1), sixteen_bit(floor(15, level_db)), np.clip(tone, 0, 1)]
        sounds.append(musical_noise(20, level_db))
    for sound in sounds:
        assert spans(list(speech_segments([sound], detector=detector))) == []


def test_nothing_gives_nothing(detector: SpeechDetector) -> None:
    assert list(speech_segments([], detector=detector)) == []
    assert list(speech_segments([np.zeros(0, np.float32)] * 3, detector=detector)) == []
    assert list(speech_segments([np.zeros(1, np.float32)], detector=detector)) == []


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_segments_cover_the_speech(detector: SpeechDetector, index: int) -> None:
    voice = speech(index)
    sound = np.concatenate([floor(3), voice, floor(3, seed=1)])
    loud = np.flatnonzero(np.abs(voice) > 0.1 * np.abs(voice).max()) + 3 * RATE
    found = spans(list(speech_segments([sound], detector=detector)))
    assert found
    assert found[0][0] <= loud[0]
    assert loud[-1] < found[-1][1]
    assert found[0][0] > 2.3 * RATE
    assert found[-1][1] < len(sound) - 2.3 * RATE


@pytest.mark.parametrize("peak_db", [-40.0, -50.0, -60.0])
def test_quiet_speech_is_kept_in_sixteen_bits(detector: SpeechDetector, peak_db: float) -> None:
    voice = speech(2, peak_db)
    loud = np.flatnonzero(np.abs(voice) > 0.3 * np.abs(voice).max()) + 3 * RATE
    sound = sixteen_bit(np.concatenate([floor(3, -100), voice, floor(3, -100)]))
    found = spans(list(speech_segments([sound], detector=detector)))
    assert found[0][0] <= loud[0]
    assert loud[-1] < found[-1][1]


def test_very_quiet_speech_is_kept_in_twenty_four_bits(detector: SpeechDetector) -> None:
    voice = (np.round(speech(0, -75) * 2**23) / 2**23).astype(np.float32)
    assert spans(list(speech_segments([voice], detector=detector))) == [(0, len(voice))]


def test_a_quiet_speaker_between_loud_ones_is_kept(detector: SpeechDetector) -> None:
    quiet = speech(1, -45)
    sound = np.concatenate([floor(1), speech(0, -3), floor(1), quiet, floor(1), speech(2, -3), floor(1)])
    start = 2 * RATE + len(speech(0))
    loud = np.flatnonzero(np.abs(quiet) > 0.3 * np.abs(quiet).max()) + start
    found = spans(list(speech_segments([sixteen_bit(sound)], detector=detector)))
    inside = np.zeros(len(sound), bool)
    for begin, end in found:
        inside[begin:end] = True
    assert inside[loud].all()


def test_waveforms_are_the_recordings_own_samples(detector: SpeechDetector) -> None:
    sound = sixteen_bit(np.concatenate([floor(2), speech(0, -50), floor(2), speech(1, -3), floor(1)]))
    found = list(speech_segments([sound], detector=detector))
    assert len(found) >= 2
    for segment, (start, end) in zip(found, spans(found), strict=True):
        assert segment.waveform.dtype == np.float32
        assert segment.start_s == start / RATE
        np.testing.assert_array_equal(segment.waveform, sound[start:end])


@pytest.mark.parametrize("cut_s", [0.0, 0.31, 0.77, 1.03])
def test_a_recording_that_begins_and_ends_within_speech_loses_nothing(
    detector: SpeechDetector,
    cut_s: float,
) -> None:
    voice = speech(4)
    middle = voice[RATE // 2 + round(cut_s * RATE) : -RATE // 2 - round(cut_s * RATE / 2)]
    assert spans(list(speech_segments([middle], detector=detector))) == [(0, len(middle))]


CONVERSATION = np.concatenate(
    [part for i, pause_s in enumerate([0.3, 0.7, 0.9, 1.1, 2.5, 0.1]) for part in (floor(pause_s, seed=i), speech(i))]
)


@given(sizes=st.lists(st.integers(0, 60_000), min_size=1, max_size=12), pad_s=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=8, deadline=None)
def test_segments_do_not_depend_on_the_blocks(sizes: list[int], pad_s: float) -> None:
    options = VadOptions(pad_s=pad_s, max_s=5.0)
    detector = SpeechDetector()
    bounds = [0, *itertools.accumulate(sizes), len(CONVERSATION)]
    blocks = [CONVERSATION[start:stop] for start, stop in itertools.pairwise(bounds)]
    whole = list(speech_segments([CONVERSATION], options, detector))
    assert same(whole, list(speech_segments(blocks, options, detector)))
    found = spans(whole)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
    assert all(0 <= start < end <= len(CONVERSATION) and end - start <= 5 * RATE for start, end in found)


@pytest.mark.parametrize("max_s", [4.0, 11.3, 30.0])
def test_endless_speech_is_cut_without_loss(detector: SpeechDetector, max_s: float) -> None:
    voice = np.concatenate([speech(i)[6_000:-6_000] for i in [0, 3, 4, 5, 7, 9, 10] * 3])
    options = VadOptions(max_s=max_s, min_silence_s=2.0)
    found = list(speech_segments([voice], options, detector))
    np.testing.assert_array_equal(np.concatenate([segment.waveform for segment in found]), voice)
    lengths = [len(segment.waveform) for segment in found]
    assert max(lengths) <= max_s * RATE
    assert min(lengths[:-1]) >= 0.6 * max_s * RATE


def test_endless_speech_is_cut_in_a_pause(detector: SpeechDetector) -> None:
    first, second = speech(7)[8_000:-8_000], speech(9)[8_000:-8_000]
    sound = np.concatenate([first, first, second, floor(0.3), second, first, first])
    pause = 2 * len(first) + len(second)
    max_s = (pause + RATE) / RATE
    (_, end), *_ = spans(list(speech_segments([sound], VadOptions(max_s=max_s), detector)))
    assert pause - 0.05 * RATE <= end <= pause + 0.35 * RATE


def test_neighbors_share_the_pause_that_is_shorter_than_their_padding(detector: SpeechDetector) -> None:
    sound = np.concatenate([floor(1), speech(3), floor(0.5), speech(4), floor(1)])
    found = spans(list(speech_segments([sound], VadOptions(min_silence_s=0.4, pad_s=1.0), detector)))
    assert len(found) >= 2
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(found))


def test_short_stretches_are_dropped_within_the_recording_alone(detector: SpeechDetector) -> None:
    sound = np.concatenate([floor(2), speech(2), floor(2)])
    assert list(speech_segments([sound], VadOptions(min_speech_s=5.0), detector)) == []
    assert len(list(speech_segments([speech(2)[4_000:]], VadOptions(min_speech_s=5.0), detector))) == 1


def held_samples() -> int:
    """Return how many samples all segmenters hold at this moment."""
    found = [thing for thing in gc.get_objects() if isinstance(thing, vad._Segmenter)]
    return sum(len(frame) for segmenter in found for frame, _ in segmenter._held)


def watched(parts: Iterator[np.ndarray], held: list[int]) -> Iterator[np.ndarray]:
    for index, part in enumerate(parts):
        yield part
        if index % 20 == 0:
            held.append(held_samples())


def test_memory_is_bounded_in_dense_speech(detector: SpeechDetector) -> None:
    gc.collect()
    held: list[int] = []
    voice = np.concatenate([speech(i)[6_000:-6_000] for i in range(11)])
    blocks = (voice[i : i + 1_600] for _ in range(4) for i in range(0, len(voice), 1_600))
    total = sum(len(s.waveform) for s in speech_segments(watched(blocks, held), detector=detector))
    assert total > 0.95 * 4 * len(voice)
    assert len(held) > 50
    assert max(held) <= 30 * RATE


class _Sparse(SpeechDetector):
    """Computes nothing for digital silence, so that hours of it take little time."""

    def probabilities(self, waveform: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
        return super().probabilities(waveform, gain) if waveform.any() else self._silent(len(waveform))

    def _silent(self, samples: int) -> np.ndarray:
        self.reset()
        return np.zeros(-(-samples // FRAME), np.float32)


@pytest.mark.parametrize("hours", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_hours_with_little_speech_give_that_speech_in_little_memory(hours: int) -> None:
    gc.collect()
    held: list[int] = []
    minute, voice = np.zeros(60 * RATE, np.float32), speech(2)

    def stream() -> Iterator[np.ndarray]:
        for hour in range(hours):
            for index in range(60):
                yield minute
                if index == hour:
                    yield voice

    found = spans(list(speech_segments(watched(stream(), held), detector=_Sparse())))
    expected = [(3600 * hour + 60 * (hour + 1)) * RATE + hour * len(voice) for hour in range(hours)]
    assert [start for start, _ in found] == pytest.approx(expected, abs=0.7 * RATE)
    assert [end for _, end in found] == pytest.approx([start + len(voice) for start in expected], abs=0.7 * RATE)
    assert max(held) <= 2 * RATE


def test_options_out_of_range_are_refused() -> None:
    for wrong in (
        {"threshold": 1.0},
        {"threshold": 0.1},
        {"neg_threshold": 0.0},
        {"pad_s": -0.1},
        {"min_speech_s": float("nan")},
        {"min_silence_s": 11.0},
        {"max_s": 1.0},
        {"max_s": float("nan")},
    ):
        with pytest.raises(UsageError, match="VAD"):
            VadOptions(**wrong)


def test_a_changed_or_missing_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(hub.PRETRAINED / "silero-vad", tmp_path / "silero-vad")
    monkeypatch.setattr(hub, "PRETRAINED", tmp_path)
    SpeechDetector()
    network = tmp_path / "silero-vad" / "silero_vad.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelFormatError, match=r"silero_vad\.onnx.*install audio-llm again"):
        SpeechDetector()
    network.unlink()
    with pytest.raises(ModelNotFoundError, match="install audio-llm again"):
        SpeechDetector()


def test_segments_say_how_sure_the_detector_was(detector: SpeechDetector) -> None:
    (sure,) = speech_segments([speech()], VadOptions(min_silence_s=3.0), detector)
    assert sure.speech_probability is not None
    assert 0.95 < sure.speech_probability <= 1.0
    click = floor(4)
    click[2 * RATE :][: RATE // 4] = speech()[RATE:][: RATE // 4]
    (unsure,) = speech_segments([click], None, detector)
    assert unsure.speech_probability is not None
    assert unsure.speech_probability < 0.5
