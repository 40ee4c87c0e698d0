"""Loads any tokenizer: a model of this package, or a published file."""

from __future__ import annotations

import os
from pathlib import Path

from audio_llm import hub
from audio_llm.errors import ModelFormatError, UsageError
from audio_llm.onnx_file import ONNX_SUFFIX
from audio_llm.tokenizer.base import SemanticTokenizer


def load_tokenizer(
    name: str | os.PathLike[str],
    device: str = "cpu",
    ssl_folder: str | os.PathLike[str] | None = None,
    variant: str | None = None,
) -> SemanticTokenizer:
    """Load a tokenizer.

    Args:
        name: A model directory or name (`s3-tokenizer` or `ssl-kmeans`), or a published S3Tokenizer as .onnx file.
        device: `cpu` or `cuda`.
        ssl_folder: Local folder of the speech model that an `ssl-kmeans` tokenizer uses.
        variant: Which S3Tokenizer the .onnx file is; never guessed.

    Raises:
        UsageError: A required argument is missing, or one is given that does not apply.
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    if Path(name).suffix == ONNX_SUFFIX:
        from audio_llm.tokenizer.onnx_s3 import VARIANTS, OnnxS3Tokenizer

        if variant is None:
            remedy = f"give the variant of the S3Tokenizer: {', '.join(VARIANTS)}"
            raise UsageError("the file does not say its variant", path=name, remedy=remedy)
        return OnnxS3Tokenizer(name, variant)
    if variant is not None:
        raise UsageError(f"a variant is for {ONNX_SUFFIX} files", path=name, remedy="leave it out")
    kind = hub.model_kind(hub.find_model(name))
    if kind == "ssl-kmeans":
        from audio_llm.tokenizer.ssl_kmeans import SslKmeansTokenizer

        if ssl_folder is None:
            raise UsageError("needs a speech model", path=name, remedy="give that model's local folder")
        return SslKmeansTokenizer.load(name, ssl_folder, device)
    if kind == "s3-tokenizer":
        from audio_llm.tokenizer.s3 import S3Tokenizer

        return S3Tokenizer.load(name, device)
    remedy = "choose one of kind s3-tokenizer or ssl-kmeans: see `audio-llm models list`"
    raise ModelFormatError(f"is a model of kind {kind}, not a tokenizer", path=name, remedy=remedy)
