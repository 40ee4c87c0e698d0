"""Decoding with the Denoising LM: greedy search, beam search, the sum over hypotheses, and scores of given texts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audio_llm.dlm import vocab
from audio_llm.dlm.model import DecoderState, DenoisingLM, batch_sources, batch_targets

BATCH = 32
_SPACE = vocab.encode(" ")[0]
_HOPELESS = 20.0  # nats; the search drops texts that are this much less probable than the best one


@dataclass(frozen=True)
class Candidate:
    """A text with its score.

    Attributes:
        text: Normalized words.
        log_prob: Sum of log-probabilities of its characters and the end, natural log.
        finished: False where the length limit cut the text off.
    """

    text: str
    log_prob: float
    finished: bool = True


def length_limit(hypothesis: str) -> int:
    """Return how many characters a correction may have, including the end symbol."""
    return int(1.5 * len(hypothesis)) + 20


def least_length(hypothesis: str) -> int:
    """Return the least number of characters of a correction.

    Lengths of hypothesis and reference differ by about the square root of the length: none of 935 references is
    shorter than pocketsphinx's text by more than twice that. Without this bound, beam search ends long texts half-way,
    because the end symbol costs less than the uncertain characters of the rest.
    """
    return max(0, int(len(hypothesis) - 2.5 * math.sqrt(len(hypothesis))))


@torch.inference_mode()
def greedy(model: DenoisingLM, hypotheses: Sequence[str]) -> list[Candidate]:
    """Return the greedy correction of each hypothesis: the most likely next character until the end."""
    results: list[Candidate | None] = [None] * len(hypotheses)
    by_length = sorted(range(len(hypotheses)), key=lambda i: len(hypotheses[i]))
    for first in range(0, len(by_length), BATCH):
        indices = by_length[first : first + BATCH]
        candidates = _greedy_batch(model, [hypotheses[i] for i in indices])
        for index, candidate in zip(indices, candidates, strict=True):
            results[index] = candidate
    return [candidate for candidate in results if candidate is not None]


@torch.inference_mode()
def beam(model: DenoisingLM, hypothesis: str, width: int = 8) -> list[Candidate]:
    """Return up to `width` distinct corrections of one hypothesis, best first."""
    return _search(model, [hypothesis], torch.zeros(1), width, width)


@torch.inference_mode()
def dlm_sum(
    model: DenoisingLM, hypotheses: Sequence[str], log_weights: Sequence[float], width: int = 8, count: int = 1
) -> list[Candidate]:
    """Beam search over log sum_h w_h p(text | hypothesis h) (Denoising LM reproduction: DLM-sum).

    Args:
        model: The Denoising LM.
        hypotheses: Distinct texts of the recognizer.
        log_weights: Log-weight of each hypothesis; the weights need not sum to one.
        width: Beam width.
        count: Number of texts to return; the search ends when no better one can follow.

    Returns:
        Up to `count` distinct texts, best first; none for no hypothesis.
    """
    if not hypotheses:
        return []
    return _search(model, hypotheses, torch.tensor(log_weights).log_softmax(0), width, count)


@torch.inference_mode()
def log_probs(model: DenoisingLM, hypotheses: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Return log p(text | hypothesis) of each pair, including the end symbol, in evaluation mode."""
    device = next(model.parameters()).device
    results = [0.0] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]) + len(hypotheses[i]))
    for first in range(0, len(by_length), BATCH):
        indices = by_length[first : first + BATCH]
        source, lengths = batch_sources([hypotheses[i] for i in indices], device)
        target_in, target_out = batch_targets([texts[i] for i in indices], device)
        for index, total in zip(indices, _totals(model(source, lengths, target_in), target_out), strict=True):
            results[index] = total
    return results


@torch.inference_mode()
def greedy_and_log_probs(model: DenoisingLM, hypothesis: str, texts: Sequence[str]) -> tuple[Candidate, list[float]]:
    """Return the result of `greedy` for one hypothesis, and log p(text | hypothesis) of each text as in `log_probs`.

    The hypothesis is encoded once, and the first pass of the search is batched with the texts.
    """
    device = next(model.parameters()).device
    encoded = model.encode(*batch_sources([hypothesis], device))
    target_in, target_out = batch_targets([hypothesis, *texts], device)
    scores = model.read(_rows(encoded, [0] * len(target_in), device), target_in)
    totals = _totals(scores, target_out)[1:]
    draft = _Draft.of(hypothesis)
    (candidate,) = _settle([draft], scores[:1], target_in[:1])
    while candidate is None:
        (candidate,) = _verify(model, encoded, [0], [draft])
    return candidate, totals


