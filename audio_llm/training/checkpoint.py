"""What a stopped training needs to go on: weights, optimiser state and random state, without pickles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_llm.errors import ModelFormatError

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder so that at any moment either the old or the new content can be found.

    Args:
        folder: The folder to replace.
        write: Fills the new, still empty folder whose path it is given.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """Return the folder that `replace_folder` last completed, also when it was killed in between; None if none."""
    for candidate in (folder, folder.with_name(f".{folder.name}.old")):
        if candidate.is_dir():
            return candidate
    return None


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    random: torch.Tensor,
    state: dict[str, Any],
    further: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write model, optimiser and position.

    Args:
        folder: Replaced as a whole.
        model: Its parameters are those of the optimiser.
        optimizer: AdamW, or another whose state is a tensor or number per parameter.
        random: (P, N) uint8, the random state of every process (see `random_state`).
        state: Plain JSON values.
        further: Names of further files, and what writes each.
    """
    from safetensors.torch import save_file, save_model

    tensors = {"random": random.cpu().contiguous()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()

    def write(new: Path) -> None:
        save_model(model, str(new / _MODEL))
        save_file(tensors, new / _OPTIMIZER)
        for name, write_file in (further or {}).items():
            write_file(new / name)
        (new / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    replace_folder(folder, write)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], torch.Tensor]:
    """Put a checkpoint into model and optimiser; return its state and the random states (P, N) uint8.

    Raises:
        ModelFormatError: A file is missing or damaged, or belongs to a model of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, load_model

    try:
        load_model(model, folder / _MODEL)
        tensors = load_file(folder / _OPTIMIZER)
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        remedy = "remove the folder to start anew, or use the configuration it was made with"
        raise ModelFormatError(f"this checkpoint does not fit: {error}", path=folder, remedy=remedy) from None
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"{name}/{key}")) is not None:
                # AdamW keeps its step counts on the CPU wherever the weights are.
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return state, tensors["random"]


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of torch's global generators, CPU then CUDA: (N,) uint8."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Put back what `random_state` returned; a CPU state is accepted on a GPU and the other way round."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].cpu())
    if device.type == "cuda" and state.numel() > size:
        torch.cuda.set_rng_state(state[size:].cpu(), device)


def cut_log(path: Path, step: int) -> None:
    """Drop the log lines after the step that a resume goes back to."""
    if not path.exists():
        return
    retained = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a killed process may leave half a line
            if json.loads(line)["step"] <= step:
                retained.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(retained), encoding="utf-8")
    os.replace(temporary, path)
