"""The Denoising LM as a corrector of N-best lists: decoding, selection, gate, edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audio_llm import hub
from audio_llm.asr.base import Recognizer
from audio_llm.correction import Correction, describe_edits
from audio_llm.dlm import decode
from audio_llm.dlm.decode import Candidate
from audio_llm.dlm.dsr import DsrCandidates, NormalizedNBest
from audio_llm.dlm.model import DenoisingLM, load
from audio_llm.dlm.rescore import Scored, choose
from audio_llm.dlm.settings import Decoding, DecodingSettings, default_decoding, read_settings, useful_hypotheses
from audio_llm.errors import UsageError
from audio_llm.lm.ngram import NgramLm, load_ngram
from audio_llm.nbest import NBest
from audio_llm.text import Normalizer, get_normalizer


@dataclass(frozen=True)
class Proposal:
    """A correction before the gate.

    Attributes:
        texts: The list's distinct normalized texts, the recognizer's best first.
        candidate: The best correction.
        gain: Score of the candidate minus score of the unchanged text, in nats.
    """

    texts: tuple[str, ...]
    candidate: Candidate
    gain: float

    @property
    def hypothesis(self) -> str:
        """The recognizer's best text, normalized."""
        return self.texts[0] if self.texts else ""


class DlmCorrector:
    """Corrects N-best lists with a Denoising LM (see `Corrector`).

    Args:
        model: The network.
        settings: Its decoding settings.
        decoding: `greedy` reads the best hypothesis; `dsr` ranks candidates by the scores of all models and needs the
            audio; `dlm-sum` reads several hypotheses.
        recognizer: Source of the lists. It decides how many hypotheses are used and whether their scores count. None:
            the lists are assumed to come from the recognizer that the settings were tuned for.
        scorer: For `dsr`: scores candidates against the audio; None: the recognizer does.
        gate: Whether the recognizer's text is kept when the gain is small.
        language_model: For `dlm-sum` and `dsr`: the n-gram model named in the settings.
    """

    name = "dlm"

    def __init__(
        self,
        model: DenoisingLM,
        settings: DecodingSettings,
        decoding: Decoding = "greedy",
        recognizer: Recognizer | None = None,
        gate: bool = True,
        language_model: NgramLm | None = None,
        scorer: Recognizer | None = None,
    ) -> None:
        scorer = scorer or recognizer
        if decoding not in ("greedy", "dsr", "dlm-sum"):
            raise UsageError(f"unknown decoding {decoding!r}", remedy="use greedy, dsr or dlm-sum")
        if decoding == "dsr" and (scorer is None or not scorer.capabilities.text_scores):
            raise UsageError(
                "dsr needs a recognizer that scores any text",
                remedy="use greedy or dlm-sum, or --recognizer sphinx or ctc",
            )
        self.model = model
        self.settings = settings
        self.decoding = decoding
        self.hypotheses = useful_hypotheses(settings, decoding, recognizer)
        self._language_model = language_model
        self._normalizer = get_normalizer(settings.normalizer)
        self._pools = None
        if decoding == "dsr" and scorer is not None:
            size = settings.shortlisted
            self._pools = DsrCandidates(model, scorer, language_model, settings.shortlist, size, settings.proposals)
        self._by_rank = recognizer is not None and recognizer.version != settings.recognizer
        self._gate = settings.gates[decoding] if gate else replace(settings.gates[decoding], off=True)

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path = "dlm-small",
        recognizer: Recognizer | None = None,
        decode: Decoding | None = None,
        gate: bool = True,
        device: str = "cpu",
    ) -> DlmCorrector:
        """Load a model directory with its decoding settings.

        Args:
            name_or_dir: Name or folder of a model.
            recognizer: Source of the lists.
            decode: Decoding; None: `dsr` where the score weights were tuned for the recognizer and the settings name a
                sound model, else `dlm-sum`.
            gate: Whether the recognizer's text is kept when the gain is small.
            device: `cpu` or `cuda`.

        Raises:
            ModelNotFoundError, ModelFormatError: The directory is missing or damaged.
            UsageError: The decoding needs a recognizer that can score texts.
        """
        model = load(name_or_dir, device)
        folder = Path(hub.find_model(str(name_or_dir)))
        settings = read_settings(folder)
        decode = decode or default_decoding(settings, recognizer)
        language_model = _load_language_model(folder, settings) if decode != "greedy" else None
        scorer = _load_scorer(folder, settings, device) if decode == "dsr" else None
        return cls(model, settings, decode, recognizer, gate, language_model, scorer)

    def correct(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Correction]:
        """Correct each list (see `Corrector.correct`).

        Raises:
            UsageError: `dsr` without waveforms.
        """
        proposals = self.propose(lists, waveforms)
        return [self.decide(nbest, proposal) for nbest, proposal in zip(lists, proposals, strict=True)]

    def propose(self, lists: Sequence[NBest], waveforms: Sequence[np.ndarray] | None = None) -> list[Proposal]:
        """Return the best candidate for each list, before the gate; arguments as for `correct`."""
        if self.decoding == "dsr" and waveforms is None:
            raise UsageError("dsr needs the waveform of each list", remedy="use greedy or dlm-sum for lists alone")
        normalized = [self._normalized(nbest) for nbest in lists]
        if self.decoding == "greedy":
            return self._greedy(normalized)
        proposals = []
        for index, (nbest, texts) in enumerate(zip(lists, normalized, strict=True)):
            if not texts:
                proposals.append(Proposal((), Candidate("", 0.0), 0.0))
            elif self.decoding == "dlm-sum":
                proposals.append(self._sum(nbest, texts))
            else:
                assert waveforms is not None
                proposals.append(self._dsr(nbest, texts, waveforms[index]))
        return proposals

    def decide(self, nbest: NBest, proposal: Proposal) -> Correction:
        """Pass a proposal through the gate."""
        candidate, gain = proposal.candidate, proposal.gain
        reason = self._gate.verdict(proposal.hypothesis, candidate, gain)
        if reason:
            confidence = _certainty(-gain) if candidate.text != proposal.hypothesis else _probability(candidate)
            return Correction(nbest.id, nbest.best, nbest.best, True, reason, (), confidence if nbest.best else None)
        hypotheses = [tuple(text.split()) for text in (proposal.hypothesis, *proposal.texts[1:])]
        edits = describe_edits(hypotheses, tuple(candidate.text.split()), self.name)
        return Correction(nbest.id, candidate.text, nbest.best, False, f"gain {gain:.1f}", edits, _certainty(gain))

    def _greedy(self, lists: Sequence[tuple[str, ...]]) -> list[Proposal]:
        first = [texts[0] if texts else "" for texts in lists]
        nonempty = [text for text in first if text]
        candidates = decode.greedy(self.model, nonempty)
        changed = [i for i, text in enumerate(nonempty) if candidates[i].text != text]
        unchanged = decode.log_probs(self.model, [nonempty[i] for i in changed], [nonempty[i] for i in changed])
        gain_of = {i: candidates[i].log_prob - score for i, score in zip(changed, unchanged, strict=True)}
        results = iter([(candidate, gain_of.get(i, 0.0)) for i, candidate in enumerate(candidates)])
        return [Proposal(texts, *(next(results) if texts else (Candidate("", 0.0), 0.0))) for texts in lists]

    def _sum(self, nbest: NBest, texts: tuple[str, ...]) -> Proposal:
        used, weights = self._shortlist(nbest, texts)
        candidate = decode.dlm_sum(self.model, used, weights, self.settings.beam)[0]
        log_probs = decode.log_probs(self.model, used, [texts[0]] * len(used))
        unchanged = float(np.logaddexp.reduce(_log_softmax(weights) + np.array(log_probs)))
        return Proposal(texts, candidate, candidate.log_prob - unchanged)

    def _dsr(self, nbest: NBest, texts: tuple[str, ...], waveform: np.ndarray) -> Proposal:
        assert self._pools is not None
        listed = self.settings.pool == "pooled"
        return choose_dsr(
            texts, self._pools.make(NormalizedNBest.of(nbest, self._normalizer), waveform, listed), self.settings
        )

    def _shortlist(self, nbest: NBest, texts: tuple[str, ...]) -> tuple[list[str], list[float]]:
        """Return the hypotheses that the Denoising LM reads, the recognizer's best first, and their log-weights."""
        weights = list_weights(
            nbest, texts, self._normalizer, self.settings, self._language_model, by_rank=self._by_rank
        )
        rest = sorted(range(1, len(texts)), key=lambda i: -weights[i])
        chosen = [0, *rest[: self.settings.hypotheses - 1]]
        return [texts[i] for i in chosen], [weights[i] for i in chosen]

    def _normalized(self, nbest: NBest) -> tuple[str, ...]:
        """Return the distinct normalized texts of a list in order, without empty ones; none where the best is empty.

        An empty best text is a valid result (silence), and edits refer to the words of the best text.
        """
        if not self._normalizer(nbest.best):
            return ()
        return tuple(dict.fromkeys(text for text in map(self._normalizer, nbest.texts) if text))


