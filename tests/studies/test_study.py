"""What all studies share: rows are kept, recognised and not measured twice."""

import json
from pathlib import Path

import pytest

from multipde.runtime.console import Log
from multipde.runtime.table import table_of
from multipde.studies.bench.regimes import CASES, WAVES
from multipde.studies.bench.transfer_arms import ARMS
from multipde.studies.bench.transfer_tasks import Task, tasks_of
from multipde.studies.study import Study, matching

RESULTS = Path(__file__).parents[2] / "examples/results"


def study(file, **options):
    return Study(file, {"data": "x", "size": 8}, ("name", "seed"), **options)


def test_a_row_that_the_file_has_is_not_left_and_those_of_others_do_not_count(tmp_path, capsys):
    file = tmp_path / "new/rows.jsonl"
    first = study(file)
    assert not file.parent.exists()  # until there is a row
    row = first.add("a", 0, accuracy=0.5, pair=(1, 2))
    Study(file, {"data": "y", "size": 8}, ("name", "seed")).add("b", 0)
    assert {**row, "machine": 0, "versions": 0} == {
        "data": "x", "size": 8, "name": "a", "seed": 0, "accuracy": 0.5, "pair": [1, 2], "machine": 0, "versions": 0,
    }  # fmt: skip
    assert {"processor", "cores"} <= row["machine"].keys()
    assert {"torch", "multipde"} <= row["versions"].keys()
    again = study(file, log=Log())
    assert again.rows == [row]
    assert again.left([("a", 0), ("b", 0), ("b", 0)], "things") == [("b", 0)]
    assert capsys.readouterr().out == f"1 of 2 things are in {file}; 1 to do\n"
    assert study(file, anew=True).left([("a", 0)], "things") == [("a", 0)]


def test_a_study_that_replaces_rows_keeps_those_it_has_not_measured(tmp_path):
    file = tmp_path / "rows.jsonl"
    for seed in (0, 1):
        study(file).add("a", seed, value=1)
    Study(file, {"data": "y", "size": 8}, ("name", "seed")).add("a", 0, value=1)
    new, beside = study(file, replaces=True), study(file, replaces=True)
    new.add("a", 0, value=2)
    assert "2" not in [str(json.loads(line)["value"]) for line in file.read_text().splitlines()]
    assert [(r["seed"], r["value"]) for r in new.close({})] == [(1, 1), (0, 2)]
    beside.add("b", 0, value=3)
    beside.close({})
    rows = [(r["data"], r["name"], r["seed"], r["value"]) for r in map(json.loads, file.read_text().splitlines())]
    assert sorted(rows) == [("x", "a", 0, 2), ("x", "a", 1, 1), ("x", "b", 0, 3), ("y", "a", 0, 1)]


def test_the_end_shows_the_tables_and_says_where_rows_and_figure_are(tmp_path, capsys):
    own = study(tmp_path / "rows.jsonl", log=Log())
    own.add("a", 0, accuracy=0.256)
    table = table_of(own.rows, "name: {name} | accuracy %: {accuracy:.1%}")
    assert table == [{"name": "a", "accuracy %": "25.6%"}]
    own.close({"Title": table}, lambda file: file.touch() or None)
    written = f"rows in {tmp_path}/rows.jsonl, figure in {tmp_path}/rows.svg"
    assert capsys.readouterr().out.splitlines() == ["Title", "name  accuracy %", "a          25.6%", written]
    assert (tmp_path / "rows.svg").exists()
    study(None, log=Log()).close({})
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path} must be writable, got: Is a directory"):
        study(tmp_path)


@pytest.mark.parametrize(
    ("file", "shared", "keys", "tasks"),
    [
        ("transfer", {"data": "cifar10", "size": 32}, Task._fields, tasks_of([*ARMS][:9], ("hamiltonian",), 2.0, (0,))),
        ("regimes", {"size": 32}, ("data", "blur", "net", "epochs"), [("shapes", *case, 3) for case in CASES]),
        ("regimes", {"data": "waves"}, ("frequency", "depth"), WAVES),
        (
            "finetune",
            {"checkpoint": "runs/cifar10-hamiltonian", "data": "cifar10", "size": 16},
            ("name", "method", "amount"),
            [("recalibrated", "copy", 32.0), ("fine-tuned", "calibrated", 1.0), ("from scratch", "-", 3.0)],
        ),
    ],
)
def test_the_rows_of_the_examples_are_recognised(file, shared, keys, tasks, tmp_path):
    copy = tmp_path / "rows.jsonl"
    copy.write_bytes((RESULTS / f"{file}.jsonl").read_bytes())
    first = ("data", "exponent") if file == "regimes" else ()
    found = Study(copy, shared, keys, earlier={"recipe": "sgd"}, first=first)
    assert found.left(tasks, "rows") == []
    assert matching(found.rows, **shared) == found.rows
