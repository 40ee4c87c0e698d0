"""Cost of the noise adapter: one decoder layer of 7B shape in bfloat16, token by token, with and without it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from audio_llm.ger.adapter import AdapterSettings, NoiseAdapter

ROUNDS, TOKENS, CONTEXT = 15, 8, 200
SLOTS, NOISE_WIDTH = 20, 128


@torch.no_grad()
def overhead(settings: AdapterSettings, threads: int = 2) -> tuple[float, float, float]:
    """Return milliseconds per token without and with the adapter, and the median of their ratios over the rounds.

    Rounds alternate, so that other load on the machine affects both.
    """
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    adapter = NoiseAdapter(4096, 1, SLOTS, NOISE_WIDTH, settings).to(torch.bfloat16)
    adapter.attach(model)
    for layer in adapter.layers:
        layer.gate.fill_(0.5)  # type: ignore[operator, union-attr]
    noise = torch.randn(1, SLOTS, NOISE_WIDTH, dtype=torch.bfloat16)

    def write(condition: torch.Tensor | None) -> float:
        cache: Any = DynamicCache()
        with adapter.condition(condition):
            model(torch.ones(1, CONTEXT, dtype=torch.int64), past_key_values=cache, use_cache=True)
            begin = time.perf_counter()
            for _ in range(TOKENS):
                model(torch.ones(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
            return 1000 * (time.perf_counter() - begin) / TOKENS

    write(noise)
    plain, tuned = [], []
    for number in range(ROUNDS):
        first, second = (None, noise) if number % 2 else (noise, None)
        times = {first is None: write(first), second is None: write(second)}
        plain.append(times[True])
        tuned.append(times[False])
    ratio = statistics.median(t / p for t, p in zip(tuned, plain, strict=True))
    return statistics.median(plain), statistics.median(tuned), ratio


if __name__ == "__main__":
    for width in (32, 64, 128):
        plain_ms, tuned_ms, ratio = overhead(AdapterSettings(first_layer=0, width=width))
        print(f"width {width}: {plain_ms:.2f} ms without, {tuned_ms:.2f} ms with, ratio {ratio:.3f}")
