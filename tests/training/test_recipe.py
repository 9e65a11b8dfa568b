"""Recipes by name: which values they set, what goes first, and that they are recorded."""

import json
from dataclasses import replace
from unittest.mock import MagicMock

import pytest

from multipde import Level, NetworkConfig, Schedule, TrainSettings, train
from multipde.cli.main import main
from multipde.cli.train import Train
from multipde.training.recipe import RECIPES, level_values, recipe_text, recipe_values

SMALL = ["train", "--sizes", "4", "--epochs", "0.02", "--device", "cpu"]


def test_the_paper_has_plain_stochastic_gradient_descent():
    paper = TrainSettings.of_recipe("paper", seed=3)
    own = {"optimizer": "sgd", "nesterov": False, "weight_decay": 0.0, "label_smoothing": 0.0, "whiten": False}
    own |= {"alpha1": 2e-4, "alpha2": 2e-4}
    assert paper == replace(TrainSettings(seed=3), recipe="paper", **own)
    assert level_values("paper") == {"learning_rate": Level.learning_rate}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_its_values_and_what_is_given_goes_first(name):
    settings = TrainSettings.of_recipe(name)
    values = {key: value for key, value in recipe_values(name).items() if key not in level_values(name)}
    assert {key: getattr(settings, key) for key in values} == values
    Level(8, 1, **level_values(name))
    changed = TrainSettings.of_recipe(name, optimizer="adamw", label_smoothing=0.3)
    assert (changed.optimizer, changed.label_smoothing, changed.recipe) == ("adamw", 0.3, name)


def test_fast_is_the_default():
    assert TrainSettings.of_recipe("fast") == TrainSettings.of_recipe() == TrainSettings()
    with pytest.raises(ValueError, match="recipe must be one of paper, fast, got 'slow'"):
        TrainSettings.of_recipe("slow")
    assert recipe_text("fast", {}) == "recipe fast: all of its values are replaced"


def test_a_training_says_what_its_recipe_sets_and_records_it(tmp_path, capsys):
    settings = TrainSettings.of_recipe("fast", optimizer="sgd", device="cpu", calibration_images=20)
    network, options = NetworkConfig("second_order", (8,), 8, size=4), {"num_train": 60, "num_test": 20}
    train(network, Schedule([Level(4, 1, 20)]), "shapes", tmp_path / "a", settings=settings, data_options=options)
    assert "recipe fast: label_smoothing 0.1, whiten True, alpha1 0.0, alpha2 0.0\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "a/run.json").read_text())["settings"]
    found = {name: record[name] for name in ("recipe", "optimizer", "label_smoothing", "whiten")}
    assert found == {"recipe": "fast", "optimizer": "sgd", "label_smoothing": 0.1, "whiten": True}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, TrainSettings()),
        ({"recipe": "fast"}, TrainSettings.of_recipe("fast")),
        ({"recipe": "fast", "no_whiten": True, "box": 0.0}, TrainSettings.of_recipe("fast", whiten=False, box=0.0)),
        ({"recipe": "paper", "optimizer": "muon"}, TrainSettings.of_recipe("paper", optimizer="muon")),
        ({"whiten": True, "recipe": "paper"}, TrainSettings.of_recipe("paper", whiten=True)),
    ],
)
def test_options_of_the_command_go_before_its_recipe(options, expected):
    assert Train(**options)._settings() == expected


def test_a_recipe_may_decide_rates_and_batches(monkeypatch):
    called = MagicMock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("multipde.training.run.train", called)
    monkeypatch.setitem(RECIPES, "fast", {"learning_rate": 0.2, "batch": 50, "warm_up": 0.1})
    for options, expected in (
        ({"recipe": "fast"}, Level(8, 5, batch=50, learning_rate=0.2, warm_up=0.1)),
        ({"recipe": "fast", "batch": (25,), "warm_up": 0.0}, Level(8, 5, batch=25, learning_rate=0.2, warm_up=0.0)),
        ({"recipe": "paper", "learning_rate": (0.3,)}, Level(8, 5, learning_rate=0.3)),
    ):
        with pytest.raises(KeyboardInterrupt):
            Train(sizes=(8,), epochs=(5,), **options).run_command()
        assert called.call_args.args[1].levels == (expected,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--whiten", "--no-whiten"], "whiten must be left out with --no-whiten, got True"),
        (["--recipe", "fast", "--label-smoothing", "2"], "label_smoothing must lie in [0, 1), got 2.0"),
    ],
)
def test_wrong_options_beside_a_recipe_give_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"multipde: {message}\n"
    assert list(tmp_path.iterdir()) == []