def choose_dsr(texts: tuple[str, ...], candidates: Sequence[Scored], settings: DecodingSettings) -> Proposal:
    """Return the candidate that DSR selects; the unchanged text where that text could not be scored on the audio.

    Args:
        texts: As in `Proposal`.
        candidates: From `DsrCandidates.make`.
        settings: Decoding settings with the score weights.
    """
    if not candidates:
        return Proposal(texts, Candidate(texts[0], 0.0), 0.0)
    best = candidates[choose(candidates, settings.dsr)]
    gain = settings.dsr.total(best) - settings.dsr.total(candidates[0])
    return Proposal(texts, Candidate(best.text, best.scores["dlm"]), gain)


def list_weights(
    nbest: NBest,
    texts: Sequence[str],
    normalizer: Normalizer,
    settings: DecodingSettings,
    language_model: NgramLm | None = None,
    by_rank: bool = False,
) -> list[float]:
    """Return the log-weights of the texts: from scores where every entry has one, else from ranks.

    Args:
        nbest: The list.
        texts: Its distinct normalized texts.
        normalizer: The normalizer of these texts.
        settings: Decoding settings with the score weights.
        language_model: N-gram model for the score `lm`; None: that score is 0.
        by_rank: Ignore the scores, because the score weights were tuned for another recognizer.
    """
    scores: dict[str, float] = {}
    for hypothesis in nbest.hypotheses:
        if hypothesis.score is not None:
            text = normalizer(hypothesis.text)
            scores[text] = max(hypothesis.score, scores.get(text, -math.inf))
    if by_rank or not all(text in scores for text in texts):
        return [-settings.rank_weight * rank for rank in range(len(texts))]
    prior = _prior(texts, language_model)
    return [
        settings.list_scales.total(Scored(text, {"asr": scores[text], "lm": lm}))
        for text, lm in zip(texts, prior, strict=True)
    ]


def _prior(texts: Sequence[str], language_model: NgramLm | None) -> list[float]:
    if language_model is None:
        return [0.0] * len(texts)
    return language_model.log_probs([text.split() for text in texts])


def _load_language_model(folder: Path, settings: DecodingSettings) -> NgramLm | None:
    if not settings.language_model:
        return None
    return load_ngram(hub.find_companion(folder, settings.language_model, settings.language_model_sha256))


def _load_scorer(folder: Path, settings: DecodingSettings, device: str) -> Recognizer | None:
    from audio_llm.asr.ctc import CtcRecognizer

    if not settings.sound_model:
        return None
    path = hub.find_companion(folder, settings.sound_model, settings.sound_model_sha256)
    return CtcRecognizer.load(path, device, search=False)  # asked for scores alone


def _log_softmax(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    return np.asarray(array - np.logaddexp.reduce(array))


def _probability(candidate: Candidate) -> float:
    return round(math.exp(min(0.0, candidate.log_prob)), 4)


def _certainty(gain: float) -> float:
    """Return the probability of the selected text against the alternative, from their difference in nats."""
    return round(1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, gain)))), 4)
