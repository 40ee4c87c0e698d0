"""Chunks of a recording: where they are cut, what is decided, how they are joined, with a stand-in for the models."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from audio_llm.gense.checks import Evidence
from audio_llm.gense.chunks import AHEAD, CONTEXT, LONGEST, SHORTEST, TOKEN, ChunkedEnhancement, ChunkReport, Policy
from audio_llm.gense.generate import Generated, GeneratedContext
from audio_llm.lm.sampling import GREEDY, Sampling

RATE = 16_000
GOOD = Evidence(0.0, 0.1, 0.1, -0.5, 0.1, 1.0, 0.0, 0.0, 0.0)


@dataclass
class FakeResynthesizer:
    """Returns half of the noisy sound, and remembers its calls."""

    evidence: tuple[Evidence, ...] = (GOOD,)
    asked: list[dict[str, Any]] = field(default_factory=list)
    acoustic: Sampling = Sampling()  # noqa: RUF009

    def generate(
        self,
        noisy: np.ndarray,
        masked: np.ndarray,
        seed: int,
        greedy: bool,
        before: GeneratedContext | None,
        chunk: slice,
    ) -> Generated:
        known = 0 if before is None else len(before.tokens)
        size = len(noisy)
        self.asked.append({"size": size, "seed": seed, "greedy": greedy, "known": known, "chunk": chunk})
        self.asked[-1]["first"] = None if before is None else int(before.tokens[0])
        # tokens are numbered through the recording, so that a prefix shows where it is from
        start = 0 if before is None else int(before.tokens[0])
        tokens = start + np.arange(-(-size // TOKEN))
        evidence = self.evidence[min(len(self.asked), len(self.evidence)) - 1]
        return Generated(0.5 * noisy, tokens, np.repeat(tokens, 4), 1.0, evidence)


def sound(seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    size = round(seconds * RATE)
    rng = np.random.default_rng(seed)
    loudness = 1.0 + 0.9 * np.sin(6.2832 * 0.7 * np.arange(size) / RATE)[:, None]
    return (0.05 * loudness * rng.standard_normal((size, channels))).astype(np.float32)


def run(
    policy: Policy, noisy: np.ndarray, masked: np.ndarray, generator: FakeResynthesizer | None = None, block: int = 7777
) -> tuple[np.ndarray, list[ChunkReport]]:
    reports: list[ChunkReport] = []
    starts = range(0, len(noisy), block)
    pairs = [(noisy[i : i + block], masked[i : i + block]) for i in starts]
    chunked = ChunkedEnhancement(policy, generator, reports.append)  # type: ignore[arg-type]
    out = list(chunked.run(pairs))
    return np.concatenate(out) if out else noisy[:0], reports


@pytest.mark.parametrize("seconds", [0.01, 0.3, 3.0, 6.3, 20.0213])
def test_the_output_of_the_mask_network_comes_through_unchanged(seconds: float) -> None:
    noisy, masked = sound(seconds, 2), sound(seconds, 2, 1)
    out, reports = run(Policy(), noisy, masked)
    np.testing.assert_allclose(out, masked, atol=1e-7)
    for channel in range(2):
        of_channel = [report for report in reports if report.channel == channel]
        assert of_channel[0].start_s == 0.0
        assert of_channel[-1].end_s == pytest.approx(len(noisy) / RATE)
        assert all(a.end_s == b.start_s for a, b in itertools.pairwise(of_channel))
        assert {report.action for report in of_channel} == {"mask"}


def test_nothing_depends_on_the_blocks() -> None:
    noisy = sound(20.0)
    policy = Policy("generative", balanced_below_db=None)
    outs = [run(policy, noisy, 0.6 * noisy, FakeResynthesizer(), block)[0] for block in (100, 7777, 10**6)]
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[1], outs[2])


def test_chunks_are_generated_after_the_end_of_the_last_one() -> None:
    noisy, speaker = sound(20.0), FakeResynthesizer()
    out, reports = run(Policy("generative"), noisy, 0.6 * noisy, speaker)
    np.testing.assert_allclose(out, 0.5 * noisy, atol=1e-6)
    assert {report.action for report in reports} == {"generated"}
    first, *rest = speaker.asked
    assert first["known"] == 0
    first_token = 0
    for asked, report in zip(speaker.asked, reports, strict=True):
        assert asked["chunk"].stop - asked["chunk"].start == round((report.end_s - report.start_s) * RATE)
        assert asked["size"] <= CONTEXT + LONGEST + 2 * AHEAD
    for asked, report in zip(rest, reports[1:], strict=True):
        assert asked["known"] == CONTEXT // TOKEN
        assert asked["chunk"].start == CONTEXT
        first_token = round(report.start_s * RATE) // TOKEN - CONTEXT // TOKEN
        assert asked["first"] == first_token  # the prefix is of the second before the stretch
    assert len({asked["seed"] for asked in speaker.asked}) == len(speaker.asked)


def test_a_rejected_chunk_is_drawn_again_and_finally_masked() -> None:
    noisy = sound(3.0)
    speaker = FakeResynthesizer((replace(GOOD, tone_db=99.0),))
    out, (report,) = run(Policy("generative"), noisy, 0.6 * noisy, speaker)
    np.testing.assert_allclose(out, 0.6 * noisy, atol=1e-7)
    assert (report.action, report.draws) == ("mask", 3)
    assert [asked["greedy"] for asked in speaker.asked] == [False, False, True]
    assert all("tone" in reason for reason in report.reasons)
    again = FakeResynthesizer((replace(GOOD, tone_db=99.0), GOOD))
    out, (report,) = run(Policy("generative"), noisy, 0.6 * noisy, again)
    assert (report.action, report.draws) == ("generated", 2)
    assert len(report.reasons) == 1


def test_deterministic_codes_are_generated_once() -> None:
    noisy = sound(3.0)
    speaker = FakeResynthesizer((replace(GOOD, tone_db=99.0),), acoustic=GREEDY)
    _, (report,) = run(Policy("generative"), noisy, 0.6 * noisy, speaker)
    assert (report.action, report.draws) == ("mask", 1)


def test_a_rejection_that_no_draw_changes_is_not_drawn_again() -> None:
    speaker = FakeResynthesizer((replace(GOOD, input_distance=9.0),))
    _, (report,) = run(Policy("generative"), sound(3.0), 0.6 * sound(3.0), speaker)
    assert (report.action, report.draws) == ("mask", 1)


def test_without_checks_every_generated_chunk_is_output() -> None:
    speaker = FakeResynthesizer((replace(GOOD, tone_db=99.0, input_distance=9.0),))
    _, (report,) = run(Policy("generative", checks=False), sound(3.0), 0.6 * sound(3.0), speaker)
    assert report.action == "generated"


@pytest.mark.parametrize("below_db, action", [(None, "mask"), (-5.0, "mask"), (8.0, "generated")])
def test_balanced_generates_only_what_is_too_noisy(below_db: float | None, action: str) -> None:
    policy = Policy("balanced", balanced_below_db=below_db)
    _, (report,) = run(policy, sound(3.0), 0.6 * sound(3.0), FakeResynthesizer())  # about 3.5 dB
    assert report.action == action


def test_good_sound_is_bypassed_and_silence_not_generated() -> None:
    noisy = sound(3.0)
    out, (report,) = run(Policy("generative"), noisy, 0.99 * noisy, FakeResynthesizer())
    assert report.action == "bypass"
    assert np.array_equal(out, noisy)
    out, (report,) = run(Policy("balanced", balanced_below_db=0.0), noisy, 0.99 * noisy, FakeResynthesizer())
    assert report.action == "mask"  # which does good sound no harm
    speaker = FakeResynthesizer()
    out, (report,) = run(Policy("generative"), noisy, 1e-5 * noisy, speaker)
    assert (report.action, speaker.asked) == ("silent", [])
    np.testing.assert_allclose(out, 1e-5 * noisy, atol=1e-9)


def test_steady_sound_is_not_always_cut_at_the_end() -> None:
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(8):
        masked = (0.05 * rng.standard_normal((8 * RATE, 1))).astype(np.float32)
        lengths.append(run(Policy(), masked, masked)[1][0].end_s)
    assert len(set(lengths)) > 4
    assert all(SHORTEST / RATE <= length < LONGEST / RATE for length in lengths)


def test_the_cut_is_where_it_is_quiet_in_every_channel() -> None:
    one = sound(8.0)[:, 0]
    one[: 8 * RATE] = 0.05
    one[::2] *= -1.0
    quiet = slice(4 * RATE, 4 * RATE + 4000)
    one[quiet] = 0.0
    masked = np.stack([one, -one], axis=1)  # the mean of both is silent everywhere
    end_s = run(Policy(), masked, masked)[1][0].end_s
    assert quiet.start / RATE <= end_s <= quiet.stop / RATE


def test_two_sounds_are_joined_without_a_dip() -> None:
    noisy = sound(20.0)
    noisy[:] = 0.05 * np.sin(6.2832 * 500.0 * np.arange(len(noisy)) / RATE)[:, None]
    other = 0.6 * noisy
    speaker = FakeResynthesizer(
        (GOOD, *(replace(GOOD, input_distance=9.0),) * 9)
    )  # the first is generated, then masked
    out, reports = run(Policy("generative"), noisy, other, speaker)
    assert [report.action for report in reports[:2]] == ["generated", "mask"]
    seam = round(reports[0].end_s * RATE)
    levels = [np.sqrt(np.mean(out[i : i + 320] ** 2)) for i in range(seam - 1600, seam + 1600, 320)]
    assert min(levels) > 0.98 * 0.5 * 0.05 / 2**0.5
    assert max(levels) < 1.02 * 0.6 * 0.05 / 2**0.5
