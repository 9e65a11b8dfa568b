"""The study of ways from coarse to fine: equal work, rows that are kept, tables that are recomputed."""

import json
import statistics
from dataclasses import replace

import pytest

from multipde import Schedule, preset
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.external import ExternalModel
from multipde.studies.bench import transfer_arms
from multipde.studies.bench.airbench import PUBLISHED
from multipde.studies.bench.equal_work import checked_budget
from multipde.studies.bench.transfer_arms import ALL, ARMS, IDEAS, RIVALS
from multipde.studies.bench.transfer_figure import LEAST_SHOWN, accuracy_against_work
from multipde.studies.bench.transfer_study import transfer_study
from multipde.studies.bench.transfer_tables import tables, work_to_reach
from multipde.studies.bench.transfer_tasks import Task, finalists, tasks_of
from multipde.studies.study import mean_and_spread
from multipde.training.monitor import DivergenceError
from multipde.training.optimizers import make_optimizer, optimizer_flops
from multipde.training.step import TrainStep
from tests.fixtures import as_format_1
from tests.studies.test_pretrained_study import narrow

OPTIONS = {"num_train": 200, "num_test": 20}


@pytest.mark.parametrize(
    ("arm", "dynamics", "budget"),
    [*((arm, "hamiltonian", 2.0) for arm in (*ARMS, *IDEAS)), ("copy", "resnet", 1.0), ("mixed", "resnet", 1.0)],
)
def test_every_arm_has_the_same_work(arm, dynamics, budget):
    network = preset(f"cifar10-{dynamics}")
    fine = Schedule(Task("fine only", dynamics, budget).levels(network), network).work()
    work = Schedule(Task(arm, dynamics, budget).levels(network), network).work()
    assert sum(work) == pytest.approx(sum(fine), rel=0.02)
    assert sum(part.share for part in ALL[arm].parts) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arm", "recipe"),
    [*((arm, "muon") for arm in ALL), *((arm, "fast") for arm in ("gradual", *RIVALS)), ("copy", "sgd")],
)
def test_every_arm_and_rival_has_the_work_of_a_budget_in_flops(arm, recipe):
    """Counted apart from `Task`, with the products of the optimizer."""
    network = preset("cifar10-hamiltonian")
    (task,) = tasks_of([arm], ["hamiltonian"], "60TFLOPs", [0], [recipe])
    assert (task.recipe == "own") == ALL[arm].own_recipe
    plan = Schedule(task.levels(network, 40_000), task.network(network))
    extra = 0.0
    if task.settings.get("optimizer") == "muon":
        flops = optimizer_flops(make_optimizer(plan.network.build()))
        extra = sum(flops / v.batch * v.epochs for v in plan.levels)
    assert 40_000 * (sum(plan.work()) + extra) == pytest.approx(60e12, rel=0.02)


def test_budgets_are_epochs_or_flops():
    assert [checked_budget(b, 0.25) for b in (2.0, "2", "30TFLOPs", "500 gflops")] == [
        0.5,
        0.5,
        "7.5TFLOPs",
        "0.125TFLOPs",
    ]
    assert [t.budget for t in tasks_of(["copy"], ["hamiltonian", "resnet"], 2.0, [0])] == [2.0, 1.0]
    assert [t.budget for t in tasks_of(["copy"], ["hamiltonian", "resnet"], "3TFLOPs", [0])] == ["3TFLOPs"] * 2
    assert [t.dynamics for t in tasks_of(["airbench"], ["hamiltonian", "resnet"], 2.0, [0])] == ["hamiltonian"]


def row(arm, accuracy, seed=0, dynamics="hamiltonian", budget=2.0, flops=1e12, moves=(), recipe="sgd"):
    return {"arm": arm, "dynamics": dynamics, "budget": budget, "seed": seed, "test_accuracy": accuracy,
            "test_loss": 1.0, "flops": flops, "seconds": 60.0, "data": "x", "size": 32, "moves": moves,
            "recipe": recipe}  # fmt: skip


def test_the_second_part_has_fine_only_copy_and_the_two_best():
    accuracies = (0.5, 0.6, 0.1, 0.2, 0.7, 0.3, 0.65, 0.4, 0.45, 0.3, 0.3, 0.3)
    rows = [row(arm, accuracy) for arm, accuracy in zip(ARMS, accuracies, strict=True)]
    rows += [row("galerkin", 0.9, seed=1), row("galerkin", 0.9, dynamics="parabolic")]
    assert finalists(rows) == ["fine only", "copy", "calibrated", "mixed"]
    tasks = tasks_of(finalists(rows), tuple(DYNAMICS), 2.0, (0, 1, 2))
    assert len(tasks) == 4 * 3 * 4
    assert {(t.dynamics, t.budget) for t in tasks if t.budget == 2} == {("hamiltonian", 2.0)}
    assert {t.budget for t in tasks if t.dynamics != "hamiltonian"} == {1.0}


