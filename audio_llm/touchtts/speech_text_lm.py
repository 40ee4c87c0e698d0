"""TouchTTS's language model: text to semantic tokens, and tokens, or their continuous features, to text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from audio_llm.errors import ConfigError, UsageError
from audio_llm.lm.causal import INSIDE, CausalLm
from audio_llm.lm.grown_lm import GrownLm
from audio_llm.lm.sampling import Sampling, draw_without_loops
from audio_llm.lm.token_lm import Decoding, Sequence, TokenLm, TokenLmConfig
from audio_llm.lm.vocabulary import EOS
from audio_llm.touchtts.sequence_layout import (
    MARK,
    SPEECH,
    VOICE,
    Mark,
    Segment,
    moved,
    recognition_row,
    speech_row,
    stack_rows,
    text_row,
    transcript_row,
)
from audio_llm.touchtts.text import SYMBOLS, NormalizedText
from audio_llm.touchtts.text_tokens import PIECE, PhoneTokens, PieceTokens, TextTokens

SAMPLING = Sampling(temperature=0.8, top_k=25, top_p=0.8)  # for speech tokens
_SHORTEST, _LONGEST = 0.6, 1.5  # fractions of a text's expected duration
_WRITTEN_PER_TOKEN = 1.2  # text tokens per speech token at most
_END = 0  # output index of the end; tokens begin at 1


@dataclass(frozen=True)
class SpeechTextLmConfig:
    """Size of the model, and its durations.

    Attributes:
        voices: Names of the voices that the model has learned.
        durations: Duration of each text unit (by default `text.SYMBOLS`), in tokens.
        rates: Factor on these durations for each voice.
        speech: Number of speech tokens.
        states: Width of the tokenizer's continuous features; 0 where it has none.
        pieces: Vocabulary size of the pretrained LLM that the model is initialized from and whose word pieces it
            reads and writes; 0: no pretrained LLM, phones as input and letters as output.
        lm: Size of the model; ranges and segments are set here. A pretrained LLM determines the size.
    """

    voices: tuple[str, ...] = ("reader",)
    durations: tuple[float, ...] = tuple(2.0 for _ in SYMBOLS)
    rates: tuple[float, ...] = (1.0,)
    speech: int = 1000
    states: int = 144
    pieces: int = 0
    lm: TokenLmConfig = field(default_factory=lambda: TokenLmConfig(width=192, layers=5, heads=6, feed_forward=512))

    def __post_init__(self) -> None:
        if len(self.voices) != len(self.rates) or not self.voices:
            message = f"{len(self.voices)} voices, {len(self.rates)} rates"
            raise ConfigError(message, remedy="give a rate for each voice, and at least one voice")
        sizes = {MARK: len(Mark), VOICE: len(self.voices)}
        if self.pieces:
            ranges = {**sizes, SPEECH: self.speech, PIECE: self.pieces}
        else:
            ranges = {**sizes, **PhoneTokens.ranges, SPEECH: self.speech}
        object.__setattr__(self, "lm", replace(self.lm, ranges=ranges, segments=len(Segment)))


class SpeechTextLm(nn.Module):
    """The language model.

    Args:
        config: Size of the model.
        vectors: Vectors of the speech tokens, (R, D) float32 (see `TokenLm`).
        base: Pretrained LLM to initialize from, where the configuration has pieces.

    Attributes:
        text_tokens: Text tokenization of the input and the output.
        base: The pretrained LLM; its weights are part of the model, its configuration and tokenizer are not.

    Raises:
        ConfigError: Durations or vocabulary do not fit the text tokenization.
    """

    durations: Tensor

    def __init__(self, config: SpeechTextLmConfig, vectors: Tensor | None = None, base: CausalLm | None = None) -> None:
        super().__init__()
        self.text_tokens: TextTokens = text_tokens_of(base)
        if len(config.durations) != self.text_tokens.units or config.pieces != self.text_tokens.ranges.get(PIECE, 0):
            message = f"{len(config.durations)} durations, {config.pieces} pieces"
            remedy = (
                f"give {self.text_tokens.units} durations, and the pretrained LLM that the model is initialized from"
            )
            raise ConfigError(message, remedy=remedy)
        self.base = base
        vectors_of: Mapping[str, Tensor] = {} if vectors is None else {SPEECH: vectors}
        if base is None:
            self.lm = TokenLm(config.lm, vectors_of)
        else:
            self.lm = GrownLm(config.lm, base.network, vectors_of)
        self.config = replace(config, lm=self.lm.config)
        self.project = nn.Linear(config.states, self.lm.config.width) if config.states else nn.Identity()
        self.register_buffer("durations", torch.tensor(config.durations), persistent=False)

    def forward(self, sequence: Sequence, targets: Tensor, name: str, features: Tensor | None = None) -> Tensor:
        """Return next-token cross-entropies (K,) float32 in nats, of all K positions that have a target.

        Args:
            sequence: Sequences of `sequence_layout`, (B, N).
            targets: (B, N) int64: 0 for the end, tokens of a range from 1 on; -1 where there is no target.
            name: Range of the targets.
            features: (B, N, states) float32, in place of speech tokens (see `continuous`).
        """
        given = None if features is None else self._projected(features)
        hidden = self.lm(sequence, given)[targets >= 0]
        logits = self.lm.logits(hidden, name, [EOS]).float()
        return nn.functional.cross_entropy(logits, targets[targets >= 0], reduction="none")

    def assets(self) -> dict[str, str]:
        """Return the text files that the model directory needs in addition to configuration and weights, by name."""
        if self.base is None:
            return {}
        return {**self.base.files, INSIDE: json.dumps(self.base.config())}

    def _projected(self, features: Tensor) -> Tensor:
        """Return features (B, N, states) as embeddings; where they are 0, nothing is added, not even the bias."""
        return self.project(features) * (features.abs().sum(-1, keepdim=True) > 0)

    def voice(self, name: str) -> int:
        """Return the index of a voice; raises `UsageError` for an unknown name."""
        if name not in self.config.voices:
            raise UsageError(f"unknown voice {name!r}", remedy=f"use one of {', '.join(self.config.voices)}")
        return self.config.voices.index(name)

    def length(self, text: NormalizedText) -> float:
        """Return the expected duration of a text in tokens, before the voice's rate."""
        return float(self.text_tokens.encode_input(text).durations(self.durations.cpu()).sum())

    def expected_tokens(self, text: NormalizedText, voice: str) -> float:
        """Return the expected number of speech tokens of a text."""
        return self.length(text) * self.config.rates[self.voice(voice)]

    def most_tokens(self, text: NormalizedText, voice: str) -> int:
        """Return the largest number of speech tokens of a text; speech that has not ended by then is cut off."""
        return max(2, math.ceil(_LONGEST * self.expected_tokens(text, voice)))

    @torch.inference_mode()
    def generate(
        self,
        texts: Rows[NormalizedText],
        voice: str,
        sampling: Sampling = SAMPLING,
        generator: torch.Generator | None = None,
    ) -> Iterator[list[int]]:
        """Yield the next speech token of each text until all have ended; -1 where one has ended.

        The texts of a batch do not influence each other, but share one generator.

        Args:
            texts: Texts to synthesize.
            voice: Name of the voice.
            sampling: Sampling parameters.
            generator: Random generator.

        Raises:
            UsageError: Unknown voice.
        """
        number, device, durations = self.voice(voice), self.durations.device, self.durations.cpu()
        inputs = [self.text_tokens.encode_input(text) for text in texts]
        rows = [text_row(text, number, durations, self.text_tokens, self.lm.vocabulary) for text in inputs]
        expected = torch.tensor([self.expected_tokens(text, voice) for text in texts], device=device)
        length = torch.stack([text.durations(durations).sum() for text in inputs]).to(device)
        most = torch.tensor([self.most_tokens(text, voice) for text in texts], device=device)

        def positions(step: int) -> Tensor:
            return (step + 0.5) * length / expected

        run = Decoding(self.lm, moved(stack_rows(rows, left=True), device))
        yield from _sample_speech(run, self.lm, positions, (_SHORTEST * expected).floor(), most, sampling, generator)

    @torch.inference_mode()
    def transcribe(self, tokens: Tensor, states: Tensor | None = None, beam: int = 4) -> list[tuple[list[int], float]]:
        """Return transcripts of speech: tokens of the text tokenization with their log-probabilities, best first.

        Args:
            tokens: (T,) int64.
            states: (T, states) float32, continuous features used in place of the tokens.
            beam: Beam width.
        """
        device = self.durations.device
        row = moved(recognition_row(tokens.cpu(), self.lm.vocabulary), device)
        features = None
        if states is not None:
            row, features = continuous(row, states.to(device))
            features = self._projected(features)
        table = self.lm.table(self.text_tokens.output_range, [EOS])

        def follow(texts: Rows[list[int]]) -> Sequence:
            rows = [transcript_row(torch.tensor(text), self.text_tokens, self.lm.vocabulary) for text in texts]
            last = [Sequence(*(part[:, -1:] for part in row)) for row in rows]
            return moved(stack_rows(last), device)

        return _beam_search(
            Decoding(self.lm, row, features), table, follow, int(len(tokens) * _WRITTEN_PER_TOKEN) + 2, beam
        )

    def score_speech(self, text: NormalizedText, voice: str, tokens: Tensor) -> float:
        """Return the log-probability in nats of speech tokens (T,) int64 and their end, given a text."""
        sequence, targets = speech_example(self, text, voice, tokens)
        device = self.durations.device
        with torch.inference_mode():
            return -float(self(moved(sequence, device), targets.to(device), SPEECH).sum())


