"""Word times of Whisper compared with pocketsphinx's forced alignment of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sets

from audio_llm.align import edits
from audio_llm.asr.sphinx import SphinxRecognizer
from audio_llm.asr.whisper import WhisperRecognizer
from audio_llm.text import DEFAULT_NORMALIZER


def run(data: Path, name: str, recognizer: WhisperRecognizer) -> None:
    """Print the differences of starts and ends of the common words."""
    sphinx = SphinxRecognizer()
    starts: list[float] = []
    ends: list[float] = []
    edges: list[float] = []
    skipped = 0
    for utterance in sets.utterances(data, name):
        text = DEFAULT_NORMALIZER(utterance.text)
        known = text.split() if all(sphinx.knows(word) for word in text.split()) else []
        expected = sphinx.align_words(utterance.waveform, text) if known else ()
        if not expected:
            skipped += 1
            continue
        words = [word for part in recognizer.recognize_stream([utterance.waveform]) for word in part.nbest.words]
        written = [DEFAULT_NORMALIZER(word.text) for word in words]
        same = _same([word.text.split("(")[0] for word in expected], written)
        for at, other in same:
            starts.append(words[other].start_s - expected[at].start_s)
            ends.append(words[other].end_s - expected[at].end_s)
        edges += starts[-len(same) :][:1] if same and same[0] == (0, 0) else []
    for label, values in (("start", starts), ("end", ends), ("start of the first word", edges)):
        size = np.abs(values)
        print(
            f"| {label} | {len(values)} | {1000 * np.median(size):.0f} ms | {1000 * np.percentile(size, 90):.0f} ms "
            f"| {1000 * np.median(values):+.0f} ms |"
        )
    print(f"{skipped} utterances without an alignment")


def _same(expected: list[str], written: list[str]) -> list[tuple[int, int]]:
    """Return the indices of words that both lists have, in order."""
    pairs: list[tuple[int, int]] = []
    source = target = 0
    for step in [*edits(expected, written), None]:
        until = len(expected) if step is None else step.source_start
        pairs += [(source + n, target + n) for n in range(until - source)]
        if step is not None:
            source, target = step.source_end, step.target_end
    return pairs
