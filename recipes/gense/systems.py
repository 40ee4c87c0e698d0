"""The systems compared: the recording, the mask network, GenSE with ablations, and the upper bound of its codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import Pair

from audio_llm.codec.codec import to_level
from audio_llm.errors import UsageError
from audio_llm.gense.chunks import ChunkReport, Mode, Policy
from audio_llm.gense.enhance import Enhancer
from audio_llm.gense.generate import Resynthesizer
from audio_llm.gense.models import GenseModel, load_gense, load_mask
from audio_llm.gense.network import Chain

Report = Callable[[ChunkReport], None]
System = Callable[[Pair, Report], np.ndarray]  # to (T,) float32 at 16 kHz


def systems(mask: str | Path, gense: str | Path | None, names: list[str]) -> dict[str, System]:
    """Return the named systems, or without names all that the models allow."""
    network = load_mask(mask)
    available: dict[str, System] = {"noisy": lambda pair, _: pair.noisy, "mask": _system(Enhancer(network))}
    if gense is not None:
        model = load_gense(gense)
        available["clean, through the codec"] = lambda pair, _: _through_codec(model, pair.clean)
        whole = model.chain
        other = "noisy" if whole.acoustic == "masked" else "masked"
        chains = {
            "generative, no guards": whole,
            "no token chain": replace(whole, acoustic="none"),
            f"{other} codes": replace(whole, acoustic=other),
            "no hierarchy": replace(whole, clean_semantic="none"),
        }
        for name, chain in chains.items():
            available[name] = _system(_enhancer(network, model, "generative", False, chain))
        available["generative"] = _system(_enhancer(network, model, "generative", True, whole))
        available["balanced"] = _system(_enhancer(network, model, "balanced", True, whole))
    if missing := set(names) - set(available):
        known = ", ".join(available)
        raise UsageError(f"no system {', '.join(sorted(missing))}", remedy=f"give --gense, or some of: {known}")
    return {name: available[name] for name in names} if names else available


def _enhancer(mask: object, model: GenseModel, mode: Mode, checks: bool, chain: Chain) -> Enhancer:
    limits = model.limits if checks else replace(model.limits, good_db=1000.0)
    policy = Policy(mode, checks, limits, model.balanced_below_db)
    return Enhancer(mask, Resynthesizer(model, chain=chain), policy)  # type: ignore[arg-type]


def _system(enhancer: Enhancer) -> System:
    def run(pair: Pair, report: Report) -> np.ndarray:
        return np.concatenate(list(enhancer.stream([pair.noisy[:, None]], 16_000, report=report)))[:, 0]

    return run


@torch.inference_mode()
def _through_codec(model: GenseModel, clean: np.ndarray) -> np.ndarray:
    """Return clean speech through the codec, the upper bound of resynthesis."""
    gain, lengths = np.float32(to_level(clean)), torch.tensor([len(clean)])
    codes = model.parts.codec.encode(torch.from_numpy(gain * clean)[None], lengths)
    decoded: np.ndarray = model.parts.codec.decode(codes, lengths)[0].numpy()
    return decoded / gain
