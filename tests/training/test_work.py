"""Shares of a budget in FLOPs: the training costs what it may, and its record has the epochs that follow."""

import json

import pytest

from multipde import Level, NetworkConfig, Schedule, TrainSettings, train
from multipde.cli.main import main

NETWORK = NetworkConfig("second_order", (4, 6), 8, steps=2, size=8)
LEVELS = [Level(4, 1, batch=20), Level(8, 1, batch=20)]


def test_a_training_costs_the_shares_of_its_budget(tmp_path):
    settings = TrainSettings(device="cpu", calibration_images=20, budget="0.1GFLOPs", precise_images=0, optimizer="sgd")
    options = {"data_options": {"num_train": 200, "num_test": 20}, "quiet": True}
    done = train(NETWORK, Schedule(LEVELS), "shapes", tmp_path / "a", settings=settings, work=(1, 3), **options)
    flops = Schedule(LEVELS, done.model.multipde_spec).flops()
    spent = [level["total_flops"] for level in done.result["levels"]]
    assert spent[0] == pytest.approx(0.25e8, abs=20 * flops[0] / 2 + 1)
    assert spent[1] == pytest.approx(1e8, abs=20 * sum(flops) / 2 + 1)
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["settings"]["budget"] is None
    assert [level["epochs"] for level in record["levels"]] == [level["epochs"] for level in done.result["levels"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--work 1 2 3", "budget must be in FLOPs where work is given, got None; type --budget 30TFLOPs"),
        ("--work 1 2 3 --budget 10min", "budget must be in FLOPs where work is given, got 10min; type --budget"),
        ("--work 1 2 3 --epochs 1 1 1", "epochs must be left out with --work, got (1.0, 1.0, 1.0)"),
        ("--warm-up 1", "warm_up must lie in [0, 1), got 1.0"),
        ("--label-smoothing 1", "label_smoothing must lie in [0, 1), got 1.0"),
        (
            "--augment blur",
            "augment must be off or different names among flip, crop, cutout, mixup, cutmix, randaugment",
        ),
        ("--augment flip --no-augment", "augment must be left out with --no-augment, got 'flip'"),
    ],
)
def test_wrong_ingredients_give_one_line_and_nothing_is_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments.split()])
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n")) == (2, 1)
    assert message in errors
    assert list(tmp_path.iterdir()) == []