def text_tokens_of(base: CausalLm | None) -> TextTokens:
    """Return the text tokenization of a model with this pretrained LLM, or with none."""
    if base is None:
        return PhoneTokens()
    return PieceTokens(base.tokenizer, base.network.get_input_embeddings().num_embeddings)


def _sample_speech(
    run: Decoding,
    lm: TokenLm,
    positions: Callable[[int], Tensor],
    least: Tensor,
    most: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None,
) -> Iterator[list[int]]:
    """Yield the next speech token of each row until all have ended; -1 where one has ended.

    Args:
        run: Decoding state of the conditioning sequences, one row a text.
        lm: The model.
        positions: Maps a step to the positions (B,) of its tokens.
        least: (B,), number of tokens before which a row cannot end.
        most: (B,), number of tokens at which a row is cut off.
        sampling: Sampling parameters.
        generator: Random generator.
    """
    table = lm.table(SPEECH, [EOS])
    history = torch.zeros(len(most), 0, dtype=torch.int64, device=most.device)
    ended = torch.zeros(len(most), dtype=torch.bool, device=most.device)
    for step in range(int(most.max())):
        logits = (run.hidden @ table.T).float()
        logits[step < least, _END] = -torch.inf
        drawn = draw_without_loops(logits, history, sampling, generator=generator)
        ended = ended | (drawn == _END) | (step >= most)
        if bool(ended.all()):
            return
        tokens = drawn.masked_fill(ended, 1) - 1
        yield [-1 if end else token for token, end in zip(tokens.tolist(), ended.tolist(), strict=True)]
        history = torch.cat([history, drawn[:, None]], dim=1)
        ids = lm.vocabulary.encode(SPEECH, tokens)[:, None]
        run.feed(Sequence(ids, torch.full_like(ids, Segment.SPEECH), positions(step)[:, None]))


