"""Tests of the phrase table and of the candidates made with it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from audio_llm.ger.candidates import BeamSettings, Candidate, Derivation, make_candidates
from audio_llm.ger.features import FEATURES, Knowledge, ListView, measure
from audio_llm.ger.phrase_table import PhraseTable, Replacement, TableSettings, Words, learn_phrases
from audio_llm.lm.kneser_ney import train_ngram

TEXTS = ["show me flights to boston", "show me the flights to boston", "list the fares", "show me fares to denver"]


def words(text: str) -> Words:
    return tuple(text.split())


def learn(*pairs: tuple[str, str], **settings: object) -> PhraseTable:
    chosen = TableSettings(**{"min_rate": 0.0, **settings})  # type: ignore[arg-type]
    return learn_phrases([([words(h) for h in hyps.split("|")], words(ref)) for hyps, ref in pairs], chosen)


def targets(table: PhraseTable, source: str) -> dict[str, tuple[int, int]]:
    return {" ".join(r.target): (r.count, r.unchanged) for r in table.entries.get(words(source), ())}


def test_substitutions_are_learned_with_context_and_counted_against_what_was_right() -> None:
    table = learn(("show fights now", "show flights now"), ("he fights", "he fights"), ("a fights b", "a flights b"))
    assert targets(table, "fights") == {"flights": (2, 1)}
    assert targets(table, "show fights") == {"show flights": (1, 0)}
    assert targets(table, "show fights now") == {"show flights now": (1, 0)}
    assert targets(table, "show") == {}
    replacement = table.entries[("fights",)][0]
    assert replacement.log_odds == pytest.approx(math.log(1.5 / 1.5))


def test_inserted_words_belong_to_either_neighbor() -> None:
    table = learn(("a b", "a x b"))
    # Beside that reading there is the other one, in which the word by itself is right.
    assert targets(table, "a") == {"a x": (1, 1)}
    assert targets(table, "b") == {"x b": (1, 1)}
    assert targets(table, "a b") == {"a x b": (1, 0)}


def test_deletions_and_joined_words() -> None:
    table = learn(("a uh b", "a b"), ("take non stop now", "take nonstop now"))
    assert targets(table, "uh") == {"": (1, 0)}
    assert targets(table, "a uh b") == {"a b": (1, 0)}
    assert targets(table, "non stop") == {"nonstop": (1, 0)}
    assert targets(table, "non") == {}


def test_no_stretch_is_longer_than_allowed() -> None:
    table = learn(("a b c d e f", "a b x d e f"), longest=2)
    assert table.longest == 2
    assert set(table.entries) == {("c",), ("b", "c"), ("c", "d")}


def test_hypotheses_of_one_list_count_once() -> None:
    table = learn(("a fights|b fights|c fights", "a flights"), ("d fights|e fights", "d fights"))
    assert targets(table, "fights") == {"flights": (1, 1)}


def test_balance_counts_first_hypotheses_only_and_uses_context_words() -> None:
    table = learn(
        ("show fights now|x", "show flights now"),
        ("he fights", "he fights"),
        ("a fights b", "a flights b"),
        ("c fights d|c fares d", "c flights d"),
        ("flights|fights", "flights"),
    )
    assert table.balance(words("fights"), 0, 1, words("flights")) == 2  # three times right, once wrong
    assert table.balance(words("a fights b"), 1, 2, words("flights")) == 2
    assert table.balance(words("x fights"), 1, 2, words("fares")) == 0
    assert table.balance(words("c fares d"), 1, 2, words("flights")) == 0  # no first hypothesis had it
    inserted = learn(("a b", "a x b"), ("a b", "a x b"))
    assert inserted.balance(words("a b"), 1, 1, words("x")) == 2


def test_limits_on_alternatives_counts_rates_and_size() -> None:
    pairs = [("a", "b")] * 3 + [("a", "c")] * 2 + [("a", "d")] + [("a", "a")] * 94
    assert list(targets(learn(*pairs), "a")) == ["b", "c", "d"]
    assert list(targets(learn(*pairs, alternatives=1), "a")) == ["b"]
    assert list(targets(learn(*pairs, min_count=2), "a")) == ["b", "c"]
    assert list(targets(learn(*pairs, min_rate=0.025), "a")) == ["b"]
    assert list(learn(*pairs, ("x", "y"), most=1).entries) == [("a",)]


def test_every_learned_phrase_rebuilds_a_reference() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        hypothesis, reference = (tuple(generator.choice(list("abcd"), generator.integers(1, 8))) for _ in range(2))
        table = learn((" ".join(hypothesis), " ".join(reference)), longest=8, alternatives=99)
        whole = [r.target for r in table.entries.get(hypothesis, ())]
        assert hypothesis == reference or reference in whole
        for source, replacements in table.entries.items():
            for replacement in replacements:
                assert _contains(hypothesis, source)
                assert _contains(reference, replacement.target)


def _contains(text: Words, part: Words) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def test_beam_finds_what_enumeration_finds() -> None:
    table = PhraseTable(
        {
            ("a",): [Replacement.of(("b",), 3, 1, 0.5), Replacement.of((), 1, 1, 0.5)],
            ("b", "a"): [Replacement.of(("a", "b"), 2, 0, 0.5)],
            ("c",): [Replacement.of(("a", "c"), 1, 4, 0.5)],
        }
    )
    lm = train_ngram(["a b c", "b a c a", "c c a b", "a a b"])
    settings = BeamSettings(width=1000, per_start=1000, total=1000, lm_weight=0.7, odds_weight=0.6, word_bonus=0.9)
    start = ("b", "a", "c", "a")

    def enumerate_from(at: int) -> list[tuple[Words, float]]:
        if at == len(start):
            return [((), 0.0)]
        steps = [(at + 1, start[at : at + 1], 0.0)]
        steps += [(end, replacement.target, replacement.log_odds) for end, replacement in table.starting_at(start, at)]
        return [(added + text, odds + later) for end, added, odds in steps for text, later in enumerate_from(end)]

    best: dict[Words, float] = {}
    for text, odds in enumerate_from(0):
        best[text] = max(odds, best.get(text, -math.inf))
    candidates = make_candidates([start], table, lm, settings)
    assert {candidate.words for candidate in candidates} == set(best)
    for candidate in candidates[1:]:
        (derivation,) = candidate.derivations
        assert derivation.log_odds == pytest.approx(best[candidate.words])
        assert derivation.lm == pytest.approx(lm.log_prob(candidate.words), abs=1e-4)

    def total(text: Words) -> float:
        return 0.7 * lm.log_prob(text) + 0.6 * best[text] + 0.9 * len(text)

    few = make_candidates([start], table, lm, BeamSettings(1000, 1000, 5, 4, 0.7, 0.6, 0.9))
    expected = sorted((text for text in best if text != start), key=total, reverse=True)[:4]
    assert [candidate.words for candidate in few] == [start, *expected]


def test_hypotheses_come_first_and_shared_texts_know_all_their_starts() -> None:
    table = learn(("show me fights", "show me flights"), ("show me fleas", "show me flights"))
    lm = train_ngram(TEXTS)
    hypotheses = [words("show me fights"), words("show me fleas"), words("show me flights")]
    candidates = make_candidates(hypotheses, table, lm, BeamSettings())
    assert [candidate.words for candidate in candidates[:3]] == hypotheses
    assert [derivation.start for derivation in candidates[2].derivations] == [0, 1, 2]
    assert len({candidate.words for candidate in candidates}) == len(candidates)


def test_features_of_a_hand_made_list() -> None:
    table = learn(("show me fights", "show me flights"))
    lm = train_ngram(TEXTS)
    texts = [words("show me fights"), words("show me fights"), words("show me")]
    view = ListView.of(texts, [-0.5, -0.6, -1.0])
    assert view.copies == (2, 1)
    assert view.scores == (-0.5, -1.0)
    candidates = make_candidates(view.hypotheses, table, lm, BeamSettings())
    rows = dict(zip((c.words for c in candidates), measure(view, candidates, Knowledge(table, lm)), strict=True))
    made = dict(zip(FEATURES, rows[words("show me flights")], strict=True))
    assert made["lm"] == pytest.approx(lm.log_prob(words("show me flights")), abs=1e-4)
    assert made["share_of_start"] == pytest.approx(2 / 3)
    assert made["support"] == pytest.approx(2 / 3)
    assert made["share_of_list"] == made["in_list"] == made["untouched"] == 0
    assert made["phrases"] == 1
    assert made["distance_to_list"] == pytest.approx(1.0)
    assert (made["letters_changed"], made["length_change"]) == (1, 1)
    second = dict(zip(FEATURES, rows[words("show me")], strict=True))
    assert second["total_score"] == pytest.approx(-2.0 + 1.5)
    assert second["mean_score"] == pytest.approx(-0.5)
    assert (second["rank"], second["from_first"], second["untouched"]) == (1, 0, 1)
    assert second["share_of_list"] == pytest.approx(1 / 3)


def test_features_of_changes_sounds_and_both_language_models() -> None:
    table = learn(("met murdock now", "met murdoch now"), ("saw murdock", "saw murdoch"))
    references, general = train_ngram(["met murdoch now"]), train_ngram(["met him now", "met murdock"])
    hypotheses = [words("murdock ran"), words("murdoch run")]
    view = ListView.of(hypotheses, [None, None])
    candidates = make_candidates(view.hypotheses, table, references, BeamSettings())
    knowledge = Knowledge(table, references, general)
    rows = dict(zip((c.words for c in candidates), measure(view, candidates, knowledge), strict=True))
    made = dict(zip(FEATURES, rows[words("murdoch ran")], strict=True))
    assert made["reference_lm"] == pytest.approx(references.log_prob(words("murdoch ran")), abs=1e-4)
    assert made["general_lm"] == pytest.approx(general.log_prob(words("murdoch ran")), abs=1e-4)
    assert (made["new_to_references"], made["new_to_general"]) == (1, 2)
    assert (made["changes"], made["changes_seen"], made["changes_seen_again"], made["changes_listed"]) == (1, 1, 1, 1)
    assert made["sound"] == 0  # murdock and murdoch are said alike
    second = dict(zip(FEATURES, rows[words("murdoch run")], strict=True))
    assert (second["changes"], second["changes_seen"]) == (1, 0)  # one stretch, never seen as a whole
    assert second["sound"] == 1
    assert second["changes_listed"] == 1
    gone = measure(view, [*candidates[:1], Candidate(words("ran"), (Derivation(0, 0.0, 0, 0.0, 0.0),))], knowledge)
    assert dict(zip(FEATURES, gone[1], strict=True))["changes_listed"] == 0  # no hypothesis drops the word
    first = dict(zip(FEATURES, rows[words("murdock ran")], strict=True))
    assert first["changes"] == first["sound"] == first["changes_listed"] == 0


def test_lists_with_missing_scores_use_none() -> None:
    for scores in ([None, None], [-1.0, None], [float("nan"), -1.0]):
        assert ListView.of([("a",), ("b",)], scores).scores == (0.0, 0.0)


def test_search_time_stays_bounded_on_long_texts() -> None:
    pairs = [(f"w{i} w{j}", f"w{i} v{j}") for i, j in itertools.product(range(5), repeat=2)]
    table, lm = learn(*pairs), train_ngram([ref for _, ref in pairs])
    text = tuple(f"w{i % 5}" for i in range(300))
    candidates = make_candidates([text], table, lm, BeamSettings())
    assert 1 < len(candidates) <= 1 + BeamSettings().per_start
