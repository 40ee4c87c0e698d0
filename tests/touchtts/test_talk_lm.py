"""The language model that says text and writes down speech: what it may say, for how long, and what it depends on."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audio_llm.errors import ConfigError, UsageError
from audio_llm.lm.sampling import GREEDY, Sampling, draw
from audio_llm.lm.vocabulary import EOS
from audio_llm.touchtts import talk_lm as module
from audio_llm.touchtts.layout import SPEECH, heard_row, stack_rows
from audio_llm.touchtts.script import LETTER, LETTERS
from audio_llm.touchtts.talk_lm import TalkLm, TalkLmConfig, continuous, speech_example, text_example
from audio_llm.touchtts.text import SYMBOLS, SpokenText

torch.set_num_threads(1)


def spoken(*symbols: str) -> SpokenText:
    return SpokenText("", symbols, ())


HELLO = spoken("HH", "AH", "L", "OW", "_", "Y", "UW", ".")
SHORT = spoken("OW", ".")
LONG = spoken(*HELLO.symbols[:-1], ",", *HELLO.symbols)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def says(lm: TalkLm, *texts: SpokenText, voice: str = "reader", seed: int = 0, **more: Sampling) -> list[list[int]]:
    """Return the tokens of each text."""
    steps = list(lm.speak(texts, voice, generator=seeded(seed), **more))
    return [[step[row] for step in steps if step[row] >= 0] for row in range(len(texts))]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw without a look at loops, which draw at random even where the likeliest is wanted."""
    monkeypatch.setattr(
        module, "draw_without_loops", lambda logits, history, sampling, generator: draw(logits, sampling, generator)
    )


def ends_with(monkeypatch: pytest.MonkeyPatch, lm: TalkLm, logit: float) -> None:
    """Let the end have one logit everywhere."""
    drawing = module.draw_without_loops

    def changed(logits: Tensor, *rest: object, **more: object) -> Tensor:
        logits = logits.clone()
        logits[:, 0] = torch.where(logits[:, 0] > -torch.inf, logit, -torch.inf)
        return drawing(logits, *rest, **more)

    monkeypatch.setattr(module, "draw_without_loops", changed)


@pytest.mark.parametrize("seed", range(4))
def test_only_speech_tokens_are_said_and_speech_ends(talk_lm: TalkLm, seed: int) -> None:
    texts = (HELLO, SHORT, LONG)
    steps = list(talk_lm.speak(texts, "reader", sampling=Sampling(2.0), generator=seeded(seed)))
    assert len(steps) <= max(talk_lm.most_tokens(text, "reader") for text in texts)
    for row, text in enumerate(texts):
        own = [step[row] for step in steps]
        count = sum(token >= 0 for token in own)
        assert all(0 <= token < 80 for token in own[:count])
        assert own[count:] == [-1] * (len(own) - count)  # who has ended says nothing more
        expected = talk_lm.expected_tokens(text, "reader")
        assert math.floor(0.6 * expected) <= count <= talk_lm.most_tokens(text, "reader")


def test_texts_of_a_batch_have_no_influence_on_each_other(talk_lm: TalkLm, plainly: None) -> None:
    texts = (HELLO, SHORT, LONG, spoken("AA"))
    together = says(talk_lm, *texts, sampling=GREEDY)
    assert [len(own) > 0 for own in together] == [True] * 4
    for text, own in zip(texts, together, strict=True):
        assert says(talk_lm, text, sampling=GREEDY) == [own]
    assert says(talk_lm, *reversed(texts), sampling=GREEDY) == together[::-1]


def test_what_is_said_is_likeliest_for_the_row_that_training_has(talk_lm: TalkLm, plainly: None) -> None:
    # each token is the argmax where the whole row, without a cache, says so; the speed of the training row is that of
    # the voice
    said = torch.tensor(says(talk_lm, LONG, sampling=GREEDY)[0])
    assert len(said) > 8
    row, targets = speech_example(talk_lm, LONG, "reader", said)
    length = talk_lm.length(LONG)
    places = row.positions.clone()
    start = row.ids.shape[1] - len(said)
    places[0, start:] = torch.arange(len(said)) + 0.5  # speed 1: a token is a token long
    assert length == pytest.approx(talk_lm.expected_tokens(LONG, "reader"))
    with torch.no_grad():
        logits = talk_lm.lm.logits(talk_lm.lm(row._replace(positions=places)), SPEECH, [EOS])[0, start - 1 : -1]
    logits[: math.floor(0.6 * length), 0] = -torch.inf
    assert logits.argmax(-1).tolist() == (said + 1).tolist()
    assert targets[0, start - 1 : -1].tolist() == (said + 1).tolist()
    assert targets[0, -1] == 0