def _totals(log_probabilities: Tensor, target_out: Tensor) -> list[float]:
    chosen = log_probabilities.gather(2, target_out[:, :, None])[:, :, 0]
    totals: list[float] = chosen.masked_fill(target_out == vocab.PAD, 0.0).sum(1).tolist()
    return totals


@dataclass
class _Draft:
    """The draft of one greedy search: the characters that are settled, and a guess at the rest.

    The hypothesis is mostly correct, so that one decoder pass over the whole guess settles most characters at once.
    After each difference the next guess continues with the rest of the hypothesis from the aligned position.
    """

    source: np.ndarray  # (S,) int64
    limit: int
    least: int
    distances: np.ndarray  # (S + 1,) edit distance of the settled characters to each prefix of the source
    settled: list[int]
    guess: list[int]  # begins with the settled characters

    @classmethod
    def of(cls, hypothesis: str) -> _Draft:
        source = vocab.encode(hypothesis)
        limit, least = length_limit(hypothesis), least_length(hypothesis)
        nothing = np.arange(len(source) + 1, dtype=np.float64)
        return cls(np.array(source, dtype=np.int64), limit, least, nothing, [], [*source, vocab.EOS][:limit])

    def settle(self, best: list[int]) -> bool:
        """Settle the best characters up to the first that differs from the guess; return whether the text ended."""
        agreed = next((i for i, (a, b) in enumerate(zip(best, self.guess, strict=True)) if a != b), len(best))
        text = [*self.guess[:agreed], *best[agreed : agreed + 1]]
        for character in text[len(self.settled) :]:
            self.distances = _next_row(self.distances, character, self.source)
        self.settled = text
        if vocab.EOS in text[-1:] or len(text) >= self.limit:
            return True
        columns = np.arange(len(self.distances))
        reached = int((self.distances * (len(columns) + 1) - columns).argmin())  # the longest of the nearest prefixes
        self.guess = [*text, *self.source[reached:].tolist(), vocab.EOS][: self.limit]
        return False


def _next_row(distances: np.ndarray, character: int, source: np.ndarray) -> np.ndarray:
    columns = np.arange(len(distances))
    inserted = distances + 1.0
    inserted[1:] = np.minimum(inserted[1:], distances[:-1] + (source != character))
    return np.minimum.accumulate(inserted - columns) + columns


def _greedy_batch(model: DenoisingLM, hypotheses: Sequence[str]) -> list[Candidate]:
    encoded = model.encode(*batch_sources(hypotheses, next(model.parameters()).device))
    drafts = [_Draft.of(hypothesis) for hypothesis in hypotheses]
    results: list[Candidate | None] = [None] * len(drafts)
    while rows := [row for row, candidate in enumerate(results) if candidate is None]:
        for row, candidate in zip(rows, _verify(model, encoded, rows, [drafts[row] for row in rows]), strict=True):
            results[row] = candidate
    return [candidate for candidate in results if candidate is not None]


def _verify(
    model: DenoisingLM, encoded: DecoderState, rows: list[int], drafts: Sequence[_Draft]
) -> list[Candidate | None]:
    """Run the decoder once over the guess of each draft.

    Args:
        model: The Denoising LM.
        encoded: The encoded hypotheses.
        rows: Row of `encoded` that holds the hypothesis of each draft.
        drafts: The drafts, updated in place.

    Returns:
        The finished text of each draft; None where it is not finished.
    """
    guesses, _ = vocab.pad([[vocab.BOS, *draft.guess] for draft in drafts])
    target_in = torch.from_numpy(guesses[:, :-1]).to(next(model.parameters()).device)
    return _settle(drafts, model.read(_rows(encoded, rows, target_in.device), target_in), target_in)


def _rows(encoded: DecoderState, rows: list[int], device: torch.device) -> DecoderState:
    state = copy.copy(encoded)
    state.select(torch.tensor(rows, device=device))
    return state


