"""Tests whether training pairs from TouchTTS speech improve the Denoising LM.

Several Denoising LMs that differ only in their training pairs correct the same lists with the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from evaluate import Proposals
from systems import DECODINGS

from audio_llm import metrics
from audio_llm.dlm import decode
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.settings import Decoding, DecodingSettings
from audio_llm.gate import Gate
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER

_HEADER = (
    "| model | nats a character | likelier than with the first | greedy WER % (95 %) | p, first | DLM-sum WER % (95 %) "
    "| p, first |"
)


def compare(
    models: Mapping[str, DenoisingLM],
    settings: DecodingSettings,
    language_model: NgramLm,
    sets: Mapping[str, Sequence[NBest]],
) -> str:
    """Return a Markdown table of each set: every model, without a gate, against the recognizer and the first model.

    Args:
        models: Denoising LMs by their names in the table.
        settings: Decoding settings of all models.
        language_model: The n-gram model for DLM-sum.
        sets: N-best lists by name of the set; empty lists count for the word error rates only.
    """
    return "\n".join(_table(name, models, settings, language_model, lists) for name, lists in sets.items())


def _table(
    name: str,
    models: Mapping[str, DenoisingLM],
    settings: DecodingSettings,
    language_model: NgramLm,
    lists: Sequence[NBest],
) -> str:
    references = [nbest.reference or "" for nbest in lists]
    baseline = metrics.utterance_errors(references, [nbest.best for nbest in lists])
    rows = [f"### {name}: {len(lists)} utterances\n", _HEADER, "|---" * (_HEADER.count("|") - 1) + "|"]
    rows.append(f"| recognizer | | | {_rate(baseline)} | | {_rate(baseline)} | |")
    first: list[np.ndarray] = []
    for model_name, model in models.items():
        nats = _nats(model, lists)
        results = [nats, *(_errors(model, settings, name, language_model, lists) for name in DECODINGS)]
        first = first or results
        columns = [f"{nats.sum() / _characters(lists):.4f}", f"{int((nats < first[0]).sum())} of {len(nats)}"]
        for errors, other in zip(results[1:], first[1:], strict=True):
            columns += [_rate(errors), f"{metrics.paired_p_value(other, errors):.3f}"]
        rows.append(f"| {model_name} | {' | '.join(columns)} |")
    return "\n".join([*rows, ""])


def _nats(model: DenoisingLM, lists: Sequence[NBest]) -> np.ndarray:
    """Return -log p(reference | best hypothesis) of each list with a best text, (N,) nats."""
    known = [nbest for nbest in lists if nbest.best]
    return -np.array(decode.log_probs(model, [n.best for n in known], [n.reference or "" for n in known]))


def _characters(lists: Sequence[NBest]) -> int:
    return sum(len(nbest.reference or "") + 1 for nbest in lists if nbest.best)


def _errors(
    model: DenoisingLM, settings: DecodingSettings, decoding: Decoding, language_model: NgramLm, lists: Sequence[NBest]
) -> np.ndarray:
    texts = Proposals(model, settings, decoding, language_model).system(Gate(off=True))(lists)
    return metrics.utterance_errors([nbest.reference or "" for nbest in lists], texts)


def _rate(errors: np.ndarray) -> str:
    rate, interval = metrics.sum_errors(errors, DEFAULT_NORMALIZER).rate, metrics.bootstrap_interval(errors)
    return f"{100 * rate:.2f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"
