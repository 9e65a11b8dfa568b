"""The paper's experiments: its recipe, the budget as a law, and every table and figure from tiny data."""

import json

import pytest
import torch

from multipde import reproduce
from multipde.cli.main import main
from multipde.networks.cost import num_weights
from multipde.networks.network import PDENet
from multipde.runtime.console import Log
from multipde.runtime.signals import Interrupted
from multipde.storage.rows import read_rows
from multipde.studies.bench.transfer_arms import ARMS
from multipde.studies.paper import experiment_cost, experiments
from multipde.studies.paper import recipes as paper
from multipde.studies.paper.experiment_cost import training_flops
from multipde.studies.paper.experiments import EXPERIMENTS, paper_data
from multipde.studies.paper.paper_figures import caption
from multipde.studies.paper.recipes import (
    BUDGETS,
    RECIPES,
    REPORTED,
    PaperBudget,
    Training,
    epochs_within,
    paper_budget,
    trainings_of,
    work_within,
)
from multipde.training.schedule import level_flops
from tests.fixtures import narrow, write_folder

WEIGHTS = {
    ("stl10", "parabolic"): 618_554,
    ("stl10", "hamiltonian"): 324_794,
    ("stl10", "second_order"): 618_554,
    ("cifar10", "parabolic"): 502_570,
    ("cifar10", "hamiltonian"): 264_106,
    ("cifar10", "second_order"): 502_570,
    ("cifar100", "parabolic"): 652_484,
    ("cifar100", "hamiltonian"): 362_180,
    ("cifar100", "second_order"): 652_484,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("paper") / "cifar10", num_train=20, num_test=8, size=32).parent


@pytest.fixture
def quick(monkeypatch, root):
    """Arguments for `reproduce`: narrow networks, one epoch of 40 images, one share; the tests share the trainings."""
    narrow(monkeypatch)
    monkeypatch.setitem(BUDGETS, "smoke", PaperBudget(flops=1.0, num_train=40, num_test=20))
    for module in (paper, experiments):
        monkeypatch.setattr(module, "SHARES", (0.8,))
    monkeypatch.setattr(paper, "ARM", ARMS["copy"])  # three sizes instead of seven
    monkeypatch.setattr(experiment_cost, "BATCH", 4)
    return {"data": ["cifar10"], "root": root, "budget": "smoke", "run_dir": root / "runs"}


def test_networks_and_recipe_are_those_of_section_5():
    assert {(t.data, t.dynamics) for t in trainings_of([*RECIPES])} == set(WEIGHTS) == set(REPORTED)
    for training in trainings_of([*RECIPES]):
        network, num = training.network, 5000
        assert num_weights(PDENet(network)) == WEIGHTS[training.data, training.dynamics]
        assert network.standardize
        settings = training.settings(num, seed=3, device="cpu", amp="off")
        alphas = (4e-4, 1e-4) if training.data == "stl10" else (2e-4, 2e-4)
        assert (settings.alpha1, settings.alpha2, settings.momentum, settings.box) == (*alphas, 0.9, 1.0)
        assert (settings.validation, settings.augment, settings.seed) == (0.2, True, 3)
        level = training.level(epochs_within(training, BUDGETS["full"], num))
        assert (level.epochs, level.batch) == (200 if training.data == "cifar100" else 100, 125)
        assert level.size == (96 if training.data == "stl10" else 32)


def test_a_share_trains_on_it_and_holds_back_a_fifth_of_everything():
    part = Training("stl10", "parabolic", 0.3)
    assert part.num_images(5000) == 1500 + 1000
    settings = part.settings(5000, 0, "cpu", "off")
    assert round(settings.validation * 2500) == 1000
    assert not settings.augment


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_epochs_are_the_most_that_the_budget_allows_to_all_trainings_of_a_kind(share):
    training, num = Training("cifar10", "hamiltonian", share), 1000
    kind = trainings_of(["cifar10"], shares=paper.SHARES if share else (None,))
    images = [800 * (t.share or 0.8) / 0.8 for t in kind]
    per_epoch = sum(n * level_flops(t.level(1), t.network) for n, t in zip(images, kind, strict=True))
    for epochs in (1, 7, 99):
        assert epochs_within(training, PaperBudget(flops=per_epoch * (epochs + 0.5)), num) == epochs
    assert epochs_within(training, PaperBudget(flops=per_epoch * 1e6), num) == 100
    assert epochs_within(training, PaperBudget(flops=1.0), num) == 1
    assert epochs_within(training, PaperBudget(flops=per_epoch * 7.5, epochs=2), num) == 2
    assert epochs_within(training, PaperBudget(flops=per_epoch * 1.5, epochs=2), num) == 1
    assert epochs_within(training, PaperBudget(epochs=200), num) == 100