def test_tables_have_mean_spread_and_the_gain_with_the_same_seed():
    rows = [row("copy", a, s) for s, a in enumerate((0.70, 0.72))] + [
        row("mixed", a, s) for s, a in enumerate((0.71, 0.74))
    ]
    (table,) = tables(rows).values()
    assert [r["arm"] for r in table] == ["copy", "mixed"]
    assert table[1]["accuracy %"] == f"72.50 ± {statistics.stdev((71, 74)):.2f}"
    assert table[1]["gain over copy"] == f"+1.50 ± {statistics.stdev((1, 2)):.2f}"
    assert mean_and_spread([1.0]) == "1.00"


def test_the_cost_of_the_last_switch_is_a_mean_over_seeds():
    def move(size, before, moved, recalibrated):
        return {"from": size, "to": 2 * size, "accuracy_before": before, "accuracy_moved": moved} | {
            "accuracy_recalibrated": recalibrated
        }

    first = move(8, 0.1, 0.1, 0.1)
    rows = [row("copy", 0.7, 0, moves=[first, move(16, 0.6, 0.3, 0.5)]), row("fine only", 0.6)]
    rows += [row("copy", 0.7, 1, moves=[first, move(16, 0.7, 0.4, 0.5)])]
    (entry,) = tables(rows)["validation accuracy % around the last switch"]
    assert entry | {"before": "65.0", "moved": "35.0", "recalibrated": "50.0", "switch": "16 to 32"} == entry
    assert entry["seeds"] == "2"


def test_work_to_reach_an_accuracy_lies_between_two_budgets():
    rows = [row("copy", a, budget=b, flops=b * 1e12) for b, a in ((1.0, 0.6), (4.0, 0.8))] + [row("mixed", 0.5)]
    found = work_to_reach(rows, 0.7)
    assert found["copy", "sgd"] == pytest.approx(2e12)
    assert found["mixed", "sgd"] is None
    assert work_to_reach(rows, 0.55)["copy", "sgd"] == 1e12
    rows += [row("fine only", a, budget=b, flops=b * 1e12) for b, a in ((2.0, 0.5), (10.0, 0.7))]
    title, table = list(tables(rows).items())[-1]
    assert title == "hamiltonian, work to reach 70.0%, fine only with sgd after 10 epochs"
    assert table[:2] == [
        {"arm": "fine only", "recipe": "sgd", "trained with at most": "10.0", "TFLOPs": "10.0", "share": "1.00"},
        {"arm": "copy", "recipe": "sgd", "trained with at most": "4.0", "TFLOPs": "2.0", "share": "0.20"},
    ]
    assert table[2]["TFLOPs"] == "not reached"


def run(place, arms=("copy",), data=OPTIONS, **options):
    """A small study of these arms."""
    options = {"arms": arms, "size": 16, "budget": 0.2, "seeds": (0,), "run_dir": place / "runs"} | options
    return transfer_study(("shapes", data), place / "rows.jsonl", **options)


