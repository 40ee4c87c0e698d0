"""Decoding and scoring of texts with the neural corrector."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audio_llm.ger.batches import Collator
from audio_llm.ger.model import IGNORED, RobustGer
from audio_llm.ger.word_graph import States, TokenGraph, WordGraph

_LEAST_NEW = 12  # tokens that may always be generated
_AT_ONCE = 32  # lists per batch
_LONGER = 1.5  # length limit over the longest hypothesis


@dataclass(frozen=True)
class Written:
    """A text that the model generated.

    Attributes:
        text: The text.
        log_prob: Natural log of its probability, end token included.
        finished: Whether the model generated the end token.
    """

    text: str
    log_prob: float
    finished: bool


@torch.no_grad()
def greedy(model: RobustGer, collator: Collator, lists: Sequence[Sequence[str]]) -> list[Written]:
    """Decode each list greedily.

    Args:
        model: In eval mode, so that the result is deterministic.
        collator: Builds its prompts.
        lists: Hypotheses of each list, normalized, best first, with duplicates.
    """
    order = sorted(range(len(lists)), key=lambda row: sum(map(len, lists[row])))  # similar lengths share a batch
    results: dict[int, Written] = {}
    for start in range(0, len(order), _AT_ONCE):
        rows = order[start : start + _AT_ONCE]
        results |= zip(rows, _greedy(model, collator, [lists[row] for row in rows]), strict=True)
    return [results[row] for row in range(len(lists))]


def _greedy(model: RobustGer, collator: Collator, lists: Sequence[Sequence[str]]) -> list[Written]:
    end = collator.prompts.end
    written: list[list[int]] = [[] for _ in lists]
    logs = torch.zeros(len(lists), device=model.device)
    writer = _Writer(model, collator, lists)
    limits = torch.tensor(writer.limits, device=model.device)
    with writer.condition():
        last = writer.read()
        open_rows = limits > 0
        for count in range(1, 1 + max(writer.limits)):
            best, token = last.log_softmax(-1).max(dim=-1)
            logs += best * open_rows
            for row in torch.nonzero(open_rows)[:, 0].tolist():
                written[row].append(int(token[row]))
            open_rows &= (token != end) & (limits > count)
            if not open_rows.any():
                break
            last = writer.write(token)
    return [
        Written(collator.prompts.text(ids), log, bool(ids) and ids[-1] == end)
        for ids, log in zip(written, logs.tolist(), strict=True)
    ]


@torch.no_grad()
def search(model: RobustGer, collator: Collator, texts: Sequence[str], graph: WordGraph, width: int = 4) -> Written:
    """Return the likeliest text that a word graph allows, by beam search.

    Args:
        model: In eval mode.
        collator: Builds its prompts.
        texts: Hypotheses of one list, normalized, best first, with duplicates.
        graph: The texts that are allowed; see `word_graph`.
        width: Width of the beam.
    """
    words = {word for arcs in graph.arcs for word, _ in arcs}
    end = collator.prompts.end
    tokens = TokenGraph(graph, {word: tuple(collator.prompts.response_ids(word)) for word in words}, end)
    beam: list[tuple[float, tuple[int, ...], States]] = [(0.0, (), tokens.start())]  # log-probability, tokens, states
    done: list[tuple[float, tuple[int, ...]]] = []
    writer = _Writer(model, collator, [texts])
    with writer.condition():
        last = writer.read()
        for _ in range(writer.limits[0]):
            log_probs = last.log_softmax(-1)
            longer = []
            for row, (log, ids, states) in enumerate(beam):
                allowed = tokens.allowed(states)
                for token, more in zip(allowed, log_probs[row, allowed].tolist(), strict=True):
                    if token == end:
                        done.append((log + more, ids))
                    else:
                        longer.append((log + more, row, token))
            survivors = heapq.nlargest(width, longer)
            if not survivors or (done and max(done)[0] >= survivors[0][0]):
                break
            writer.select(torch.tensor([row for _, row, _ in survivors], device=model.device))
            beam = [(log, (*beam[r][1], token), tokens.advance(beam[r][2], token)) for log, r, token in survivors]
            last = writer.write(torch.tensor([token for _, _, token in survivors], device=model.device))
    if done:
        log, ids = max(done)
        return Written(collator.prompts.text(ids), log, True)
    log, ids, _ = beam[0]
    return Written(collator.prompts.text(ids), log, False)


@torch.no_grad()
def log_probs(
    model: RobustGer, collator: Collator, lists: Sequence[Sequence[str]], texts: Sequence[str]
) -> list[float]:
    """Return the natural log probability of one text for each list, end token included."""
    if not lists:
        return []
    batch = collator.batch(lists, texts).to(model.device)
    first = int((batch.labels != IGNORED).any(dim=0).int().argmax())
    with model.condition(batch.noise, batch.noise_valid):
        keep = batch.ids.shape[1] - first + 1
        logits = model(batch.ids, batch.positions, batch.segments, batch.valid, keep=keep)
    targets = batch.labels[:, first:]
    chosen = logits[:, :-1].float().log_softmax(-1).gather(2, targets.clamp_min(0)[:, :, None])[:, :, 0]
    return [float(total) for total in (chosen * (targets != IGNORED)).sum(dim=1)]


@torch.no_grad()
def score_candidates(
    model: RobustGer, collator: Collator, texts: Sequence[str], candidates: Sequence[str]
) -> list[float]:
    """Return the natural log probability of several texts for one list; the prompt is read only once.

    Args:
        model: In eval mode.
        collator: Builds its prompts.
        texts: Hypotheses of the list, normalized, best first, with duplicates.
        candidates: Texts to score, normalized.
    """
    if not candidates:
        return []
    writer = _Writer(model, collator, [texts])
    targets = [[*collator.prompts.response_ids(text), collator.prompts.end] for text in candidates]
    with writer.condition():
        first = writer.read().log_softmax(-1)[0]
        writer.select(torch.zeros(len(candidates), dtype=torch.int64, device=model.device))
        longest = max(map(len, targets))
        ids = torch.tensor(
            [row + [collator.prompts.pad] * (longest - len(row)) for row in targets], device=model.device
        )
        totals = first[ids[:, 0]]
        if longest > 1:
            after = writer.write_many(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
            lengths = torch.tensor([len(row) for row in targets], device=model.device)
            there = torch.arange(1, longest, device=model.device) < lengths[:, None]
            totals = totals + (after * there).sum(dim=1)
    return [float(total) for total in totals]


class _Writer:
    """Reads prompts once, then decodes one token at a time."""

    def __init__(self, model: RobustGer, collator: Collator, lists: Sequence[Sequence[str]]) -> None:
        from transformers import DynamicCache

        prompts = [collator.prompts.encode(texts) for texts in lists]
        self.model = model
        self._batch = collator.pad(prompts, lists).to(model.device)
        self._valid = self._batch.valid
        self._position = torch.tensor([prompt.next_position for prompt in prompts], device=model.device)
        self._cache: Any = DynamicCache()
        # maximum tokens of each text
        self.limits = [
            max(0, min(_new_tokens(collator, texts), model.max_positions - prompt.next_position))
            for texts, prompt in zip(lists, prompts, strict=True)
        ]

    def condition(self) -> Any:
        """Condition the model on the noise embeddings of the lists."""
        return self.model.condition(self._batch.noise, self._batch.noise_valid)

    def read(self) -> Tensor:
        """Read the prompts; return the logits of the first tokens, (B, V) float32."""
        batch = self._batch
        logits = self.model(batch.ids, batch.positions, batch.segments, batch.valid, cache=self._cache)
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, batch.valid.sum(dim=1) - 1].float()

    def write(self, tokens: Tensor) -> Tensor:
        """Append a token to each text, (B,) int64; return the logits of the next token, (B, V) float32."""
        self._valid = torch.cat([self._valid, self._valid.new_ones(len(tokens), 1)], dim=1)
        column = tokens[:, None]
        segments = torch.zeros_like(column)
        logits = self.model(column, self._position[:, None], segments, self._valid, cache=self._cache)
        self._position = self._position + 1
        return logits[:, -1].float()

    def write_many(self, tokens: Tensor) -> Tensor:
        """Append tokens to each text, (B, T) int64; return the logits after each, (B, T, V) float32."""
        count, length = tokens.shape
        self._valid = torch.cat([self._valid, self._valid.new_ones(count, length)], dim=1)
        positions = self._position[:, None] + torch.arange(length, device=tokens.device)
        segments = torch.zeros_like(tokens)
        logits = self.model(tokens, positions, segments, self._valid, cache=self._cache)
        self._position = self._position + length
        return logits.float()

    def select(self, rows: Tensor) -> None:
        """Select these texts, in this order; a text may be selected several times."""
        self._cache.reorder_cache(rows)
        self._valid, self._position = self._valid[rows], self._position[rows]
        if self.model.adapter is not None:
            self.model.adapter.select(rows)


def _new_tokens(collator: Collator, texts: Sequence[str]) -> int:
    longest = max((len(collator.prompts.response_ids(text)) for text in texts), default=0)
    return int(_LONGER * longest) + _LEAST_NEW
