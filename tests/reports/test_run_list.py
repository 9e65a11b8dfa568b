"""A table of runs: finished, stopped, running and damaged ones."""

import csv
import json
import os
import shutil

import pytest

from multipde.cli.main import main
from multipde.reports.run_list import KEYS, list_runs
from tests.storage.test_links import run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run, one that was stopped, one that this process trains, a damaged one, and a folder that is none."""
    found = tmp_path_factory.mktemp("runs")
    finished = run(found / "a/finished")
    for name in ("stopped", "b/running"):
        shutil.copytree(finished, found / name)
        (found / name / "result.json").unlink()
    (found / "b/running/.lock").write_text(f"process {os.getpid()}")
    (found / "stopped/.lock").write_text("process 4194304999")
    shutil.copytree(finished, found / "[red]damaged")
    (found / "[red]damaged/run.json").write_text('{"format": 7}\n')
    (found / "other").mkdir()
    (found / "link").symlink_to(found / "a")
    return found


def test_every_run_has_a_record_with_its_state(place):
    found = {row["name"]: row for row in list_runs(place)}
    assert list(found) == sorted(found, key=lambda name: (found[name]["began"] is None, found[name]["began"] or ""))
    assert {name: row["state"] for name, row in found.items() if "damaged" not in name} == {
        "a/finished": "finished",
        "stopped": "stopped",
        "b/running": "running",
    }
    assert "run.json" in found["[red]damaged"]["state"]
    result = json.loads((place / "a/finished/result.json").read_text())
    row = found["a/finished"]
    assert (row["accuracy"], row["tflops"]) == (result["test_accuracy"], result["flops"] / 1e12)
    assert (row["network"], row["data"], row["sizes"]) == ("second_order", "shapes", "4 8")
    last = json.loads((place / "stopped/metrics.jsonl").read_text().splitlines()[-1])
    assert found["stopped"]["accuracy"] == last["validation_accuracy"]


def test_the_table_json_and_csv_say_the_same(place, capsys):
    main(["runs", str(place), "--sort", "accuracy"])
    table = capsys.readouterr().out
    assert "4 runs in" in table
    assert "(validation)" in table
    assert "[red]damaged" in table
    main(["runs", str(place), "--sort", "accuracy", "--json"])
    rows = json.loads(capsys.readouterr().out)["runs"]
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies[-1] is None
    assert accuracies[:-1] == sorted(accuracies[:-1], reverse=True)
    main(["runs", str(place), "--sort", "accuracy", "--csv"])
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert tuple(found[0]) == KEYS
    assert [row["name"] for row in found] == [row["name"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "runs must be in a directory, got nowhere"),
        ([".", "--sort", "beauty"], "sort must be one of name, network, data, sizes, state, accuracy, tflops, minutes"),
        ([".", "--json", "--csv"], "csv must be left out with json, got both"),
    ],
)
def test_wrong_arguments_are_told(arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs", *arguments])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err


def test_no_runs_and_a_run_itself(place, tmp_path, capsys):
    main(["runs", str(tmp_path)])
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert [row["name"] for row in list_runs(place / "a/finished")] == ["finished"]
