"""Training speed of separators in seconds of scenes per second: several networks, interleaved in one run.

    OMP_NUM_THREADS=1 python recipes/tse/training_speed.py

A step has four scenes of 2.048 s and three streams in the best order; the simulation of scenes is not included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from audio_llm.training.loop import bf16_is_faster
from audio_llm.tse.extractor import Extractor, ExtractorConfig
from audio_llm.tse.losses import best_order, in_order, separation_loss
from audio_llm.tse.train_separator import aligned

SCENES, SAMPLES, STREAMS = 4, 32_768, 3
ROUNDS, STEPS = 3, 2
PRESET_C = ExtractorConfig(embedding=0, outputs=STREAMS, front=True)
LINEAR = ExtractorConfig(
    channels=64, hidden=96, blocks=5, stride=4, kernel=0, embedding=0, outputs=STREAMS, front=True, recurrence="linear"
)
LINEAR_LONG = replace(LINEAR, window=576)


@dataclass(frozen=True)
class Case:
    """A network and its training options."""

    name: str
    config: ExtractorConfig
    bf16: bool = False
    compile: bool = False


CASES = (
    Case("preset C (GRU)", PRESET_C),
    Case("preset C, bfloat16", PRESET_C, bf16=True),
    Case("linear recurrence", LINEAR),
    Case("linear recurrence, long window", LINEAR_LONG),
    Case("the same, bfloat16", LINEAR_LONG, bf16=True),
    Case("the same, compiled", LINEAR_LONG, compile=True),
    Case("the same, bfloat16, compiled", LINEAR_LONG, bf16=True, compile=True),
)


def main() -> None:
    """Print a table with the best of several rounds."""
    steps = {case.name: make_step(case) for case in CASES}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            best[name] = min(best[name], (time.perf_counter() - begin) / STEPS)
    seconds = SCENES * SAMPLES / 16_000
    reference = best[CASES[0].name]
    print(f"{torch.get_num_threads()} threads, bfloat16 {'faster' if bf16_is_faster() else 'slower'} here\n")
    print("| network | s of scenes a second | ratio |\n|---|---|---|")
    for name, value in best.items():
        print(f"| {name} | {seconds / value:.1f} | {reference / value:.2f} |")


def make_step(case: Case) -> Callable[[], None]:
    """Return a function that trains one step, after two warm-up steps."""
    torch.manual_seed(0)
    model = Extractor(case.config)
    if case.compile:
        model.compile_blocks()
    mixture, talkers = 0.1 * torch.randn(SCENES, 2, SAMPLES), 0.1 * torch.randn(SCENES, STREAMS, 2, SAMPLES)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.bf16):
            estimates = model(mixture)
        estimate, _, sound = aligned(estimates, talkers, mixture)
        order = best_order(*aligned(estimates, talkers, mixture))
        separation_loss(estimate, aligned(estimates, in_order(talkers, order), mixture)[1], sound).backward()
        model.zero_grad()

    step()
    step()
    return step


if __name__ == "__main__":
    main()
