"""Target-speech hearing: the extractor separates, the selector chooses whom the look has enrolled, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from audio_llm.errors import ConfigError
from audio_llm.tse.extractor import Extractor, ExtractorConfig, ExtractorState
from audio_llm.tse.selector import Selector, SelectorConfig, SelectorState, crossfade, weigh


@dataclass(frozen=True)
class HearingConfig:
    """Sizes of both networks.

    Attributes:
        extractor: As many outputs as there may be talkers, one for the front, and no embedding.
        selector: Of the choice among them.
        least_front_db: Level of the front over the look's below which nobody seems to talk there.
    """

    extractor: ExtractorConfig = field(default_factory=lambda: ExtractorConfig(embedding=0, outputs=3, front=True))
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    least_front_db: float = -60.0

    def __post_init__(self) -> None:
        if self.extractor.embedding or self.extractor.outputs < 2 or not self.extractor.front:
            remedy = "give it 2 outputs or more, a head for the front and embedding 0"
            raise ConfigError("the extractor must separate", remedy=remedy)


@dataclass(frozen=True)
class HearingState:
    """What is remembered between two chunks."""

    extractor: ExtractorState
    selector: SelectorState

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts by name, in a fixed order."""
        parts = {"extractor": self.extractor.tensors(), "selector": self.selector.tensors()}
        return {f"{part}_{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> HearingState:
        """Return the state of what `tensors` gave."""
        parts: dict[str, dict[str, Tensor]] = {"extractor": {}, "selector": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("_")
            parts[part][rest] = tensor
        return cls(ExtractorState(**parts["extractor"]), SelectorState(**parts["selector"]))


@dataclass(frozen=True)
class Heard:
    """What comes of a mixture.

    Attributes:
        sound: (B, 2, T) float32, the person wanted, 64 samples later than the mixture.
        streams: (B, K, 2, T) float32, everybody, as late.
        logits: (B, N, K + 1) float32, of the choice among the streams and silence, by chunk.
        vectors: (B, N, K, 256) float32, the streams' vectors.
    """

    sound: Tensor
    streams: Tensor
    logits: Tensor
    vectors: Tensor


class TargetHearing(nn.Module):
    """Both networks; whole mixtures and chunks one after the other give the same."""

    def __init__(self, config: HearingConfig) -> None:
        super().__init__()
        self.config = config
        self.extractor = Extractor(config.extractor)
        self.selector = Selector(config.selector)

    def forward(self, mixture: Tensor, enrolled: Tensor) -> Heard:
        """Hear one person in whole mixtures (B, 2, T), T a multiple of 128; enrolled (B, 256) unit vectors."""
        streams = self.extractor(mixture)
        logits, vectors = self.selector(streams, enrolled)
        return Heard(weigh(streams, logits), streams, logits, vectors)

    def initial_state(self, batch: int = 1) -> HearingState:
        """Return the state before the first chunk: zeros."""
        return HearingState(
            self.extractor.initial_state(batch),
            self.selector.initial_state(self.config.extractor.outputs, batch),
        )

    def step(self, sound: Tensor, enrolled: Tensor, state: HearingState) -> tuple[Tensor, HearingState]:
        """Hear one person in the next chunks (B, 2, T); return the sound (B, 2, T) and the next state."""
        streams, extractor = self.extractor.step(sound, None, state.extractor)
        weights, selector = self.selector.follow(streams, enrolled, state.selector)
        return crossfade(streams, state.selector.weights, weights), HearingState(extractor, selector)
