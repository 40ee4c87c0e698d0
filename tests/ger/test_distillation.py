"""Tests of audio noise distillation: the bounds, who learns in which step, and the audio-only shortcut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from audio_llm.errors import AudioLLMError, ConfigError, ModelFormatError, UsageError
from audio_llm.ger.adapter import AdapterSettings, NoiseAdapter
from audio_llm.ger.distillation import (
    DistillationSettings,
    Distiller,
    difference,
    donsker_varadhan,
    jensen_shannon,
    language_probe,
    moving_average,
)

ROWS, WIDTH, TUNED, AUDIO = 6, 5, 12, 7


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(settings: DistillationSettings | None = None, rate: float = 0.1, seed: int = 0) -> Distiller:
    return Distiller(WIDTH, TUNED, AUDIO, rate, settings or DistillationSettings(hidden=32), seed=seed)


def batch(size: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return noise (B, U, d), valid (B, U), noisy (B, A), clean (B, A)."""
    draw = generator(seed)
    noise = torch.randn(size, ROWS, WIDTH, generator=draw)
    valid = torch.rand(size, ROWS, generator=draw) < 0.7
    valid[0] = size == 1  # one list with a single hypothesis: no row
    noisy, clean = torch.randn(2, size, AUDIO, generator=draw)
    return noise, valid, noisy, clean


def gaussians(rho: float, size: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a text (B, 1, 1) and a sound (B, 1) with that correlation, and the text's only row (B, 1)."""
    text, own = torch.randn(2, size, 1, generator=draw)
    return text[:, None], torch.ones(size, 1, dtype=torch.bool), rho * text + math.sqrt(1 - rho**2) * own


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_mutual_information_of_gaussians_is_estimated(rho):
    settings = DistillationSettings(negatives="shuffle", output="raw", hidden=64, learning_rate_factor=1.0)
    distiller = Distiller(1, 8, 1, 1e-2, settings)
    draw = generator(1)
    for step in range(300):
        for group in distiller.optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, 2 * (1 - step / 300))
        distiller.update(*gaussians(rho, 256, draw))
    probe = language_probe(distiller, *gaussians(rho, 10_000, draw), generator=draw, shuffles=5)
    truth = -0.5 * math.log(1 - rho**2)
    assert abs(probe.true_text - truth) < (0.15 * truth if rho else 0.05)
    assert probe.shuffled_text < 0.05
    assert probe.reads_audio_only == (rho == 0)


def sounds_of(noise: Tensor, valid: Tensor, draw: torch.Generator, tied: bool, shift: float) -> tuple[Tensor, Tensor]:
    """Return noisy and clean sounds (B, A): the noisy ones tied to the text or not, and shifted from the clean."""
    size = len(noise)
    noisy, clean = torch.randn(2, size, AUDIO, generator=draw)
    if tied:
        mean = (noise * valid[:, :, None]).sum(dim=1) / valid.sum(dim=1).clamp_min(1)[:, None]
        noisy[:, :WIDTH] = 2 * mean + 0.3 * noisy[:, :WIDTH]
    return noisy + shift, clean


def trained(
    settings: DistillationSettings, tied: bool, shift: float, steps: int = 250
) -> tuple[Distiller, list[Tensor]]:
    """Return a distiller taught on such sounds, and a batch it has not seen."""
    distiller, draw = make(settings, rate=1e-1), generator(3)
    for step in range(steps + 1):
        noise, valid, _, _ = batch(128, seed=step)
        noisy, clean = sounds_of(noise, valid, draw, tied, shift)
        if step < steps:
            distiller.update(noise, valid, noisy, clean)
    return distiller, [noise, valid, noisy, clean]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bound", ["donsker_varadhan", "difference", "jensen_shannon"])
def test_the_probe_fires_on_a_planted_shortcut(bound, tied):
    """Clean negatives that the sound alone gives away; even where the text would tell as well, it is not read."""
    settings = DistillationSettings(bound=bound, negatives="clean", hidden=32)
    distiller, held_out = trained(settings, tied=tied, shift=3.0, steps=100)
    probe = language_probe(distiller, *held_out, generator=generator(5))
    assert probe.true_text > 0.2  # the network did learn something
    assert probe.reads_audio_only
    assert probe.utterances == 128


@pytest.mark.parametrize("bound", ["donsker_varadhan", "difference", "jensen_shannon"])
def test_the_probe_is_quiet_where_text_and_sound_belong_together(bound):
    settings = DistillationSettings(bound=bound, negatives="shuffle", hidden=32)
    distiller, (noise, valid, noisy, _) = trained(settings, tied=True, shift=3.0)
    probe = language_probe(distiller, noise, valid, noisy, generator=generator(5))
    assert probe.true_text > 0.05
    assert not probe.reads_audio_only


