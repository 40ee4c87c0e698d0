"""The corrector with a model that is a table of probabilities, so that every result can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audio_llm.asr.base import Capabilities
from audio_llm.asr.ctc import CtcRecognizer
from audio_llm.asr.ctc_model import CtcConfig, CtcModel
from audio_llm.correction import Edit
from audio_llm.dlm import decode, vocab
from audio_llm.dlm.corrector import DlmCorrector, list_weights
from audio_llm.dlm.dsr import DsrCandidates, NormalizedNBest
from audio_llm.dlm.model import DenoisingLM, ModelConfig, save
from audio_llm.dlm.rescore import ScoreWeights, choose
from audio_llm.dlm.settings import (
    SETTINGS_NAME,
    DecodingSettings,
    read_settings,
    settings_from_json,
    settings_to_json,
)
from audio_llm.errors import ModelFormatError, UsageError
from audio_llm.gate import Gate
from audio_llm.hub import fingerprint
from audio_llm.lm.kneser_ney import train_ngram
from audio_llm.lm.ngram import save_ngram
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.text import NORMALIZERS

torch.set_num_threads(1)

FLOOR = 1e-9  # weight of every character that continues no text of the table


@dataclass
class TableState:
    """The hypothesis and the text written so far of each row."""

    source: list[str]
    written: list[str]
    step: int = 0

    def select(self, rows: Tensor, same_memory: bool = False) -> None:
        self.source = [self.source[i] for i in rows.tolist()]
        self.written = [self.written[i] for i in rows.tolist()]


class TableModel(nn.Module):
    """Writes the texts of a table with their probabilities; a hypothesis that is not in it is copied."""

    def __init__(self, table: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.table = table
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        return self.read(self.encode(source, lengths), target_in)

    def read(self, state: TableState, target_in: Tensor) -> Tensor:
        rows = [
            torch.stack([self._next(h, vocab.decode(row[1 : t + 1])) for t in range(len(row))])
            for h, row in zip(state.source, target_in.tolist(), strict=True)
        ]
        return torch.stack(rows)

    def encode(self, source: Tensor, lengths: Tensor) -> TableState:
        sources = [vocab.decode(row) for row in source.tolist()]
        return TableState(sources, [""] * len(sources))

    def step(self, last: Tensor, state: TableState) -> Tensor:
        state.written = [w + vocab.decode([n]) for w, n in zip(state.written, last.tolist(), strict=True)]
        state.step += 1
        return torch.stack([self._next(h, w) for h, w in zip(state.source, state.written, strict=True)])

    def _next(self, hypothesis: str, written: str) -> Tensor:
        """Return (V,) log-probabilities after what is written: the table's, and a little for everything else."""
        weights = torch.full((vocab.SIZE,), FLOOR)
        for text, probability in self.table.get(hypothesis, {hypothesis: 1.0}).items():
            if text.startswith(written):
                following = text[len(written) :]
                weights[vocab.encode(following)[0] if following else vocab.EOS] += probability
        return (weights / weights.sum()).log()


class FakeRecognizer:
    """Scores a text by whether it contains `cat` (positive waveform) or `hat`; cannot score the texts in `unknown`."""

    name = version = "fake"

    def __init__(self, text_scores: bool = True, unknown: Sequence[str] = ()) -> None:
        self.capabilities = Capabilities(True, False, text_scores, False)
        self.asked: list[list[str]] = []
        self.unknown = unknown

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        raise AssertionError("not needed")

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        self.asked.append(list(texts))
        word = "cat" if waveform.mean() > 0 else "hat"
        return [None if t in self.unknown else -10.0 - 30.0 * (word not in t.split()) for t in texts]

    def prefer(self, words: Sequence[str]) -> list[str]:
        return list(words)


TABLE = {
    "the bat sat": {"the cat sat": 0.6, "the hat sat": 0.3, "the bat sat": 0.1},
    "the hat sad": {"the hat sat": 0.5, "the hat sad": 0.4, "the cat sat": 0.1},
    "a mat": {"a mat": 1.0},
}
CAT_SOUND, HAT_SOUND = np.ones(160, np.float32), -np.ones(160, np.float32)
SETTINGS = DecodingSettings(
    proposals=3, shortlist=ScoreWeights({"asr": 0.0, "sound": 1.0}), dsr=ScoreWeights({"sound": 1.0, "dlm": 1.0})
)


