"""Target-speaker extraction: the extractor separates, the selector picks the enrolled speaker's stream per chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from audio_llm.errors import ConfigError
from audio_llm.tse.extractor import Extractor, ExtractorConfig, ExtractorState
from audio_llm.tse.selector import Selector, SelectorConfig, SelectorState, crossfade, weigh


@dataclass(frozen=True)
class TargetSpeakerConfig:
    """Sizes of the extractor and the selector.

    Attributes:
        extractor: The separator: one output per talker, a head for the frontal speaker, and no embedding.
        selector: The speaker selection among the streams.
        least_front_db: Level of the frontal speaker relative to the enrollment recording, dB, below which no frontal
            speaker is reported.
    """

    extractor: ExtractorConfig = field(default_factory=lambda: ExtractorConfig(embedding=0, outputs=3, front=True))
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    least_front_db: float = -60.0

    def __post_init__(self) -> None:
        if self.extractor.embedding or self.extractor.outputs < 2 or not self.extractor.front:
            remedy = "give it 2 outputs or more, a head for the frontal speaker and embedding 0"
            raise ConfigError("the extractor must separate", remedy=remedy)


@dataclass(frozen=True)
class TargetSpeakerState:
    """State of both networks between two chunks."""

    extractor: ExtractorState
    selector: SelectorState

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, in a fixed order."""
        parts = {"extractor": self.extractor.tensors(), "selector": self.selector.tensors()}
        return {f"{part}_{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> TargetSpeakerState:
        """Return the state from the result of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"extractor": {}, "selector": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("_")
            parts[part][rest] = tensor
        return cls(ExtractorState(**parts["extractor"]), SelectorState(**parts["selector"]))


@dataclass(frozen=True)
class ExtractionOutput:
    """Result of the networks for a mixture.

    Attributes:
        sound: (B, 2, T) float32, the target speaker, 64 samples later than the mixture.
        streams: (B, K, 2, T) float32, all separated streams, equally delayed.
        logits: (B, N, K + 1) float32, of the selection among the streams and silence, per chunk.
        vectors: (B, N, K, 256) float32, speaker vectors of the streams.
    """

    sound: Tensor
    streams: Tensor
    logits: Tensor
    vectors: Tensor


class TargetSpeakerNetwork(nn.Module):
    """Extractor and selector; whole mixtures and consecutive chunks give the same output."""

    def __init__(self, config: TargetSpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.extractor = Extractor(config.extractor)
        self.selector = Selector(config.selector)

    def forward(self, mixture: Tensor, enrolled: Tensor) -> ExtractionOutput:
        """Extract one speaker from whole mixtures (B, 2, T), T a multiple of 128; enrolled (B, 256) unit vectors."""
        streams = self.extractor(mixture)
        logits, vectors = self.selector(streams, enrolled)
        return ExtractionOutput(weigh(streams, logits), streams, logits, vectors)

    def initial_state(self, batch: int = 1) -> TargetSpeakerState:
        """Return the state before the first chunk, all zeros."""
        return TargetSpeakerState(
            self.extractor.initial_state(batch),
            self.selector.initial_state(self.config.extractor.outputs, batch),
        )

    def step(self, sound: Tensor, enrolled: Tensor, state: TargetSpeakerState) -> tuple[Tensor, TargetSpeakerState]:
        """Extract one speaker from the next chunks (B, 2, T); return the sound (B, 2, T) and the next state."""
        streams, extractor = self.extractor.step(sound, None, state.extractor)
        weights, selector = self.selector.select_chunks(streams, enrolled, state.selector)
        return crossfade(streams, state.selector.weights, weights), TargetSpeakerState(extractor, selector)
