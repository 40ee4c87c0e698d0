"""The Denoising LM: a T5 on characters with a cursor and a pointer, so that copying is easy.

A plain T5 has no positions in its cross-attention and is slow to learn copying, which is most of this task. Here the
text written so far is aligned with the input by edit distance. The aligned input position, the cursor, gives the
decoder its sinusoidal position and the encoder's output there. The output mixes the distribution over the vocabulary
with a pointer over the input's characters. Both depend on prefix and input only, so that the model remains a
distribution over texts given a hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audio_llm.dlm import stepper, vocab

KIND = "dlm"


@dataclass(frozen=True)
class ModelConfig:
    """Size of the network: deep encoder, shallow decoder.

    Attributes:
        width: Width of every layer.
        feed_forward: Width inside the feed-forward layers.
        heads: Attention heads.
        encoder_layers: Encoder layers, which read the hypothesis.
        decoder_layers: Decoder layers, which write the text.
        dropout: Dropout probability in training; not needed while every use of a text draws new noise.
        positions: Whether encoder and decoder get sinusoidal positions.
        cursor: Whether the decoder's position follows the alignment of its text with the input, and adds the
            encoder's output at that position; else it counts the written characters.
        pointer: Whether the output may copy an input character.
    """

    width: int = 256
    feed_forward: int = 704
    heads: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 2
    dropout: float = 0.0
    positions: bool = True
    cursor: bool = True
    pointer: bool = True


@dataclass
class DecoderState:
    """The state of step-by-step decoding of one batch; rows follow the batch.

    Attributes:
        memory: (B, S, D) encoder output.
        mask: (B, S) bool, True where valid.
        source: (B, S) int64 characters of the hypothesis with EOS.
        blocked: (B, 1, 1, S) float32, added to attention scores: a large negative number where not valid.
        pointed: (B, S, D) keys of the pointer; empty without a pointer.
        distances: (B, S + 1) float32, edit distance of the written text to each prefix of the source.
        caches: Keys and values of past steps, one cache per decoder layer.
        step: Number of characters written so far.
    """

    memory: Tensor
    mask: Tensor
    source: Tensor
    blocked: Tensor
    pointed: Tensor
    distances: Tensor
    caches: list[stepper.LayerCache]
    step: int = 0

    def select(self, rows: Tensor, same_memory: bool = False) -> None:
        """Keep these rows in this order; a row may occur several times.

        Args:
            rows: (B',) int64.
            same_memory: Each row has the same hypothesis as the row it replaces, so that the encoder's output can stay.
        """
        self.distances = self.distances[rows]
        if not same_memory:
            self.memory, self.mask, self.source = self.memory[rows], self.mask[rows], self.source[rows]
            self.blocked = self.blocked[rows]
            self.pointed = self.pointed[rows] if self.pointed.numel() else self.pointed
        for cache in self.caches:
            cache.select(rows, same_memory)


class DenoisingLM(nn.Module):
    """log p(text | hypothesis), both strings of characters (see `vocab`)."""

    def __init__(self, config: ModelConfig) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        super().__init__()
        self.config = config
        t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocab.SIZE,
                d_model=config.width,
                d_kv=config.width // config.heads,
                d_ff=config.feed_forward,
                num_heads=config.heads,
                num_layers=config.encoder_layers,
                num_decoder_layers=config.decoder_layers,
                dropout_rate=config.dropout,
                relative_attention_max_distance=64,
                pad_token_id=vocab.PAD,
                eos_token_id=vocab.EOS,
            )
        )
        self.embedding = t5.shared
        self.encoder = t5.encoder
        self.decoder = t5.decoder
        del self.encoder.embed_tokens, self.decoder.embed_tokens  # characters are embedded here, with their positions
        self.output = nn.Linear(config.width, vocab.SIZE)
        if config.cursor:
            self.at_cursor = nn.Linear(config.width, config.width, bias=False)
        if config.pointer:
            self.pointer_query = nn.Linear(config.width, config.width, bias=False)
            self.pointer_key = nn.Linear(config.width, config.width, bias=False)
            self.pointer_gate = nn.Linear(config.width, 1)

    def forward(self, source: Tensor, source_lengths: Tensor, target_in: Tensor) -> Tensor:
        """Return the log-probabilities of every next character.

        Args:
            source: (B, S) int64, the hypothesis with EOS.
            source_lengths: (B,) int64.
            target_in: (B, T) int64, BOS and the text.

        Returns:
            (B, T, V) float32 log-probabilities.
        """
        return self.read(self.encode(source, source_lengths), target_in)

    def read(self, state: DecoderState, target_in: Tensor) -> Tensor:
        """Return the result of `forward` for hypotheses that are encoded already; changes the state."""
        hidden = self.decoder(
            inputs_embeds=self._embed_written(target_in, self._cursor_positions(target_in, state), state),
            encoder_hidden_states=state.memory,
            encoder_attention_mask=state.mask.long(),
            use_cache=False,
        ).last_hidden_state
        return self._mix(hidden, state)

    def encode(self, source: Tensor, source_lengths: Tensor) -> DecoderState:
        """Encode a batch of hypotheses; arguments as for `forward`."""
        mask = torch.arange(source.shape[1], device=source.device)[None] < source_lengths[:, None]
        memory = self.encoder(inputs_embeds=self._embed_source(source), attention_mask=mask.long()).last_hidden_state
        blocked = torch.zeros_like(mask, dtype=memory.dtype).masked_fill(~mask, -1e9)[:, None, None]
        pointed = self.pointer_key(memory) if self.config.pointer else memory.new_empty(0)
        nothing = torch.arange(source.shape[1] + 1, device=source.device, dtype=torch.float32)
        return DecoderState(memory, mask, source, blocked, pointed, nothing.expand(len(source), -1), [])

    def step(self, last: Tensor, state: DecoderState) -> Tensor:
        """Return (B, V) log-probabilities after the characters `last` (B,) int64, and advance the state."""
        if not state.caches:
            state.caches = stepper.start(self.decoder, state.memory)
        if state.step and self.config.cursor:
            state.distances = next_distances(state.distances, last, state.source)
        positions = self._cursor(state) if self.config.cursor else torch.full_like(last, state.step)
        embedded = self._embed_written(last[:, None], positions[:, None], state)
        hidden = stepper.advance(self.decoder, embedded, state.caches, state.blocked)
        state.step += 1
        return self._mix(hidden, state)[:, 0]

    def _embed_source(self, source: Tensor) -> Tensor:
        embedded = self.embedding(source)
        if not self.config.positions:
            return embedded
        return embedded + _sinusoids(torch.arange(source.shape[1], device=source.device)[None], embedded)

    def _embed_written(self, characters: Tensor, positions: Tensor, state: DecoderState) -> Tensor:
        """Embed (B, T) characters, each with the cursor position (B, T) after it was written."""
        embedded = self.embedding(characters)
        if self.config.positions:
            embedded = embedded + _sinusoids(positions, embedded)
        if self.config.cursor:
            reached = state.memory.gather(1, positions[:, :, None].expand(-1, -1, state.memory.shape[2]))
            embedded = embedded + self.at_cursor(reached)
        return embedded

    def _cursor_positions(self, written: Tensor, state: DecoderState) -> Tensor:
        """Return the cursor position (B, T) int64 after each of the (B, T) characters, the first of which is BOS."""
        if not self.config.cursor:
            return torch.arange(written.shape[1], device=written.device).expand_as(written)
        positions = [self._cursor(state)]
        with torch.no_grad():
            for last in written[:, 1:].unbind(1):
                state.distances = next_distances(state.distances, last, state.source)
                positions.append(self._cursor(state))
        return torch.stack(positions, dim=1)

    def _cursor(self, state: DecoderState) -> Tensor:
        """Return the cursor (B,) int64: the length of the longest source prefix nearest to the written text."""
        columns = torch.arange(state.source.shape[1], device=state.source.device)
        nearest = (state.distances[:, :-1] * (len(columns) + 1) - columns).masked_fill(~state.mask, torch.inf)
        return nearest.argmin(1)

    def _mix(self, hidden: Tensor, state: DecoderState) -> Tensor:
        written = self.output(hidden).float().log_softmax(-1)
        if not self.config.pointer:
            return written
        scores = self.pointer_query(hidden) @ state.pointed.transpose(1, 2)
        scores = (scores.float() / math.sqrt(self.config.width)).masked_fill(~state.mask[:, None], -1e9)
        copied = torch.zeros_like(written).scatter_add(
            2, state.source[:, None].expand(-1, hidden.shape[1], -1), scores.softmax(-1)
        )
        gate = self.pointer_gate(hidden).float()
        log_copy, log_write = nn.functional.logsigmoid(gate), nn.functional.logsigmoid(-gate)
        return torch.logaddexp(log_write + written, log_copy + copied.clamp_min(1e-9).log())


def parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def batch_sources(texts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return hypotheses as ((B, S) int64 with EOS, (B,) int64 lengths)."""
    rows, lengths = vocab.pad([[*vocab.encode(text), vocab.EOS] for text in texts])
    return torch.from_numpy(rows).to(device), torch.from_numpy(lengths).to(device)


def batch_targets(texts: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return texts as ((B, T) int64 decoder input with BOS, (B, T) int64 target output with EOS and PAD)."""
    numbers = [vocab.encode(text) for text in texts]
    inputs, _ = vocab.pad([[vocab.BOS, *row] for row in numbers])
    outputs, _ = vocab.pad([[*row, vocab.EOS] for row in numbers])
    return torch.from_numpy(inputs).to(device), torch.from_numpy(outputs).to(device)


def save(
    model: DenoisingLM,
    folder: Path,
    card: str = "",
    provenance: dict[str, Any] | None = None,
    assets: dict[str, str] | None = None,
) -> None:
    """Write a model directory with weights in half precision; assets are additional text files by name."""
    from audio_llm import hub

    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    hub.save_model(folder, asdict(model.config), tensors, KIND, card, provenance, assets)


def load(name_or_dir: str | Path, device: str = "cpu") -> DenoisingLM:
    """Load a model directory and return the network in evaluation mode.

    Raises:
        ModelNotFoundError, ModelFormatError: As `hub.load_model`.
    """
    from audio_llm import hub
    from audio_llm.training.config import config_from_dict

    loaded = hub.load_model(name_or_dir, KIND)
    model = DenoisingLM(config_from_dict(ModelConfig, loaded.config, Path(loaded.path)))
    model.load_state_dict(loaded.tensors)
    return model.to(device).eval()


def next_distances(distances: Tensor, last: Tensor, source: Tensor) -> Tensor:
    """Return the edit distances after one more character: one row of the dynamic-programming table per utterance.

    Args:
        distances: (B, S + 1) float32, from the written text to the source's first 0 ... S characters.
        last: (B,) int64, the character written last.
        source: (B, S) int64.
    """
    columns = torch.arange(distances.shape[1], device=distances.device, dtype=distances.dtype)
    replaced = distances[:, :-1] + (source != last[:, None])
    inserted = distances + 1.0
    best = torch.cat([inserted[:, :1], torch.minimum(replaced, inserted[:, 1:])], dim=1)
    return (best - columns).cummin(1).values + columns  # deletions: any number of source characters skipped


def _sinusoids(positions: Tensor, like: Tensor) -> Tensor:
    """Return (..., D) sines and cosines of (...) positions, D and dtype as in `like`."""
    width = like.shape[-1]
    steps = torch.arange(0, width, 2, device=positions.device) / width
    angles = positions[..., None] / 10_000.0**steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like)