def nbest(*texts: str, scores: Sequence[float | None] | None = None, name: str = "u1") -> NBest:
    return NBest(name, tuple(Hypothesis(t, s) for t, s in zip(texts, scores or [None] * len(texts), strict=True)))


def corrector(decoding: str = "greedy", gate: bool = True, settings: DecodingSettings = SETTINGS, **more: object):
    return DlmCorrector(TableModel(TABLE), settings, decoding, gate=gate, **more)  # type: ignore[arg-type]


def test_the_table_model_is_a_model() -> None:
    result = decode.beam(TableModel(TABLE), "the bat sat", 3)
    assert [c.text for c in result] == ["the cat sat", "the hat sat", "the bat sat"]
    assert [math.exp(c.log_prob) for c in result] == pytest.approx([0.6, 0.3, 0.1], rel=1e-3)
    assert decode.log_probs(TableModel(TABLE), ["the bat sat"], ["the hat sat"])[0] == pytest.approx(
        math.log(0.3), abs=1e-3
    )


def test_greedy_corrects_with_edits_gain_and_confidence() -> None:
    settings = replace(SETTINGS, gates={**SETTINGS.gates, "greedy": Gate(1.0)})
    (result,) = corrector(settings=settings).correct([nbest("The bat sat.", "the mat sat", "a cat sat")])
    assert (result.id, result.text, result.input, result.unchanged) == ("u1", "the cat sat", "The bat sat.", False)
    assert result.edits == (Edit(1, 2, "bat", "cat", "hypothesis 3"),)
    assert result.reason == "gain 1.8"  # log(0.6 / 0.1)
    assert result.confidence == pytest.approx(0.6 / 0.7, abs=1e-3)


def test_words_of_no_hypothesis_are_the_models() -> None:
    (result,) = corrector(gate=False).correct([nbest("the bat sat", "the mat sat")])
    assert result.edits == (Edit(1, 2, "bat", "cat", "dlm"),)


def test_a_small_gain_keeps_the_recognizers_text_as_it_wrote_it() -> None:
    (result,) = corrector().correct([nbest("The bat sat.")])
    assert (result.text, result.input, result.unchanged, result.edits) == ("The bat sat.", "The bat sat.", True, ())
    assert result.reason == "gain 1.8 below the margin of 2"
    assert result.confidence == pytest.approx(0.1 / 0.7, abs=1e-3)
    (same,) = corrector().correct([nbest("a mat")])
    assert (same.text, same.unchanged, same.reason) == ("a mat", True, "no change proposed")


@pytest.mark.parametrize("decoding", ["greedy", "dlm-sum", "dsr"])
def test_empty_lists_and_empty_texts_stay_empty_and_in_order(decoding: str) -> None:
    lists = [
        nbest(name="none"),
        nbest("the bat sat", name="heard"),
        nbest("", "the bat sat", name="empty best"),
        nbest("...", "the bat sat", name="no word"),
        nbest("a mat", name="right"),
    ]
    more = {"recognizer": FakeRecognizer()} if decoding == "dsr" else {}
    result = corrector(decoding, gate=False, **more).correct(lists, [CAT_SOUND] * 5 if decoding == "dsr" else None)
    assert [c.id for c in result] == ["none", "heard", "empty best", "no word", "right"]
    assert [c.text for c in result] == ["", "the cat sat", "", "...", "a mat"]
    assert [c.reason for c in result if c.id in ("none", "empty best", "no word")] == ["no words recognized"] * 3
    assert [c.unchanged for c in result] == [True, False, True, True, True]
    assert corrector(decoding, **more).correct([], [] if decoding == "dsr" else None) == []


def test_a_correction_without_end_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "length_limit", lambda hypothesis: 5)
    (result,) = corrector(gate=False).correct([nbest("the bat sat")])
    assert (result.text, result.reason) == ("the bat sat", "the correction has no end")


def test_dsr_without_audio_or_without_a_recognizer_that_scores_is_refused() -> None:
    with pytest.raises(UsageError, match="scores any text"):
        corrector("dsr")
    with pytest.raises(UsageError, match="scores any text"):
        corrector("dsr", recognizer=FakeRecognizer(text_scores=False))
    with pytest.raises(UsageError, match="needs the waveform"):
        corrector("dsr", recognizer=FakeRecognizer()).correct([nbest("a mat")])
    with pytest.raises(UsageError, match="unknown decoding 'best'"):
        corrector("best")


