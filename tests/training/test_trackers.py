"""Metrics as CSV, for MLflow and for Weights & Biases: what is logged, also when a run is resumed."""

import csv
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, train
from multipde.storage.rows import read_metrics
from multipde.training.trackers import MetricsCsv, Mlflow, WeightsAndBiases, check_trackers, trackers
from tests.storage.test_links import NETWORK, OPTIONS

ROW = {
    "level": 0, "size": 8, "epoch": 1, "train_loss": 1.0, "validation_loss": 2.0, "train_accuracy": 0.25,
    "validation_accuracy": 0.5, "images_per_second": 100.0, "total_seconds": 3.0, "total_flops": 2e9, "steps": [2, 3],
}  # fmt: skip
VALUES = {
    "accuracy/train": 0.25, "accuracy/validation": 0.5, "loss/train": 1.0, "loss/validation": 2.0,
    "speed/images_per_second": 100.0, "level/size": 8.0, "level/gflops": 2.0,
}  # fmt: skip


class FakeWandb(ModuleType):
    """Keeps what is logged in every run."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **how):
        run = SimpleNamespace(how=how, logged=[], ended=None)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    return fake


def test_a_run_writes_its_metrics_as_csv_and_for_wandb(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr("multipde.training.trackers.find_spec", lambda name: name)
    settings = TrainSettings(device="cpu", calibration_images=60, transfer="copy", track=["csv", "wandb"])
    plan = Schedule([Level(4, 1, batch=30), Level(8, 1, batch=30)])
    run = tmp_path / "run"
    result = train(NETWORK, plan, "shapes", run, settings=settings, data_options=OPTIONS, quiet=True).result
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    rows = read_metrics(run / "metrics.jsonl")
    assert [{k: json.loads(v) for k, v in row.items() if v} for row in found] == rows
    (tracked,) = wandb.runs
    assert tracked.how["name"] == "run"
    assert tracked.how["mode"] == "offline"
    assert tracked.how["config"]["levels"] == "4 8"
    assert tracked.how["config"]["settings.track"] == '["csv", "wandb"]'
    assert [step for step, _ in tracked.logged] == [1, 2, 2]
    assert tracked.logged[1][1]["accuracy/validation"] == rows[1]["validation_accuracy"]
    assert tracked.logged[2][1]["accuracy/test"] == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert tracked.ended == 0


def test_a_resumed_run_is_logged_anew_up_to_its_checkpoint(tmp_path, wandb):
    tracker = WeightsAndBiases(tmp_path, {})
    tracker.row(ROW)
    tracker.row(ROW | {"epoch": 2})
    tracker.restart([ROW])
    tracker.row(ROW | {"epoch": 2, "train_loss": 0.5})
    tracker.tested(torch.tensor([[3, 1], [0, 4]]))
    tracker.close()
    first, second = wandb.runs
    assert first.ended == 1
    assert second.logged == [(1, VALUES), (2, VALUES | {"loss/train": 0.5}), (2, {"accuracy/test": 0.875})]


def test_columns_of_a_csv_file_may_be_added(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.row({"epoch": 1, "size": 8})
    table.row({"epoch": 2, "size": 8, "steps": [2, 3]})
    assert (tmp_path / "metrics.csv").read_text() == 'epoch,size,steps\n1,8,\n2,8,"[2, 3]"\n'
    table.restart([])
    assert (tmp_path / "metrics.csv").read_text() == "\n"


class FakeMlflow:
    """The part of MLflow's client that is used, with its runs in memory."""

    def __init__(self):
        self.runs, self.experiments = {}, []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def create_run(self, experiment, run_name):
        assert experiment in self.experiments
        key = f"id{len(self.runs)}"
        self.runs[key] = {"name": run_name, "params": {}, "metrics": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=key, start_time=1000))

    def log_param(self, run, key, value):
        self.runs[run]["params"][key] = value

    def log_batch(self, run, metrics):
        self.runs[run]["metrics"] += metrics

    def set_terminated(self, run, status):
        self.runs[run]["status"] = status

    def delete_run(self, run):
        self.runs[run]["status"] = "deleted"


def test_mlflow_gets_a_resumed_run_in_place_of_the_old_one(tmp_path, monkeypatch):
    client, entities = FakeMlflow(), ModuleType("mlflow.entities")
    entities.Metric = lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(Mlflow, "_client", lambda self: client)
    Mlflow(tmp_path, {"settings.seed": 0}).row(ROW)
    tracker = Mlflow(tmp_path, {"settings.seed": 0})
    tracker.restart([ROW])
    tracker.row(ROW | {"epoch": 2, "total_seconds": 4.5})
    tracker.close()
    assert [run["status"] for run in client.runs.values()] == ["deleted", "FINISHED"]
    assert client.runs["id1"]["name"] == tmp_path.name
    assert client.runs["id1"]["params"] == {"settings.seed": "0"}
    expected = [(k, v, at, step) for step, at in ((1, 4000), (2, 5500)) for k, v in VALUES.items()]
    assert client.runs["id1"]["metrics"] == expected


def test_mlflow_has_the_metrics_in_a_file_of_the_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Mlflow(tmp_path, {"settings.seed": 0, "levels": "8"})
    tracker.row(ROW)
    old = json.loads((tmp_path / "mlflow.json").read_text())["run"]
    tracker = Mlflow(tmp_path, {"settings.seed": 0})  # another process goes on
    tracker.restart([ROW])
    tracker.row(ROW | {"epoch": 2})
    tracker.close()
    client, new = tracker._client(), json.loads((tmp_path / "mlflow.json").read_text())["run"]
    assert client.get_run(old).info.lifecycle_stage == "deleted"
    assert client.get_run(old).data.params == {"settings.seed": "0", "levels": "8"}
    assert client.get_run(new).data.metrics == VALUES
    assert [each.step for each in client.get_metric_history(new, "loss/train")] == [1, 2]
    assert client.get_run(new).info.status == "FINISHED"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.json"}


def test_what_is_missing_gets_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("multipde.training.trackers.find_spec", lambda name: None if name == "sqlalchemy" else name)
    with pytest.raises(ValueError, match=r"sqlalchemy must be installed .*; type pip install 'multipde\[mlflow\]'"):
        check_trackers(TrainSettings(track=("mlflow",)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    check_trackers(TrainSettings(track=("mlflow",)))
    with pytest.raises(ValueError, match="track must name csv, tensorboard, mlflow, wandb, got 'mlfow'"):
        TrainSettings(track="mlfow")
    plan = Schedule([Level(8, 1)]).of(NetworkConfig("parabolic", (4, 6), 3, size=8))
    names = [each.name for each in trackers(tmp_path, plan, TrainSettings(tensorboard=True, track=("tensorboard",)))]
    assert names == ["TensorBoard"]
