"""Snapshots of finished levels: stencils of the first convolution and confusion matrix of the validation images."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.networks.limits import SHOWN_TAPS
from multipde.networks.model_spec import ModelSpec
from multipde.storage.files import write_file
from multipde.storage.tensors import read_tensors, stored_shapes, tensor_bytes


@dataclass(frozen=True)
class Snapshot:
    """The results of a finished level.

    Args:
        stencils: those of the first convolution, from the best weights of the level.
        confusion: matrix of the validation images after the last epoch, see `Metrics`.
        rows: number of rows in the metrics file at the end of the level.

    Shape:
        - stencils: (channels, in_channels, *width)
        - confusion: (classes, classes)
    """

    stencils: Tensor
    confusion: Tensor
    rows: int


def opening_stencils(net: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """The stencils of a network's first convolution for the given weights; empty if there is no convolution."""
    found = next(((name, m) for name, m in net.named_modules() if isinstance(m, _ConvNd)), None)
    if found is None:
        return torch.zeros(0, 0, 1, 1)
    layer, prefix = copy.deepcopy(found[1]), f"{found[0]}."
    layer.load_state_dict({name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)})
    return layer.weight.detach().to("cpu", torch.float32).clone()


def snapshot_file(run_dir: Path, index: int, size: int) -> Path:
    """The file of a level; its name has the number of the level, counted from 1, and its size."""
    return run_dir / f"level-{index + 1}-{size}px.safetensors"


def write_snapshot(run_dir: Path, index: int, size: int, snapshot: Snapshot) -> None:
    """Write or replace the snapshot of a level; OSError if it cannot be written."""
    rows = torch.tensor(snapshot.rows)
    tensors = {"stencils": snapshot.stencils, "confusion": snapshot.confusion, "rows": rows}
    write_file(snapshot_file(run_dir, index, size), tensor_bytes(tensors))


def read_snapshots(run_dir: Path, spec: ModelSpec, sizes: Sequence[int]) -> dict[int, Snapshot]:
    """The snapshots of a run by index in the schedule; ValueError for a file that is damaged or of another network."""
    found = {}
    for index, size in enumerate(sizes):
        named = snapshot_file(run_dir, index, size)
        file = named if named.exists() else run_dir / f"level-{index + 1}.safetensors"  # the name in older versions
        if file.exists():
            stencils = stored_shapes(file).get("stencils", ())
            if len(stencils) != 2 + spec.dim or math.prod(stencils) > SHOWN_TAPS:
                raise ValueError(f"{file} must hold the stencils of an opening, got shape {stencils}")
            shapes = {"stencils": stencils, "confusion": (spec.classes,) * 2, "rows": ()}
            tensors = read_tensors(file, shapes)
            found[index] = Snapshot(tensors["stencils"], tensors["confusion"].long(), int(tensors["rows"]))
    return found