def test_dsr_scores_the_audio_so_that_the_same_list_gives_two_texts() -> None:
    recognizer = FakeRecognizer()
    lists = [nbest("the bat sat", name="1"), nbest("the bat sat", name="2")]
    result = corrector("dsr", recognizer=recognizer).correct(lists, [CAT_SOUND, HAT_SOUND])
    assert [c.text for c in result] == ["the cat sat", "the hat sat"]
    assert recognizer.asked[0] == recognizer.asked[2] == ["the bat sat"]  # the list first, then the proposals
    # gain: 30 from the audio, and the model's preference over the unchanged text
    assert result[1].reason == f"gain {30 + math.log(0.3 / 0.1):.1f}"


def pools(model: TableModel, recognizer: FakeRecognizer | None = None, size: int = 8) -> DsrCandidates:
    scorer = recognizer or FakeRecognizer()
    return DsrCandidates(model, scorer, None, SETTINGS.shortlist, size, proposals=3)  # type: ignore[arg-type]


def normalized_list(*texts: str, scores: Sequence[float | None] | None = None) -> NormalizedNBest:
    return NormalizedNBest.of(nbest(*texts, scores=scores), NORMALIZERS["spoken"])


@pytest.mark.parametrize("listed", [False, True])
def test_the_recognizers_text_is_always_among_the_candidates(listed: bool) -> None:
    answers = {"the cat": 0.7, "the hat": 0.2, "the mat": 0.1}
    model = TableModel({"the rat": answers, "the cat": answers})
    candidates = pools(model).make(normalized_list("the rat", "the vat", "the cat"), CAT_SOUND, listed)
    texts = [candidate.text for candidate in candidates]
    assert texts[0] == "the rat"
    assert len(texts) == len(set(texts))
    assert set(texts) - {"the rat"} - {"the cat", "the hat", "the mat"} == ({"the vat"} if listed else set())
    assert {c.text for c in candidates if c.scores["proposed"]} == {"the cat", "the hat", "the mat"}
    assert {c.text for c in candidates if c.scores["unlisted"]} == {"the hat", "the mat"}


def test_the_shortlist_holds_what_fits_the_sound_and_what_is_proposed() -> None:
    model = TableModel({"a cat": {"a cat": 0.7, "a bat": 0.2, "a sat": 0.1}})  # it reads the text that fits the audio
    candidates = pools(model, size=1).make(normalized_list("a mat", "a hat", "a cat", "a rat"), CAT_SOUND)
    assert [c.text for c in candidates] == ["a mat", "a cat", "a bat", "a sat"]


def test_scores_of_the_list_go_along_and_a_new_text_gets_the_lowest() -> None:
    candidates = pools(TableModel(TABLE)).make(normalized_list("the bat sat", "a cat", scores=[-5.0, -8.0]), CAT_SOUND)
    assert {c.text: c.scores["asr"] for c in candidates}["the bat sat"] == -5.0
    assert {c.text: c.scores["asr"] for c in candidates}["a cat"] == -8.0
    assert {c.scores["asr"] for c in candidates if c.scores["unlisted"]} == {-8.0}
    assert normalized_list("one", "two", "one", scores=[-1.0, None, -2.0]) == NormalizedNBest(
        ("one", "two"), (0.0, -1.0)
    )
    assert normalized_list("", "two") == NormalizedNBest((), ())


def test_pooled_can_choose_what_the_model_does_not_propose() -> None:
    texts = nbest("the bat sat", "one cat sat")
    chosen = {}
    for pool in ("paper", "pooled"):
        settings = replace(SETTINGS, pool=pool, proposals=1, dsr=ScoreWeights({"sound": 1.0, "dlm": 0.0}))  # type: ignore[arg-type]
        model = TableModel(
            {"one cat sat": {"the bat sat": 1.0}}
        )  # it reads the text that fits the audio, and corrupts it
        system = DlmCorrector(model, settings, "dsr", FakeRecognizer(), gate=False)  # type: ignore[arg-type]
        chosen[pool] = system.correct([texts], [CAT_SOUND])[0].text
    assert chosen == {"paper": "the bat sat", "pooled": "one cat sat"}


