from __future__ import annotations

import pytest

from audio_llm.dlm.decode import Candidate
from audio_llm.gate import Gate, change_ratio, tune_gate

RECOGNIZED = "the cat sat on a mat"
BETTER = Candidate("the cat sat on the mat", -1.0)


@pytest.mark.parametrize(
    "gate, recognized, candidate, gain, verdict",
    [
        (Gate(), "", BETTER, 50.0, "no words recognized"),
        (Gate(), RECOGNIZED, Candidate(RECOGNIZED, -1.0), 0.0, "no change proposed"),
        (Gate(), RECOGNIZED, Candidate("", -1.0), 50.0, "the correction has no end"),
        (Gate(), RECOGNIZED, Candidate("the cat the cat the", -1.0, finished=False), 50.0, "the correction has no end"),
        (Gate(margin=2.0), RECOGNIZED, BETTER, 1.99, "gain 2.0 below the margin of 2"),
        (Gate(margin=2.0), RECOGNIZED, BETTER, -7.0, "gain -7.0 below the margin of 2"),
        (Gate(margin=2.0), RECOGNIZED, BETTER, 2.0, ""),
        (Gate(0.0, max_change=0.1), RECOGNIZED, BETTER, 9.0, "17% of the words would change, more than 10%"),
        (Gate(0.0, max_change=0.17), RECOGNIZED, BETTER, 9.0, ""),
        (Gate(off=True), RECOGNIZED, BETTER, -50.0, ""),
        (Gate(off=True), RECOGNIZED, Candidate("all other words", -1.0), -50.0, ""),
        (Gate(off=True), RECOGNIZED, Candidate("no end", -1.0, finished=False), 5.0, "the correction has no end"),
        (Gate(off=True), "", BETTER, 5.0, "no words recognized"),
    ],
)
def test_verdicts(gate: Gate, recognized: str, candidate: Candidate, gain: float, verdict: str) -> None:
    assert gate.verdict(recognized, candidate, gain) == verdict


def test_change_ratio_counts_words() -> None:
    assert change_ratio(RECOGNIZED, RECOGNIZED) == 0.0
    assert change_ratio(RECOGNIZED, BETTER.text) == pytest.approx(1 / 6)
    assert change_ratio("a b", "a b c d e") == 1.5
    assert change_ratio("", "a") == 1.0


def test_tuning_finds_the_margin_that_parts_good_from_bad() -> None:
    references = ["the cat sat on the mat"] * 4
    recognized = [RECOGNIZED, RECOGNIZED, references[0], references[0]]
    candidates = [BETTER, BETTER, Candidate("the hat sat on the mat", -1.0), Candidate("the cat sat on the", -1.0)]
    gate, errors = tune_gate(recognized, candidates, [7.0, 3.5, 2.4, 0.1], references)
    assert errors == 0
    assert gate.margin == 3.0  # of 3.0 alone, which parts 2.4 from 3.5
    assert not gate.off


def test_tuning_takes_the_stricter_of_equals() -> None:
    gate, errors = tune_gate(
        [RECOGNIZED], [Candidate(RECOGNIZED, 0.0)], [0.0], [RECOGNIZED], (0.0, 1.0, 4.0), (0.3, 0.6, 1.0)
    )
    assert (gate.margin, gate.max_change, errors) == (4.0, 0.3, 0)
    gate, errors = tune_gate([RECOGNIZED], [BETTER], [2.0], [BETTER.text], (0.0, 1.0, 4.0), (0.1, 0.3, 1.0))
    assert (gate.margin, gate.max_change, errors) == (1.0, 0.3, 0)


def test_tuning_limits_the_change_where_large_changes_are_wrong() -> None:
    reference = "one two three four five"
    candidates = [Candidate("one two three four five", 0.0), Candidate("six seven eight nine five", 0.0)]
    recognized = ["one two three for five", reference]
    gate, errors = tune_gate(recognized, candidates, [20.0, 20.0], [reference, reference])
    assert errors == 0
    assert 0.2 <= gate.max_change < 0.8
