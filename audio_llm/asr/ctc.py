"""Our own character CTC recognizer: N-best lists with exact scores, word times, and distortion for data generation."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from audio_llm import features, hub
from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.ctc_model import (
    BLANK,
    FRAME_S,
    SYMBOLS,
    CtcConfig,
    CtcModel,
    decode_symbols,
    encode_symbols,
    frames_needed,
)
from audio_llm.asr.ctc_search import SearchSettings, WordPrior, prefix_beam
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.errors import ConfigError, ModelFormatError
from audio_llm.lm.ngram import load_ngram
from audio_llm.nbest import Hypothesis, NBest, Word
from audio_llm.training.config import config_from_dict, config_to_dict

KIND = "ctc"
SETTINGS_NAME = "decoding.json"
_MIN_SAMPLES = SAMPLE_RATE // 10  # shorter waveforms give an empty list
_SILENCE_PEAK = 1e-4  # quieter than -80 dBFS counts as silence
_SCALED_EVERY = 8  # frames
_BATCH_FRAMES = 12_000  # feature frames run through the network at once, two minutes


@dataclass(frozen=True)
class Distortion:
    """Distortion that makes a recognizer err while data are generated; every random draw follows from `seed`.

    Attributes:
        dropout: Rate of dropout inside the network.
        time_masks: Stretches of frames blanked out in an utterance.
        time_mask_s: Longest such stretch in seconds.
        band_masks: Stretches of mel bands blanked out.
        band_mask: Widest such stretch in bands.
        seed: Seed of all random draws.
    """

    dropout: float = 0.0
    time_masks: int = 0
    time_mask_s: float = 0.3
    band_masks: int = 0
    band_mask: int = 20
    seed: int = 0


class CtcRecognizer(SegmentRecognizer):
    """Recognizes English with this project's CTC network.

    `score` gives exact natural-log probabilities log p(text | audio), summed over all alignments. The scores of a list
    include the weighted language model score (see `WordPrior`), where there is one.

    Args:
        model: The network; it is put into eval mode.
        version: Name of network and weights.
        beam: Beam size of the prefix search.
        prior: Language model of the search and of the ranking; None for none.
    """

    name = "ctc"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=True, word_preference=False)

    def __init__(self, model: CtcModel, version: str, beam: int = 16, prior: WordPrior | None = None) -> None:
        self.version = version
        self._model = model.eval()
        self._beam = beam
        self._prior = prior

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", search: bool = True) -> CtcRecognizer:
        """Load a model directory that `save_ctc` wrote, with its settings of the search.

        Args:
            folder: The directory.
            device: `cpu` or `cuda`.
            search: Load the language model that the settings name; False searches with the network alone.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelFormatError: It is damaged or of another kind.
        """
        model = load_network(folder, device)
        digest = hashlib.sha256()
        for _, tensor in sorted(model.state_dict().items()):
            digest.update(tensor.cpu().numpy().tobytes())
        version = f"ctc-{digest.hexdigest()[:8]}"
        settings = read_search(Path(hub.find_model(folder)))
        if not (search and settings.language_model):
            return cls(model, version, settings.beam)
        lm_folder = hub.find_companion(folder, settings.language_model, settings.language_model_sha256)
        prior = WordPrior(load_ngram(lm_folder), settings)
        return cls(model, f"{version}-{settings.language_model_sha256[:8]}", settings.beam, prior)

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`).

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.
        """
        posteriors = self.posteriors(waveform)
        ranked = posteriors.search(max(self._beam, 2 * nbest), self._prior)
        if not ranked or not ranked[0][0]:
            return NBest(id, ())
        hypotheses = tuple(Hypothesis(text, score) for text, score in ranked if text)[:nbest]
        return NBest(id, hypotheses, words=align_words(posteriors.log_probs, hypotheses[0].text))

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | waveform) of each text.

        A text with symbols other than letters, apostrophe and space gives None, and so does one too long for the sound.

        Args:
            waveform: (T,) float32 at 16 kHz.
            texts: Normalized texts.
        """
        return self.posteriors(waveform).score(texts)

    def posteriors(self, waveform: np.ndarray) -> CtcPosteriors:
        """Return the symbol posteriors of one utterance, (T,) float32 at 16 kHz, for several searches or scores."""
        (log_probs,) = self.log_probs([waveform])
        return CtcPosteriors(log_probs)

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Return all words: an engine of characters cannot prefer words."""
        return list(words)

    def greedy_batch(self, waveforms: Sequence[np.ndarray], distortion: Distortion | None = None) -> list[str]:
        """Return the greedy text of each waveform.

        Args:
            waveforms: Each (T,) float32 at 16 kHz.
            distortion: Distortion that provokes errors, to generate data.
        """
        return [CtcPosteriors(log_probs).greedy_text() for log_probs in self.log_probs(waveforms, distortion)]

    def log_probs(self, waveforms: Sequence[np.ndarray], distortion: Distortion | None = None) -> list[np.ndarray]:
        """Return (N, 29) float64 log-probabilities of the symbols every 40 ms; N is 0 for silence."""
        results = [np.zeros((0, len(SYMBOLS)))] * len(waveforms)
        audible = [i for i, w in enumerate(waveforms) if w.size >= _MIN_SAMPLES and np.abs(w).max() >= _SILENCE_PEAK]
        audible.sort(key=lambda i: waveforms[i].size)
        with torch.inference_mode(), torch.random.fork_rng(enabled=distortion is not None):
            if distortion is not None:
                torch.manual_seed(distortion.seed)
            for batch in _batches(audible, [waveform.size for waveform in waveforms]):
                for i, log_probs in zip(batch, self._run([waveforms[i] for i in batch], distortion), strict=True):
                    results[i] = log_probs
        return results

    def _run(self, waveforms: list[np.ndarray], distortion: Distortion | None) -> list[np.ndarray]:
        device = self._model.output.weight.device
        sounds = [torch.from_numpy(np.asarray(waveform, dtype=np.float32)) for waveform in waveforms]
        padded = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True).to(device)
        mel, frames = features.log_mel(padded, torch.tensor([sound.numel() for sound in sounds], device=device))
        mel = features.normalize(mel, frames)
        if distortion is not None:
            _mask(mel, frames, distortion)
        output = self._model(mel, frames, None if distortion is None else distortion.dropout)
        log_probs = output.log_probs.double().cpu().numpy()
        return [row[: int(length)] for row, length in zip(log_probs, output.lengths, strict=True)]


