"""Sentence identification: pocketsphinx with a grammar of the true sentence and distractors of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SENTENCES = 20  # in a grammar, including the true one


class SentenceIdentifier:
    """Identifies one of several sentences.

    Args:
        texts: Normalized sentences to draw distractors from; those with unknown words are skipped.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(lm=None, loglevel="FATAL")
        self._texts = sorted({text for text in texts if text and self._known(text)})

    def usable(self, text: str) -> bool:
        """Return whether the recognizer knows every word."""
        return bool(text) and self._known(text)

    def identifies(self, waveform: np.ndarray, text: str, seed: int) -> bool:
        """Return whether the true sentence is recognized in (T,) float32 at 16 kHz."""
        size = len(text)
        alternatives = sorted((t for t in self._texts if t != text), key=lambda t: abs(len(t) - size))[: 3 * SENTENCES]
        chosen = np.random.default_rng(seed).permutation(len(alternatives))[: SENTENCES - 1]
        sentences = [text, *(alternatives[i] for i in chosen)]
        rules = " | ".join(f"( {sentence} )" for sentence in sentences)
        self._decoder.add_jsgf_string("closed", f"#JSGF V1.0; grammar closed; public <s> = {rules} ;")
        self._decoder.activate_search("closed")
        self._decoder.start_utt()
        pcm = (np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis is not None and hypothesis.hypstr == text

    def _known(self, text: str) -> bool:
        return all(self._decoder.lookup_word(word) for word in text.split())
