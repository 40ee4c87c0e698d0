"""Any Whisper of the transformers package as a recognizer: N-best list, word times, log p(text | audio)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.asr.whisper_model import Prompt, WhisperModel, alignment_heads, load_model, make_prompt
from audio_llm.asr.whisper_times import token_starts, words_of_tokens
from audio_llm.errors import UsageError
from audio_llm.nbest import Hypothesis, NBest, Word

if TYPE_CHECKING:
    import torch

_FRAME_S = 0.02  # one encoder frame: two feature frames of 10 ms
_MIN_SAMPLES = SAMPLE_RATE // 10  # shorter waveforms give an empty list
_SILENCE_PEAK = 1e-4  # quieter than -80 dBFS counts as silence
_EXTRA_BEAMS = 3  # some sequences differ in tokens but not in text
_SCORE_BATCH = 8  # texts scored in one pass of the decoder; each keeps tokens x vocabulary floats
_NO_SPEECH = 0.6  # openai/whisper takes a window for silence where the no-speech token is more probable than this
_DOUBT = -1.0  # ... and the text's mean log-probability per token is below this


class WhisperRecognizer(SegmentRecognizer):
    """Recognizes with a Whisper model in windows of up to 30 s.

    A score is log p(text, end mark | audio) in nats, summed over the tokens; lists are ranked by it.
    """

    name = "whisper"
    capabilities = Capabilities(scores=True, word_times=True, text_scores=True, word_preference=False)

    def __init__(self, model: WhisperModel, prompt: Prompt) -> None:
        self.version = f"whisper-{model.name}"
        self._model = model.network
        self._feature_extractor = model.feature_extractor
        self._tokenizer = model.tokenizer
        self._prompt = prompt
        self._alignment_heads = alignment_heads(model.network)

    @classmethod
    def load(
        cls, name_or_dir: str | os.PathLike[str], device: str = "cpu", offline: bool = False, language: str = "en"
    ) -> WhisperRecognizer:
        """Load a model by hub name or from a folder; safetensors only, and no code from either.

        Args:
            name_or_dir: Such as `openai/whisper-tiny.en`, or a folder that `save_pretrained` wrote.
            device: `cpu` (float32) or `cuda` (float16).
            offline: Use only models that were downloaded before.
            language: Code of the spoken language, for multilingual models.

        Raises:
            ModelNotFoundError: There is no such model, here or on the hub.
            ModelFormatError: It is not a Whisper model, or its weights are not in safetensors.
            UsageError: The model does not know the language.
        """
        model = load_model(name_or_dir, device, offline)
        return cls(model, make_prompt(model, language))

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`).

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1, at most 30 s.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.

        Raises:
            UsageError: The waveform is longer than the model's window.
        """
        import torch

        if waveform.size < _MIN_SAMPLES or float(np.abs(waveform).max()) < _SILENCE_PEAK:
            return NBest(id, ())
        with torch.inference_mode():
            encoded = self._encode(waveform)
            beams = self._beam_search(encoded, nbest)
            if not beams or self._is_silence(encoded, beams[0]):
                return NBest(id, ())
            words = self._word_times(encoded, beams[0].tokens, waveform.size / SAMPLE_RATE)
        return NBest(id, tuple(Hypothesis(beam.text, beam.score) for beam in beams), words=words)

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return log p(text | audio) by teacher forcing, the end mark included (see `Recognizer.score`).

        A text with more tokens than the decoder has positions gives None.

        Args:
            waveform: (T,) float32 at 16 kHz, at most 30 s.
            texts: As the model would write them; Whisper's probabilities depend on capitals and punctuation.
        """
        import torch

        scores: list[float | None] = [None] * len(texts)
        tokens = [self._text_tokens(text) for text in texts]
        usable = [index for index, ids in enumerate(tokens) if len(ids) <= self._max_text_tokens]
        if not usable or waveform.size < _MIN_SAMPLES:
            return scores
        with torch.inference_mode():
            encoded = self._encode(waveform)
            for start in range(0, len(usable), _SCORE_BATCH):
                batch = usable[start : start + _SCORE_BATCH]
                log_probs = self._token_log_probs(encoded, [tokens[index] for index in batch])
                for index, values in zip(batch, log_probs, strict=True):
                    scores[index] = float(values.sum())
        return scores

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Return all words: this engine cannot prefer words."""
        return list(words)

    @property
    def _max_text_tokens(self) -> int:
        return int(self._model.config.max_target_positions) - len(self._prompt.tokens)

    def _encode(self, waveform: np.ndarray) -> torch.Tensor:
        """Return the encoder's output, (1, frames, width)."""
        limit_s = self._feature_extractor.chunk_length
        if waveform.size > limit_s * SAMPLE_RATE:
            message = f"{waveform.size / SAMPLE_RATE:.1f} s of sound, but Whisper hears {limit_s} s at a time"
            raise UsageError(message, remedy="cut it at pauses first")
        features = self._feature_extractor(
            np.asarray(waveform, dtype=np.float32), sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features
        features = features.to(device=self._model.device, dtype=self._model.dtype)
        output: torch.Tensor = self._model.get_encoder()(features).last_hidden_state
        return output

    def _beam_search(self, encoded: torch.Tensor, nbest: int) -> list[_Beam]:
        """Return distinct texts, best first; an empty best text gives none.

        `generate` of the Whisper class itself repeats the input and sets num_return_sequences to 1, so that all
        sequences are identical; that of the mixin gives a true list for one window and an explicit prompt.
        """
        import torch
        from transformers import GenerationConfig, GenerationMixin
        from transformers.modeling_outputs import BaseModelOutput

        prompt = self._prompt
        beams = nbest + _EXTRA_BEAMS
        config = GenerationConfig(
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0,  # rank by the sum of log-probabilities, the score that is reported
            do_sample=False,
            max_length=len(prompt.tokens) + min(self._model.config.max_target_positions // 2, self._max_text_tokens),
            suppress_tokens=prompt.never,
            begin_suppress_tokens=prompt.never_first,
            decoder_start_token_id=prompt.tokens[0],
            bos_token_id=prompt.end,
            eos_token_id=prompt.end,
            pad_token_id=prompt.end,
            return_dict_in_generate=True,
            output_scores=True,
        )
        output: Any = GenerationMixin.generate(
            self._model,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=torch.tensor([prompt.tokens], device=self._model.device),
            generation_config=config,
        )
        sequences = [sequence[len(prompt.tokens) :] for sequence in output.sequences.tolist()]
        tokens = [ids[: ids.index(prompt.end)] if prompt.end in ids else ids for ids in sequences]
        scores = output.sequences_scores.tolist()
        unfinished = [index for index, ids in enumerate(sequences) if prompt.end not in ids]
        if unfinished:  # at the length limit; their scores lack the end mark that the others include
            log_probs = self._token_log_probs(encoded, [tokens[index] for index in unfinished])
            for index, values in zip(unfinished, log_probs, strict=True):
                scores[index] = float(values.sum())
        results = [_Beam(self._text(ids), score, ids) for ids, score in zip(tokens, scores, strict=True)]
        return _distinct(results)[:nbest]

    def _is_silence(self, encoded: torch.Tensor, best: _Beam) -> bool:
        if self._prompt.no_speech is None or best.score / (len(best.tokens) + 1) >= _DOUBT:
            return False
        logits = self._decode(encoded, [self._prompt.tokens[:1]]).logits[0, 0]
        return float(logits.float().softmax(dim=-1)[self._prompt.no_speech]) > _NO_SPEECH

    def _word_times(self, encoded: torch.Tensor, tokens: list[int], duration_s: float) -> tuple[Word, ...]:
        sequence = [*self._prompt.tokens, *tokens, self._prompt.end]
        implementation = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")  # the fast kernels keep no attention weights
        try:
            output = self._decode(encoded, [sequence], output_attentions=True)
        finally:
            self._model.set_attn_implementation(implementation)
        frames = max(1, min(encoded.shape[1], round(duration_s / _FRAME_S)))
        attention = np.stack(
            [output.cross_attentions[layer][0, head, :, :frames].float().cpu() for layer, head in self._alignment_heads]
        )
        starts = token_starts(attention, len(self._prompt.tokens)) * _FRAME_S
        positions = slice(len(self._prompt.tokens) - 1, len(sequence) - 2)
        log_probs = output.logits[0, positions].float().log_softmax(dim=-1).cpu().numpy()
        token_log_probs = log_probs[np.arange(len(tokens)), tokens]
        prefixes = [self._text(tokens[: end + 1]) for end in range(len(tokens))]
        return words_of_tokens(prefixes, starts.tolist(), token_log_probs.tolist(), duration_s)

    def _token_log_probs(self, encoded: torch.Tensor, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return for each text the log-probabilities of its tokens and of the end mark, (tokens + 1,) float32."""
        end, start = self._prompt.end, len(self._prompt.tokens) - 1
        longest = max(len(ids) for ids in texts)
        rows = [[*self._prompt.tokens, *ids, *[end] * (longest - len(ids))] for ids in texts]
        log_probs = self._decode(encoded, rows).logits[:, start:].float().log_softmax(dim=-1).cpu()
        return [row[range(len(ids) + 1), [*ids, end]] for row, ids in zip(log_probs, texts, strict=True)]

    def _decode(self, encoded: torch.Tensor, rows: Sequence[Sequence[int]], **options: bool) -> Any:
        """Run the decoder over whole sequences of equal length, all with the same sound."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        return self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.expand(len(rows), -1, -1)),
            decoder_input_ids=torch.tensor([list(row) for row in rows], device=self._model.device),
            use_cache=False,
            **options,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return " ".join(str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).split())

    def _text_tokens(self, text: str) -> list[int]:
        text = " ".join(text.split())
        return list(self._tokenizer(f" {text}", add_special_tokens=False).input_ids) if text else []


@dataclass(frozen=True)
class _Beam:
    text: str
    score: float
    tokens: list[int]


def _distinct(beams: Sequence[_Beam]) -> list[_Beam]:
    """Return the beams without repeated texts, best first; an empty best text gives no beams."""
    distinct: dict[str, _Beam] = {}
    for beam in sorted(beams, key=lambda beam: beam.score, reverse=True):
        if not beam.text and not distinct:
            return []
        if beam.text:
            distinct.setdefault(beam.text, beam)
    return list(distinct.values())
