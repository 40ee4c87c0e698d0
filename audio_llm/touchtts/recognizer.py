"""Speech recognition by TouchTTS's language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from audio_llm import hub
from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.segment import SegmentRecognizer, segments
from audio_llm.nbest import Hypothesis, NBest
from audio_llm.text import DEFAULT_NORMALIZER
from audio_llm.tokenizer.s3 import S3Tokenizer
from audio_llm.touchtts.data import trim_and_level
from audio_llm.touchtts.models import TouchModel, load_touchtts
from audio_llm.touchtts.sequence_layout import moved
from audio_llm.touchtts.speech_text_lm import continuous, text_example

_LONGEST_S = 12.0  # longest segment; the training data have few longer ones
_LEAST_S = 0.1
_BEAM = 5


class TouchRecognizer(SegmentRecognizer):
    """The recognizer.

    Args:
        model: All parts of a TouchTTS model.
        version: Version of the model.
        lm_input: Input of the language model: `tokens`, or the tokenizer's `continuous` features, where it has them.
    """

    name = "touchtts"
    capabilities = Capabilities(scores=True, word_times=False, text_scores=True, word_preference=False)

    def __init__(
        self, model: TouchModel, version: str, lm_input: Literal["tokens", "continuous"] = "continuous"
    ) -> None:
        self.model, self.version, self.lm_input = model, version, lm_input

    @classmethod
    def load(cls, name_or_dir: str | os.PathLike[str], device: str = "cpu") -> TouchRecognizer:
        """Return the recognizer of a model directory; raises as `models.load_touchtts`."""
        return cls(load_touchtts(name_or_dir, device), str(hub.model_stamp(os.fspath(name_or_dir))))

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`); a long one is segmented, and the texts are joined."""
        if waveform.size <= _LONGEST_S * SAMPLE_RATE:
            return NBest(id, tuple(Hypothesis(text, score) for text, score in self._texts(waveform, nbest)))
        lists = [self._texts(segment.waveform, 1) for segment in segments([waveform], _LONGEST_S)]
        best = [texts[0] for texts in lists if texts]
        if not best:
            return NBest(id, ())
        return NBest(id, (Hypothesis(" ".join(text for text, _ in best), sum(score for _, score in best)),))

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | waveform) in nats, None for a text without letters; the waveform is not segmented."""
        speech = self._speech(waveform)
        if speech is None:
            return [None for _ in texts]
        tokens, states = speech
        lm, scores = self.model.lm, list[float | None]()
        for text in texts:
            written = lm.text_tokens.encode_output(DEFAULT_NORMALIZER(text))
            if not len(written):
                scores.append(None)
                continue
            row, targets = text_example(lm, tokens.cpu(), written)
            features = None
            if states is not None:
                row, features = continuous(moved(row, states.device), states)
            device = lm.durations.device
            with torch.inference_mode():
                entropies = lm(moved(row, device), targets.to(device), lm.text_tokens.output_range, features)
            scores.append(-float(entropies.sum()))
        return scores

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Return all words: word preference is not supported."""
        return list(words)

    def _texts(self, waveform: np.ndarray, nbest: int) -> list[tuple[str, float]]:
        """Return distinct texts with their log-probabilities, best first."""
        speech = self._speech(waveform)
        if speech is None:
            return []
        best: dict[str, float] = {}
        for written, score in self.model.lm.transcribe(*speech, beam=max(_BEAM, nbest)):
            text = DEFAULT_NORMALIZER(self.model.lm.text_tokens.decode(written))
            if text:
                best.setdefault(text, score)
        return list(best.items())[:nbest]

    def _speech(self, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Return the tokens of speech (T,) and, where they are the input, its continuous features (T, states)."""
        speech = trim_and_level(np.asarray(waveform, np.float32))
        if speech.size < _LEAST_S * SAMPLE_RATE:
            return None
        device = self.model.lm.durations.device
        waveforms, lengths = torch.from_numpy(speech)[None].to(device), torch.tensor([speech.size], device=device)
        tokens = self.model.tokenizer.encode(waveforms, lengths).tokens[0]
        if not len(tokens):
            return None
        tokenizer = self.model.tokenizer
        if self.lm_input == "continuous" and isinstance(tokenizer, S3Tokenizer):
            return tokens, tokenizer.states(waveforms, lengths)[0]
        return tokens, None
