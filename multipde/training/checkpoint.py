"""Checkpoints: current and best weights, optimizer state and the record of the training's state, with checksums."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.storage.files import CONFIG, SUMS, check_network_sums, write_directory
from multipde.storage.lock import check_lock
from multipde.storage.opening import partial_of, remove_flat, sync_directory, writing
from multipde.storage.records import json_bytes, read_record, record_digest
from multipde.storage.run_directory import TRAINER
from multipde.storage.schema import CHECKPOINT, FORMAT
from multipde.storage.stored_network import Given, network_files, read_network
from multipde.storage.tensors import BEST, MODEL, constants, read_tensors, stored_shapes, tensor_bytes
from multipde.training.group_state import is_group_entry
from multipde.training.schedule import Schedule
from multipde.training.state import TrainState, state_from_record

MOMENTUM = "momentum.safetensors"
FILES = (MODEL, CONFIG, BEST, TRAINER, MOMENTUM)


def write_checkpoint(
    run: Path,
    number: int,
    model: nn.Module,
    best: Mapping[str, Tensor],
    state: Mapping[str, Any],
    optimizer_state: Mapping[str, Tensor],
    keep: int = 2,
) -> dict[str, str]:
    """Write checkpoint-NNNN, then remove the oldest; on an OSError the previous checkpoints remain.

    Args:
        state: `TrainState.record`; only the checkpoints that it says were written by this run are removed.
        keep: number of checkpoints that are kept.

    Returns:
        The checkpoints of this run that are left, see `own`.
    """
    directory = run / f"checkpoint-{number:04d}"
    files = network_files(model) | {
        BEST: tensor_bytes(best or model.state_dict()),
        TRAINER: json_bytes({"format": FORMAT, "state": {**state, "checkpoints": number}}),
        MOMENTUM: tensor_bytes(optimizer_state),
    }
    if not run.is_dir():
        raise OSError(f"run directory must stay where it is while it is trained, got none at {run}")
    write_directory(directory, files)
    written = {**state.get("written", {}), **own(directory)}
    names = list(written)
    for name in names[:-keep]:
        remove_checkpoint(run / name, written.pop(name))
    return written


def own(checkpoint: Path) -> dict[str, str]:
    """The name of a checkpoint and the SHA-256 of its checksums, by which a run knows it again; an old one has none."""
    return {checkpoint.name: record_digest(checkpoint / SUMS)}


def remove_checkpoint(checkpoint: Path, expected: str) -> None:
    """Remove a checkpoint that has this fingerprint and holds nothing but its own files; any other one is left."""
    if checkpoint.is_symlink() or not checkpoint.is_dir() or record_digest(checkpoint / SUMS) != expected:
        return
    if set(os.listdir(checkpoint)) != {*FILES, SUMS}:
        return
    hidden = partial_of(checkpoint)
    check_lock(checkpoint)
    with writing(checkpoint):
        os.replace(checkpoint, hidden)
        sync_directory(checkpoint.parent)
        remove_flat(hidden)


def read_newest(
    checkpoints: Sequence[Path], schedule: Schedule
) -> tuple[nn.Module, dict[str, Tensor], TrainState, dict[str, Tensor], str]:
    """Read the first of the checkpoints that is whole, with its state; the note is empty unless others come before it.

    Raises:
        ValueError: there is none; or that of the first, where none can be read.
    """
    if not checkpoints:
        raise ValueError("run must have a checkpoint, got none")
    found: list[ValueError] = []
    for checkpoint in checkpoints:
        try:
            net, best, record, optimizer_state = read_checkpoint(checkpoint, schedule.network)
            state = state_from_record(record, schedule, checkpoint)
        except ValueError as error:
            found.append(error)
            continue
        state.written |= own(checkpoint)
        note = f"note: {found[0]}: going on from {checkpoint.name}" if found else ""
        return net, best, state, optimizer_state, note
    raise found[0]


def read_checkpoint(
    directory: Path, given: Given = None
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Read network, best weights, state of the training and state of the optimizer; arguments, errors as in `load`."""
    check_network_sums(directory, *FILES)
    model = read_network(directory, MODEL, given)
    parameters = {name: p.shape for name, p in model.named_parameters()}
    stored = stored_shapes(directory / MOMENTUM)
    others = {k: s for k, s in stored.items() if _is_state(k, s, parameters)}
    best_shapes = {name: t.shape for name, t in model.state_dict().items()}
    best = read_tensors(directory / BEST, best_shapes, any_value=constants(model))
    momentum = read_tensors(directory / MOMENTUM, parameters | others, may_lack=True)
    return model, best, read_record(directory / TRAINER, CHECKPOINT)["state"], momentum


def _is_state(name: str, shape: tuple[int, ...], parameters: Mapping[str, torch.Size]) -> bool:
    """Whether a tensor can be state of an optimizer other than momentum: its key is NAME:KEY and its size plausible."""
    if is_group_entry(name):
        return math.prod(shape) == 1
    base, colon, _ = name.partition(":")
    return bool(colon) and base in parameters and math.prod(shape) <= max(1, parameters[base].numel())
