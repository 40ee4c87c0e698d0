"""Constraints on the text of a list: any of its words, or one word in each slot of its confusion network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from audio_llm.align import align

Words = tuple[str, ...]


@dataclass(frozen=True)
class WordGraph:
    """Graph of words that may follow each other.

    Attributes:
        arcs: For each state the words allowed next, and the state each leads to.
        final: States in which the text may end.
    """

    arcs: tuple[tuple[tuple[str, int], ...], ...]
    final: frozenset[int]


def any_words(hypotheses: Sequence[Words]) -> WordGraph:
    """Return the graph of all texts made of the list's words."""
    words = sorted({word for text in hypotheses for word in text})
    return WordGraph((tuple((word, 0) for word in words),), frozenset({0}))


def slots(hypotheses: Sequence[Words]) -> WordGraph:
    """Return the graph of the list's confusion network: one word, or none, in each slot, in order."""
    network = confusion_network(hypotheses)
    arcs: list[tuple[tuple[str, int], ...]] = [()] * (len(network) + 1)
    final = {len(network)}
    for state in range(len(network) - 1, -1, -1):
        options = network[state]
        here = [(word, state + 1) for word in options if word]
        if "" in options:  # the slot may be skipped
            here += [arc for arc in arcs[state + 1] if arc not in here]
            if state + 1 in final:
                final.add(state)
        arcs[state] = tuple(here)
    return WordGraph(tuple(arcs), frozenset(final))


def confusion_network(hypotheses: Sequence[Words]) -> list[tuple[str, ...]]:
    """Return for each slot of the aligned list its distinct words, the best hypothesis' first; "" is no word."""
    return [tuple(dict.fromkeys(slot)) for slot in align_slots(hypotheses)]


def align_slots(hypotheses: Sequence[Words]) -> list[tuple[str, ...]]:
    """Align every hypothesis with the first; return for each slot the word of each hypothesis, "" for no word.

    Words inserted between two words of the first hypothesis get separate slots: one for the first inserted word of
    every hypothesis, one for the second, and so on. Each hypothesis is its column read downwards.
    """
    if not hypotheses:
        return []
    first, count = hypotheses[0], len(hypotheses)
    aligned = [[word] + [""] * (count - 1) for word in first]
    between: list[list[list[str]]] = [[] for _ in range(len(first) + 1)]  # slots before each word, and at the end
    for number, words in enumerate(hypotheses[1:], 1):
        used = 0
        for op in align(first, words):
            if op.kind == "insert":
                gap = between[op.source_start]
                if used == len(gap):
                    gap.append([""] * count)
                gap[used][number] = words[op.target_start]
                used += 1
            else:
                aligned[op.source_start][number] = "" if op.kind == "delete" else words[op.target_start]
                used = 0
    network = [slot for gap, word in zip(between, aligned, strict=False) for slot in (*gap, word)] + between[-1]
    return [tuple(slot) for slot in network]


States = frozenset[tuple[int, tuple[int, ...]]]


class TokenGraph:
    """A word graph over tokens.

    As words can share a prefix, a state is a set of pairs: a state of the word graph and the tokens generated of the
    next word.

    Args:
        graph: The word graph.
        spelled: The tokens of each of its words.
        end: Token that ends the text.
    """

    def __init__(self, graph: WordGraph, spelled: Mapping[str, tuple[int, ...]], end: int) -> None:
        self._graph, self._spelled, self._end = graph, spelled, end
        self._known: dict[States, list[int]] = {}

    def start(self) -> States:
        """Return the state before the first token."""
        return frozenset({(0, ())})

    def allowed(self, states: States) -> list[int]:
        """Return the tokens that are allowed next."""
        allowed = self._known.get(states)
        if allowed is None:
            tokens: set[int] = set()
            for state, begun in states:
                if not begun and state in self._graph.final:
                    tokens.add(self._end)
                for word, _ in self._graph.arcs[state]:
                    spelled = self._spelled[word]
                    if spelled[: len(begun)] == begun and len(spelled) > len(begun):
                        tokens.add(spelled[len(begun)])
            allowed = self._known[states] = sorted(tokens)
        return allowed

    def advance(self, states: States, token: int) -> States:
        """Return the state after an allowed token."""
        after: set[tuple[int, tuple[int, ...]]] = set()
        for state, begun in states:
            written = (*begun, token)
            for word, target in self._graph.arcs[state]:
                spelled = self._spelled[word]
                if spelled == written:
                    after.add((target, ()))
                elif spelled[: len(written)] == written:
                    after.add((state, written))
        return frozenset(after)