def test_every_candidate_has_all_scores_or_is_dropped() -> None:
    model, recognizer = TableModel(TABLE), FakeRecognizer(unknown=["the hat sat"])
    scored = pools(model, recognizer).make(normalized_list("the bat sat", "a mat sat"), CAT_SOUND)
    assert [s.text for s in scored] == ["the bat sat", "a mat sat", "the cat sat"]
    names = {"asr", "sound", "lm", "unlisted", "dlm", "proposed"}
    assert all(set(s.scores) == names and all(map(math.isfinite, s.scores.values())) for s in scored)
    expected = decode.log_probs(model, ["the bat sat"] * len(scored), [s.text for s in scored])
    assert [s.scores["dlm"] for s in scored] == pytest.approx(expected)


def test_large_and_zero_weights_follow_one_model_alone() -> None:
    scored = pools(TableModel(TABLE)).make(normalized_list("the bat sat", "the mat sat"), HAT_SOUND)
    assert scored[choose(scored, ScoreWeights({"sound": 1.0, "dlm": 0.0}))].text == "the hat sat"
    assert scored[choose(scored, ScoreWeights({"sound": 1.0, "dlm": 1e4}))].text == "the cat sat"


def test_the_ctc_network_scores_candidates_on_the_audio() -> None:
    torch.manual_seed(0)
    network = CtcModel(CtcConfig(channels=4, width=32, layers=2, heads=2, feedforward=64, kernel=5)).eval()
    scorer = CtcRecognizer(network, "ctc-random")
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    model = TableModel({"a mat": {"a mat": 0.9, "a bat": 0.1}})
    candidates = DsrCandidates(model, scorer, None, ScoreWeights({"asr": 1.0}), 1, proposals=2).make(
        normalized_list("a mat"), sound
    )  # type: ignore[arg-type]
    assert [c.text for c in candidates] == ["a mat", "a bat"]
    assert [c.scores["sound"] for c in candidates] == pytest.approx(scorer.score(sound, ["a mat", "a bat"]))


def test_another_recognizer_may_score_on_the_audio() -> None:
    maker, scorer = FakeRecognizer(text_scores=False), FakeRecognizer()
    (result,) = corrector("dsr", recognizer=maker, scorer=scorer).correct([nbest("the bat sat")], [HAT_SOUND])
    assert result.text == "the hat sat"
    assert not maker.asked


def test_a_text_that_the_recognizer_cannot_score_itself_is_kept() -> None:
    recognizer = FakeRecognizer(unknown=["the bat sat"])
    (result,) = corrector("dsr", gate=False, recognizer=recognizer).correct([nbest("the bat sat")], [CAT_SOUND])
    assert (result.text, result.unchanged) == ("the bat sat", True)


def test_the_sum_weighs_several_hypotheses() -> None:
    lists = [nbest("the bat sat", "the hat sad", scores=[-100.0, -100.0])]
    even = corrector("dlm-sum", gate=False).correct(lists)[0]
    assert even.text == "the hat sat"  # 0.5 * 0.3 + 0.5 * 0.5, against 0.5 * 0.6 + 0.5 * 0.1
    assert even.reason == f"gain {math.log(0.4 / 0.05):.1f}"
    first = replace(SETTINGS, list_scales=ScoreWeights({"asr": 1.0}))
    lists = [nbest("the bat sat", "the hat sad", scores=[-100.0, -110.0])]
    assert corrector("dlm-sum", gate=False, settings=first).correct(lists)[0].text == "the cat sat"
    only = replace(SETTINGS, hypotheses=1)
    assert corrector("dlm-sum", gate=False, settings=only).correct(lists)[0].text == "the cat sat"


def test_the_language_model_chooses_which_hypotheses_are_read() -> None:
    model = train_ngram(["the hat sat on a mat"] * 3)
    lists = [nbest("the bat sat", "the rat sat", "the hat sad", scores=[-100.0, -101.0, -102.0])]
    settings = replace(SETTINGS, hypotheses=2, list_scales=ScoreWeights({"asr": 0.01, "lm": 1.0}))
    table = {**TABLE, "the rat sat": {"the rat sat": 1.0}}
    texts = {}
    for name, known in (("without", None), ("with", model)):
        system = DlmCorrector(TableModel(table), settings, "dlm-sum", gate=False, language_model=known)  # type: ignore[arg-type]
        texts[name] = system.correct(lists)[0].text
    assert texts == {"without": "the rat sat", "with": "the hat sat"}


