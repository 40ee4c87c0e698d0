"""RobustGER: a causal language model with LoRA, the noise adapter, and the embedding that numbers the hypotheses."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audio_llm.errors import MissingDependencyError
from audio_llm.ger.adapter import AdapterSettings, NoiseAdapter
from audio_llm.ger.noise import NoiseSettings
from audio_llm.ger.prompt import MAX_SEGMENTS, PromptSettings

IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (LoRA) of the language model's matrices (peft).

    Attributes:
        rank: Rank of the update; 0: no LoRA.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on its input.
        targets: Names of the matrices, or `all-linear`.
    """

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.05
    targets: str = "all-linear"


@dataclass(frozen=True)
class GerSettings:
    """Prompt, noise embedding and adapters of a neural corrector.

    Attributes:
        prompt: Form of the prompt.
        noise: Noise embedding.
        adapter: Noise adapter.
        lora: LoRA of the language model.
        use_noise: False: plain GER, without adapter.
        number_hypotheses: Add to each token a learned embedding of the hypothesis it belongs to; for a model trained
            from scratch.
        tune: `adapters`: the language model is frozen; `all`: its weights are trained too.
    """

    prompt: PromptSettings = field(default_factory=PromptSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    use_noise: bool = True
    number_hypotheses: bool = False
    tune: Literal["adapters", "all"] = "adapters"


@dataclass(frozen=True)
class Batch:
    """Prompts with responses, padded on the right.

    Attributes:
        ids: (B, T) int64.
        positions: (B, T) int64.
        segments: (B, T) int64.
        valid: (B, T) bool.
        labels: (B, T) int64, the token id in the response, `IGNORED` elsewhere.
        noise: (B, U, d) float32.
        noise_valid: (B, U) bool.
        noisy: (B, A) float32, `noise_features` of the audio of each list; None without audio.
        clean: (B, A) float32, the same of the audio without noise.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    valid: Tensor
    labels: Tensor
    noise: Tensor
    noise_valid: Tensor
    noisy: Tensor | None = None
    clean: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        moved = {name: None if tensor is None else tensor.to(device) for name, tensor in vars(self).items()}
        return Batch(**moved)  # type: ignore[arg-type]


class RobustGer(nn.Module):
    """The model; at step 0, or without noise embedding, it equals the language model exactly.

    Args:
        llm: A transformers causal language model; frozen unless `settings.tune` is `all`.
        noise_width: Width d of the noise embedding.
        settings: See `GerSettings`.

    Raises:
        MissingDependencyError: LoRA is configured and peft is not installed.
        ModelFormatError: The language model's layers are not recognized.
    """

    def __init__(self, llm: Any, noise_width: int, settings: GerSettings) -> None:
        super().__init__()
        self.settings = settings
        config = llm.config
        hidden = int(llm.get_input_embeddings().embedding_dim)
        train_all = settings.tune == "all"
        named_so = "cache" in inspect.signature(type(llm).forward).parameters  # from transformers 5.23 or so on
        self._cache_name = "cache" if named_so else "past_key_values"
        llm.requires_grad_(train_all)
        self.llm = _with_lora(llm, settings.lora) if settings.lora.rank and not train_all else llm
        self.segments: nn.Embedding | None = None
        if settings.number_hypotheses:
            self.segments = nn.Embedding(MAX_SEGMENTS, hidden)
            nn.init.normal_(self.segments.weight, std=0.02)
        self.adapter: NoiseAdapter | None = None
        self._hooks: list[Any] = []
        if settings.use_noise:
            layers = int(config.num_hidden_layers)
            self.adapter = NoiseAdapter(hidden, layers, settings.noise.rows, noise_width, settings.adapter)
            self._hooks = self.adapter.attach(self.llm)
        self.noise_size: Tensor
        self.register_buffer("noise_size", torch.ones(2))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.noise_size.device

    def detach(self) -> None:
        """Remove the adapter from the language model."""
        for hook in self._hooks:
            hook.remove()

    @property
    def max_positions(self) -> int:
        """Maximum length of a text for the language model, in tokens."""
        return int(getattr(self.llm.config, "max_position_embeddings", 1 << 30))

    def set_noise_size(self, sizes: Tensor) -> None:
        """Set the scales (2,) that the rows of whole texts and of words are divided by."""
        self.noise_size.copy_(sizes)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Divide the rows of whole texts and of words by their scales; relative amounts are preserved."""
        half = noise.shape[1] // 2
        sizes = self.noise_size.repeat_interleave(half)[:, None]
        return noise / sizes

    @contextlib.contextmanager
    def condition(self, noise: Tensor | None, valid: Tensor | None) -> Iterator[None]:
        """Condition the model on the noise embedding (B, U, d) of each list inside the block."""
        if self.adapter is None or noise is None:
            yield
            return
        with self.adapter.condition(self.scale_noise(noise), valid):
            yield

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        valid: Tensor,
        cache: Any = None,
        keep: int = 0,
    ) -> Tensor:
        """Return logits of the next tokens.

        Args:
            ids: (B, T) int64.
            positions: (B, T) int64.
            segments: (B, T) int64.
            valid: (B, P + T) bool, with P tokens in the cache already.
            cache: A transformers cache, updated in place.
            keep: Number of last positions to return logits for; 0: all.

        Returns:
            (B, keep or T, V).
        """
        embedded = self.llm.get_input_embeddings()(ids)
        if self.segments is not None:
            embedded = embedded + self.segments(segments).to(embedded.dtype)
        # The mask is given even if all is valid: without one transformers takes restarting positions for several
        # packed texts and masks them from one another.
        output = self.llm(
            inputs_embeds=embedded,
            attention_mask=valid.long(),
            position_ids=positions,
            use_cache=cache is not None,
            logits_to_keep=keep,
            **{self._cache_name: cache},
        )
        logits: Tensor = output.logits
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a response token."""
        learned = batch.labels != IGNORED
        first = int(learned.any(dim=0).int().argmax())
        keep = batch.ids.shape[1] - first + 1
        with self.condition(batch.noise, batch.noise_valid):
            logits = self(batch.ids, batch.positions, batch.segments, batch.valid, keep=keep)
        targets = batch.labels[:, first:]
        flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
        return nn.functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return all tensors outside the frozen language model: LoRA, adapter, segments, noise scales."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: tensor for name, tensor in self.state_dict().items() if name in trained or not name.startswith("llm.")
        }


def _with_lora(llm: Any, settings: LoraSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingDependencyError("LoRA needs peft", remedy="pip install 'audio-llm[train]'") from None
    targets: Any = settings.targets if settings.targets == "all-linear" else settings.targets.split(",")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, config)
