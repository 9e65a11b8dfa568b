"""The study of ingredients: what a variant leaves out or adds, equal work, the table."""

import math
import statistics

import pytest

from multipde import Schedule, TrainSettings, preset
from multipde.studies.bench.ablation import FULL, INGREDIENTS, NONE, VARIANTS, ablation_study, ablation_table
from multipde.studies.bench.equal_work import LEVEL_FIELDS, levels_of_work
from multipde.training.optimizers import planned_flops

OPTIONS = {"num_train": 200, "num_test": 20}


def changes(one, two):
    """The names of the values in which two variants differ, and whether their levels differ."""
    return {k for k in {**one.values, **two.values} if one.values.get(k) != two.values.get(k)}, one.arm != two.arm


@pytest.mark.parametrize("name", INGREDIENTS)
def test_a_variant_changes_its_ingredient_alone(name):
    full, without = VARIANTS["full recipe"], VARIANTS[f"without {name}"]
    plain, added = VARIANTS["sgd"], VARIANTS[f"sgd with {name}"]
    for values, levels in (changes(full, without), changes(plain, added)):
        assert levels == (name == "detail level")
        assert values - {"weight_decay"} <= set(INGREDIENTS[name])
        assert values or levels
    assert without.values["optimizer"] == ("sgd" if name == "optimizer" else "muon")


def test_every_setting_of_the_full_recipe_belongs_to_an_ingredient():
    assert set(FULL) - set(NONE) <= {key for keys in INGREDIENTS.values() for key in keys}
    for variant in VARIANTS.values():
        TrainSettings(**{k: v for k, v in variant.values.items() if k not in LEVEL_FIELDS})


def test_every_variant_has_the_same_work():
    network = preset("cifar10-hamiltonian")
    for variant in VARIANTS.values():
        levels = levels_of_work(variant.arm, network, network, "10TFLOPs", 40_000, variant.values)
        flops = planned_flops(network, variant.values["optimizer"])
        work = sum(Schedule(levels, network).work()) + sum(flops / v.batch * v.epochs for v in levels)
        assert 40_000 * work == pytest.approx(10e12, rel=0.02)


def row(variant, accuracy, seed):
    return {"variant": variant, "seed": seed, "test_accuracy": accuracy, "flops": 1e13, "seconds": 90.0}


def test_the_table_has_means_standard_errors_and_differences_for_equal_seeds():
    rows = [row("full recipe", a, s) for s, a in enumerate((0.70, 0.72, 0.74))]
    rows += [row("without decay", a, s) for s, a in enumerate((0.69, 0.70))] + [row("sgd", 0.6, 0)]
    full, without, plain = ablation_table(rows)
    assert full["accuracy %"] == f"72.00 ± {2 / math.sqrt(3):.2f}"
    assert (full["over full recipe"], full["over sgd"]) == ("-", "+10.00")
    assert without["over full recipe"] == f"-1.50 ± {statistics.stdev((1, 2)) / math.sqrt(2):.2f}"
    assert plain == {"variant": "sgd", "seeds": "1", "accuracy %": "60.00", "over full recipe": "-10.00",
                     "over sgd": "-", "TFLOPs": "10.0", "minutes": "1.5"}  # fmt: skip


@pytest.mark.usefixtures("narrow_presets")
def test_rows_have_the_settings_and_are_measured_once(tmp_path, monkeypatch):
    two = {name: VARIANTS[name] for name in ("full recipe", "sgd")}
    monkeypatch.setattr("multipde.studies.bench.ablation.VARIANTS", two)  # the work of every one is planned first

    def run():
        options = {"size": 16, "variants": ("full recipe", "sgd"), "seeds": (3,), "budget": "0.0002TFLOPs"}
        return ablation_study(("shapes", OPTIONS), tmp_path / "rows.jsonl", run_dir=tmp_path / "runs", **options)

    full, plain = run()
    assert full["levels"][-1][0] == "8:16"
    assert [r["settings"]["optimizer"] for r in (full, plain)] == ["muon", "sgd"]
    assert (full["seed"], full["settings"]["seed"], full["settings"]["whiten"]) == (3, 3, True)
    assert {"machine", "versions", "threads", "flops", "weights"} <= full.keys()
    monkeypatch.setattr("multipde.studies.bench.ablation.measured_training", None)
    assert run() == [full, plain]
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text().replace('"label_smoothing": 0.1', '"label_smoothing": 0.3'))
    with pytest.raises(TypeError):  # the recipe was another one
        run()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variants": ("x",)}, "variants must be among full recipe, without optimizer, .*, got 'x'"),
        ({"budget": "10min"}, "budget must be a number of epochs or in FLOPs such as 30TFLOPs, got 10min"),
        ({"workers": 0}, "workers must be positive, got 0"),
    ],
)
def test_bad_ablations_are_named(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ablation_study(("shapes", {}), tmp_path / "rows.jsonl", **wrong)
