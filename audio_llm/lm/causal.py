"""Language models of transformers in local folders: network and tokenizer, loaded without running foreign code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from audio_llm.errors import ModelFormatError, ModelNotFoundError

INSIDE = "llm.json"  # configuration of a language model that lies inside a model directory
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of these is a tokenizer


class CausalLm(NamedTuple):
    """A language model.

    Attributes:
        network: Of transformers, with its output layer.
        tokenizer: Of transformers.
        files: The tokenizer's files' texts by name.
    """

    network: Any
    tokenizer: Any
    files: dict[str, str]

    def config(self) -> dict[str, Any]:
        """Return the network's configuration, plain JSON values; where it came from is left out."""
        values: dict[str, Any] = json.loads(self.network.config.to_json_string(use_diff=False))
        values.pop("_name_or_path", None)
        return values


def load_causal_lm(folder: Path) -> CausalLm:
    """Return the language model of a transformers folder.

    Raises:
        ModelNotFoundError: There is none, or it is no causal language model.
        ModelFormatError: It has no tokenizer, is no decoder, or its weights are quantized.
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
    except ImportError as error:  # of what a way to quantize weights needs
        reason = str(error).splitlines()[0]
        message = f"its weights are quantized, or need another package: {reason}"
        raise ModelFormatError(message, path=folder, remedy="get the weights that are not quantized") from None
    _check_decoder(network, folder)
    return CausalLm(network, *_load_tokenizer(folder))


def build_inside(folder: Path) -> CausalLm:
    """Return a network of the configuration that lies in a model directory, its weights random, and its tokenizer.

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
    """Raise where a token changes what is predicted before it."""
    with torch.no_grad():
        one, other = (network(input_ids=torch.tensor([[0, last]])).logits[0, 0].float() for last in (0, 1))
    if not torch.allclose(one, other, atol=1e-3):
        message = "is no decoder: its predictions depend on the tokens that come after"
        raise ModelFormatError(message, path=folder, remedy="choose a causal language model")


def _load_tokenizer(folder: Path) -> tuple[Any, dict[str, str]]:
    """Return the tokenizer of a folder, and the texts of files, by name, that make the same one elsewhere.

    Which class a tokenizer has depends on other files of its folder. So it is written out, and read from there.
    """
    from transformers import AutoTokenizer

    remedy = "put its tokenizer.json beside the weights"
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
