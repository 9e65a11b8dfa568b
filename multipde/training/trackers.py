"""Trackers, which show the metrics of a run beside those of others: a CSV file, MLflow, and Weights & Biases."""

import csv
import io
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from multipde.storage.files import write_file
from multipde.storage.lock import check_lock
from multipde.storage.records import flat_record
from multipde.storage.run_directory import CSV
from multipde.training.listeners import Listener
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.tensorboard import SCALARS, Board

PACKAGES = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",), "tensorboard": ("tensorboard",)}
"""The trackers that need other libraries, and the libraries; a server of MLflow needs only the first."""

MLFLOW_SERVER = "MLFLOW_TRACKING_URI"
WORK = "level/gflops"
PROJECT = "multipde"


def check_trackers(settings: TrainSettings) -> None:
    """Raise ValueError if a tracker is wanted and its library is not installed."""
    for name in wanted_trackers(settings):
        for package in PACKAGES.get(name, ())[: 1 if os.environ.get(MLFLOW_SERVER) else None]:
            if find_spec(package) is None:
                advice = f"type pip install 'multipde[{name}]'"
                raise ValueError(f"{package} must be installed for --track {name}, got none; {advice}")


def wanted_trackers(settings: TrainSettings) -> tuple[str, ...]:
    """The names of the trackers of a run, each once."""
    return tuple(dict.fromkeys((*(("tensorboard",) if settings.tensorboard else ()), *settings.track)))


def trackers(run_dir: Path, plan: Schedule, settings: TrainSettings) -> list[Listener]:
    """The listeners that write what the settings ask for."""
    made: list[Listener] = []
    for name in wanted_trackers(settings):
        if name == "tensorboard":
            made.append(Board(run_dir, plan.configs()[0], [level.size for level in plan.levels]))
        elif name == "csv":
            made.append(MetricsCsv(run_dir / CSV))
        else:
            about: dict[str, Any] = {"network": plan.configs()[0].record(), "settings": asdict(settings)}
            about["levels"] = " ".join(level.label for level in plan.levels)
            made.append((Mlflow if name == "mlflow" else WeightsAndBiases)(run_dir, _values(about)))
    return made


def _values(about: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts by name, without empty entries; others as JSON."""
    kept = {key: value for key, value in flat_record(about).items() if value not in (None, (), [])}
    return {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in kept.items()}


class MetricsCsv(Listener):
    """Writes metrics.csv: the entries of metrics.jsonl as columns, a line per epoch; lists are written as JSON."""

    name = "metrics.csv"

    def __init__(self, file: Path):
        self.file, self.rows = file, []

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [dict(row) for row in rows]
        self._write()

    def row(self, row: Mapping[str, Any], planned_epochs: int = 0) -> None:
        self.rows.append(dict(row))
        self._write()

    def _write(self) -> None:
        text, names = io.StringIO(), dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
        write_file(self.file, text.getvalue().encode())


class Tracker(Listener):
    """The common part of trackers that are libraries: the number of the epoch is the step, names are as in TensorBoard.

    When a run is resumed, the rows up to the checkpoint are logged anew as a run of the same name, because what has
    been logged after it cannot be taken back.

    Args:
        about: description and settings of the run, under names such as ``settings.seed``.
    """

    def __init__(self, run_dir: Path, about: Mapping[str, Any]):
        self.run_dir, self.about = run_dir, about
        self.num_rows = 0
        self._open: Any = None

    def row(self, row: Mapping[str, Any], planned_epochs: int = 0) -> None:
        self.num_rows += 1
        values = {tag: float(row[key]) for tag, key in SCALARS.items()} | {WORK: row["total_flops"] / 1e9}
        self._log(values, row)

    def restart(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.close(is_replaced=True)
        self.num_rows = 0
        for row in rows:
            self.row(row)

    def tested(self, confusion: Tensor) -> None:
        share = (confusion.diagonal().sum() / confusion.sum().clamp_min(1)).item()
        self._log({"accuracy/test": share}, {})

    def close(self, is_replaced: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.end(is_replaced)

    def _log(self, values: Mapping[str, float], row: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library about its own parts
            self.log(values, self.num_rows, row)

    def log(self, values: Mapping[str, float], step: int, row: Mapping[str, Any]) -> None:
        """Log numbers by name."""

    def end(self, is_replaced: bool) -> None:
        """End the run in the tracker; ``is_replaced`` if another one takes its place."""


class Mlflow(Tracker):
    """Logs to MLflow: to ``MLFLOW_TRACKING_URI`` where it is set, else into RUN/mlflow.db, without any connection.

    A resumed run replaces the one that MLflow has: that one is deleted there.
    """

    name = "MLflow"

    def log(self, values: Mapping[str, float], step: int, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        client, run = self._opened()
        at = int(1000 * row.get("total_seconds", 0)) + self._began
        client.log_batch(run, metrics=[Metric(name, value, at, step) for name, value in values.items()])

    def end(self, is_replaced: bool) -> None:
        id_file = self.run_dir / "mlflow.json"
        if is_replaced and id_file.exists():
            with suppress(Exception):  # it may have been deleted, or be on another server
                self._client().delete_run(json.loads(id_file.read_text(encoding="utf-8"))["run"])
        if self._open is not None:
            client, run = self._open
            client.set_terminated(run, "KILLED" if is_replaced else "FINISHED")
            self._open = None

    def _client(self) -> Any:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every table that it makes
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return MlflowClient(os.environ.get(MLFLOW_SERVER) or f"sqlite:///{self.run_dir.resolve()}/mlflow.db")

    def _opened(self) -> tuple[Any, str]:
        if self._open is None:
            check_lock(self.run_dir / "mlflow.json")
            client = self._client()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if found is None else found.experiment_id
            run = client.create_run(experiment, run_name=self.run_dir.resolve().name)
            for key, value in self.about.items():
                client.log_param(run.info.run_id, key, str(value)[:500])
            write_file(self.run_dir / "mlflow.json", json.dumps({"run": run.info.run_id}).encode())
            self._open, self._began = (client, run.info.run_id), run.info.start_time
        return self._open


class WeightsAndBiases(Tracker):
    """Logs to Weights & Biases, into RUN/wandb without any connection unless ``WANDB_MODE`` says ``online``.

    ``wandb sync RUN/wandb/offline-run-*`` uploads what has been logged offline.
    """

    name = "Weights & Biases"

    def log(self, values: Mapping[str, float], step: int, row: Mapping[str, Any]) -> None:
        if self._open is None:
            check_lock(self.run_dir / "wandb")
            import wandb  # pyright: ignore[reportMissingImports]

            name, mode = self.run_dir.resolve().name, os.environ.get("WANDB_MODE", "offline")
            where: dict[str, Any] = {"dir": str(self.run_dir), "mode": mode, "config": dict(self.about)}
            self._open = wandb.init(  # pyright: ignore[reportAttributeAccessIssue]
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, group=name, **where
            )
        self._open.log(dict(values), step=step)

    def end(self, is_replaced: bool) -> None:
        if self._open is not None:
            self._open.finish(exit_code=int(is_replaced))
            self._open = None
