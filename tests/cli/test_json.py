"""`--json` of every command that prints a table: one line of JSON on standard output, and the same numbers."""

import json
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest

from multipde import count_flops, load, num_weights
from multipde.cli.bench import STUDIES
from multipde.cli.commands import COMMANDS
from multipde.cli.main import main
from multipde.cli.resume import tell_result


def printed(capsys, *arguments):
    """The record that a command prints as its only line on standard output."""
    main([str(a) for a in arguments])
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_every_command_with_a_table_has_the_option():
    without = {name for name, kind in (COMMANDS | STUDIES).items() if "json" not in {f.name for f in fields(kind)}}
    assert without == {"report", "bench", "completion", "shard"}  # files, the name of a study, a script


def test_inspect(capsys, place):
    net = load(place / "run")
    found = printed(capsys, "inspect", place / "run", "--json")
    assert (found["weights"], found["flops"]) == (num_weights(net), count_flops(net.config))
    assert found["network"]["dynamics"] == "hamiltonian"
    assert all(len(rms) >= 5 for rms in found["coefficients"].values())


@pytest.mark.usefixtures("without_figure")
def test_convert(capsys, place, tmp_path):
    how = ("--size", "8", "--num-images", "20", "--finish", "none", "--method", "copy", "--json")
    found = printed(capsys, "convert", place / "run", *how, "--out", tmp_path / "new")
    assert found["out"] == str(tmp_path / "new")
    assert found["report"] == json.loads((tmp_path / "new/report.json").read_text())
    state = tmp_path / "new/model.safetensors"
    bare = ("convert", state, "--from-size", "8", "--size", "16", "--out", tmp_path / "bare", "--json")
    assert printed(capsys, *bare) == {"out": str(tmp_path / "bare"), "report": None}


def test_export(capsys, place, tmp_path):
    out = tmp_path / "net.pt"
    found = printed(capsys, "export", place / "run", "--out", out, "--format", "state_dict", "--json")
    assert found["files"][0] == str(out)
    assert found["difference"] < 1e-4
    assert set(found["images_per_second"]) == {"torch", "exported"}


@pytest.mark.usefixtures("without_report")
def test_train(capsys, place, tmp_path):
    data = ("--data", "folder", "--root", place / "data")
    small = ("--sizes", "8", "--epochs", "1", "--batch", "30", "--device", "cpu", "--run", tmp_path / "run", "--json")
    found = printed(capsys, "train", *data, *small)
    assert found == {"run": str(tmp_path / "run")} | json.loads((tmp_path / "run/result.json").read_text())


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_of_several_processes_one_prints_the_result(rank, lines, monkeypatch, capsys, tmp_path):
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    done = SimpleNamespace(directory=tmp_path, result={})
    tell_result(done, SimpleNamespace(quiet=False, json=True, arch=None))
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.usefixtures("without_report", "narrow_presets")
def test_train_with_a_finish_at_all_sizes(capsys, place, tmp_path):
    small = ("--sizes", "8", "--epochs", "1", "--batch", "30", "--device", "cpu", "--run", tmp_path / "run", "--json")
    printed(capsys, "train", "--data", "folder", "--root", place / "data", *small, "--all-sizes", "4", "8")
    assert (tmp_path / "run/all-sizes/sizes.json").exists()


def test_a_comparison_that_cannot_be_printed_fails(place, tmp_path, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="2"):
            main(["compare", str(place / "run"), str(place / "run"), "--json", "--out", str(tmp_path / "page.html")])


@pytest.mark.usefixtures("one_strength")
def test_robustness_and_bench(capsys, place, tmp_path):
    found = printed(capsys, "evaluate", place / "run", "--robustness", "--num-images", "4", "--json")
    assert found["rows"][0]["clean"] in (0, 0.25, 0.5, 0.75, 1)
    rows = printed(capsys, "bench", "architectures", "--arch", "audio, 9 taps", "--json")["rows"]
    assert [(row["arch"], row["stencils"]) for row in rows] == [("audio, 9 taps", 4)]