@dataclass(frozen=True)
class CtcPosteriors:
    """Symbol posteriors of one utterance.

    Attributes:
        log_probs: (N, 29) float64 log-probabilities of the symbols every 40 ms.
    """

    log_probs: np.ndarray

    def greedy_text(self) -> str:
        """Return the text of the best alignment."""
        best = self.log_probs.argmax(axis=1)
        collapsed = best[np.diff(best, prepend=BLANK - 1) != 0]
        return decode_symbols([int(number) for number in collapsed if number != BLANK])

    def search(self, beam: int, prior: WordPrior | None = None) -> list[tuple[str, float]]:
        """Return up to `beam` distinct texts, best first, each with log p(text | audio) plus the score of the prior."""
        texts = list(
            dict.fromkeys(decode_symbols(numbers) for numbers in prefix_beam(self.log_probs, beam, prior=prior))
        )
        gains = [prior.text(text) if prior else 0.0 for text in texts]
        scored = zip(texts, self.score(texts), gains, strict=True)
        results = [(text, score + gain) for text, score, gain in scored if score is not None]
        return sorted(results, key=lambda pair: (-pair[1], pair[0]))

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | audio) of each text (see `CtcRecognizer.score`)."""
        return _exact_scores(self.log_probs, texts)


def load_network(name_or_dir: str | Path, device: str = "cpu") -> CtcModel:
    """Load the bare network of a model directory.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    return hub.load_network(name_or_dir, KIND, CtcConfig, CtcModel, device)


def save_ctc(
    model: CtcModel,
    folder: str | Path,
    card: str,
    provenance: Mapping[str, Any] | None = None,
    half: bool = True,
    search: SearchSettings | None = None,
) -> Path:
    """Write a model directory that `CtcRecognizer.load` reads.

    Args:
        model: The network.
        folder: The directory.
        card: Text of its README.md.
        provenance: How the model was made: recipe, seed, data, versions.
        half: Store the weights in half precision.
        search: Settings of the search; None for none.
    """
    tensors = {name: tensor.half() if half else tensor for name, tensor in model.state_dict().items()}
    assets = {} if search is None else {SETTINGS_NAME: json.dumps(config_to_dict(search), indent=1) + "\n"}
    return hub.save_model(folder, asdict(model.config), tensors, KIND, card, provenance, assets)