def _settle(drafts: Sequence[_Draft], log_probabilities: Tensor, target_in: Tensor) -> list[Candidate | None]:
    """Update the drafts by the log-probabilities (B, T, V) after each character of (B, T); return as `_verify`."""
    scores = _allowed(log_probabilities, target_in, [draft.least for draft in drafts])
    best = scores.argmax(-1).tolist()
    results: list[Candidate | None] = []
    for row, draft in enumerate(drafts):
        if draft.settle(best[row][: len(draft.guess)]):
            chosen = torch.tensor(draft.settled, device=scores.device)[:, None]
            total = float(scores[row, : len(chosen)].gather(1, chosen).sum())
            results.append(Candidate(_tidy(vocab.decode(draft.settled)), total, vocab.EOS in draft.settled))
        else:
            results.append(None)
    return results


def _allowed(log_probabilities: Tensor, target_in: Tensor, least: Sequence[int]) -> Tensor:
    """Mask in (B, T, V) what `_forbid` masks after each character of (B, T), and ends before the least length."""
    _forbid(log_probabilities.view(-1, vocab.SIZE), target_in.flatten())
    for row, length in zip(log_probabilities, least, strict=True):
        row[:length, vocab.EOS] = -math.inf
    return log_probabilities


@dataclass
class _Beam:
    """Open prefixes of one search: rows of `state` are beams x hypotheses, hypothesis fastest."""

    written: Tensor  # (K, t) int64
    prefix: Tensor  # (K, H) log w_h + log p(prefix | h)
    state: DecoderState


def _search(
    model: DenoisingLM, hypotheses: Sequence[str], log_weights: Tensor, width: int, n_best: int
) -> list[Candidate]:
    device = next(model.parameters()).device
    source, lengths = batch_sources(hypotheses, device)
    log_weights = log_weights.to(device)
    count = len(hypotheses)
    active = _Beam(torch.full((1, 1), vocab.BOS, device=device), log_weights[None], model.encode(source, lengths))
    finished: dict[str, float] = {}
    least = min(least_length(h) for h in hypotheses)
    for length in range(max(length_limit(h) for h in hypotheses)):
        last = active.written[:, -1].repeat_interleave(count)
        step = _forbid(model.step(last, active.state), last).view(-1, count, vocab.SIZE)
        extended = active.prefix[:, :, None] + step  # (K, H, V)
        totals = extended.logsumexp(1)  # (K, V)
        for beam_index, total in enumerate(totals[:, vocab.EOS].tolist()):
            if total > -math.inf and length >= least:
                finished[vocab.decode(active.written[beam_index, 1:].tolist())] = total
        totals[:, vocab.EOS] = -math.inf
        best, top = totals.flatten().topk(min(width, totals.numel()))
        if _is_done(finished, n_best, float(best[0])):
            break
        top = top[best > -math.inf]  # fewer prefixes than the beam is wide
        beams, characters = top // vocab.SIZE, top % vocab.SIZE
        rows = (beams[:, None] * count + torch.arange(count, device=device)[None]).flatten()
        active.state.select(rows, same_memory=len(beams) == len(active.written))  # row r reads hypothesis r % count
        active.prefix = extended[beams, :, characters]
        active.written = torch.cat([active.written[beams], characters[:, None]], dim=1)
    ranked = sorted(finished.items(), key=lambda row: (-row[1], row[0]))[:n_best]
    return [Candidate(text, total) for text, total in ranked]


def _is_done(finished: dict[str, float], n_best: int, best_open: float) -> bool:
    """Return whether no open prefix can still enter the list, as probabilities only fall."""
    ranked = sorted(finished.values(), reverse=True)
    if not ranked:
        return best_open == -math.inf
    worst = ranked[n_best - 1] if len(ranked) >= n_best else -math.inf
    return best_open <= max(worst, ranked[0] - _HOPELESS)


def _forbid(log_probabilities: Tensor, last: Tensor) -> Tensor:
    """Mask the symbols that never follow the characters `last`, in place.

    These are padding, BOS, UNK, and every space that `_tidy` would remove, so that each text has one spelling and
    its score equals that of `log_probs`.

    Args:
        log_probabilities: (N, V) float32.
        last: (N,) int64.
    """
    log_probabilities[:, [vocab.PAD, vocab.BOS, vocab.UNK]] = -math.inf
    after_space = last == _SPACE
    log_probabilities[after_space | (last == vocab.BOS), _SPACE] = -math.inf
    log_probabilities[after_space, vocab.EOS] = -math.inf
    return log_probabilities


def _tidy(text: str) -> str:
    return " ".join(text.split())