@pytest.mark.parametrize(("data", "share"), [("stl10", None), ("cifar10", 0.4), ("cifar100", None)])
def test_the_fast_recipe_takes_at_most_a_fifth_of_the_papers_work(data, share):
    training, num = Training(data, "hamiltonian", share, "fast"), 5000
    whole = RECIPES[data].epochs * training.epoch_flops(num)
    assert work_within(training, BUDGETS["full"], num) == pytest.approx(whole / 5)
    for budget in (BUDGETS["full"], BUDGETS["hour"]):
        bound = work_within(training, budget, num)
        assert bound <= whole / 5 * (1 + 1e-9)
        assert 0.8 * bound < training_flops(training, budget, num) <= 1.01 * bound  # the rest is the optimizer's
    assert work_within(training, PaperBudget(each=whole), num) == whole  # asked for by name
    levels = training.levels(BUDGETS["full"], num)
    sizes = [24, 32, 48, 64, 72, 80, 96] if data == "stl10" else [8, 12, 16, 20, 24, 28, 32]
    assert [level.size for level in levels] == sizes
    settings = training.settings(num, 0, "cpu", "off")
    assert (settings.optimizer, settings.transfer, settings.alpha1) == ("muon", "copy", 0.0)
    assert not training.network.standardize


def test_work_of_each_training_is_no_more_than_the_papers():
    training, num = Training("cifar10", "hamiltonian"), 5000
    per_epoch = training.epoch_flops(num)
    for epochs, expected in ((0.5, 1), (7.5, 7), (500, 100)):
        assert epochs_within(training, paper_budget(f"{epochs * per_epoch / 1e12:.9f}TFLOPs"), num) == expected


