"""Audio noise distillation: a statistics network estimates the mutual information of embedding and audio.

Two steps alternate (RobustGER, algorithm 1). Step M, `Distiller.update`, trains the network to distinguish a list's
noise embedding paired with its own noisy audio from one paired with other audio. Step G, `Distiller.loss_term`, is
subtracted from the corrector's loss, so that the tuned embedding carries more information about the audio. Audio is
needed in training only. Noise embeddings are scaled as for the adapter (`RobustGer.scale_noise`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from audio_llm.errors import AudioLLMError, ConfigError, ModelFormatError, UsageError

Bound = Literal["donsker_varadhan", "difference", "jensen_shannon"]
Negatives = Literal["clean", "shuffle", "both"]


@dataclass(frozen=True)
class DistillationSettings:
    """Settings of the network and its training. The defaults are the paper's, except for sizes and `clip`.

    Attributes:
        bound: The bound that step M maximizes: `donsker_varadhan` (the paper), `difference` (the authors' release) or
            `jensen_shannon` (no logarithm of a mean, so that small batches do not bias it).
        negatives: Audio paired with a text as negative: `clean`, the same utterance without noise (the paper), which
            can be distinguished without reading the text (see `language_probe`); `shuffle`, noisy audio of other
            utterances, which cannot; or `both`.
        output: `sigmoid` limits psi to 0..1. `raw` leaves it unlimited, as an estimate of mutual information needs; use
            it with `shuffle`, as it diverges where audio alone separates clean from noisy. Not for `difference`.
        weight: Lambda, the weight of the distillation term in the corrector's loss.
        learning_rate_factor: Step M's learning rate over the corrector's.
        weight_decay: Weight decay of step M's AdamW.
        hidden: Width of the network's branches; the layer that joins them has a quarter.
        clip: Maximum norm of step M's gradient.
        average_rate: Weight of the newest batch in the moving average that replaces the denominator in the gradient of
            `donsker_varadhan` (MINE, section 3.2).
    """

    bound: Bound = "donsker_varadhan"
    negatives: Negatives = "clean"
    output: Literal["sigmoid", "raw"] = "sigmoid"
    weight: float = 0.5
    learning_rate_factor: float = 0.1
    weight_decay: float = 0.02
    hidden: int = 256
    clip: float = 1.0
    average_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.bound == "difference" and self.output == "raw":
            remedy = "use output sigmoid, or another bound"
            raise ConfigError("'bound' difference has no upper limit with 'output' raw", remedy=remedy)
        if self.hidden < 4:
            raise ConfigError(f"'hidden' is {self.hidden}", remedy="give 4 or more")
        if not 0 < self.average_rate <= 1:
            raise ConfigError(f"'average_rate' is {self.average_rate}", remedy="give a number above 0, at most 1")


class StatisticsNetwork(nn.Module):
    """psi(text, audio): high if the noise embedding and the audio belong to the same recording.

    A first layer maps a raw noise embedding to the width of the tuned one; a tuned embedding, which the adapter has
    mapped already, enters after it (as in the authors' release, whose layers have no biases).

    Args:
        noise_width: Width d of the noise embedding.
        tuned_width: Width of the embeddings that `NoiseAdapter.tuned` returns.
        audio_width: Length A of an audio feature vector.
        hidden: Width of the branches.
        output: `sigmoid` for psi in 0..1, `raw` for any number.
    """

    audio_mean: Tensor
    audio_size: Tensor

    def __init__(
        self,
        noise_width: int,
        tuned_width: int,
        audio_width: int,
        hidden: int = 256,
        output: Literal["sigmoid", "raw"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.output = output
        self.first = nn.Linear(noise_width, tuned_width, bias=False)
        self.text = nn.Linear(tuned_width, hidden)
        self.audio = nn.Linear(audio_width, hidden)
        self.join = nn.Linear(hidden, hidden // 4)
        self.score = nn.Linear(hidden // 4, 1)
        # statistics that standardize the audio features: log energies are far from zero
        self.register_buffer("audio_mean", torch.zeros(audio_width))
        self.register_buffer("audio_size", torch.ones(audio_width))

    def fit_audio(self, features: Tensor) -> None:
        """Set mean and deviation from the audio features of the training set, (N, A); call it once, before step M."""
        features = features.float().to(self.audio_mean.device)
        self.audio_mean.copy_(features.mean(dim=0))
        self.audio_size.copy_(features.std(dim=0, unbiased=False).clamp_min(1e-3))

    def forward(self, text: Tensor, valid: Tensor, audio: Tensor, tuned: bool = False) -> Tensor:
        """Return psi, (B,) float32, for inputs of any dtype and under autocast too.

        Args:
            text: (B, U, d) noise embedding, or (B, U, tuned width).
            valid: (B, U) bool, rows that exist; the others are ignored. A text without any counts as zero.
            audio: (B, A).
            tuned: Whether `text` is the tuned embedding.
        """
        with torch.autocast(text.device.type, enabled=False):
            # Rows are averaged first, as everything up to `text` is linear. An absent row may hold NaN, so it is filled
            # with 0, not multiplied by 0.
            masked = text.float().masked_fill(~valid[:, :, None], 0.0)
            mean = masked.sum(dim=1) / valid.sum(dim=1).clamp_min(1)[:, None]
            text_hidden = self.text(mean if tuned else self.first(mean))
            audio_hidden = self.audio((audio.float() - self.audio_mean) / self.audio_size)
            joined = nn.functional.silu(text_hidden) + nn.functional.silu(audio_hidden)
            psi = self.score(nn.functional.silu(self.join(joined)))[:, 0]
            return torch.sigmoid(psi) if self.output == "sigmoid" else psi


def donsker_varadhan(joint: Tensor, negative: Tensor, log_average: Tensor | None = None) -> Tensor:
    """Return mean psi of the matching pairs minus log mean exp psi of the negative pairs (RobustGER, eq. 8).

    Args:
        joint: (N,) psi of matching pairs.
        negative: (M,) psi of negative pairs; fewer than about 32 give a poor estimate.
        log_average: Log of a moving average of mean exp psi, see `moving_average`. It replaces the denominator in the
            gradient, which a small batch biases; the value is unchanged.

    Returns:
        A scalar: with raw psi a lower bound of the mutual information, in nats.
    """
    log_mean = _log_mean_exp(negative)
    if log_average is not None:
        ratio = (log_mean - log_average).exp()
        log_mean = log_mean.detach() + ratio - ratio.detach()
    return joint.mean() - log_mean


def difference(joint: Tensor, negative: Tensor) -> Tensor:
    """Return the difference of the means, the bound of the authors' release; (N,) and (M,), psi in 0..1."""
    return joint.mean() - negative.mean()


def jensen_shannon(joint: Tensor, negative: Tensor) -> Tensor:
    """Return the Jensen-Shannon bound; (N,) and (M,). It is 0 for an uninformative psi and at most 2 log 2."""
    softplus = nn.functional.softplus
    return 2 * math.log(2) - softplus(-joint).mean() - softplus(negative).mean()


def moving_average(log_average: Tensor | None, negative: Tensor, rate: float) -> Tensor:
    """Return the log of the moving average of mean exp psi after one more batch.

    Args:
        log_average: Log of the average before this batch; None: this batch is the first.
        negative: (M,) psi of negative pairs.
        rate: Weight of this batch.
    """
    newest = _log_mean_exp(negative.detach())
    if log_average is None or rate == 1:
        return newest
    return torch.logaddexp(log_average + math.log1p(-rate), newest + math.log(rate))


class Distiller:
    """The statistics network with its own optimizer.

    `state_dict` holds everything to resume from; randomness comes from the seed alone.

    Args:
        noise_width: Width d of the noise embedding.
        tuned_width: Width of the embeddings that `NoiseAdapter.tuned` returns.
        audio_width: Length A of an audio feature vector.
        learning_rate: The corrector's; step M's is `learning_rate_factor` times it.
        settings: See `DistillationSettings`.
        seed: Seed of the initial weights and the shuffled negatives.
        device: Device of the network.
    """

    def __init__(
        self,
        noise_width: int,
        tuned_width: int,
        audio_width: int,
        learning_rate: float,
        settings: DistillationSettings | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings or DistillationSettings()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = StatisticsNetwork(
                noise_width, tuned_width, audio_width, self.settings.hidden, self.settings.output
            )
        self.network = network.to(device)
        matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
        biases = [parameter for parameter in network.parameters() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate_factor * learning_rate)
        self._generator = torch.Generator().manual_seed(seed)
        self._log_average: Tensor | None = None

    def update(self, noise: Tensor, valid: Tensor, noisy: Tensor, clean: Tensor | None = None) -> float:
        """Step M: update the network, and nothing else, to raise the bound.

        Give the whole effective batch at once, 32 utterances or more: the bound does not decompose over parts.

        Args:
            noise: (B, U, d) noise embedding; no gradient flows to it.
            valid: (B, U) bool.
            noisy: (B, A) features of the recognized audio.
            clean: (B, A) features of the same utterances without noise, cut alike; not needed for `shuffle`.

        Returns:
            The bound before the step.

        Raises:
            UsageError: `clean` is missing, or shuffled negatives are asked of a single utterance.
            AudioLLMError: The gradient is infinite or not a number.
        """
        settings, parameters = self.settings, list(self.network.parameters())
        noise, noisy = noise.detach(), noisy.detach()
        joint = self.network(noise, valid, noisy)
        sounds = _negative_sounds(settings.negatives, noisy, clean, self._generator)
        negative = torch.cat([self.network(noise, valid, sound) for sound in sounds])
        log_average = moving_average(self._log_average, negative, settings.average_rate)
        value = _bound(settings.bound, joint, negative, log_average)
        # not by backward: gradients of an earlier step are not added, and no other tensor gets a gradient
        gradients = torch.autograd.grad(-value, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            remedy = "lower the learning rate, or look for bad audio features"
            raise AudioLLMError("the statistics network's gradients are infinite or not a number", remedy=remedy)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._log_average = log_average
        return value.item()

    def loss_term(self, tuned: list[Tensor], valid: Tensor, noisy: Tensor) -> Tensor:
        """Step G: return the term that is subtracted, times `settings.weight`, from the corrector's loss.

        Gradients flow through the network to the tuned embeddings; the network itself gets none. Utterances without
        audio are to be left out of the batch.

        Args:
            tuned: (B, U, tuned width) each, from `NoiseAdapter.tuned`.
            valid: (B, U) bool.
            noisy: (B, A) features of the recognized audio.

        Returns:
            A scalar in 0..1: mean psi over utterances and embeddings. Raw psi, which has no limit, is first mapped to
            the probability that text and audio match.
        """
        fixed = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        values = [
            torch.func.functional_call(self.network, fixed, (text, valid, noisy.detach(), True)) for text in tuned
        ]
        psi = torch.stack(values)
        if self.settings.output == "raw":
            if self.settings.bound == "donsker_varadhan" and self._log_average is not None:
                psi = psi - self._log_average  # it is a log ratio of densities but for this constant
            psi = torch.sigmoid(psi)
        return psi.mean()

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything needed to resume a training, as tensors for safetensors."""
        tensors = {f"network.{name}": tensor.clone() for name, tensor in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().clone()
        tensors["random"] = self._generator.get_state()
        if self._log_average is not None:
            tensors["log_average"] = self._log_average.clone()
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore a state that `state_dict` returned; the learning rate is not changed.

        Raises:
            ModelFormatError: The state belongs to a network of another shape.
        """
        prefix = "network."
        weights = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            self.network.load_state_dict(weights)
            self._generator.set_state(tensors["random"].cpu())
        except (KeyError, RuntimeError) as error:
            remedy = "distill with the settings that it was trained with"
            raise ModelFormatError(f"the statistics network's state does not fit: {error}", remedy=remedy) from None
        self.optimizer.state.clear()
        for name, parameter in self.network.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"optimizer.{name}.{key}")) is not None:
                    # AdamW keeps its step counts on the CPU wherever the weights are.
                    device = "cpu" if key == "step" else parameter.device
                    self.optimizer.state[parameter][key] = value.detach().clone().to(device)
        average = tensors.get("log_average")
        self._log_average = None if average is None else average.clone().to(self.network.audio_mean.device)


@dataclass(frozen=True)
class LanguageProbe:
    """Whether a statistics network uses the text at all.

    Attributes:
        true_text: The bound with the true texts.
        shuffled_text: The mean bound with texts shuffled among the utterances.
        spread: Standard deviation of the latter over the shuffles.
        utterances: Number of utterances.
    """

    true_text: float
    shuffled_text: float
    spread: float
    utterances: int

    @property
    def reads_audio_only(self) -> bool:
        """Whether both bounds agree, which makes distillation meaningless.

        With clean negatives the network can separate noisy from clean by the audio alone. The distillation term then
        does not depend on the match of text and audio, and any gain of the corrector has another cause. The bounds
        agree if they differ by less than a tenth of the bound, or by less than chance (three times `spread`). This is
        also the case for a network that has learned nothing.
        """
        return self.true_text - self.shuffled_text <= max(3 * self.spread, 0.1 * abs(self.true_text))


@torch.no_grad()
def language_probe(
    distiller: Distiller,
    noise: Tensor,
    valid: Tensor,
    noisy: Tensor,
    clean: Tensor | None = None,
    *,
    generator: torch.Generator,
    shuffles: int = 20,
) -> LanguageProbe:
    """Measure the bound with true and with shuffled texts, on held-out utterances.

    Args:
        distiller: Gives the network, the bound and the kind of negatives.
        noise: (B, U, d) noise embedding, 100 utterances or more.
        valid: (B, U) bool.
        noisy: (B, A) features of the recognized audio.
        clean: (B, A) features without noise; not needed for `shuffle`.
        generator: Source of the shuffles, on the CPU.
        shuffles: Number of shuffles.

    Raises:
        UsageError: `clean` is missing, or there are fewer than two utterances.
    """
    network, settings = distiller.network, distiller.settings
    if len(noise) < 2:
        raise UsageError("one utterance's text cannot be shuffled", remedy="give many")
    true_bounds: list[Tensor] = []
    shuffled_bounds: list[Tensor] = []
    for _ in range(shuffles):
        sounds = _negative_sounds(settings.negatives, noisy, clean, generator)
        rows = _derangement(len(noise), generator).to(noise.device)
        for bounds, order in ((true_bounds, slice(None)), (shuffled_bounds, rows)):
            text, there = noise[order], valid[order]
            negative = torch.cat([network(text, there, sound) for sound in sounds])
            bounds.append(_bound(settings.bound, network(text, there, noisy), negative))
    shuffled = torch.stack(shuffled_bounds)
    return LanguageProbe(
        true_text=float(torch.stack(true_bounds).mean()),
        shuffled_text=float(shuffled.mean()),
        spread=float(shuffled.std(unbiased=False)),
        utterances=len(noise),
    )


def _bound(name: Bound, joint: Tensor, negative: Tensor, log_average: Tensor | None = None) -> Tensor:
    if name == "donsker_varadhan":
        return donsker_varadhan(joint, negative, log_average)
    return difference(joint, negative) if name == "difference" else jensen_shannon(joint, negative)


def _log_mean_exp(psi: Tensor) -> Tensor:
    return psi.logsumexp(dim=0) - math.log(len(psi))


def _negative_sounds(
    negatives: Negatives, noisy: Tensor, clean: Tensor | None, generator: torch.Generator
) -> list[Tensor]:
    """Return audio features that do not belong to the texts of the same rows, (B, A) each."""
    sounds = []
    if negatives != "shuffle":
        if clean is None:
            remedy = "give clean, or use negatives shuffle"
            raise UsageError(f"negatives {negatives!r} need the sounds without noise", remedy=remedy)
        sounds.append(clean.detach())
    if negatives != "clean":
        if len(noisy) < 2:
            remedy = "give the whole effective batch, or use negatives clean"
            raise UsageError("one utterance has no other's sound", remedy=remedy)
        sounds.append(noisy[_derangement(len(noisy), generator).to(noisy.device)])
    return sounds


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return (count,) int64, a random permutation without fixed points."""
    order = torch.randperm(count, generator=generator)
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result