def test_the_probe_fires_where_nothing_was_learned():
    assert language_probe(make(), *batch(200), generator=generator()).reads_audio_only


def test_step_m_moves_the_network_and_nothing_else():
    distiller, (noise, valid, noisy, clean) = make(), batch()
    adapter = NoiseAdapter(TUNED, 3, ROWS, WIDTH, AdapterSettings(width=4, heads=2))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    theta = {name: tensor.clone() for name, tensor in distiller.network.state_dict().items()}
    made = adapter.map(noise)[..., :WIDTH]  # depends on the adapter, so that a gradient could reach it
    assert made.requires_grad
    distiller.update(made, valid, noisy, clean)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())
    assert all(parameter.grad is None for parameter in adapter.parameters())
    after = distiller.network.state_dict()
    assert all(not torch.equal(after[name], theta[name]) for name, _ in distiller.network.named_parameters())
    assert all(parameter.grad is None for parameter in distiller.network.parameters())


@pytest.mark.parametrize("form", ["paper", "reference-code"])
def test_step_g_moves_the_adapter_and_not_the_network(form):
    distiller, (noise, valid, noisy, clean) = make(), batch()
    distiller.update(noise, valid, noisy, clean)
    adapter = NoiseAdapter(TUNED, 3, ROWS, WIDTH, AdapterSettings(form=form, width=TUNED, heads=2))
    everything = [*adapter.parameters(), *distiller.network.parameters()]
    optimizer = torch.optim.SGD(everything, lr=1.0)
    theta = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    terms = []
    for _ in range(5):
        term = distiller.loss_term(adapter.tuned(noise), valid, noisy)
        optimizer.zero_grad()
        (-term).backward()
        optimizer.step()
        terms.append(term.item())
    assert all(parameter.grad is None for parameter in distiller.network.parameters())
    assert all(torch.equal(tensor, theta[name]) for name, tensor in distiller.state_dict().items())
    tuned = [parameter for name, parameter in adapter.named_parameters() if "map" in name or "noise_" in name]
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tuned)
    assert terms == sorted(terms)
    assert terms[-1] > terms[0]


def test_gradients_of_an_earlier_step_are_not_added():
    one, two, data = make(), make(), batch()
    for parameter in two.network.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    one.update(*data)
    two.update(*data)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("garbage", [5.0, float("nan")])
def test_invalid_rows_do_not_matter(garbage):
    one, two, (noise, valid, noisy, clean) = make(), make(), batch()
    other = noise.masked_fill(~valid[:, :, None], garbage)
    assert one.update(noise, valid, noisy, clean) == two.update(other, valid, noisy, clean)
    first = torch.randn(len(noise), ROWS, TUNED, generator=generator(1))
    second = first.masked_fill(~valid[:, :, None], garbage).requires_grad_()
    term = two.loss_term([second], valid, noisy)
    term.backward()
    assert term.item() == one.loss_term([first], valid, noisy).item()
    assert not second.grad[~valid].any()
    assert second.grad[valid].any()


@pytest.mark.parametrize("output", ["sigmoid", "raw"])
def test_the_reward_stays_within_0_and_1_and_no_batch_changes_another(output):
    settings = DistillationSettings(output=output, hidden=32)
    distiller, (noise, valid, noisy, clean) = make(settings), batch()
    distiller.update(noise, valid, noisy, clean)
    for scale in (1.0, 1e4):
        tuned = scale * torch.randn(len(noise), ROWS, TUNED, generator=generator(1))
        term = distiller.loss_term([tuned, -tuned], valid, noisy)
        assert 0 <= term <= 1
        parts = [
            distiller.loss_term([x[rows]], valid[rows], noisy[rows]) for x in (tuned, -tuned) for rows in parts_of(40)
        ]
        assert torch.allclose(torch.stack(parts).mean(), term, atol=1e-6)


