"""A finished run as read from its directory: schedule, metrics of every epoch, and network."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from multipde.data.datasets import data_label
from multipde.networks.model_spec import spec_of
from multipde.runtime.text import shell_line
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import METRICS, RECORD, RESULT, read_result, read_run_record
from multipde.storage.stored_network import Given, load
from multipde.training.level import size_text
from multipde.training.plan import recorded_plan
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.snapshot import Snapshot, read_snapshots

Row = Mapping[str, Any]

LOSSES = ("train_loss", "validation_loss")


def loss_name(record: Mapping[str, Any]) -> str:
    """What the losses of a run are called: the loss may be the user's own."""
    return "loss" if record.get("objective", {}).get("loss") else "cross entropy"


def shown_value(value: Any) -> str:
    """A value of a record as text; a dash for none."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_value, value)) or "-"
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def data_of(record: Mapping[str, Any]) -> str | None:
    """The name of the data of a run, of a folder only its last part; None for data without a name."""
    name = record.get("data")
    return data_label(name, record.get("data_options", {}).get("root")) if name else None


@dataclass(frozen=True)
class Reached:
    """What a run, finished or not, has reached.

    Args:
        record: contents of run.json.
        rows: rows of metrics.jsonl.
        result: contents of result.json; empty where the run is not finished.
        figures: its network, data and sizes by name.
        spent: its work in TFLOPs and its time in minutes by name.
    """

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    figures: dict[str, Any]
    spent: dict[str, float]


def reached(run: Path) -> Reached:
    """What the run in a directory has reached; ValueError if it is damaged."""
    record = read_run_record(run)
    plan, _, _ = recorded_plan(record, run / RECORD)
    rows = read_metrics(run / METRICS)
    result = read_result(run) if (run / RESULT).exists() else {}
    last = rows[-1] if rows else {}
    figures = {
        "network": plan.configs()[0].label,
        "data": data_of(record),
        "sizes": " ".join(level.label for level in plan.levels),
    }
    spent = {
        "tflops": result.get("flops", last.get("total_flops", 0.0)) / 1e12,
        "minutes": result.get("seconds", last.get("total_seconds", 0.0)) / 60,
    }
    return Reached(record, rows, result, figures, spent)


@dataclass(frozen=True)
class RunRecord:
    """The contents of the directory of a finished run.

    Args:
        record: contents of run.json.
        result: contents of result.json.
        levels: for each level of the schedule, its rows of metrics.jsonl.
        snapshots: the stencils after each level, by index of the level; empty for a run of an older version.
        net: the network with the best weights of the last level.
    """

    directory: Path
    record: Mapping[str, Any]
    plan: Schedule
    settings: TrainSettings
    result: Mapping[str, Any]
    levels: tuple[tuple[Row, ...], ...]
    snapshots: Mapping[int, Snapshot]
    net: nn.Module


def read_run(directory: str | Path, model: Given = None) -> RunRecord:
    """Read a finished run; ``model`` is needed as in `load`, ValueError if the run is not finished or damaged."""
    directory = Path(directory)
    if not (directory / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {directory}")
    if not (directory / RESULT).exists():
        again = shell_line("multipde", "train", "--run", directory, "--resume")
        raise ValueError(f"run must be finished, got {directory}; type {again} first")
    record, result = read_run_record(directory), read_result(directory)
    plan, settings, _ = recorded_plan(record, directory / RECORD, model)
    if len(result["moves"]) != len(plan.levels) - 1:
        raise ValueError(f"{directory / RESULT} must hold {len(plan.levels) - 1} moves between levels, got others")
    levels = _by_level(read_metrics(directory / METRICS), len(plan.levels), directory / METRICS)
    net = load(directory, model)
    snapshots = read_snapshots(directory, spec_of(net), [level.size for level in plan.levels])
    return RunRecord(directory, record, plan, settings, result, levels, snapshots, net)


def move_sizes(move: Row) -> tuple[str, str]:
    """The sizes of the levels before and after a move, as text."""
    images = move.get("images") or (None, None)
    return size_text(move["from"], images[0]), size_text(move["to"], images[1])


def _by_level(rows: Iterable[Any], num_levels: int, file: Path) -> tuple[tuple[Row, ...], ...]:
    """The rows of each level, in which epochs are counted from 1 again."""
    levels: list[list[Row]] = []
    for row in rows:
        if not all(math.isfinite(row[name]) for name in LOSSES):
            raise ValueError(f"{file} must hold finite losses, got others in epoch {row['epoch']}")
        if row["epoch"] == 1 or not levels:
            levels.append([])
        levels[-1].append(row)
    if len(levels) != num_levels:
        raise ValueError(f"{file} must hold the epochs of {num_levels} levels, got {len(levels) or 'no metrics'}")
    return tuple(tuple(level) for level in levels)
