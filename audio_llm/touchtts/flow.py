"""Semantic tokens to mel spectra by flow matching with transformer blocks, no U-Net (TouchTTS, section 1.6 of west).

Noise becomes a spectrum along a straight path; the network predicts the velocity at each moment of it. A token of 40 ms
has two mel frames of 20 ms, so that chunks join without a remainder. One model runs in two modes: with attention over
the whole utterance, or chunk by chunk, where a frame attends to its own chunk and a bounded past. A finished chunk
never changes at any step of the solver, so its keys and values are cached for each step and guidance branch: the cost
of a chunk does not depend on its position.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_llm.codec.mel import N_MELS
from audio_llm.errors import ConfigError
from audio_llm.lm.sampling import seed_of
from audio_llm.lm.token_lm import cache_name
from audio_llm.touchtts import speaker_vectors

FRAMES = 2  # mel frames per token
_NOISE_FRAMES = 64  # frames whose noise is drawn together
_NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class FlowConfig:
    """Size of the network, and settings of the solver.

    Attributes:
        speech: Number of tokens.
        width: Width of the hidden states.
        layers: Transformer blocks.
        heads: Attention heads; a divisor of the width.
        feed_forward: Width inside a block's gated feed-forward part.
        lookahead: Future tokens that a frame depends on.
        left_frames: Past frames that a chunk attends to, rounded up to whole chunks.
        steps: Solver steps.
        guidance: Strength of classifier-free guidance; 0 disables it.
        speaker_file: Name of the speaker encoder's file (see `CamPlusPlus`); empty: mel spectra are the reference.
        speaker_sha256: Fingerprint of that file.
    """

    speech: int = 1000
    width: int = 224
    layers: int = 6
    heads: int = 7
    feed_forward: int = 608
    lookahead: int = 3
    left_frames: int = 150
    steps: int = 5
    guidance: float = 0.7
    speaker_file: str = ""
    speaker_sha256: str = ""

    def __post_init__(self) -> None:
        if self.width % 2 or self.width % self.heads or min(self.lookahead, self.left_frames) < 0 or self.steps < 1:
            remedy = "give an even width, heads that divide it, and at least one step"
            raise ConfigError(f"width {self.width}, {self.heads} heads, {self.steps} steps", remedy=remedy)


class Given(NamedTuple):
    """Conditioning of the frames.

    Attributes:
        tokens: (B, N) int64, -1 where there is none or it is unknown.
        voice: (B, width) float32, of `FlowNetwork.voice`.
        prompt: (B, 2 N, 80) float32, normalized mel frames where known, 0 elsewhere.
        known: (B, 2 N) bool, True where frames are known.
    """

    tokens: Tensor
    voice: Tensor
    prompt: Tensor
    known: Tensor


class FlowNetwork(nn.Module):
    """The velocity network.

    Args:
        config: Size of the network; weights are drawn from torch's global generator.
        vectors: (R, D) float32, codebook vectors of the tokens, an input in addition to the learned token embeddings.
    """

    mean: Tensor
    spread: Tensor
    vectors: Tensor

    def __init__(self, config: FlowConfig, vectors: Tensor | None = None) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        self.config = config
        width = config.width
        vectors = torch.zeros(config.speech, 1) if vectors is None else vectors
        if len(vectors) != config.speech:
            raise ConfigError(
                f"{len(vectors)} vectors for {config.speech} tokens", remedy="give those of the tokenizer"
            )
        self.register_buffer("vectors", torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])]), persistent=False)
        self.register_buffer("mean", torch.zeros(N_MELS))
        self.register_buffer("spread", torch.ones(N_MELS))
        self.tokens = nn.Embedding(config.speech + 1, width)  # the last one is that of no token
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.values = nn.Linear(vectors.shape[1], width, bias=False)
        self.ahead = nn.Conv1d(width, width, config.lookahead + 1)
        self.halves = nn.Parameter(0.02 * torch.randn(FRAMES, width))
        self.frames = nn.Linear(N_MELS, width)
        self.prompt = nn.Linear(N_MELS + 1, width, bias=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        reference_width = speaker_vectors.WIDTH if config.speaker_file else 2 * N_MELS
        self.reference = nn.Sequential(nn.Linear(reference_width, width), nn.SiLU(), nn.Linear(width, width))
        self.network = LlamaModel(
            LlamaConfig(  # type: ignore[call-arg]
                vocab_size=1,  # the input is vectors
                hidden_size=width,
                intermediate_size=config.feed_forward,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="sdpa",
            )
        )
        self._cache_name = cache_name(self.network)
        self.velocity = nn.Linear(width, N_MELS)

    def forward(self, x: Tensor, moment: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity (B, 2 N, 80) at a moment of the path.

        Args:
            x: (B, 2 N, 80) float32, the current point of the path.
            moment: (B,) float32, 0 for noise, 1 for speech.
            inputs: (B, 2 N, width), of `inputs`.
            mask: Additive attention mask, broadcast to (B, 1, 2 N, 2 N).
        """
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return self._velocity(inputs + self._at(x, moment), mask, None, positions)

    def voice(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Return the embedding of a voice, (B, width).

        Args:
            mel: Reference speech, (B, N, 80) normalized frames; with a speaker encoder its vector, (B, 1, 192).
            lengths: (B,) int64, frames of each.
        """
        if self.config.speaker_file:
            projected: Tensor = self.reference(mel[:, 0])
            return projected
        mask = (torch.arange(mel.shape[1], device=mel.device)[None] < lengths[:, None])[:, :, None].to(mel.dtype)
        count = mask.sum(1).clamp_min(1.0)
        mean = (mel * mask).sum(1) / count
        spread = (((mel - mean[:, None]).square() * mask).sum(1) / count + 1e-4).sqrt()
        embedding: Tensor = self.reference(torch.cat([mean, spread], dim=-1))
        return embedding

    def inputs(self, given: Given, ahead: Tensor | None = None) -> Tensor:
        """Return the conditioning (B, 2 N, width), which is constant along the path."""
        tokens = given.tokens
        if not tokens.shape[1]:
            return given.voice.new_zeros(len(tokens), 0, self.config.width)
        missing = tokens.new_full((len(tokens), self.config.lookahead), -1)
        tokens = torch.cat([tokens, missing if ahead is None else ahead], dim=1)
        tokens = torch.where(tokens < 0, self.config.speech, tokens)
        x = self.tokens(tokens) + self.values(self.vectors[tokens])
        x = self.ahead(x.transpose(1, 2)).transpose(1, 2)
        x = (x[:, :, None] + self.halves).flatten(1, 2)
        known = given.known[:, :, None].to(x.dtype)
        return x + given.voice[:, None] + self.prompt(torch.cat([given.prompt * known, known], dim=-1))

    def normalize(self, mel: Tensor) -> Tensor:
        """Return normalized log-mel frames."""
        return (mel - self.mean) / self.spread

    def denormalize(self, mel: Tensor) -> Tensor:
        """Return log-mel frames from normalized ones."""
        return mel * self.spread + self.mean

    def _at(self, x: Tensor, moment: Tensor) -> Tensor:
        half = self.config.width // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=x.device) / half)
        angles = 1000.0 * moment[:, None] * rates
        embedding: Tensor = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype))
        return self.frames(x) + embedding[:, None]

    def _velocity(self, inputs: Tensor, mask: Tensor, cache: Any, positions: Tensor) -> Tensor:
        out = self.network(
            inputs_embeds=inputs,
            attention_mask=mask.to(inputs.dtype),
            position_ids=positions,
            use_cache=cache is not None,
            **{self._cache_name: cache},
        )
        return self.velocity(out.last_hidden_state)


def given_tokens(flow: FlowNetwork, tokens: Tensor, voice: Tensor, prompt: Tensor | None = None) -> Given:
    """Return the conditioning of tokens (B, N), whose first log-mel frames may be given as a prompt."""
    count = FRAMES * tokens.shape[1]
    frames = voice.new_zeros(len(tokens), 0, N_MELS) if prompt is None else flow.normalize(prompt)
    known = torch.arange(count, device=tokens.device)[None] < frames.shape[1]
    missing = count - frames.shape[1]
    return Given(tokens, voice, functional.pad(frames, (0, 0, 0, missing)), known.expand(len(tokens), -1))


def chunk_mask(frames: int, chunk: int, left_frames: int, device: torch.device | None = None) -> Tensor:
    """Return an additive mask (1, 1, N, N): a frame attends to its own chunk of frames and the `left_frames` before."""
    number = torch.arange(frames, device=device) // chunk
    chunks_back = number[:, None] - number[None, :]
    seen = (chunks_back >= 0) & (chunks_back <= math.ceil(left_frames / chunk))
    return torch.where(seen, 0.0, _NEVER)[None, None]


def moments(steps: int) -> list[float]:
    """Return the moments 0 .. 1 of the solver steps, closer together at the beginning (cosine)."""
    return [1.0 - math.cos(0.5 * math.pi * step / steps) for step in range(steps)] + [1.0]


def noise(first: int, count: int, seed: int) -> Tensor:
    """Return the noise (1, count, 80) of frames from `first` on, a function of frame index and seed alone."""
    blocks = range(first // _NOISE_FRAMES, -(-(first + count) // _NOISE_FRAMES))
    drawn = [
        torch.randn(_NOISE_FRAMES, N_MELS, generator=torch.Generator().manual_seed(seed_of(seed, block)))
        for block in blocks
    ]
    begin = first - _NOISE_FRAMES * blocks.start if count else 0
    return torch.cat(drawn)[None, begin : begin + count] if drawn else torch.zeros(1, 0, N_MELS)


def solve(
    velocity: Callable[[Tensor, int], Tensor], times: Rows[float], start: Tensor, known: Tensor | None = None
) -> Tensor:
    """Return the end of the path, (1, N, 80), by Euler's method.

    Args:
        velocity: Maps the current point and the number of the moment to the velocity.
        times: Moments from 0 to 1.
        start: (1, N, 80) float32, the noise.
        known: (1, P, 80), end points of the first frames, which stay on their straight path.
    """
    x, count = start, 0 if known is None else known.shape[1]
    for number, (now, then) in enumerate(itertools.pairwise(times)):
        x = x + (then - now) * velocity(x, number)
        if known is not None:
            x = torch.cat([(1.0 - then) * start[:, :count] + then * known, x[:, count:]], dim=1)
    return x


@torch.inference_mode()
def frames_at_once(
    flow: FlowNetwork, voice: Tensor, tokens: Tensor, chunk: int, seed: int, shown: Tensor, mel: Tensor
) -> Tensor:
    """Return the frames of `FlowRun`, computed in one pass under the chunk mask: (1, 2 N, 80).

    Args:
        flow: The network, in eval mode.
        voice: (1, width) float32.
        tokens: (1, N) int64.
        chunk: Tokens per chunk.
        seed: Seed of the noise.
        shown: (1, P) int64, prompt tokens before `tokens`, whole chunks; may be empty.
        mel: (1, 2 P, 80) float32, log-mel frames of the prompt.
    """
    parts = [flow.inputs(given_tokens(flow, ids, voice, frames)) for ids, frames in ((shown, mel), (tokens, None))]
    inputs, guidance = torch.cat(parts, dim=1), flow.config.guidance
    count, times = inputs.shape[1], moments(flow.config.steps)
    free = flow.inputs(given_tokens(flow, tokens.new_full((1, count // FRAMES), -1), torch.zeros_like(voice)))
    mask = chunk_mask(count, FRAMES * chunk, flow.config.left_frames, voice.device)

    def velocity(x: Tensor, number: int) -> Tensor:
        moment = torch.tensor([times[number]], device=x.device)
        return (1.0 + guidance) * flow(x, moment, inputs, mask) - guidance * flow(x, moment, free, mask)

    x = solve(velocity, times, noise(0, count, seed).to(inputs), flow.normalize(mel))
    return flow.denormalize(x)[:, mel.shape[1] :]


class FlowRun:
    """Frames of one utterance, chunk by chunk, with cached keys and values of earlier chunks.

    Args:
        flow: The network, in eval mode.
        voice: (1, width) float32.
        seed: Seed of the noise.
        chunk: Tokens per chunk; None: all tokens at once, with attention over the whole utterance.
        steps: Solver steps; None takes the configuration's.
        guidance: Strength of guidance; None takes the configuration's.
    """

    def __init__(
        self,
        flow: FlowNetwork,
        voice: Tensor,
        seed: int = 0,
        chunk: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        from transformers import DynamicCache

        config = flow.config
        self.flow, self.seed, self.chunk = flow, seed, chunk
        self.moments = moments(config.steps if steps is None else steps)
        self.guidance = config.guidance if guidance is None else guidance
        self._voice = voice if not self.guidance else torch.cat([voice, torch.zeros_like(voice)])
        self._left = 0 if chunk is None else FRAMES * chunk * math.ceil(config.left_frames / (FRAMES * chunk))
        self._caches = None if chunk is None else [DynamicCache() for _ in self.moments[:-1]]
        self._done = 0  # frames

    @torch.inference_mode()
    def next_frames(self, tokens: Tensor, ahead: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the log-mel frames (1, 2 N, 80) of the next tokens.

        Args:
            tokens: (1, N) int64: a whole chunk, or a shorter last one; all tokens if there are no chunks.
            ahead: (1, lookahead or fewer) int64, the tokens that follow.
            prompt: (1, P, 80), known log-mel frames of the first of these tokens.
        """
        flow, count, device = self.flow, FRAMES * tokens.shape[1], self._voice.device
        if not count:
            return torch.zeros(1, 0, N_MELS, device=device)
        tokens = tokens.to(device)
        ahead = functional.pad(ahead.to(device), (0, flow.config.lookahead - ahead.shape[1]), value=-1)
        prompt = None if prompt is None else prompt.to(device)
        inputs = flow.inputs(given_tokens(flow, tokens, self._voice[:1], prompt), ahead)
        if self.guidance:
            nothing = given_tokens(flow, torch.full_like(tokens, -1), self._voice[1:])
            inputs = torch.cat([inputs, flow.inputs(nothing, torch.full_like(ahead, -1))])
        positions = torch.arange(self._done, self._done + count, device=device)[None]

        def velocity(x: Tensor, number: int) -> Tensor:
            cache = None if self._caches is None else self._caches[number]
            past = 0 if cache is None else cache.get_seq_length()
            mask = torch.zeros(1, 1, count, past + count, device=device)
            moment = torch.full((len(inputs),), self.moments[number], device=device)
            both = flow._velocity(inputs + flow._at(x.expand(len(inputs), -1, -1), moment), mask, cache, positions)
            if cache is not None:
                _forget(cache, self._left)
            return (1.0 + self.guidance) * both[:1] - self.guidance * both[1:] if self.guidance else both

        known = None if prompt is None else flow.normalize(prompt)
        x = solve(velocity, self.moments, noise(self._done, count, self.seed).to(inputs), known)
        self._done += count
        return flow.denormalize(x)


def _forget(cache: Any, size: int) -> None:
    """Truncate a cache to its last `size` positions."""
    for layer in cache.layers:
        if layer.keys.shape[-2] > size:
            layer.keys, layer.values = (part[..., part.shape[-2] - size :, :] for part in (layer.keys, layer.values))
