"""Speaker selection and the complete network: chunks equal the whole, and the enrollment decides."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from audio_llm.tse.extractor import ExtractorConfig
from audio_llm.tse.frames import CHUNK
from audio_llm.tse.recurrent_steps import gru_step, lstm_step
from audio_llm.tse.selector import SelectorConfig, weigh
from audio_llm.tse.target_speaker import TargetSpeakerConfig, TargetSpeakerNetwork, TargetSpeakerState

torch.set_num_threads(1)
TINY = TargetSpeakerConfig(
    ExtractorConfig(channels=8, hidden=8, blocks=1, stride=6, embedding=0, outputs=3, front=True),
    SelectorConfig(12, 2, 3, 5),
)


def make_model(seed: int = 0) -> TargetSpeakerNetwork:
    torch.manual_seed(seed)
    return TargetSpeakerNetwork(TINY).eval()


def sound(chunks: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 2, chunks * CHUNK, generator=torch.Generator().manual_seed(seed))


def vector(batch: int = 1, seed: int = 0) -> torch.Tensor:
    random_vector = torch.rand(batch, 256, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(random_vector, dim=-1)


def test_recurrent_steps_are_those_of_the_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 4)
    gru, lstm = nn.GRU(4, 5, batch_first=True), nn.LSTM(4, 5, 2, batch_first=True)
    hidden, memory, cell = torch.zeros(3, 5), torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    for step in range(7):
        hidden = gru_step(gru, x[:, step], hidden)
        out, memory, cell = lstm_step(lstm, x[:, step], memory, cell)
        torch.testing.assert_close(hidden, gru(x)[0][:, step])
        torch.testing.assert_close(out, lstm(x)[0][:, step])


def test_chunks_give_what_the_whole_gives() -> None:
    model = make_model()
    x, enrolled = sound(150, 2), vector(2)  # longer than the memory of the level
    with torch.inference_mode():
        whole = model(x, enrolled)
        state, pieces = model.initial_state(2), []
        for chunks in x.split([CHUNK, 30 * CHUNK, CHUNK, 2 * CHUNK, 116 * CHUNK], dim=-1):
            piece, state = model.step(chunks, enrolled, state)
            pieces.append(piece)
    assert whole.sound.abs().max() > 1e-3
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole.sound, atol=1e-5, rtol=1e-4)
    assert all(part.abs().max() > 0 for part in state.tensors().values())
    again = TargetSpeakerState.from_tensors(state.tensors())
    assert all(torch.equal(again.tensors()[name], part) for name, part in state.tensors().items())


def test_a_step_of_plain_operations_is_that_of_the_layers() -> None:
    selector = make_model().selector
    streams = 0.1 * torch.randn(2, 3, 2, 150 * CHUNK, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weights, after = selector.select_chunks(streams, vector(2), selector.initial_state(3, 2))
        state = selector.initial_state(3, 2)
        for number, chunk in enumerate(streams.split(CHUNK, dim=-1)):
            _, state = selector.step(chunk, vector(2), state)
            torch.testing.assert_close(state.weights, weights[:, number], atol=1e-5, rtol=1e-4)
    for name, part in after.tensors().items():
        torch.testing.assert_close(state.tensors()[name], part, atol=1e-5, rtol=1e-4, msg=name)


def test_a_certain_selection_gives_that_stream_and_none_gives_silence() -> None:
    streams = torch.randn(1, 3, 2, 4 * CHUNK)
    logits = torch.full((1, 4, 4), -50.0)
    logits[..., 1] = 50.0
    chosen = weigh(streams, logits)
    torch.testing.assert_close(chosen[..., CHUNK:], streams[:, 1, :, CHUNK:])
    assert chosen[0, 0, 0].abs() < streams[0, 1, 0, 0].abs()  # comes in softly
    logits[..., 1], logits[..., 3] = -50.0, 50.0
    assert weigh(streams, logits).abs().max() < 1e-6


def test_the_enrolled_speaker_matters_and_the_order_of_streams_does_not() -> None:
    model = make_model()
    x = sound(40)
    with torch.inference_mode():
        first, second = (model(x, vector(seed=seed)) for seed in (1, 2))
        assert (first.logits - second.logits).abs().max() > 1e-4
        streams = first.streams
        there = model.selector(streams, vector(seed=1))[0]
        turned = model.selector(streams[:, [2, 0, 1]], vector(seed=1))[0]
    torch.testing.assert_close(turned[..., [1, 2, 0, 3]], there)


def test_silence_and_loud_sound_stay_finite() -> None:
    model = make_model()
    with torch.inference_mode():
        for x in (torch.zeros(1, 2, 20 * CHUNK), 10.0 * sound(20), 1e-30 * sound(20)):
            output = model(x, vector())
            assert torch.isfinite(output.sound).all()
            assert torch.isfinite(output.logits).all()