def read_search(folder: Path) -> SearchSettings:
    """Read the search settings of a model directory; the defaults where it has none.

    Raises:
        ModelFormatError: The settings are damaged.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        return SearchSettings()
    try:
        return config_from_dict(SearchSettings, json.loads(path.read_text(encoding="utf-8")), path)
    except (ValueError, ConfigError) as error:
        raise ModelFormatError(f"damaged settings: {error}", path=path, remedy="tune or get it again") from None


def align_words(log_probs: np.ndarray, text: str) -> tuple[Word, ...]:
    """Return the words of a text with the times of its most probable alignment (Viterbi).

    A word goes from the frame of its first letter to the frame of its last; its confidence is the geometric mean
    probability of those frames along the alignment.

    Args:
        log_probs: (N, 29) log-probabilities of the symbols every 40 ms.
        text: Letters, apostrophes and single spaces.
    """
    numbers = encode_symbols(text)
    if not numbers or frames_needed(numbers) > len(log_probs):
        return ()
    states = np.full(2 * len(numbers) + 1, BLANK)
    states[1::2] = numbers
    path = _viterbi(log_probs, states)
    along = log_probs[np.arange(len(path)), states[path]]
    words, position = [], 0
    for word in decode_symbols(numbers).split():
        first, last = 2 * position + 1, 2 * (position + len(word) - 1) + 1
        frames = np.flatnonzero((path >= first) & (path <= last))
        confidence = float(np.exp(along[frames[0] : frames[-1] + 1].mean()))
        words.append(
            Word(word, round(float(frames[0]) * FRAME_S, 3), round(float(frames[-1] + 1) * FRAME_S, 3), confidence)
        )
        position += len(word) + 1
    return tuple(words)


def _viterbi(log_probs: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return the best path: (N,) indices into `states` (S,), blanks at even indices, for (N, 29) log-probabilities."""
    may_skip = np.zeros(len(states), dtype=bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    back = np.zeros(emitted.shape, dtype=np.int8)
    for n in range(1, len(emitted)):
        one, two = np.full_like(score, -np.inf), np.full_like(score, -np.inf)
        one[1:], two[2:] = score[:-1], score[:-2]
        candidates = np.stack([score, one, np.where(may_skip, two, -np.inf)])
        back[n] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + emitted[n]
    path = np.zeros(len(emitted), dtype=np.int64)
    path[-1] = len(states) - 1 - int(score[-1] < score[-2])
    for n in range(len(emitted) - 1, 0, -1):
        path[n - 1] = path[n] - back[n, path[n]]
    return path


def _exact_scores(log_probs: np.ndarray, texts: Sequence[str]) -> list[float | None]:
    """Return the CTC log-likelihood of each text, None for a text that cannot be spelled."""
    scores: list[float | None] = [None] * len(texts)
    encoded = {i: numbers for i, text in enumerate(texts) if (numbers := encode_symbols(text)) is not None}
    possible = {i: numbers for i, numbers in encoded.items() if frames_needed(numbers) <= len(log_probs)}
    if not len(log_probs) or not possible:
        return scores
    for i, score in zip(possible, _forward(log_probs, list(possible.values())), strict=True):
        scores[i] = float(score) if math.isfinite(score) else None
    return scores


def _forward(log_probs: np.ndarray, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return (K,) log-likelihoods of K texts by the forward algorithm, all texts at once.

    Probabilities, not their logarithms, are added, and scaled every few frames: several times as fast as PyTorch's
    loss on one recording and many texts. A text that underflows is scored by PyTorch's loss.

    Args:
        log_probs: (N, 29) log-probabilities of the symbols.
        texts: Symbol numbers of each, not empty.
    """
    lengths = np.array([len(numbers) for numbers in texts])
    states = np.full((len(texts), 2 * int(lengths.max()) + 1), BLANK)
    for row, numbers in zip(states, texts, strict=True):
        row[1 : 2 * len(numbers) : 2] = numbers
    may_skip = np.zeros(states.shape)
    may_skip[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    probs = np.exp(log_probs)
    alpha = np.zeros((len(texts), states.shape[1] + 2))  # two empty states on the left
    alpha[:, 2], alpha[:, 3] = probs[0, BLANK], probs[0, states[:, 1]]
    scale = np.zeros(len(texts))
    for n in range(1, len(probs)):
        arrived = alpha[:, 2:] + alpha[:, 1:-1]
        arrived += may_skip * alpha[:, :-2]
        arrived *= probs[n].take(states)
        if n % _SCALED_EVERY == 0:
            most = np.maximum(arrived.max(axis=1), 1e-300)
            arrived /= most[:, None]
            scale += np.log(most)
        alpha[:, 2:] = arrived
    rows = np.arange(len(texts))
    last = alpha[rows, 2 * lengths + 2] + alpha[rows, 2 * lengths + 1]
    with np.errstate(divide="ignore"):
        scores = np.log(last) + scale
    for i in np.flatnonzero(last < 1e-290).tolist():
        scores[i] = _log_likelihood(log_probs, texts[i])
    return np.asarray(scores)


def _log_likelihood(log_probs: np.ndarray, numbers: Sequence[int]) -> float:
    frames, length = torch.tensor([len(log_probs)]), torch.tensor([len(numbers)])
    args = torch.from_numpy(log_probs)[:, None], torch.tensor([list(numbers)]), frames, length
    return -float(functional.ctc_loss(*args, blank=BLANK, reduction="sum"))


def _batches(order: list[int], samples: list[int]) -> list[list[int]]:
    """Cut indices, sorted by length, into batches of at most `_BATCH_FRAMES` padded frames."""
    batches: list[list[int]] = []
    for i in order:
        fits = batches and (len(batches[-1]) + 1) * samples[i] <= _BATCH_FRAMES * features.HOP_LENGTH
        if fits:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _mask(mel: torch.Tensor, frames: torch.Tensor, distortion: Distortion) -> None:
    """Blank out stretches of time and of bands in normalized features (B, F, 80), in place."""
    longest = round(distortion.time_mask_s * features.FRAME_RATE)
    for row, count in zip(mel, frames.tolist(), strict=True):
        for _ in range(distortion.time_masks):
            size = int(torch.randint(0, longest + 1, ()))
            start = int(torch.randint(0, max(1, count - size + 1), ()))
            row[start : start + size] = 0.0
        for _ in range(distortion.band_masks):
            size = int(torch.randint(0, distortion.band_mask + 1, ()))
            start = int(torch.randint(0, features.N_MELS - size + 1, ()))
            row[:, start : start + size] = 0.0
