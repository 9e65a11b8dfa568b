"""What a run keeps of every level that is done, small enough to be looked at: stencils of the opening, confusions."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.storage.files import write_file
from multipde.storage.tensors import read_tensors, tensor_bytes


@dataclass(frozen=True)
class Snapshot:
    """A level at its end.

    Args:
        stencils: of the opening, best weights of the level.
        confusion: of the validation images after the last epoch of the level, see `Metrics`.
        rows: of the metrics file at that moment.

    Shape:
        - stencils: (channels, in_channels, *width)
        - confusion: (classes, classes)
    """

    stencils: Tensor
    confusion: Tensor
    rows: int


def opening_stencils(net: PDENet, weights: Mapping[str, Tensor]) -> Tensor:
    """The stencils of the opening of a network with other weights, on its mesh."""
    opening = copy.deepcopy(net.opening)
    own = {name: t for name, t in weights.items() if name.startswith("opening.")}
    opening.load_state_dict({name.removeprefix("opening."): t for name, t in own.items()})
    return opening[0].weight.detach().to("cpu", torch.float32).clone()  # pyright: ignore


def snapshot_file(run_dir: Path, index: int) -> Path:
    """Where the index-th level trained is kept."""
    return run_dir / f"level-{index + 1}.safetensors"


def write_snapshot(run_dir: Path, index: int, snapshot: Snapshot) -> None:
    """Write the record of a level; one that is there is replaced.

    Raises:
        OSError: it cannot be written.
    """
    rows = torch.tensor(snapshot.rows)
    tensors = {"stencils": snapshot.stencils, "confusion": snapshot.confusion, "rows": rows}
    write_file(snapshot_file(run_dir, index), tensor_bytes(tensors))


def read_snapshots(run_dir: Path, config: NetworkConfig, num_levels: int) -> dict[int, Snapshot]:
    """The levels that are kept, by their place in the schedule; runs of older versions have none.

    Raises:
        ValueError: a file that is damaged or of another network.
    """
    found = {}
    shapes = {
        "stencils": (config.channels[0], config.in_channels, *(config.width,) * config.dim),
        "confusion": (config.classes,) * 2,
        "rows": (),
    }
    for index in range(num_levels):
        if (file := snapshot_file(run_dir, index)).exists():
            tensors = read_tensors(file, shapes)
            found[index] = Snapshot(tensors["stencils"], tensors["confusion"].long(), int(tensors["rows"]))
    return found
