"""Checkpoints to resume a training: weights, optimizer state and random state, without pickles."""

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

from audio_llm.atomic import write_text
from audio_llm.errors import ModelFormatError

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder atomically, so that at any moment either the old or the new content exists.

    Args:
        folder: The folder to replace.
        write: Writes the content into an empty folder, whose path it is given.
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
    """Return the folder that `replace_folder` last completed, even if it was killed later; None if there is none."""
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
    """Write model, optimizer and position.

    Args:
        folder: The folder of the checkpoint, replaced as a whole.
        model: The model that the optimizer trains.
        optimizer: AdamW, or another optimizer whose state is a tensor or number per parameter.
        random: (P, N) uint8, the random state of every process (see `random_state`).
        state: Plain JSON values.
        further: Additional files: name -> function that writes the file.
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
    """Load a checkpoint into model and optimizer; return its state and the random states (P, N) uint8.

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
        remedy = "remove the folder to start from the beginning, or use the configuration of this training"
        raise ModelFormatError(f"this checkpoint does not fit: {error}", path=folder, remedy=remedy) from None
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"{name}/{key}")) is not None:
                # AdamW keeps its step counts on the CPU wherever the weights are.
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return state, tensors["random"]


def random_state(device: torch.device) -> torch.Tensor:
    """Return the states of torch's global generators, CPU then CUDA: (N,) uint8."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore the result of `random_state`; a CPU state is accepted on a GPU and vice versa."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].cpu())
    if device.type == "cuda" and state.numel() > size:
        torch.cuda.set_rng_state(state[size:].cpu(), device)


def cut_log(path: Path, step: int) -> None:
    """Drop the log lines after the step from which a training resumes."""
    if not path.exists():
        return
    retained = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a killed process may leave half a line
            if json.loads(line)["step"] <= step:
                retained.append(line + "\n")
    write_text(path, "".join(retained))
