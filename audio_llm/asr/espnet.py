"""ESPnet2's Speech2Text as a recognizer; needs a separate environment (requirements/espnet.txt)."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import logging
import math
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_llm.asr.base import SAMPLE_RATE, Capabilities
from audio_llm.asr.espnet_files import check_config, find_files, read_config, read_weights
from audio_llm.asr.segment import SegmentRecognizer
from audio_llm.errors import MissingDependencyError, ModelFormatError
from audio_llm.nbest import Hypothesis, NBest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BEAM_SIZE = 20  # beam size; also the largest list that is always filled
CTC_WEIGHT = 0.3  # weight of the CTC score against the decoder's, as in ESPnet's recipes
_MIN_SAMPLES = SAMPLE_RATE // 10  # shorter waveforms give an empty list
_SILENCE_PEAK = 1e-4  # quieter than -80 dBFS counts as silence
_IMPOSSIBLE = -1e8  # ESPnet's CTC scores impossible texts with -1e10 times its weight
_MARKS = frozenset({"<blank>", "<unk>", "<sos/eos>", "<sos>", "<eos>"})  # tokens that are not text

# ESPnet imports these at its top for enhancement, synthesis and networks that `check_config` refuses. They cannot be
# installed with every torch (torchaudio, ci_sdr), or open a connection when imported (g2p_en).
_UNUSED_MODULES = (
    "ci_sdr",
    "fast_bss_eval",
    "g2p_en",
    "jamo",
    "tacotron_cleaner",
    "tacotron_cleaner.cleaners",
    "torchaudio",
    "torchaudio.compliance",
    "torchaudio.compliance.kaldi",
)


class EspnetRecognizer(SegmentRecognizer):
    """Recognize with a trained ESPnet2 model: an encoder with CTC, an attention decoder, or both.

    A score is the sum that ESPnet ranks by, in nats: `(1 - w) log p_decoder + w log p_ctc` with w the CTC weight.
    """

    name = "espnet"
    capabilities = Capabilities(scores=True, word_times=False, text_scores=True, word_preference=False)

    def __init__(self, speech2text: Any, ctc_weight: float, version: str) -> None:
        self.version = version
        self._speech2text = speech2text
        self._ctc_weight = ctc_weight
        self._known_tokens = frozenset(speech2text.asr_model.token_list)

    @classmethod
    def load(
        cls,
        model_dir: str | os.PathLike[str],
        device: str = "cpu",
        ctc_weight: float = CTC_WEIGHT,
        beam_size: int = BEAM_SIZE,
    ) -> EspnetRecognizer:
        """Load a model folder as ESPnet's training or model zoo writes it.

        ESPnet itself would unpickle the checkpoint without restriction. Here the network is built from config.yaml
        alone and the weights are read by `espnet_files.read_weights`, which takes tensors and nothing else.

        Args:
            model_dir: Folder with config.yaml and the weights (or meta.yaml naming both).
            device: `cpu` or `cuda`.
            ctc_weight: Weight of the CTC score, 0 to 1; a model with only one of the two parts uses that one.
            beam_size: Beam size; limited by the number of tokens.

        Raises:
            MissingDependencyError: ESPnet is not installed here.
            ModelNotFoundError: The folder, config.yaml or the weights are missing.
            ModelFormatError: The model cannot be built, or its files hold more than tensors and settings.
        """
        speech2text_class = import_espnet()
        files = find_files(model_dir)
        config = read_config(files)
        check_config(config, files.config)
        ctc_weight = _usable_ctc_weight(config, ctc_weight)
        speech2text = _build(speech2text_class, config, files.config, device, ctc_weight, beam_size)
        _fill(speech2text.asr_model, read_weights(files.weights), files.weights)
        return cls(speech2text, ctc_weight, f"espnet-{_espnet_version()}-{Path(model_dir).name}")

    def recognize(self, waveform: np.ndarray, nbest: int = 5, id: str = "") -> NBest:
        """Recognize one utterance (see `Recognizer.recognize`); ESPnet gives no word times.

        Args:
            waveform: (T,) float32 at 16 kHz in -1..1.
            nbest: Maximum number of distinct hypotheses.
            id: Name of the result.
        """
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

        if waveform.size < _MIN_SAMPLES or float(np.abs(waveform).max()) < _SILENCE_PEAK:
            return NBest(id, ())
        try:
            with _ignored_warnings():
                results = self._speech2text(np.ascontiguousarray(waveform, dtype=np.float32))
        except TooShortUttError:
            return NBest(id, ())
        if isinstance(results, tuple):  # a model with CTC in its middle layers adds their outputs
            results = results[0]
        return NBest(id, tuple(_distinct(results, self._speech2text.tokenizer))[:nbest])

    def score(self, waveform: np.ndarray, texts: Sequence[str]) -> list[float | None]:
        """Return the beam's own score of each text by teacher forcing (see `Recognizer.score`).

        A text with a token that the model does not know, in neither its own, upper nor lower case, gives None; so
        does one too long for the sound. Transducers score nothing.

        Args:
            waveform: (T,) float32 at 16 kHz.
            texts: Texts in the form of the model's transcripts.
        """
        import torch
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

        scores: list[float | None] = [None] * len(texts)
        token_ids = [self._token_ids(text) for text in texts]
        usable = [index for index, ids in enumerate(token_ids) if ids]
        if not usable or waveform.size < _MIN_SAMPLES:
            return scores
        try:
            with torch.inference_mode(), _ignored_warnings():
                values = self._score_tokens(waveform, [token_ids[index] or [] for index in usable])
        except TooShortUttError:
            return scores
        for index, value in zip(usable, values, strict=True):
            scores[index] = value if math.isfinite(value) else None
        return scores

    def prefer(self, words: Sequence[str]) -> list[str]:
        """Return all words: this engine cannot prefer words."""
        return list(words)

    def _token_ids(self, text: str) -> list[int] | None:
        for variant in (text, text.upper(), text.lower()):
            tokens = self._speech2text.tokenizer.text2tokens(variant)
            if all(token in self._known_tokens for token in tokens):
                return list(self._speech2text.converter.tokens2ids(tokens))
        return None

    def _score_tokens(self, waveform: np.ndarray, token_ids: Sequence[Sequence[int]]) -> list[float]:
        import torch

        model, device = self._speech2text.asr_model, self._speech2text.device
        speech = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))[None].to(device)
        encoded, _ = model.encode(speech, torch.tensor([speech.shape[1]], device=device))
        if isinstance(encoded, tuple):
            encoded = encoded[0]
        count = len(token_ids)
        frames = torch.full((count,), encoded.shape[1], device=device)
        lengths = torch.tensor([len(ids) for ids in token_ids], device=device)
        targets = torch.full((count, int(lengths.max())), model.ignore_id, device=device)
        for row, ids in zip(targets, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids, device=device)
        total = torch.zeros(count, device=device)
        if self._ctc_weight < 1:
            nll = model.nll(encoded.expand(count, -1, -1), frames, targets, lengths)
            total -= (1 - self._ctc_weight) * nll
        if self._ctc_weight > 0:
            log_probs = model.ctc.log_softmax(encoded).expand(count, -1, -1).transpose(0, 1)
            flat = targets[targets != model.ignore_id]
            ctc_nll = torch.nn.functional.ctc_loss(log_probs, flat, frames, lengths, reduction="none")
            total -= self._ctc_weight * ctc_nll
        return [float(value) for value in total]


def import_espnet() -> Any:
    """Import ESPnet and return its Speech2Text class.

    Raises:
        MissingDependencyError: ESPnet is not installed in this environment, or cannot be imported.
    """
    remedy = (
        "ESPnet needs an environment of its own: run .ci/espnet-env DIR, or pip install -r requirements/espnet.txt "
        "and then pip install --no-deps espnet==202511"
    )
    if importlib.util.find_spec("espnet2") is None:
        raise MissingDependencyError("the package espnet is not installed", remedy=remedy)
    try:
        with _stand_ins(), _ignored_warnings(), contextlib.redirect_stdout(io.StringIO()) as stdout:
            from espnet2.bin.asr_inference import Speech2Text
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"the package espnet cannot be imported: {error}", remedy=remedy) from error
    if stdout.getvalue():
        logger.debug("espnet printed at import: %s", stdout.getvalue().strip())
    return Speech2Text


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Provide empty modules, during ESPnet's import, for packages that recognition never uses."""
    placed = []
    for name in _UNUSED_MODULES:
        if name in sys.modules:
            continue
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        placed.append(name)
        parent, _, child = name.rpartition(".")
        if parent in placed:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]


