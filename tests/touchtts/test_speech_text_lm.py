"""The language model of synthesis and transcription: valid tokens, durations, and dependencies."""

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
from audio_llm.touchtts import speech_text_lm as module
from audio_llm.touchtts.sequence_layout import SPEECH, recognition_row, stack_rows
from audio_llm.touchtts.speech_text_lm import SpeechTextLm, SpeechTextLmConfig, continuous, speech_example, text_example
from audio_llm.touchtts.text import SYMBOLS, NormalizedText
from audio_llm.touchtts.text_tokens import LETTER, LETTERS

torch.set_num_threads(1)


def normalized(*symbols: str) -> NormalizedText:
    return NormalizedText("", symbols, ())


HELLO = normalized("HH", "AH", "L", "OW", "_", "Y", "UW", ".")
SHORT = normalized("OW", ".")
LONG = normalized(*HELLO.symbols[:-1], ",", *HELLO.symbols)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def says(
    lm: SpeechTextLm, *texts: NormalizedText, voice: str = "reader", seed: int = 0, **more: Sampling
) -> list[list[int]]:
    """Return the tokens of each text."""
    steps = list(lm.generate(texts, voice, generator=seeded(seed), **more))
    return [[step[row] for step in steps if step[row] >= 0] for row in range(len(texts))]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw without the detection of loops, which draws at random even in greedy decoding."""
    monkeypatch.setattr(
        module, "draw_without_loops", lambda logits, history, sampling, generator: draw(logits, sampling, generator)
    )


def ends_with(monkeypatch: pytest.MonkeyPatch, lm: SpeechTextLm, logit: float) -> None:
    """Let the end have one logit everywhere."""
    drawing = module.draw_without_loops

    def changed(logits: Tensor, *rest: object, **more: object) -> Tensor:
        logits = logits.clone()
        logits[:, 0] = torch.where(logits[:, 0] > -torch.inf, logit, -torch.inf)
        return drawing(logits, *rest, **more)

    monkeypatch.setattr(module, "draw_without_loops", changed)


@pytest.mark.parametrize("seed", range(4))
def test_only_speech_tokens_are_generated_and_speech_ends(speech_text_lm: SpeechTextLm, seed: int) -> None:
    texts = (HELLO, SHORT, LONG)
    steps = list(speech_text_lm.generate(texts, "reader", sampling=Sampling(2.0), generator=seeded(seed)))
    assert len(steps) <= max(speech_text_lm.most_tokens(text, "reader") for text in texts)
    for row, text in enumerate(texts):
        row_tokens = [step[row] for step in steps]
        count = sum(token >= 0 for token in row_tokens)
        assert all(0 <= token < 80 for token in row_tokens[:count])
        assert row_tokens[count:] == [-1] * (len(row_tokens) - count)  # a text that has ended stays silent
        expected = speech_text_lm.expected_tokens(text, "reader")
        assert math.floor(0.6 * expected) <= count <= speech_text_lm.most_tokens(text, "reader")


def test_texts_of_a_batch_have_no_influence_on_each_other(speech_text_lm: SpeechTextLm, plainly: None) -> None:
    texts = (HELLO, SHORT, LONG, normalized("AA"))
    together = says(speech_text_lm, *texts, sampling=GREEDY)
    assert [len(row_tokens) > 0 for row_tokens in together] == [True] * 4
    for text, row_tokens in zip(texts, together, strict=True):
        assert says(speech_text_lm, text, sampling=GREEDY) == [row_tokens]
    assert says(speech_text_lm, *reversed(texts), sampling=GREEDY) == together[::-1]


def test_generated_tokens_are_the_likeliest_of_the_training_row(speech_text_lm: SpeechTextLm, plainly: None) -> None:
    # each token is the argmax of the whole row without a cache; the speed of the training row is that of the voice
    generated = torch.tensor(says(speech_text_lm, LONG, sampling=GREEDY)[0])
    assert len(generated) > 8
    row, targets = speech_example(speech_text_lm, LONG, "reader", generated)
    length = speech_text_lm.length(LONG)
    positions = row.positions.clone()
    start = row.ids.shape[1] - len(generated)
    positions[0, start:] = torch.arange(len(generated)) + 0.5  # speed 1: a token is a token long
    assert length == pytest.approx(speech_text_lm.expected_tokens(LONG, "reader"))
    with torch.no_grad():
        logits = speech_text_lm.lm.logits(speech_text_lm.lm(row._replace(positions=positions)), SPEECH, [EOS])[
            0, start - 1 : -1
        ]
    logits[: math.floor(0.6 * length), 0] = -torch.inf
    assert logits.argmax(-1).tolist() == (generated + 1).tolist()
    assert targets[0, start - 1 : -1].tolist() == (generated + 1).tolist()
    assert targets[0, -1] == 0


def test_the_same_seed_generates_the_same(speech_text_lm: SpeechTextLm) -> None:
    one, same, other = (says(speech_text_lm, LONG, HELLO, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    torch.manual_seed(99)  # the global generator has no influence
    assert says(speech_text_lm, LONG, HELLO, seed=1) == one


def test_voice_and_text_change_how_long_it_takes(speech_text_lm: SpeechTextLm, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = speech_text_lm.expected_tokens(HELLO, "reader")
    assert usual == pytest.approx(speech_text_lm.length(HELLO))
    assert speech_text_lm.expected_tokens(HELLO, "robot") == pytest.approx(1.3 * usual)
    assert speech_text_lm.most_tokens(HELLO, "reader") == math.ceil(1.5 * usual)
    ends_with(monkeypatch, speech_text_lm, 30.0)  # as soon as it may
    for voice in ("reader", "robot"):
        (row_tokens,) = says(speech_text_lm, LONG, voice=voice)
        assert len(row_tokens) == math.floor(0.6 * speech_text_lm.expected_tokens(LONG, voice))


def test_speech_without_an_end_is_cut_off(speech_text_lm: SpeechTextLm, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, speech_text_lm, -1e9)
    result = says(speech_text_lm, HELLO, LONG, SHORT)
    assert [len(row_tokens) for row_tokens in result] == [
        speech_text_lm.most_tokens(text, "reader") for text in (HELLO, LONG, SHORT)
    ]


def test_tokens_come_one_by_one(speech_text_lm: SpeechTextLm, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = module.Decoding.feed
    monkeypatch.setattr(module.Decoding, "feed", lambda run, tokens: (fed.append(1), feed(run, tokens))[1])
    speaking = speech_text_lm.generate([LONG], "reader", generator=seeded())
    for count in range(5):
        next(speaking)
        assert len(fed) == count
    assert not torch.is_inference_mode_enabled()  # between two tokens the caller may have gradients


def test_an_unknown_voice_is_refused(speech_text_lm: SpeechTextLm) -> None:
    with pytest.raises(UsageError, match=r"'nobody'.*reader, robot"):
        next(speech_text_lm.generate([HELLO], "nobody"))


@pytest.mark.parametrize(
    "wrong", [{"rates": (1.0,)}, {"durations": (1.0,)}, {"voices": (), "rates": ()}, {"pieces": 300}]
)
def test_settings_that_do_not_go_together_are_refused(speech_text_lm: SpeechTextLm, wrong: dict[str, tuple]) -> None:
    with pytest.raises(ConfigError, match=r"give a rate for each voice|give \d+ durations"):
        SpeechTextLm(replace(speech_text_lm.config, **wrong))


def test_a_corrupted_context_does_not_change_the_targets(speech_text_lm: SpeechTextLm) -> None:
    tokens, past = torch.arange(10), torch.arange(10).flip(0)
    row, targets = speech_example(speech_text_lm, HELLO, "robot", tokens)
    changed_row, same_targets = speech_example(speech_text_lm, HELLO, "robot", tokens, past)
    assert torch.equal(targets, same_targets)
    start = speech_text_lm.lm.vocabulary.span(SPEECH).start
    assert (changed_row.ids[0, -10:] - start).tolist() == past.tolist()
    assert (row.ids[0, -10:] - start).tolist() == tokens.tolist()
    fast, _ = speech_example(speech_text_lm, HELLO, "robot", tokens, stretch=2.0)
    torch.testing.assert_close(fast.positions[0, -10:], 2.0 * row.positions[0, -10:])
    # without a stretch, speech and text end together
    length = speech_text_lm.length(HELLO)
    assert float(row.positions[0, -1]) == pytest.approx(length * 9.5 / 10)


def summed(lm: SpeechTextLm, tokens: Tensor, letters: list[int], states: Tensor | None = None) -> float:
    """Return the log-probability of letters and their end, computed at once and without a cache."""
    row, targets = text_example(lm, tokens, torch.tensor(letters, dtype=torch.int64))
    features = None
    if states is not None:
        row, features = continuous(row, states)
    with torch.no_grad():
        return -float(lm(row, targets, LETTER, features).sum())


TOKENS = torch.tensor([5, 5, 60, 12, 33, 79, 0, 41])


@pytest.mark.parametrize("beam", [1, 4])
def test_the_score_of_a_text_is_that_of_the_whole_row(speech_text_lm: SpeechTextLm, beam: int) -> None:
    let_it_end(speech_text_lm)
    texts = speech_text_lm.transcribe(TOKENS, beam=beam)
    assert texts
    for letters, score in texts[:6]:
        assert score == pytest.approx(summed(speech_text_lm, TOKENS, letters), abs=1e-3)
        assert all(0 <= letter < len(LETTERS) for letter in letters)
    worth = [score / (len(letters) + 1) for letters, score in texts]
    assert worth == sorted(worth, reverse=True)


def test_the_score_of_a_text_is_that_of_the_whole_row_with_features(speech_text_lm: SpeechTextLm) -> None:

    with torch.no_grad():
        speech_text_lm.project.bias.normal_(generator=seeded())
    states = torch.randn(8, 16, generator=seeded())
    let_it_end(speech_text_lm, states)
    texts = [text for text in speech_text_lm.transcribe(TOKENS, states, beam=6) if len(text[0]) > 1]
    assert texts
    for letters, score in texts:
        assert score == pytest.approx(summed(speech_text_lm, TOKENS, letters, states), abs=1e-3)


def greedy(lm: SpeechTextLm, tokens: Tensor) -> list[int]:
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
def test_the_best_text_is_no_worse_than_the_likeliest_letters(speech_text_lm: SpeechTextLm, beam: int) -> None:
    let_it_end(speech_text_lm)
    for seed in range(12):
        tokens = torch.randint(80, (12,), generator=seeded(seed))
        expected = greedy(speech_text_lm, tokens)
        if len(expected) > 12:  # it never ends
            continue
        best, score = speech_text_lm.transcribe(tokens, beam=beam)[0]
        assert score / (len(best) + 1) >= summed(speech_text_lm, tokens, expected) / (len(expected) + 1) - 1e-4


def let_it_end(lm: SpeechTextLm, states: Tensor | None = None) -> None:
    """Let random weights write the end now and then."""
    row, _ = text_example(lm, TOKENS, torch.arange(8))
    features = None
    if states is not None:
        row, features = continuous(row, states)
        features = lm._projected(features)
    with torch.no_grad():
        usual = lm.lm(row, features)[0, -8:].mean(0)
        lm.lm.network.embed_tokens.weight[EOS] = 2.0 * usual / usual.square().sum()


def test_more_beams_find_no_worse_texts(speech_text_lm: SpeechTextLm) -> None:
    let_it_end(speech_text_lm)

    def worth(beam: int) -> list[float]:
        best = [
            speech_text_lm.transcribe(torch.randint(80, (10,), generator=seeded(s)), beam=beam)[0] for s in range(5)
        ]
        return [score / (len(letters) + 1) for letters, score in best]

    assert sum(worth(16)) >= sum(worth(1)) - 1e-4
    texts = speech_text_lm.transcribe(TOKENS, beam=8)
    assert len({tuple(letters) for letters, _ in texts}) == len(texts)


class Spelling:
    """Replaces a model: fixed logits of each step, whatever was written before."""

    def __init__(self, log_probs: Tensor) -> None:
        self.rows, self.step = log_probs, 0
        self.hidden = log_probs[:1]

    def feed(self, tokens: object) -> None:
        self.step += 1
        self.hidden = self.rows[min(self.step, len(self.rows) - 1)].expand(len(self.hidden), -1)

    def keep(self, rows: Tensor) -> None:
        self.hidden = self.hidden[rows]


def transcribed_as(
    text: str, speech_text_lm: SpeechTextLm, monkeypatch: pytest.MonkeyPatch, sure: float, end: float, beam: int
) -> str:
    """Return the transcript where each letter of a text has the probability `sure`, and the end `end` after words."""
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
    monkeypatch.setattr(speech_text_lm.lm, "table", lambda name, specials: torch.eye(len(LETTERS) + 1))
    best = speech_text_lm.transcribe(torch.zeros(len(text) + 5, dtype=torch.int64), beam=beam)[0][0]
    return "".join(LETTERS[letter] for letter in best)


@pytest.mark.parametrize("sure", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("end", [0.002, 0.02])
@pytest.mark.parametrize("beam", [1, 5])
def test_a_text_is_written_to_its_end(
    speech_text_lm: SpeechTextLm, monkeypatch: pytest.MonkeyPatch, sure: float, end: float, beam: int
) -> None:

    # with every letter: at 80 % for a letter, five of nine words are written, though the whole text is ranked higher
    text = "the quick brown fox jumps over the lazy dog"
    assert transcribed_as(text, speech_text_lm, monkeypatch, sure, end, beam) == text


def test_empty_speech_gives_a_short_transcript(speech_text_lm: SpeechTextLm) -> None:
    for letters, _ in speech_text_lm.transcribe(torch.zeros(0, dtype=torch.int64)):
        assert len(letters) <= 2


def test_features_replace_tokens(speech_text_lm: SpeechTextLm) -> None:
    states = torch.randn(8, 16, generator=seeded())
    letters = torch.tensor([3, 1, 20])
    row, targets = text_example(speech_text_lm, TOKENS, letters)
    other, _ = text_example(speech_text_lm, (TOKENS + 7) % 80, letters)

    def losses(given: Tensor, tokens_row: object = row) -> Tensor:
        with torch.no_grad():
            sequence, features = continuous(tokens_row, given)
            return speech_text_lm(sequence, targets, LETTER, features)

    expected = losses(states)
    assert expected.shape == (4,)
    assert torch.equal(losses(states, other), expected)  # tokens have no influence
    changed = states.clone()
    changed[7, 3] += 1.0
    assert (losses(changed) - expected).abs().min() > 1e-5
    assert speech_text_lm.transcribe(TOKENS, states) == speech_text_lm.transcribe((TOKENS + 7) % 80, states)
    assert speech_text_lm.transcribe(TOKENS, states) != speech_text_lm.transcribe(TOKENS, changed)
    with torch.no_grad():
        by_tokens, by_others = (speech_text_lm(one, targets, LETTER) for one in (row, other))
    assert not torch.allclose(by_tokens, by_others, atol=1e-4)


def test_features_of_a_batch_end_where_each_ends(speech_text_lm: SpeechTextLm) -> None:
    counts, states = (8, 3), torch.randn(2, 8, 16, generator=seeded())
    states[1, 3:] = 0.0
    examples = [text_example(speech_text_lm, TOKENS[:count], torch.tensor([3, 1])) for count in counts]
    rows = stack_rows([row for row, _ in examples])
    sequence, features = continuous(rows, states)
    for number, count in enumerate(counts):
        ids = sequence.ids[number]
        assert ids[2 : 2 + count].tolist() == [EOS] * count
        assert torch.equal(ids[2 + count :], rows.ids[number, 2 + count :])
        assert torch.equal(features[number, 2 : 2 + count], states[number, :count])
        assert not features[number, 2 + count :].any()
        assert not features[number, :2].any()
        alone, row_tokens = continuous(
            recognition_row(TOKENS[:count], speech_text_lm.lm.vocabulary), states[number, :count]
        )
        assert torch.equal(alone.ids[0], ids[: count + 3])
        assert torch.equal(row_tokens[0], features[number, : count + 3])


def test_the_score_of_speech_is_the_sum_over_its_tokens_and_its_end(speech_text_lm: SpeechTextLm) -> None:
    result = speech_text_lm.score_speech(HELLO, "robot", TOKENS)
    row, _ = speech_example(speech_text_lm, HELLO, "robot", TOKENS)
    with torch.no_grad():
        log_probs = speech_text_lm.lm.logits(speech_text_lm.lm(row)[0, -9:], SPEECH, [EOS]).log_softmax(-1)
    expected = log_probs.gather(1, torch.tensor([*(TOKENS + 1).tolist(), 0])[:, None]).sum()
    assert result == pytest.approx(float(expected), abs=1e-3)
    assert result != speech_text_lm.score_speech(HELLO, "reader", TOKENS)


def test_a_model_that_has_learned_prefers_the_true_text(speech_text_lm: SpeechTextLm) -> None:
    pairs = [
        (HELLO, torch.tensor([1, 2, 3, 4, 5, 6, 7, 8] * 2)),
        (normalized(*LONG.symbols[4:]), torch.tensor([40, 50, 60, 70, 30, 20, 10] * 2)),
    ]
    optimizer = torch.optim.Adam(speech_text_lm.parameters(), 1e-2)
    for _ in range(60):
        losses = [
            speech_text_lm(*speech_example(speech_text_lm, text, "reader", tokens), SPEECH).mean()
            for text, tokens in pairs
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert sum(losses) < 1.0
    for (text, tokens), (other, _) in itertools.permutations(pairs, 2):
        assert (
            speech_text_lm.score_speech(text, "reader", tokens)
            > speech_text_lm.score_speech(other, "reader", tokens) + 5.0
        )
    (generated,) = says(speech_text_lm, HELLO, sampling=GREEDY)
    assert generated[:8] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_sizes_follow_from_what_there_is(speech_text_lm: SpeechTextLm) -> None:
    assert speech_text_lm.config.lm.ranges == {
        "mark": 4,
        "voice": 2,
        "symbol": len(SYMBOLS),
        "letter": 28,
        "speech": 80,
    }
    again = SpeechTextLmConfig(
        speech_text_lm.config.voices,
        speech_text_lm.config.durations,
        speech_text_lm.config.rates,
        80,
        16,
        lm=speech_text_lm.config.lm,
    )
    assert again == speech_text_lm.config
