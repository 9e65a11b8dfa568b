"""Runs that an earlier version wrote, in format 1, are read, reported and resumed to the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multipde import evaluate, load, load_data, report, resume
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import recorded_data
from tests.fixtures import load_unfinished

WRITTEN = Path(__file__).parent / "format1"
FINISHED, INTERRUPTED = WRITTEN / "finished", WRITTEN / "interrupted"


def timeless(rows):
    return [{k: v for k, v in row.items() if "second" not in k and k != "level"} for row in rows]


def test_a_finished_run_is_loaded_and_judged_as_it_was():
    net = load(FINISHED)
    assert (net.config.dynamics, net.config.size, net.config.class_names[0]) == ("second_order", 8, "disc")
    name, options = recorded_data(FINISHED) or ("", {})
    metrics = evaluate(net, load_data(name, size=8, **options), device="cpu")
    result = json.loads((FINISHED / "result.json").read_text())
    assert metrics.accuracy == pytest.approx(result["test_accuracy"])
    assert metrics.loss == pytest.approx(result["test_loss"], rel=1e-4)


def test_an_interrupted_run_is_loaded_as_its_checkpoint(tmp_path):
    found, stored = (
        load_unfinished(INTERRUPTED).state_dict(),
        load_file(INTERRUPTED / "checkpoint-0003/model.safetensors"),
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    with pytest.raises(ValueError, match="run must be finished, got .*; type multipde train --run .* --resume first"):
        report(INTERRUPTED, tmp_path / "report.html")


def test_a_finished_run_is_reported(tmp_path):
    page = report(FINISHED, tmp_path / "report.html").read_text()
    result, rows = json.loads((FINISHED / "result.json").read_text()), read_metrics(FINISHED / "metrics.jsonl")
    assert f"{100 * result['test_accuracy']:.2f}\u202f%" in page
    assert all(f"{100 * row['total_flops'] / rows[-1]['total_flops']:.1f} %<" in page for row in rows[:1])
    assert page.count('id="stencils-0-figure_1"') == page.count('id="stencils-1-figure_1"') == 1


def test_an_interrupted_run_is_resumed_to_the_finished_one(tmp_path):
    done = resume(Path(shutil.copytree(INTERRUPTED, tmp_path / "run")), quiet=True)
    found, expected = (load_file(run / "model.safetensors") for run in (done.directory, FINISHED))
    for name, tensor in expected.items():  # another processor may round in another way
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
    rows = read_metrics(FINISHED / "metrics.jsonl")
    assert [(r["level"], r["size"], r["epoch"]) for r in done.metrics] == [
        (1, 4, 1),
        (2, 8, 1),
    ]  # not (0, 8, 1)
    for row, earlier in zip(timeless(done.metrics), timeless(rows), strict=True):
        assert row.pop("steps") == earlier.pop("steps")
        assert row == pytest.approx(earlier, rel=1e-3)