def _beam_search(
    run: Decoding, table: Tensor, follow: Callable[[Rows[list[int]]], Sequence], longest: int, beam: int
) -> list[tuple[list[int], float]]:
    """Return texts with their log-probabilities, ranked by log-probability per symbol.

    Args:
        run: Decoding state of the speech, one row.
        table: Output vectors of the end and of the text tokens.
        follow: Maps B partial texts to the last token of each as rows (B, 1).
        longest: Largest number of text tokens.
        beam: Beam width.
    """
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for _ in range(longest):
        log_probs = (run.hidden @ table.T).float().log_softmax(-1)
        totals = log_probs.cpu() + torch.tensor([score for _, score in beams])[:, None]
        best = totals.flatten().topk(min(2 * beam, totals.numel()))
        following: list[tuple[list[int], float, int]] = []
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            source, letter = divmod(index, totals.shape[1])
            if letter == _END:
                done.append((beams[source][0], score))
            elif len(following) < beam:
                following.append(([*beams[source][0], letter - 1], score, source))
        if not following:
            break
        if len(done) >= beam and _score_per_symbol(_ranked(done)[beam - 1]) > max(
            _score_per_symbol(text[:2]) for text in following
        ):
            break
        run.keep(torch.tensor([source for *_, source in following], device=run.hidden.device))
        beams = [(letters, score) for letters, score, _ in following]
        run.feed(follow([letters for letters, _ in beams]))
    return _ranked(done or beams)


