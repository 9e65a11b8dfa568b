"""Checkpoints: current and best weights, optimizer state and the record of the training's state, with checksums."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.storage.files import check_sums, write_directory
from multipde.storage.records import FORMAT, json_bytes, read_json
from multipde.storage.stored_network import Given, network_files, read_network
from multipde.storage.tensors import BEST, CONFIG, MODEL, read_tensors, stored_shapes, tensor_bytes

TRAINER, MOMENTUM = "trainer.json", "momentum.safetensors"


def write_checkpoint(
    run: Path,
    number: int,
    model: nn.Module,
    best: Mapping[str, Tensor],
    state: Mapping[str, Any],
    optimizer_state: Mapping[str, Tensor],
) -> None:
    """Write checkpoint-NNNN, then remove older ones; on an OSError the previous checkpoint remains."""
    directory = run / f"checkpoint-{number:04d}"
    files = network_files(model) | {
        BEST: tensor_bytes(best or model.state_dict()),
        TRAINER: json_bytes({"format": FORMAT, "state": state}),
        MOMENTUM: tensor_bytes(optimizer_state),
    }
    if not run.is_dir():
        raise OSError(f"run directory must stay where it is while it is trained, got none at {run}")
    write_directory(directory, files)
    for older in run.glob("checkpoint-*"):
        if older != directory:
            shutil.rmtree(older, ignore_errors=True)


def read_checkpoint(
    directory: Path, given: Given = None
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Read network, best weights, state of the training and state of the optimizer; arguments, errors as in `load`."""
    check_sums(directory, MODEL, CONFIG, BEST, TRAINER, MOMENTUM)
    model = read_network(directory, MODEL, given)
    parameters = {name: p.shape for name, p in model.named_parameters()}
    stored = stored_shapes(directory / MOMENTUM)
    others = {k: s for k, s in stored.items() if _is_state(k, s, parameters)}
    best = read_tensors(directory / BEST, {name: t.shape for name, t in model.state_dict().items()})
    momentum = read_tensors(directory / MOMENTUM, parameters | others, may_lack=True)
    state = read_json(directory / TRAINER, FORMAT).get("state")
    if not isinstance(state, dict):
        raise ValueError(f"{directory / TRAINER} must hold the state of a training, got {type(state).__name__}")
    return model, best, state, momentum


def _is_state(name: str, shape: tuple[int, ...], parameters: Mapping[str, torch.Size]) -> bool:
    """Whether a tensor can be state of an optimizer other than momentum: its key is NAME:KEY and its size plausible."""
    base, colon, _ = name.partition(":")
    return bool(colon) and base in parameters and math.prod(shape) <= max(1, parameters[base].numel())
