"""The plan of a large training: what it computes is what its definitions say."""

import math

import pytest

from multipde.cli.main import main
from multipde.studies.bench.cost_plan import IMAGES, VALIDATION, Rates, plan_study


def rates(**others):
    given = {"flops": {8: 1e6, 16: 4e6}, "rate": 1e12, "images": {8: 1e9, 16: 1e9}, "cores": 2, "batch": 100}
    given |= {"gradient_bytes": 1e6, "bandwidth": 1e9, "checkpoint_seconds": 0.0}
    return Rates(**given | others)  # pyright: ignore[reportArgumentType]


def test_a_step_is_computing_and_a_ring_and_what_decoding_takes_longer():
    assert rates().step(16, 1) == {"compute": pytest.approx(4e-4), "communication": 0.0, "input": 0.0}
    assert rates().step(8, 4)["communication"] == pytest.approx(1.5e-3)
    slow = rates(images={8: 1e4, 16: 1e4}).step(8, 4)
    assert slow["input"] == pytest.approx(100 / (2 * 1e4) - 1e-4 - 1.5e-3)


def test_hours_are_those_of_all_epochs_with_validation_and_checkpoints():
    levels = [(8, 3), (16, 2)]
    alone = rates().training(levels, 1, every=1e9)
    seconds = sum(n * (math.ceil(IMAGES / 100) * 100 + VALIDATION / 3) * f for n, f in ((3, 1e-6), (2, 4e-6)))
    assert alone["hours"] == pytest.approx(seconds / 3600)
    assert (alone["compute"], alone["bottleneck"]) == (1.0, "computing")
    saved = rates(checkpoint_seconds=2.0).training(levels, 1, every=0.1)
    assert saved["hours"] == pytest.approx((seconds + 2 * (5 + seconds / 6)) / 3600)
    assert saved["compute"] + saved["checkpoints"] == pytest.approx(1)
    many = rates().training(levels, 64, every=1e9)
    assert many["bottleneck"] == "all-reduce"
    assert many["gpu_hours"] == pytest.approx(64 * many["hours"])
    assert rates(images={8: 10, 16: 10}).training(levels, 64, every=1e9)["bottleneck"] == "images"


def test_every_row_says_how_its_value_came_about_and_the_hours_follow_from_the_rows(tmp_path):
    rows = plan_study(
        tmp_path / "rows.jsonl",
        arch="squeezenet1_1",
        sizes=(32, 48),
        epochs=(2, 1),
        gpus=(1, 4),
        batch=64,
        measured_batch=2,
        measured_images=2,
        repeats=1,
        device="cpu",
    )
    assert all(row["how"].startswith(("measured", "computed", "assumed")) for row in rows)
    value = {(row["what"], row["size"], row["gpus"]): row["value"] for row in rows if "value" in row}
    parts = Rates(
        flops={s: 1e9 * value["FLOPs of a training step per image", s, None] for s in (32, 48)},
        rate=1e12 * value["rate of a GPU", None, None],
        images={s: value["images that a core decodes from shards", s, None] for s in (32, 48)},
        cores=value["cores per GPU", None, None],
        gradient_bytes=1e6 * value["gradients", None, None],
        bandwidth=1e9 * value["bandwidth per GPU", None, None],
        checkpoint_seconds=value["writing a checkpoint", None, None],
        batch=64,
    )
    for row in [row for row in rows if "hours" in row]:
        assert row["hours"] == pytest.approx(parts.training(row["levels"], row["gpus"], 10)["hours"]), row["what"]
    assert value["all-reduce per step and GPU", None, 4] == pytest.approx(1.5 * value["gradients", None, None])
    assert value["all-reduce per step and GPU", None, 1] == 0
    assert value["gradients", None, None] == pytest.approx(4 * 1.2355, rel=1e-4)  # MB, the weights of squeezenet1_1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "1", "2"], "epochs must have one entry per size (3), got 2"),
        (["--tflops", "-1"], "tflops must be positive, got -1.0"),
        (["--gpus", "0", "8"], "gpus must be positive, got 0"),
        (["--arch", "nothing"], "arch must be"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "plan", *words])
    assert capsys.readouterr().err.startswith(f"multipde: {message}")
