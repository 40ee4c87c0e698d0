"""Causal language models of transformers from local folders, loaded without running remote code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from audio_llm.errors import ModelFormatError, ModelNotFoundError

INSIDE = "llm.json"  # configuration of a language model stored inside a model directory
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a tokenizer needs one of these


class CausalLm(NamedTuple):
    """A language model.

    Attributes:
        network: A transformers model with output layer.
        tokenizer: A transformers tokenizer.
        files: Contents of the tokenizer's files by name.
    """

    network: Any
    tokenizer: Any
    files: dict[str, str]

    def config(self) -> dict[str, Any]:
        """Return the network's configuration as plain JSON values, without its origin."""
        values: dict[str, Any] = json.loads(self.network.config.to_json_string(use_diff=False))
        values.pop("_name_or_path", None)
        return values


def load_causal_lm(folder: Path) -> CausalLm:
    """Return the language model of a transformers folder.

    Raises:
        ModelNotFoundError: There is none, or it is not a causal language model.
        ModelFormatError: It has no tokenizer, is not a decoder, or its weights are quantized.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():  # transformers would look for it on the network
        raise ModelNotFoundError("no such folder of a language model", path=folder, remedy="check --llm")
    try:
        network = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFoundError(f"no causal language model: {reason}", path=folder, remedy="check --llm") from None
    except ImportError as error:  # a quantization backend is missing
        reason = str(error).splitlines()[0]
        message = f"its weights are quantized, or need another package: {reason}"
        raise ModelFormatError(message, path=folder, remedy="get the weights that are not quantized") from None
    _check_decoder(network, folder)
    return CausalLm(network, *_load_tokenizer(folder))


def build_inside(folder: Path) -> CausalLm:
    """Return a network with random weights from the configuration in a model directory, and its tokenizer.

    Raises:
        ModelFormatError: The configuration or the tokenizer is missing or damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = json.loads((folder / INSIDE).read_text(encoding="utf-8"))
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(f"its language model is damaged: {error}", path=folder, remedy="get it again") from None
    return CausalLm(network, *_load_tokenizer(folder))


def _check_decoder(network: Any, folder: Path) -> None:
    """Raise if a token changes a prediction before it."""
    with torch.no_grad():
        one, other = (network(input_ids=torch.tensor([[0, last]])).logits[0, 0].float() for last in (0, 1))
    if not torch.allclose(one, other, atol=1e-3):
        message = "is not a decoder: its predictions depend on the tokens that come after"
        raise ModelFormatError(message, path=folder, remedy="choose a causal language model")


def _load_tokenizer(folder: Path) -> tuple[Any, dict[str, str]]:
    """Return the tokenizer of a folder, and the contents by name of the files that rebuild it elsewhere.

    The class of a tokenizer depends on other files of its folder, so it is saved and loaded again.
    """
    from transformers import AutoTokenizer

    remedy = "put its tokenizer.json in the same folder"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelFormatError("has no tokenizer", path=folder, remedy=remedy)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with tempfile.TemporaryDirectory() as written:
            tokenizer.save_pretrained(written)
            present = [Path(written, name) for name in _TOKENIZER_FILES if Path(written, name).is_file()]
            files = {path.name: path.read_text(encoding="utf-8") for path in present}
            return AutoTokenizer.from_pretrained(written, local_files_only=True, trust_remote_code=False), files
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFormatError(f"has no usable tokenizer: {reason}", path=folder, remedy=remedy) from None