def parts_of(size: int) -> list[slice]:
    return [slice(0, size // 2), slice(size // 2, size)]


@pytest.mark.parametrize("negatives", ["clean", "shuffle", "both"])
def test_training_resumes_from_a_state(negatives):
    settings = DistillationSettings(negatives=negatives, hidden=32)
    whole, resumed = make(settings), make(settings, seed=9)
    whole.network.fit_audio(batch(seed=7)[2] + 4)
    for seed in range(3):
        whole.update(*batch(seed=seed))
    resumed.load_state_dict(whole.state_dict())
    values = [[d.update(*batch(seed=seed)) for seed in range(3, 6)] for d in (whole, resumed)]
    assert values[0] == values[1]
    one, two = whole.state_dict(), resumed.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["optimizer.first.weight.step"] == 6


def test_a_state_of_another_shape_is_refused():
    state = make().state_dict()
    with pytest.raises(ModelFormatError, match="does not fit"):
        make(DistillationSettings(hidden=16)).load_state_dict(state)
    with pytest.raises(ModelFormatError, match="random"):
        make().load_state_dict({name: tensor for name, tensor in state.items() if name != "random"})


def test_randomness_comes_from_the_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = make(DistillationSettings(negatives="both", hidden=32))
    one.update(*batch())
    assert torch.equal(torch.rand(3), expected)  # a training's own random state is left alone
    two = make(DistillationSettings(negatives="both", hidden=32))
    two.update(*batch())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_bounds_equal_what_is_computed_by_hand():
    joint, negative = torch.tensor([2.0, 4.0]), torch.tensor([0.0, math.log(3.0)])
    assert donsker_varadhan(joint, negative).item() == pytest.approx(3.0 - math.log(2.0))
    assert difference(joint, negative).item() == pytest.approx(3.0 - math.log(3.0) / 2)
    zeros = torch.zeros(3)
    assert jensen_shannon(zeros, zeros).item() == pytest.approx(0.0, abs=1e-6)
    assert jensen_shannon(zeros + 50, zeros - 50).item() == pytest.approx(2 * math.log(2))


def test_donsker_varadhan_is_stable_and_its_average_stands_in_the_gradient_alone():
    joint = torch.tensor([1.0, 1.0])
    large = torch.tensor([1000.0, 1000.0 + math.log(3.0)], requires_grad=True)
    value = donsker_varadhan(joint, large)
    value.backward()
    assert value.item() == pytest.approx(1.0 - 1000.0 - math.log(2.0), abs=1e-3)
    assert torch.allclose(large.grad, torch.tensor([-0.25, -0.75]), atol=1e-4)
    negative = torch.tensor([0.0, math.log(3.0)], requires_grad=True)  # mean exp psi: 2
    average = moving_average(torch.tensor(math.log(10.0)), negative, 0.25)
    assert average.exp().item() == pytest.approx(0.75 * 10 + 0.25 * 2)
    value = donsker_varadhan(joint, negative, average)
    assert value.item() == pytest.approx(1.0 - math.log(2.0))
    value.backward()
    assert torch.allclose(negative.grad, -torch.tensor([0.5, 1.5]) / 8)


def test_audio_is_standardized_so_that_its_unit_does_not_matter():
    one, two, (noise, valid, noisy, clean) = make(), make(), batch()
    one.network.fit_audio(noisy)
    two.network.fit_audio(100 * noisy - 7)
    psi = one.network(noise, valid, clean)
    assert torch.allclose(two.network(noise, valid, 100 * clean - 7), psi, atol=1e-5)


def test_psi_is_float32_under_autocast():
    distiller, (noise, valid, noisy, _) = make(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        psi = distiller.network(noise.bfloat16(), valid, noisy)
    assert psi.dtype == torch.float32
    assert torch.equal(psi, distiller.network(noise.bfloat16().float(), valid, noisy))


def test_the_learning_rate_is_a_fraction_of_the_correctors():
    distiller = make(rate=1e-3)
    assert {group["lr"] for group in distiller.optimizer.param_groups} == {1e-4}


def test_what_cannot_be_done_is_refused():
    noise, valid, noisy, clean = batch(1)
    with pytest.raises(UsageError, match="without noise"):
        make().update(noise, valid, noisy)
    with pytest.raises(UsageError, match="no other"):
        make(DistillationSettings(negatives="both")).update(noise, valid, noisy, clean)
    with pytest.raises(UsageError, match="shuffled"):
        language_probe(make(), noise, valid, noisy, clean, generator=generator())
    with pytest.raises(ConfigError, match="no upper limit"):
        DistillationSettings(bound="difference", output="raw")
    distiller = make()
    theta = distiller.state_dict()
    with pytest.raises(AudioLLMError, match="infinite"):
        distiller.update(*batch()[:2], torch.full((40, AUDIO), math.nan), batch()[3])
    assert all(torch.equal(tensor, theta[name]) for name, tensor in distiller.state_dict().items())
