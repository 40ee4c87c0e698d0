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
    """Low-rank changes of the language model's matrices (peft).

    Attributes:
        rank: Of the change; 0: none.
        alpha: Its scale is alpha / rank.
        dropout: On its input.
        targets: Names of the matrices, or `all-linear`.
    """

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.05
    targets: str = "all-linear"


@dataclass(frozen=True)
class GerSettings:
    """What is put on a language model.

    Attributes:
        prompt: How a list is shown.
        noise: How the noise embedding is made.
        adapter: How it enters.
        lora: Low-rank changes.
        use_noise: Off: plain GER, without adapter.
        number_hypotheses: Add a learned vector to each token that says which hypothesis it belongs to; for a model
            trained from scratch.
        tune: `adapters`: the language model stays as it is; `all`: its weights are trained too.
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
        labels: (B, T) int64, the token itself in the response, `IGNORED` elsewhere.
        noise: (B, U, d) float32.
        noise_valid: (B, U) bool.
        noisy: (B, A) float32, what is known of the sound of each list (see `sound`); None without sounds.
        clean: (B, A) float32, the same without noise.
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
    """The model; without noise embedding and at step 0 exactly the language model.

    Args:
        llm: A transformers causal language model; frozen unless `settings.tune` is `all`.
        noise_width: Width d of the noise embedding.
        settings: See `GerSettings`.

    Raises:
        MissingDependencyError: LoRA is wanted and peft is not installed.
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
        """Where it runs."""
        return self.noise_size.device

    def detach(self) -> None:
        """Take the adapter out of the language model again."""
        for hook in self._hooks:
            hook.remove()

    @property
    def max_positions(self) -> int:
        """The longest text the language model can read, in tokens."""
        return int(getattr(self.llm.config, "max_position_embeddings", 1 << 30))

    def set_noise_size(self, sizes: Tensor) -> None:
        """Set the typical sizes (2,) of the rows of whole texts and of those of words, by which they are divided."""
        self.noise_size.copy_(sizes)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Divide the rows of whole texts and of words by their typical sizes; amounts keep their meaning."""
        half = noise.shape[1] // 2
        sizes = self.noise_size.repeat_interleave(half)[:, None]
        return noise / sizes

    @contextlib.contextmanager
    def condition(self, noise: Tensor | None, valid: Tensor | None) -> Iterator[None]:
        """Let the model see the noise embedding (B, U, d) of each list inside the block."""
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
            valid: (B, P + T) bool, P tokens being in the cache already.
            cache: A transformers cache, filled here.
            keep: Logits of the last so many positions only; 0: of all.

        Returns:
            (B, keep or T, V).
        """
        embedded = self.llm.get_input_embeddings()(ids)
        if self.segments is not None:
            embedded = embedded + self.segments(segments).to(embedded.dtype)
        # The mask is given even where all is valid: without one transformers takes restarting positions for
        # several texts in a row and hides them from one another.
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
        """Return everything that is not the language model's own: LoRA, adapter, segments, noise sizes."""
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
