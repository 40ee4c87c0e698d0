"""The systems in the tables: the recognizer, the baselines, the Denoising LM's decodings, the oracles."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsr import Pool, choose_all
from evaluate import NGRAM, SOUND, Proposals, System, gated, ngram_scorer, rescoring

from audio_llm import metrics
from audio_llm.dlm.corrector import Proposal, choose_dsr
from audio_llm.dlm.model import DenoisingLM
from audio_llm.dlm.rescore import Scored, ScoreWeights, fit_weights
from audio_llm.dlm.settings import Decoding, DecodingSettings
from audio_llm.gate import Gate
from audio_llm.ger.phrase_training import train_phrase_corrector
from audio_llm.lm.char_lm import CharLm
from audio_llm.lm.ngram import NgramLm
from audio_llm.nbest import NBest
from audio_llm.text import DEFAULT_NORMALIZER

BASELINE_LIST = 20  # hypotheses for the 20-best baselines
DECODINGS: tuple[Decoding, ...] = ("greedy", "dlm-sum")  # decodings that need no audio
DSR_SCORES = ("asr", "sound", "lm", "dlm", "unlisted")


@dataclass(frozen=True)
class Models:
    """The models of the systems.

    Attributes:
        model: The Denoising LM.
        settings: Its decoding settings.
        language_model: The n-gram model.
        char_lm: The Transformer language model; None if none was trained.
    """

    model: DenoisingLM
    settings: DecodingSettings
    language_model: NgramLm
    char_lm: CharLm | None = None


def baselines(
    models: Models, tune: list[NBest], tune_name: str, train: list[NBest], texts: list[str]
) -> dict[str, System]:
    """Return the systems without a Denoising LM that need no audio, all tuned on the same lists.

    Args:
        models: The language models.
        tune: Tuning lists.
        tune_name: Names of the tuning sets, joined by `+`.
        train: Training lists for the phrase table.
        texts: Training sentences.
    """
    few = [_first(nbest) for nbest in tune]
    phrase = train_phrase_corrector([_first(nbest) for nbest in train], text=texts)
    scorer = ngram_scorer(models.language_model)
    systems: dict[str, System] = {"recognizer": recognizer}
    systems[NGRAM] = _on_first(rescoring(scorer, few, tune_name)[0])
    systems["n-gram rescoring, 100 best"] = rescoring(scorer, tune, tune_name)[0]
    systems["phrase table"] = _on_first(lambda lists: [c.text for c in phrase.correct(lists)])
    if models.char_lm is not None:
        systems["Transformer LM rescoring, 20 best"] = _on_first(rescoring(models.char_lm.log_probs, few, tune_name)[0])
    return systems


def denoised(models: Models) -> dict[str, System]:
    """Return the decodings that need no audio, without and with the gate."""
    systems: dict[str, System] = {}
    for decoding in DECODINGS:
        proposals = Proposals(models.model, models.settings, decoding, models.language_model)
        systems[f"DLM {decoding}, gate off"] = proposals.system(Gate(off=True))
        systems[f"DLM {decoding}, gate on"] = proposals.system(models.settings.gates[decoding])
    return systems


def sounding(settings: DecodingSettings, paper: ScoreWeights, whole: Pool, pools: Pool) -> dict[str, System]:
    """Return the systems that score candidates on the audio: the baseline without a Denoising LM, and DSR.

    Args:
        settings: Decoding settings with the weights and the gate.
        paper: DSR's weights for candidates from the Denoising LM only.
        whole: All texts of every list with their scores.
        pools: DSR's candidates of every list.
    """
    proposed = {key: of_paper(pool) for key, pool in pools.items()}
    systems: dict[str, System] = {SOUND: functools.partial(choose_all, pools=whole, score_weights=settings.shortlist)}
    systems["DLM DSR, paper, gate off"] = functools.partial(choose_all, pools=proposed, score_weights=paper)
    systems["DLM DSR, pooled, gate off"] = functools.partial(choose_all, pools=pools, score_weights=settings.dsr)
    systems["DLM DSR, pooled, gate on"] = lambda lists: gated(
        dsr_proposals(lists, pools, settings), settings.gates["dsr"]
    )
    return systems


def oracles() -> dict[str, System]:
    """Return the oracles, which select the best hypothesis of each list."""
    return {
        "oracle of 20": lambda lists: [metrics.oracle(_first(nbest)) for nbest in lists],
        "oracle of 100": lambda lists: [metrics.oracle(nbest) for nbest in lists],
    }


def recognizer(lists: Sequence[NBest]) -> list[str]:
    """Return the recognizer's best of each list."""
    return [nbest.best for nbest in lists]


def tune_dsr(pools: Sequence[Sequence[Scored]], references: Sequence[str], name: str) -> ScoreWeights:
    """Return DSR's weights with the fewest word errors on the tuning candidates."""
    return fit_weights(pools, references, DSR_SCORES, name).score_weights


def of_paper(pool: Sequence[Scored]) -> list[Scored]:
    """Return the recognizer's text, followed by the candidates that the Denoising LM proposed."""
    return [candidate for i, candidate in enumerate(pool) if i == 0 or candidate.scores["proposed"]]


def dsr_proposals(lists: Sequence[NBest], pools: Pool, settings: DecodingSettings) -> list[Proposal]:
    """Return DSR's proposal for every list, before the gate."""
    proposals = []
    for nbest in lists:
        pool = pools.get(nbest.id, [])
        proposals.append(choose_dsr((pool[0].text if pool else DEFAULT_NORMALIZER(nbest.best),), pool, settings))
    return proposals


def _first(nbest: NBest) -> NBest:
    return replace(nbest, hypotheses=nbest.hypotheses[:BASELINE_LIST])


def _on_first(system: System) -> System:
    return lambda lists: system([_first(nbest) for nbest in lists])