@contextlib.contextmanager
def _ignored_warnings() -> Iterator[None]:
    """Suppress the deprecation warnings of ESPnet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _usable_ctc_weight(config: dict[str, Any], requested: float) -> float:
    trained_with = (config.get("model_conf") or {}).get("ctc_weight", 0.5)
    if config.get("decoder") is None or trained_with == 1.0:
        return 1.0
    return 0.0 if trained_with == 0.0 else requested


def _build(
    speech2text_class: Any, config: dict[str, Any], path: Path, device: str, ctc_weight: float, beam_size: int
) -> Any:
    import yaml
    from typeguard import TypeCheckError

    # ESPnet fills a wider beam with <blank>, which costs nothing in the end and so wins with an empty text
    beam_size = min(beam_size, len(config["token_list"]) - 1)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "config.yaml"
        written.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        try:
            return speech2text_class(
                asr_train_config=written,
                device=device,
                beam_size=beam_size,
                nbest=beam_size,
                ctc_weight=ctc_weight,
            )
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            problem: Exception = error
        except TypeCheckError as error:
            problem = error
        except ImportError as error:
            message = f"espnet needs a further package for this model: {error}"
            raise MissingDependencyError(message, path=path, remedy="install it, or use another model") from error
    message = f"espnet cannot build the model: {type(problem).__name__}: {problem}"
    raise ModelFormatError(message, path=path, remedy="check that this espnet version trained it") from problem


def _fill(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy the weights into the model; ESPnet itself would leave missing ones at random."""
    remedy = "take config.yaml and weights from the same training"
    try:
        outcome = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelFormatError(f"the weights do not fit config.yaml: {error}", path=path, remedy=remedy) from None
    if outcome.missing_keys:
        message = f"{len(outcome.missing_keys)} weights are missing, first {outcome.missing_keys[0]}"
        raise ModelFormatError(message, path=path, remedy=remedy)
    if outcome.unexpected_keys:
        logger.warning("%s: %d weights do not belong to the model", path, len(outcome.unexpected_keys))


def _distinct(results: Sequence[Any], tokenizer: Any) -> list[Hypothesis]:
    """Return the texts without repeats and marks, best first; an empty best text gives no hypotheses."""
    possible = [result for result in results if float(result[3].score) > _IMPOSSIBLE]
    ranked = sorted(possible, key=lambda result: float(result[3].score), reverse=True)
    hypotheses: dict[str, Hypothesis] = {}
    for _, tokens, _, hypothesis in ranked:
        text = " ".join(tokenizer.tokens2text([token for token in tokens if token not in _MARKS]).split())
        if not text and not hypotheses:
            return []
        if text and text not in hypotheses:
            hypotheses[text] = Hypothesis(text, float(hypothesis.score))
    return list(hypotheses.values())


def _espnet_version() -> str:
    import espnet2

    return str(espnet2.__version__)