def test_a_plan_says_what_it_costs_and_trains_nothing(quick, capsys, tmp_path):
    options = quick | {"run_dir": tmp_path / "runs", "recipe": "fast"}
    rows = reproduce("table1", **options, plan=True, log=Log())
    assert [row["name"] for row in rows] == [f"cifar10-{name}" for name in ("parabolic", "hamiltonian", "second_order")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "table1, recipe fast, budget smoke: cost"
    assert lines[2].split()[:5] == ["cifar10-parabolic", "8", "16", "32", "3"]
    assert not (tmp_path / "runs").exists()


def test_the_fast_recipe_trains_beside_the_other(quick, capsys):
    options = quick | {"dynamics": ["hamiltonian"], "recipe": "fast", "log": Log()}
    rows = reproduce("table1", **options)
    printed = capsys.readouterr().out
    assert [(r["recipe"], r["budget"], r["epochs"]) for r in rows] == [("fast", "smoke", 3)]
    assert "table1, recipe fast, budget smoke, seed 0" in printed
    assert read_rows(quick["run_dir"] / "fast-smoke/table1-cifar10-fast-smoke.jsonl") == rows
    reproduce("table1", **options, plan=True)
    assert capsys.readouterr().out.count("done") == 1


def test_a_larger_share_holds_the_smaller_one(root):
    data = paper_data("cifar10", root, False, "full")
    small, large = (data.part(Training("cifar10", "parabolic", s), 0).train.images for s in (0.2, 0.4))
    assert (len(small), len(large)) == (24, 36)
    torch.testing.assert_close(large[:24], small)
    assert data.part(Training("cifar10", "parabolic"), 0) == "folder"  # by name, so that the run finds it again


def test_the_table_says_what_the_runs_say_and_nothing_is_trained_twice(quick, capsys, monkeypatch):
    rows = reproduce("table1", **quick, log=Log())
    printed = capsys.readouterr().out
    assert [r["dynamics"] for r in rows] == ["parabolic", "hamiltonian", "second_order"]
    for row in rows:
        result = json.loads((quick["run_dir"] / f"smoke/cifar10-{row['dynamics']}/result.json").read_text())
        assert (row["test_accuracy"], row["test_loss"]) == (result["test_accuracy"], result["test_loss"])
        assert (row["num_train"], row["num_validation"], row["num_test"], row["epochs"]) == (32, 8, 20, 1)
        reported = REPORTED["cifar10", row["dynamics"]]
        line = [line for line in printed.splitlines() if line.startswith(f"cifar10, {row['dynamics']}")][-1]
        numbers = (f"{100 * row['test_accuracy']:.1f}", f"{row['test_loss']:.3f}", f"{reported[0]:.1f}")
        assert all(number in line.split() for number in numbers)
    assert "table1, recipe paper, budget smoke, seed 0" in printed
    assert read_rows(quick["run_dir"] / "smoke/table1-cifar10-smoke.jsonl") == rows
    monkeypatch.setattr("multipde.studies.trained.train", None)
    assert reproduce("table1", **quick) == rows
    own = reproduce("table1", **quick, dynamics=["second_order", "hamiltonian"])  # the file has the third
    assert [r["dynamics"] for r in own] == ["parabolic", "second_order", "hamiltonian"]
    assert sorted(own, key=rows.index) == rows
    with pytest.raises(ValueError, match=r"run_dir must hold this study, got another training in .*; type --run-dir"):
        reproduce("table1", **quick, seed=1)


def test_a_number_of_epochs_has_its_own_trainings_which_automatic_precision_finds_again(quick, monkeypatch):
    options = quick | {"dynamics": ["hamiltonian"], "budget": "full", "epochs": 2, "amp": "auto"}
    rows = reproduce("table1", **options)
    assert [(r["epochs"], r["budget"], r["num_train"]) for r in rows] == [(2, "full-2", 48)]
    assert (quick["run_dir"] / "full-2/table1-cifar10-full-2.jsonl").exists()
    monkeypatch.setattr("multipde.studies.trained.train", None)
    assert reproduce("table1", **options) == rows


def test_every_figure_comes_from_its_trainings(quick):
    made = {name: reproduce(name, **quick, out=quick["run_dir"] / "out") for name in ("fig1", "fig2", "fig3", "fig4")}
    for name, rows in made.items():
        figure = (quick["run_dir"] / f"out/{name}-cifar10-smoke.svg").read_text()
        assert figure.startswith("<?xml")
        assert "budget smoke" in caption(rows)
        assert {row["dynamics"] for row in rows} == set(paper.DYNAMICS)
    for row in made["fig1"]:
        assert len(set(row["shown"])) == len(row["classes"]) == 4
        torch.testing.assert_close(torch.tensor(row["probabilities"]).sum(1), torch.ones(4))
    assert [r["share"] for r in made["fig2"]] == [None] * 3 + [0.8] * 3
    assert [r["num_train"] for r in made["fig2"]] == [32] * 6
    for row in made["fig3"]:
        counts = torch.tensor(row["confusion"])
        assert counts.sum() == row["num_test"] == 20
        assert counts.trace() / 20 == pytest.approx(row["test_accuracy"])
    assert made["fig4"] == [row for row in made["fig2"] if row["share"] is None]
    assert [len(r["curve"]) for r in made["fig4"]] == [1] * 3


def test_a_signal_says_that_the_same_command_goes_on(quick, monkeypatch, tmp_path):
    def stopped(*args, **options):
        raise Interrupted("stopped and saved at size 32; go on with: multipde train", 15)

    monkeypatch.setattr("multipde.studies.trained.train", stopped)
    with pytest.raises(Interrupted, match="parabolic stopped and saved at size 32; the same command goes on with it$"):
        reproduce("table1", **quick | {"run_dir": tmp_path})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment": "fig5"}, "experiment must be one of table1, fig1, fig2, fig3, fig4, got 'fig5'"),
        ({"budget": "day"}, "budget must be full, hour, smoke, or work such as 30TFLOPs, got 'day'"),
        ({"budget": "10min"}, "budget must be full, hour, smoke, or work such as 30TFLOPs, got '10min'"),
        ({"recipe": "slow"}, "recipe must be paper or fast, got 'slow'"),
        ({"recipe": "fast", "epochs": 3}, "epochs must be left out with recipe fast, got 3; type --budget 30TFLOPs"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"data": ["shapes"]}, "data must be among stl10, cifar10, cifar100, got 'shapes'"),
        ({"dynamics": ["resnet"]}, "dynamics must be among parabolic, hamiltonian, second_order, got 'resnet'"),
        (
            {"data": ["cifar10", "stl10"]},
            "data must be there, got no stl10 in .*fetch it with multipde reproduce table1 --data stl10 --root .* --",
        ),
    ],
)
def test_wrong_experiments_are_named(root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        reproduce(**{"experiment": "table1", "root": root, "run_dir": tmp_path / "runs"} | options)
    assert not (tmp_path / "runs").exists()


def test_the_command_needs_data_and_says_how_to_get_them(tmp_path, capsys):
    for name in EXPERIMENTS:
        with pytest.raises(SystemExit) as status:
            main(["reproduce", name, "--root", str(tmp_path), "--run-dir", str(tmp_path / "runs")])
        assert status.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"multipde reproduce {name} --data" in error
    assert experiments.EXPERIMENTS.keys() == {"table1", "fig1", "fig2", "fig3", "fig4"}
