"""The linear recurrence: equal to its equation, whole sequences equal to single steps, exact gradients."""

from __future__ import annotations

import torch

from audio_llm.nn.recurrent import LinearRecurrence, _Scan, _scan

torch.set_num_threads(1)


def test_states_follow_the_equation() -> None:
    torch.manual_seed(0)
    layer = LinearRecurrence(4, 6)
    x, state = torch.randn(7, 3, 4), torch.randn(3, 6)
    write, candidate, gate = layer.input(x).split(6, dim=-1)
    expected = state
    for t in range(7):
        forget = 1.0 - torch.sigmoid(write[t])
        expected = forget * expected + (1.0 - forget) * candidate[t]
    out, last = layer(x, state)
    torch.testing.assert_close(last, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[-1], layer.out(expected * gate[-1] * torch.sigmoid(gate[-1])), atol=1e-6, rtol=1e-5)


def test_single_steps_give_what_the_sequence_gives() -> None:
    torch.manual_seed(1)
    layer = LinearRecurrence(4, 6)
    x, state = torch.randn(9, 2, 4), torch.zeros(2, 6)
    whole, last = layer(x, state)
    pieces = []
    for t in range(9):
        piece, state = layer(x[t : t + 1], state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_the_equation() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b, state = (
        torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 2, 3), (5, 2, 3), (2, 3))
    )
    assert torch.autograd.gradcheck(_Scan.apply, (a, b, state))


def test_the_logarithmic_scan_gives_what_the_loop_gives(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(n, 2, 3, generator=generator) for n in (12, 13))
    for backward in (False, True):
        loop, passes = b.clone(), b.clone()
        _scan(a, loop, backward)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True)
            _scan(a.flip(0) if backward else a, passes, backward)
        torch.testing.assert_close(passes, loop, atol=1e-6, rtol=1e-5)


def test_memories_reach_from_two_to_five_hundred_frames_at_the_start() -> None:
    layer = LinearRecurrence(4, 9)
    forget, _, _ = layer.gates(torch.zeros(1, 4))
    frames = 1.0 / (1.0 - forget.detach()[0])
    assert 2.5 < float(frames.min()) < 3.5  # of a bias of -log(2), whose sigmoid is a third
    assert 450 < float(frames.max()) < 550