def test_another_language_model_than_the_settings_name_is_refused(tmp_path: Path) -> None:
    for name, text in (("lm", "a b c"), ("other", "a c b")):
        save_ngram(train_ngram([text]), tmp_path / name, "# lm\n")
    model = DenoisingLM(ModelConfig(16, 32, 2, 1, 1))
    settings = replace(SETTINGS, language_model="lm", language_model_sha256=fingerprint(tmp_path / "lm"))
    for folder in ("good", "bad"):
        if folder == "bad":
            settings = replace(settings, language_model="other")
        save(model, tmp_path / folder, assets={SETTINGS_NAME: json.dumps(settings_to_json(settings))})
    assert DlmCorrector.load(tmp_path / "good", decode="dlm-sum").hypotheses == settings.listed
    assert DlmCorrector.load(tmp_path / "bad", decode="greedy").hypotheses == 1
    with pytest.raises(ModelFormatError, match="another model than the "):
        DlmCorrector.load(tmp_path / "bad", decode="dlm-sum")


def test_weights_come_from_scores_where_all_have_one_else_from_ranks() -> None:
    normalize = NORMALIZERS["spoken"]
    settings = replace(SETTINGS, list_scales=ScoreWeights({"asr": 0.5}, word_reward=-1.0), rank_weight=0.25)
    scored = nbest("A mat.", "a mat", "a hat", scores=[-6.0, -4.0, -8.0])
    assert list_weights(scored, ["a mat", "a hat"], normalize, settings) == [-4.0, -6.0]
    missing = nbest("a mat", "a hat", "a cat", scores=[-4.0, None, -9.0])
    assert list_weights(missing, ["a mat", "a hat", "a cat"], normalize, settings) == [0.0, -0.25, -0.5]


def test_edits_rebuild_the_correction_from_the_normalized_input() -> None:
    (result,) = corrector(gate=False).correct([nbest("The BAT, sat!")])
    words = NORMALIZERS["spoken"](result.input).split()
    for edit in reversed(result.edits):
        assert words[edit.start : edit.end] == edit.before.split()
        words[edit.start : edit.end] = edit.after.split()
    assert " ".join(words) == result.text


def test_settings_survive_their_file_and_damage_is_named(tmp_path: Path) -> None:

    settings = replace(SETTINGS, pool="paper", recognizer="fake-1", gates={"greedy": Gate(3.0, 0.4), "dsr": Gate()})
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))) == settings
    assert read_settings(tmp_path) == DecodingSettings()
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(settings_to_json(settings)))
    assert read_settings(tmp_path) == settings
    for damage in ('{"beam": 4', '{"beam": 4}', '{"unknown": 1, "dsr": {"weights": {}}, "gates": {}}', "[]"):
        (tmp_path / SETTINGS_NAME).write_text(damage)
        with pytest.raises(ModelFormatError, match=SETTINGS_NAME):
            read_settings(tmp_path)


def test_a_saved_model_directory_is_a_corrector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(DenoisingLM(ModelConfig(16, 32, 2, 1, 1)), tmp_path / "model")
    loaded = DlmCorrector.load(tmp_path / "model", decode="greedy")
    assert loaded.settings == DecodingSettings()
    (result,) = loaded.correct([nbest("a mat")])
    assert (result.input, result.id) == ("a mat", "u1")
    with pytest.raises(UsageError, match="scores any text"):
        DlmCorrector.load(tmp_path / "model", decode="dsr")


def test_scores_of_another_recognizer_than_the_tuned_one_do_not_count() -> None:
    scored = nbest("the bat sat", "the hat sad", scores=[-90.0, -1.0])
    plain = nbest("the bat sat", "the hat sad")
    settings = replace(SETTINGS, recognizer="fake", rank_weight=3.0, list_scales=ScoreWeights({"asr": 1.0}))
    other = replace(settings, recognizer="another")

    def proposed(list_: NBest, settings: DecodingSettings) -> tuple[str, float]:
        (result,) = corrector("dlm-sum", settings=settings, recognizer=FakeRecognizer()).propose([list_])
        return result.candidate.text, result.gain

    assert proposed(scored, other) == proposed(plain, other) == proposed(plain, settings)
    assert proposed(scored, settings) != proposed(plain, settings)
    assert proposed(scored, settings)[0] == "the hat sat"  # the second text has all the weight
    assert proposed(scored, other)[0] == "the cat sat"