def test_rows_are_appended_once_and_a_cut_off_study_goes_on(tmp_path, monkeypatch):
    tasks = ("copy", "mesh-invariant")
    first = run(tmp_path, tasks[:1])
    assert [r["arm"] for r in first] == ["copy"]
    rows = run(tmp_path, tasks, workers=2)
    assert [r["arm"] for r in rows] == ["copy", "mesh-invariant"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert rows[0]["levels"] == [[4, pytest.approx(0.4, abs=0.05)], [8, pytest.approx(0.3, abs=0.06)], [16, 0.1]]
    assert rows[1]["settings"]["coordinates"] == "finest"
    (tmp_path / "rows.jsonl").unlink()  # the trainings are still there
    monkeypatch.setattr("multipde.studies.trained.train", None)
    assert len(run(tmp_path, tasks)) == 2


def test_rivals_are_trained_by_the_same_scheduler_and_a_row_names_the_recipe(tmp_path, monkeypatch):
    def narrow_model(size, classes, images=None):
        return ExternalModel("python:x", classes=classes, size=size, factory=narrow)

    arms, small = ("airbench, batch 256", "resnet18 coarse to fine"), {"num_train": 60, "num_test": 20}
    for arm in arms:
        monkeypatch.setitem(transfer_arms.ALL, arm, replace(transfer_arms.ALL[arm], network=narrow_model))
    rows = run(tmp_path, arms, small, budget="0.000001TFLOPs")
    assert [(r["arm"], r["recipe"], r["settings"]["optimizer"]) for r in rows] == [
        (arms[0], "own", "sgd"),
        (arms[1], "sgd", "sgd"),
    ]
    assert [r["levels"] for r in rows] == [[[16, 1]], [[4, 1], [8, 1], [16, 1]]]
    (tmp_path / "rows.jsonl").unlink()  # a network that was given in Python is given again
    monkeypatch.setattr("multipde.studies.trained.train", None)
    again = run(tmp_path, arms, small, budget="0.000001TFLOPs")
    assert [r["test_accuracy"] for r in again] == [r["test_accuracy"] for r in rows]


def test_an_arm_that_diverges_is_a_row_worth_chance(tmp_path, monkeypatch):
    def diverge(self, *args, **options):
        raise DivergenceError("loss must stay finite, got nan")

    monkeypatch.setattr(TrainStep, "__call__", diverge)
    for _ in range(2):
        (found,) = run(tmp_path)
        assert found["diverged"].startswith("loss must stay finite, got nan at size 4, epoch 1, step 1; type a smaller")
        assert (found["test_accuracy"], found["flops"], found["curve"], found["moves"]) == (0.1, 0, [], [])
    (table,) = tables([found]).values()
    assert table[0]["accuracy %"] == "10.00 (1 of 1 diverged)"


def test_a_run_directory_of_another_training_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    record = as_format_1(tmp_path / "runs/shapes-16/copy-hamiltonian-0.2-0") / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"levels": [{"size": 8, "epochs": 1}]}))
    with pytest.raises(ValueError, match="run_dir must hold this study, got another training in"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": ("magic",)}, "arms must be among fine only, copy, .*, got 'magic'"),
        ({"arms": ("copy",), "dynamics": ("x",)}, "dynamics must be one of parabolic, .*, got 'x'"),
        ({"budget": 0.0}, "budget must be positive, got 0.0"),
        ({"budget": "many"}, "budget must be a number with min, h, GFLOPs or TFLOPs, .*, got 'many'"),
        ({"budget": "10min"}, "budget must be a number of epochs or in FLOPs such as 30TFLOPs, got 10min"),
        ({"recipes": ("x",)}, "recipes must be among sgd, muon, .*got 'x'"),
        ({"workers": 0}, "workers must be positive, got 0"),
    ],
)
def test_bad_studies_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        transfer_study(("shapes", {}), tmp_path / "rows.jsonl", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_figure_has_a_line_per_arm_with_several_budgets_and_a_panel_per_other_budget(tmp_path, figures):
    rows = [row(arm, 0.8 + 0.01 * seed, seed, flops=5e13) for arm in ARMS for seed in (0, 1)]
    rows += [row("copy", 0.7, budget=1.0, flops=2e13), row("copy", 0.9, recipe="muon", flops=5e13)]
    rows += [row(arm, accuracy, dynamics="resnet") for arm, accuracy in (("copy", 0.6), ("momentum dual", 0.2))]
    rows += [row("copy", 0.1, dynamics="parabolic", flops=0)]  # diverged
    accuracy_against_work(rows, tmp_path / "many.svg", PUBLISHED)
    work, hamiltonian, resnet = figures[0].axes
    assert list(work.lines[0].get_ydata()) == [70, 80.5]
    assert {text.get_text() for text in work.texts} == {"copy", *(name for name, *_ in PUBLISHED)}
    assert [label.get_text() for label in hamiltonian.get_yticklabels()] == ["copy, muon", *ARMS]
    assert [text.get_text() for text in hamiltonian.texts] == ["90.0"] + ["80.5 ± 0.7"] * len(ARMS)
    assert [text.get_text() for text in resnet.texts] == ["60.0", "20.0"]
    assert resnet.lines[1].get_xdata()[0] == LEAST_SHOWN  # at the end of the axis


def test_a_single_arm_is_drawn_alone(tmp_path, figures):
    accuracy_against_work([row("copy", 0.7), row("copy", 0.8, 1)], tmp_path / "one.svg")
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.texts] == ["75.0 ± 7.1"]