def speech_example(
    lm: SpeechTextLm, text: NormalizedText, voice: str, tokens: Tensor, past: Tensor | None = None, stretch: float = 1.0
) -> tuple[Sequence, Tensor]:
    """Return the training sequence (1, N) of a text and its speech, and the targets.

    Args:
        lm: The model.
        text: The text.
        voice: Name of the voice.
        tokens: (T,) int64 of the speech.
        past: (T,) int64, speech tokens given as context in place of the true ones.
        stretch: Factor on the positions of the speech tokens.
    """
    vocabulary, durations = lm.lm.vocabulary, lm.durations.cpu()
    text_input = lm.text_tokens.encode_input(text)
    given = text_row(text_input, lm.voice(voice), durations, lm.text_tokens, vocabulary)
    length = float(text_input.durations(durations).sum())
    times = (torch.arange(len(tokens)) + 0.5) * (length / len(tokens) * stretch)
    speech = speech_row(tokens if past is None else past, times, vocabulary)
    return _with_targets(given, speech, tokens)


def text_example(lm: SpeechTextLm, tokens: Tensor, written: Tensor) -> tuple[Sequence, Tensor]:
    """Return the training sequence (1, N) of speech tokens (T,) and their transcript (L,), and the targets."""
    vocabulary = lm.lm.vocabulary
    return _with_targets(
        recognition_row(tokens, vocabulary), transcript_row(written, lm.text_tokens, vocabulary), written
    )


def continuous(row: Sequence, states: Tensor, first: int = 2) -> tuple[Sequence, Tensor]:
    """Return sequences with uniform speech tokens, and the continuous features (B, N, states) that replace them.

    Args:
        row: Sequence of `recognition_row`, (B, N).
        states: (T, states) or (B, T, states) float32, 0 after each end.
        first: Index of the first speech token.
    """
    states = states if states.dim() == 3 else states[None]
    count = states.shape[1]
    ids = row.ids.clone()
    ids[:, first : first + count] = torch.where(states.abs().sum(-1) > 0, EOS, ids[:, first : first + count])
    features = states.new_zeros(*ids.shape, states.shape[2])
    features[:, first : first + count] = states
    return row._replace(ids=ids), features


def _with_targets(given: Sequence, continuation: Sequence, expected: Tensor) -> tuple[Sequence, Tensor]:
    """Return the concatenated row (1, N) and its targets (1, N) int64 as `SpeechTextLm.forward` takes them."""
    row = Sequence(*(torch.cat(parts, dim=1) for parts in zip(given, continuation, strict=True)))
    targets = torch.full_like(row.ids, -1)
    first = given.ids.shape[1] - 1
    targets[0, first:-1], targets[0, -1] = expected + 1, _END
    return row, targets


def _ranked(texts: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
    """Return texts by their score per symbol, best first."""
    return sorted(texts, key=_score_per_symbol, reverse=True)


def _score_per_symbol(text: tuple[list[int], float]) -> float:
    """Return the log-probability of a text divided by its number of symbols, including the end."""
    return text[1] / (len(text[0]) + 1)