def test_the_same_seed_says_the_same(talk_lm: TalkLm) -> None:
    one, same, other = (says(talk_lm, LONG, HELLO, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    torch.manual_seed(99)  # the global generator has no say
    assert says(talk_lm, LONG, HELLO, seed=1) == one


def test_voice_and_text_change_how_long_it_takes(talk_lm: TalkLm, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = talk_lm.expected_tokens(HELLO, "reader")
    assert usual == pytest.approx(talk_lm.length(HELLO))
    assert talk_lm.expected_tokens(HELLO, "robot") == pytest.approx(1.3 * usual)
    assert talk_lm.most_tokens(HELLO, "reader") == math.ceil(1.5 * usual)
    ends_with(monkeypatch, talk_lm, 30.0)  # as soon as it may
    for voice in ("reader", "robot"):
        (own,) = says(talk_lm, LONG, voice=voice)
        assert len(own) == math.floor(0.6 * talk_lm.expected_tokens(LONG, voice))


def test_speech_without_an_end_is_cut_off(talk_lm: TalkLm, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, talk_lm, -1e9)
    found = says(talk_lm, HELLO, LONG, SHORT)
    assert [len(own) for own in found] == [talk_lm.most_tokens(text, "reader") for text in (HELLO, LONG, SHORT)]


def test_tokens_come_one_by_one(talk_lm: TalkLm, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = module.Decoding.feed
    monkeypatch.setattr(module.Decoding, "feed", lambda run, tokens: (fed.append(1), feed(run, tokens))[1])
    speaking = talk_lm.speak([LONG], "reader", generator=seeded())
    for count in range(5):
        next(speaking)
        assert len(fed) == count
    assert not torch.is_inference_mode_enabled()  # between two tokens the caller has its own way


def test_an_unknown_voice_is_refused(talk_lm: TalkLm) -> None:
    with pytest.raises(UsageError, match=r"'nobody'.*reader, robot"):
        next(talk_lm.speak([HELLO], "nobody"))


@pytest.mark.parametrize(
    "wrong", [{"rates": (1.0,)}, {"durations": (1.0,)}, {"voices": (), "rates": ()}, {"pieces": 300}]
)
def test_settings_that_do_not_go_together_are_refused(talk_lm: TalkLm, wrong: dict[str, tuple]) -> None:
    with pytest.raises(ConfigError, match=r"give a rate for each voice|give \d+ durations"):
        TalkLm(replace(talk_lm.config, **wrong))


def test_what_is_told_of_the_past_is_not_what_is_to_be_said(talk_lm: TalkLm) -> None:
    tokens, past = torch.arange(10), torch.arange(10).flip(0)
    row, targets = speech_example(talk_lm, HELLO, "robot", tokens)
    told, same_targets = speech_example(talk_lm, HELLO, "robot", tokens, past)
    assert torch.equal(targets, same_targets)
    start = talk_lm.lm.vocabulary.span(SPEECH).start
    assert (told.ids[0, -10:] - start).tolist() == past.tolist()
    assert (row.ids[0, -10:] - start).tolist() == tokens.tolist()
    fast, _ = speech_example(talk_lm, HELLO, "robot", tokens, stretch=2.0)
    torch.testing.assert_close(fast.positions[0, -10:], 2.0 * row.positions[0, -10:])
    # without a stretch, speech and text end together
    length = talk_lm.length(HELLO)
    assert float(row.positions[0, -1]) == pytest.approx(length * 9.5 / 10)


def summed(lm: TalkLm, tokens: Tensor, letters: list[int], states: Tensor | None = None) -> float:
    """Return the log-probability of letters and their end, computed at once and without a cache."""
    row, targets = text_example(lm, tokens, torch.tensor(letters, dtype=torch.int64))
    features = None
    if states is not None:
        row, features = continuous(row, states)
    with torch.no_grad():
        return -float(lm(row, targets, LETTER, features).sum())


TOKENS = torch.tensor([5, 5, 60, 12, 33, 79, 0, 41])


@pytest.mark.parametrize("beam", [1, 4])
def test_what_a_text_is_worth_is_what_the_whole_row_says(talk_lm: TalkLm, beam: int) -> None:
    let_it_end(talk_lm)
    texts = talk_lm.write(TOKENS, beam=beam)
    assert texts
    for letters, score in texts[:6]:
        assert score == pytest.approx(summed(talk_lm, TOKENS, letters), abs=1e-3)
        assert all(0 <= letter < len(LETTERS) for letter in letters)
    worth = [score / (len(letters) + 1) for letters, score in texts]
    assert worth == sorted(worth, reverse=True)


def test_what_a_text_is_worth_is_the_same_for_features(talk_lm: TalkLm) -> None:

    with torch.no_grad():
        talk_lm.project.bias.normal_(generator=seeded())
    states = torch.randn(8, 16, generator=seeded())
    let_it_end(talk_lm, states)
    texts = [text for text in talk_lm.write(TOKENS, states, beam=6) if len(text[0]) > 1]
    assert texts
    for letters, score in texts:
        assert score == pytest.approx(summed(talk_lm, TOKENS, letters, states), abs=1e-3)


def greedy(lm: TalkLm, tokens: Tensor) -> list[int]:
    """Return the letters that are each the likeliest, as the whole row says, up to the end."""
    letters: list[int] = []
    while True:
        row, _ = text_example(lm, tokens, torch.tensor([*letters, 0]))
        with torch.no_grad():
            logits = lm.lm.logits(lm.lm(row)[0, -2], LETTER, [EOS])
        best = int(logits.argmax())
        if not best or len(letters) > 20:
            return letters
        letters.append(best - 1)


@pytest.mark.parametrize("beam", [1, 5])
def test_the_best_text_is_no_worse_than_the_likeliest_letters(talk_lm: TalkLm, beam: int) -> None:
    let_it_end(talk_lm)
    for seed in range(12):
        tokens = torch.randint(80, (12,), generator=seeded(seed))
        wanted = greedy(talk_lm, tokens)
        if len(wanted) > 12:  # it never ends
            continue
        best, score = talk_lm.write(tokens, beam=beam)[0]
        assert score / (len(best) + 1) >= summed(talk_lm, tokens, wanted) / (len(wanted) + 1) - 1e-4


def let_it_end(lm: TalkLm, states: Tensor | None = None) -> None:
    """Let random weights write the end now and then."""
    row, _ = text_example(lm, TOKENS, torch.arange(8))
    features = None
    if states is not None:
        row, features = continuous(row, states)
        features = lm._projected(features)
    with torch.no_grad():
        usual = lm.lm(row, features)[0, -8:].mean(0)
        lm.lm.network.embed_tokens.weight[EOS] = 2.0 * usual / usual.square().sum()


def test_more_beams_find_no_worse_texts(talk_lm: TalkLm) -> None:
    let_it_end(talk_lm)

    def worth(beam: int) -> list[float]:
        best = [talk_lm.write(torch.randint(80, (10,), generator=seeded(s)), beam=beam)[0] for s in range(5)]
        return [score / (len(letters) + 1) for letters, score in best]

    assert sum(worth(16)) >= sum(worth(1)) - 1e-4
    texts = talk_lm.write(TOKENS, beam=8)
    assert len({tuple(letters) for letters, _ in texts}) == len(texts)


class Spelling:
    """Stands for a model that has one text in mind: logits of each step, whatever was written before."""

    def __init__(self, log_probs: Tensor) -> None:
        self.rows, self.step = log_probs, 0
        self.hidden = log_probs[:1]

    def feed(self, tokens: object) -> None:
        self.step += 1
        self.hidden = self.rows[min(self.step, len(self.rows) - 1)].expand(len(self.hidden), -1)

    def keep(self, rows: Tensor) -> None:
        self.hidden = self.hidden[rows]


def heard_as(text: str, talk_lm: TalkLm, monkeypatch: pytest.MonkeyPatch, sure: float, end: float, beam: int) -> str:
    """Return what is written where each letter of a text has the probability `sure`, and the end `end` behind words."""
    rows = []
    for letter in text:
        may_end = end if letter == " " else 1e-3
        row = torch.full((len(LETTERS) + 1,), (1.0 - sure - may_end) / (len(LETTERS) - 1))
        row[0], row[LETTERS.index(letter) + 1] = may_end, sure
        rows.append(row)
    rows.append(torch.full((len(LETTERS) + 1,), 0.02 / len(LETTERS)))
    rows[-1][0] = 0.98
    assert all(float(row.sum()) == pytest.approx(1.0) for row in rows)
    monkeypatch.setattr(module, "Decoding", lambda *arguments: Spelling(torch.stack(rows).log()))
    monkeypatch.setattr(talk_lm.lm, "table", lambda name, specials: torch.eye(len(LETTERS) + 1))
    best = talk_lm.write(torch.zeros(len(text) + 5, dtype=torch.int64), beam=beam)[0][0]
    return "".join(LETTERS[letter] for letter in best)


@pytest.mark.parametrize("sure", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("end", [0.002, 0.02])
@pytest.mark.parametrize("beam", [1, 5])
def test_a_text_is_written_to_its_end(
    talk_lm: TalkLm, monkeypatch: pytest.MonkeyPatch, sure: float, end: float, beam: int
) -> None:

    # with every letter: at 80 % for a letter, five of nine words are written, though the whole text is ranked higher
    text = "the quick brown fox jumps over the lazy dog"
    assert heard_as(text, talk_lm, monkeypatch, sure, end, beam) == text


def test_nothing_heard_is_little_written(talk_lm: TalkLm) -> None:
    for letters, _ in talk_lm.write(torch.zeros(0, dtype=torch.int64)):
        assert len(letters) <= 2


def test_features_stand_for_tokens(talk_lm: TalkLm) -> None:
    states = torch.randn(8, 16, generator=seeded())
    letters = torch.tensor([3, 1, 20])
    row, targets = text_example(talk_lm, TOKENS, letters)
    other, _ = text_example(talk_lm, (TOKENS + 7) % 80, letters)

    def losses(given: Tensor, tokens_row: object = row) -> Tensor:
        with torch.no_grad():
            sequence, features = continuous(tokens_row, given)
            return talk_lm(sequence, targets, LETTER, features)

    wanted = losses(states)
    assert wanted.shape == (4,)
    assert torch.equal(losses(states, other), wanted)  # tokens say nothing
    changed = states.clone()
    changed[7, 3] += 1.0
    assert (losses(changed) - wanted).abs().min() > 1e-5
    assert talk_lm.write(TOKENS, states) == talk_lm.write((TOKENS + 7) % 80, states)
    assert talk_lm.write(TOKENS, states) != talk_lm.write(TOKENS, changed)
    with torch.no_grad():
        by_tokens, by_others = (talk_lm(one, targets, LETTER) for one in (row, other))
    assert not torch.allclose(by_tokens, by_others, atol=1e-4)


def test_features_of_a_batch_end_where_each_ends(talk_lm: TalkLm) -> None:
    counts, states = (8, 3), torch.randn(2, 8, 16, generator=seeded())
    states[1, 3:] = 0.0
    examples = [text_example(talk_lm, TOKENS[:count], torch.tensor([3, 1])) for count in counts]
    rows = stack_rows([row for row, _ in examples])
    sequence, features = continuous(rows, states)
    for number, count in enumerate(counts):
        ids = sequence.ids[number]
        assert ids[2 : 2 + count].tolist() == [EOS] * count
        assert torch.equal(ids[2 + count :], rows.ids[number, 2 + count :])
        assert torch.equal(features[number, 2 : 2 + count], states[number, :count])
        assert not features[number, 2 + count :].any()
        assert not features[number, :2].any()
        alone, own = continuous(heard_row(TOKENS[:count], talk_lm.lm.vocabulary), states[number, :count])
        assert torch.equal(alone.ids[0], ids[: count + 3])
        assert torch.equal(own[0], features[number, : count + 3])


def test_the_score_of_speech_is_the_sum_over_its_tokens_and_its_end(talk_lm: TalkLm) -> None:
    found = talk_lm.score_speech(HELLO, "robot", TOKENS)
    row, _ = speech_example(talk_lm, HELLO, "robot", TOKENS)
    with torch.no_grad():
        log_probs = talk_lm.lm.logits(talk_lm.lm(row)[0, -9:], SPEECH, [EOS]).log_softmax(-1)
    wanted = log_probs.gather(1, torch.tensor([*(TOKENS + 1).tolist(), 0])[:, None]).sum()
    assert found == pytest.approx(float(wanted), abs=1e-3)
    assert found != talk_lm.score_speech(HELLO, "reader", TOKENS)


def test_a_model_that_has_learned_prefers_the_true_text(talk_lm: TalkLm) -> None:
    pairs = [
        (HELLO, torch.tensor([1, 2, 3, 4, 5, 6, 7, 8] * 2)),
        (spoken(*LONG.symbols[4:]), torch.tensor([40, 50, 60, 70, 30, 20, 10] * 2)),
    ]
    optimizer = torch.optim.Adam(talk_lm.parameters(), 1e-2)
    for _ in range(60):
        losses = [talk_lm(*speech_example(talk_lm, text, "reader", tokens), SPEECH).mean() for text, tokens in pairs]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert sum(losses) < 1.0
    for (text, tokens), (other, _) in itertools.permutations(pairs, 2):
        assert talk_lm.score_speech(text, "reader", tokens) > talk_lm.score_speech(other, "reader", tokens) + 5.0
    (said,) = says(talk_lm, HELLO, sampling=GREEDY)
    assert said[:8] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_sizes_follow_from_what_there_is(talk_lm: TalkLm) -> None:
    assert talk_lm.config.lm.ranges == {"mark": 4, "voice": 2, "symbol": len(SYMBOLS), "letter": 28, "speech": 80}
    again = TalkLmConfig(
        talk_lm.config.voices, talk_lm.config.durations, talk_lm.config.rates, 80, 16, lm=talk_lm.config.lm
    )
    assert again == talk_lm.config
