"""Every command as a user types it, wrong arguments too."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from itertools import chain
from typing import get_args
from unittest.mock import MagicMock

import pytest
import torch

import multipde
from multipde import (
    Level,
    Schedule,
    TrainSettings,
    bake,
    convert,
    load,
    load_data,
    num_weights,
    save,
    train,
)
from multipde.cli import options
from multipde.cli.commands import COMMANDS
from multipde.cli.main import main
from multipde.data.datasets import DATA_NAMES
from multipde.mesh.transfer import CALIBRATED, METHODS
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.presets import preset_names
from multipde.runtime.device import AMP, choose_device
from multipde.runtime.signals import Interrupted, raising_on_signals
from multipde.training.level import CYCLES, POLICIES
from multipde.training.optimizers import OPTIMIZERS
from multipde.training.recipe import RECIPES
from multipde.training.schedule import levels_from_lists
from multipde.training.settings import TRACKERS
from multipde.training.start import starting_network
from tests.fixtures import as_format_1, load_unfinished, write_folder

RAW = ("--finish", "none")
"""A conversion without a training after it."""


def call(capsys, *arguments: str) -> str:
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def test_train_shows_its_plan_progress_and_result(capsys, tmp_path, monkeypatch, narrow_presets):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("multipde.reports.run_figures.svg", lambda make, name, alt: "")  # no figure is asked for
    write_folder(tmp_path / "data")
    arguments = "--data folder --root data --sizes 8 16 --epochs 1 1 --batch 30 --steps 2 3 --preset shapes-parabolic"
    out = call(capsys, "train", *arguments.split())
    lines = out.splitlines()
    assert lines[0] == "recipe fast: optimizer muon, label_smoothing 0.1, whiten True, alpha1 0.0, alpha2 0.0"
    assert "MFLOPs/image" in lines[2]
    assert [line.split()[1] for line in lines[3:5]] == ["8", "16"]
    assert any(line.startswith("move 8 -> 16 by calibrated") for line in lines)
    assert lines[-2].startswith("test accuracy")
    assert "runs/folder-parabolic-1" in lines[-2]
    assert lines[-1] == "report: runs/folder-parabolic-1/report.html"
    assert load(tmp_path / "runs/folder-parabolic-1").config.block_steps == (3, 3, 3)
    again = call(capsys, "train", "--run", "runs/folder-parabolic-1", "--resume")
    assert again.strip() == "runs/folder-parabolic-1 is finished; nothing to do"


def test_evaluate_gives_a_row_per_size_and_method(capsys, place):
    out = call(capsys, "evaluate", place / "run", "--sizes", "8", "16", "--method", "copy", "rediscretize", "galerkin")
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [
        ("8", "copy"), ("8", "rediscretize"), ("8", "galerkin"), ("16", "-")
    ]  # fmt: skip
    result = json.loads((place / "run/result.json").read_text())
    assert rows[-1][2] == f"{result['test_accuracy']:.2%}"


@pytest.mark.usefixtures("one_strength")
def test_evaluate_compares_the_robustness_of_several_checkpoints(capsys, place, tmp_path):
    both = ["evaluate", place / "run", shutil.copytree(place / "run", tmp_path / "again"), "--num-images", "4"]
    out = call(capsys, *both, "--robustness", "--plot", tmp_path / "r.svg", "--out", tmp_path / "r.jsonl")
    clean = json.loads((tmp_path / "r.jsonl").read_text())["clean"]
    assert out.splitlines()[0] == f"0 of 1 networks are in {tmp_path / 'r.jsonl'}; 1 to do"
    assert out.splitlines()[1] == "Accuracy in % (ratio to clean) on 4 test images of data"
    assert out.splitlines()[2].split() == ["name", "run", "again"]
    assert out.splitlines()[3].split() == ["clean", *[f"{100 * clean:.2f}"] * 2]
    assert "bound (no norm)" in out
    assert out.splitlines()[-1] == f"rows in {tmp_path / 'r.jsonl'}, figure in {tmp_path / 'r.svg'}"
    assert (tmp_path / "r.svg").read_text().startswith("<?xml")
    assert call(capsys, *both).count("accuracy") == 2  # without it a table for each


@pytest.mark.usefixtures("without_report", "without_figure")
def test_convert_writes_the_converted_network_which_goes_on_training(capsys, place, tmp_path):
    out = call(capsys, "convert", place / "run", "--size", "8", "--method", "galerkin", *RAW, "--out", tmp_path / "new")
    assert "4 BatchNorm layers recalibrated" in out
    new, expected = load(tmp_path / "new"), convert(load(place / "run"), size=8, method="galerkin")
    for (name, p), q in zip(new.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert new.config.size == 8
    data = ["--data", "folder", "--root", place / "data"]
    arguments = ["--init", tmp_path / "new", "--sizes", "8", "--epochs", "1", "--run", tmp_path / "r", "--batch", "30"]
    assert "test accuracy" in call(capsys, "train", *data, *arguments)


def test_convert_reports_and_auto_takes_a_method(capsys, place, tmp_path):
    out = call(capsys, "convert", place / "run", "--size", "8", "--out", tmp_path / "new", "--num-images", "20", *RAW)
    assert "consistency error" in out
    assert "Step bounds of the converted network" in out
    report = json.loads((tmp_path / "new/report.json").read_text())
    assert f"method {report['method']}, steps 3, 4 BatchNorm layers recalibrated" in out
    for c in report["candidates"]:
        assert f"{c['accuracy']:.1%}" in out
    assert (tmp_path / "new/report.svg").read_text().startswith("<?xml")
    assert load(tmp_path / "new").config.size == 8


@pytest.mark.usefixtures("without_figure")
def test_convert_takes_torchvision_models_and_bare_state_dicts(capsys, place, tmp_path):
    from safetensors.torch import load_file
    from torchvision import models

    torch.manual_seed(0)
    net = models.squeezenet1_1(num_classes=3)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    data = ["--data", "folder", "--root", place / "data"]
    arguments = ["--arch", "squeezenet1_1", "--weights", tmp_path / "w.pt", "--from-size", "32", "--size", "48"]
    out = call(capsys, "convert", *arguments, *data, *RAW, "--method", "rediscretize", "--out", tmp_path / "new")
    assert "not converted: features.3.squeeze (1x1)" in out
    assert "original, 48 -> 32" in out
    name, width = "features.0.weight", net.features[0].weight.shape[-1]
    moved = load_file(tmp_path / "new/model.safetensors")[name]
    expected = multipde.transfer_stencil(net.features[0].weight.detach(), "rediscretize", 1.5)
    torch.testing.assert_close(moved, expected)
    assert width == 3
    spec = load(tmp_path / "new").multipde_spec
    assert (spec.arch, spec.size, spec.classes) == ("torchvision:squeezenet1_1", 48, 3)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert "no data" in call(capsys, "convert", tmp_path / "new", "--size", "32", "--out", tmp_path / "back")
    assert "squeezenet1_1, 3 channels of 32x32 pixels to 3 classes" in call(capsys, "inspect", tmp_path / "back")
    tested = call(capsys, "evaluate", tmp_path / "new", *data, "--sizes", "32", "48", "--num-images", 20)
    assert [line.split()[0] for line in tested.splitlines()[-2:]] == ["32", "48"]
    bare = ["convert", tmp_path / "w.pt", "--from-size", "32", "--size", "48", "--method", "rediscretize"]
    assert "9 of 52 tensors are stencils" in call(capsys, *bare, "--out", tmp_path / "bare")
    torch.testing.assert_close(load_file(tmp_path / "bare/model.safetensors")[name], expected)


@pytest.mark.usefixtures("without_report")
def test_train_within_a_budget_on_mixed_levels_and_with_steps_that_follow(capsys, place, tmp_path):
    alone = ["--sizes", "8", "--epochs", "auto", "--budget", "0.01GFLOPs", "--batch", "30", "--run", tmp_path / "one"]
    assert "test accuracy" in call(capsys, "train", "--data", "folder", "--root", place / "data", *alone)
    data = ["train", "--data", "folder", "--root", place / "data", "--sizes", "8", "16", "--batch", "30"]
    auto = [*data, "--epochs", "auto", "--budget", "0.2GFLOPs", "--transfer", "calibrated", "--steps", "auto"]
    out = call(capsys, *auto, "--run", tmp_path / "a")
    assert "auto" in out.splitlines()[3]
    assert "move 8 -> 16 by calibrated" in out
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert (record["settings"]["auto_steps"], record["settings"]["budget"]) == (True, "0.2GFLOPs")
    out = call(capsys, *data, "--epochs", "1", "0.5", "--mixed", "--coordinates", "finest", "--run", tmp_path / "b")
    assert "8+16" in out


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("how", ["reversible", "checkpoint"])
def test_train_keeps_states_as_it_is_told(how, capsys, place, tmp_path):
    data = ["train", "--data", "folder", "--root", place / "data", "--sizes", "8", "--epochs", "1", "--batch", "30"]
    out = call(capsys, *data, "--memory", how, "--run", tmp_path / "a")
    assert "test accuracy" in out
    assert load(tmp_path / "a").config.memory == how


def test_bench_transfer_prints_its_tables_and_does_nothing_twice(capsys, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = ["bench", "transfer", "--data", "folder", "--root", place / "data", "--size", "16"]
    study += ["--arms", "copy", "mixed", "--budget", "0.1", "--seeds", "0"]
    out = call(capsys, *study)
    assert "0 of 2 trainings" in out
    assert "gain over copy" in out
    again = call(capsys, *study)
    assert "2 of 2 trainings are in runs/bench-transfer/rows.jsonl; 0 to do" in again
    assert again.splitlines()[1:] == out.splitlines()[3:]
    assert (tmp_path / "runs/bench-transfer/rows.svg").exists()


@pytest.mark.usefixtures("without_figure")
def test_convert_without_data_says_so_and_steps_alone_work(capsys, place, tmp_path):
    out = call(capsys, "convert", place / "net", "--steps", "6", *RAW, "--out", tmp_path / "new")
    assert "no data: nothing is measured or finished, BatchNorm keeps the statistics of the old size" in out
    assert load(tmp_path / "new").config.final_times == (3.0, 3.0)
    out = call(capsys, "convert", place / "net", "--size", "8", *RAW, "--out", tmp_path / "small")
    assert "the stencils are copied, so that only the mesh changes; type --data NAME" in out
    old, new = load(place / "net").state_dict(), load(tmp_path / "small").state_dict()
    assert all(torch.equal(old[name], new[name]) for name, _ in load(place / "net").named_parameters())


@pytest.mark.usefixtures("without_figure")
def test_convert_goes_on_without_the_data_of_the_run_when_they_are_gone(capsys, place, tmp_path):
    as_format_1(shutil.copytree(place / "run", tmp_path / "run"))
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["data_options"]["root"] = str(tmp_path / "gone")
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    out = call(capsys, "convert", tmp_path / "run", "--size", "8", *RAW, "--out", tmp_path / "new")
    assert "the data of the run cannot be read (root must be a directory, got" in out
    assert load(tmp_path / "new").config.size == 8


@pytest.mark.usefixtures("without_report", "without_figure")
def test_a_baked_checkpoint_is_as_good_as_any(capsys, place, tmp_path):
    net = bake(load(place / "run"))
    save(net, tmp_path / "baked")
    assert "order 4" in call(capsys, "inspect", tmp_path / "baked")
    call(capsys, "convert", tmp_path / "baked", "--steps", "6", "--out", tmp_path / "new")
    data = ["--data", "folder", "--root", place / "data"]
    arguments = ["--init", tmp_path / "baked", "--sizes", "16", "--epochs", "1", "--run", tmp_path / "r"]
    assert "test accuracy" in call(capsys, "train", *data, *arguments, "--batch", "30")


def test_inspect_shows_blocks_weights_flops_and_orders(capsys, place):
    out = call(capsys, "inspect", place / "run")
    net = load(place / "run")
    assert f"{num_weights(net):,} weights" in out
    assert "classes: disc, ring, square" in out
    assert "MFLOPs per image" in out
    assert out.count("blocks.") == 18
    assert "order 4" in out
    assert call(capsys, "inspect", place / "run", "--physical") != out


def test_choices_are_those_of_the_library():
    assert set(get_args(options.DataName)) == set(DATA_NAMES)
    assert set(get_args(options.DynamicsName)) == set(DYNAMICS)
    assert set(get_args(options.MethodName)) == {*METHODS, *CALIBRATED}
    assert set(get_args(options.AmpName)) == set(AMP)
    assert set(get_args(options.PolicyName)) <= {*POLICIES, *CYCLES}
    assert set(get_args(options.OptimizerName)) == set(OPTIMIZERS)
    assert get_args(options.TrackerName) == TRACKERS


def test_every_default_of_train_is_that_of_the_library():
    calls = (levels_from_lists, train, starting_network, load_data, TrainSettings)
    defaults = [inspect.signature(call).parameters.values() for call in calls]
    library = {
        p.name.replace("stream_files", "stream"): p.default for p in chain(*defaults) if p.default is not p.empty
    }
    own = {f.name: f.default for f in fields(COMMANDS["train"])}
    added = {"no_augment", "no_whiten", "all_sizes", "finish_share", "json"}
    assert own.keys() - library.keys() == {"data", "preset", "dynamics", "sizes", "run", "resume", "extend"} | added
    assert {own[name] for name in set().union(*RECIPES.values()) - {"whiten"}} == {None}  # a recipe may decide
    decided = {name for name, default in own.items() if default is not None} & library.keys() - {"whiten"}
    assert {name: own[name] for name in decided} == {name: library[name] for name in decided}
    assert {f.name for f in fields(TrainSettings)} - own.keys() == {"auto_steps", "calibration_images"}


def test_train_without_arguments_is_a_training_of_default_levels_and_settings(monkeypatch):
    called = MagicMock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("multipde.training.run.train", called)
    with pytest.raises(KeyboardInterrupt):
        COMMANDS["train"]().run_command()
    assert called.call_args.args[1] == Schedule([Level(8, 5), Level(16, 5), Level(32, 1)])
    assert called.call_args.kwargs["settings"] == TrainSettings()


def test_help_is_there_for_every_command_and_quick(capsys):
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out.lower()
        for option in {f.name for f in fields(command)} - {"others", "study", "experiment"}:  # no options
            assert option in shown.replace("-", "_"), option
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from multipde.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "train", "--help"], capture_output=True, text=True, check=True)
    assert {"torch", "numpy"}.isdisjoint(done.stdout.splitlines()[-1].split())  # half a second, and not five


def test_the_version_names_torch_and_device_and_the_help_the_exit_status(capsys):
    main(["--version"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"multipde {multipde.__version__}"
    assert f"torch {torch.__version__}, device {choose_device('auto')}" in second
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Exit status: 0 when all is done; 2 for wrong input" in capsys.readouterr().out


def test_list_shows_the_names_that_the_commands_take(capsys):
    shown = dict(line.split(": ", 1) for line in call(capsys, "list").splitlines())
    assert shown["--dynamics"].split(", ") == list(DYNAMICS)
    assert shown["train --preset"].split(", ") == preset_names()
    assert set(shown["--recipe"].split(", ")) == set(RECIPES)
    assert json.loads(call(capsys, "list", "--json"))["--data"] == list(DATA_NAMES)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("trian", r"command must be one of train, .*, got 'trian'; did you mean train\?"),
        ("bench stpe", r"study must be one of transfer, .*, got 'stpe'; did you mean step\?"),
        ("train --sice 8", r"option must be one of those of multipde train, got '--sice'; did you mean --sizes\?"),
        ("bench step --zzz", r"option must be one of .* bench step, got '--zzz'; type multipde bench step --help"),
    ],
)
def test_the_nearest_name_is_offered_for_a_wrong_one(typed, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(typed.split())
    assert stop.value.code == 2
    assert re.fullmatch(f"multipde: {line}\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["bench", "--help"]])
def test_a_reader_that_has_left_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "multipde", *arguments], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_during_an_import_is_obeyed_when_it_is_done(name, tmp_path, monkeypatch, capsys):
    source = f"import signal\nsignal.raise_signal(signal.{name})\nis_whole = True\n"
    (tmp_path / "received_while_importing.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    def work(self):
        import received_while_importing as module  # pyright: ignore[reportMissingImports]

        assert module.is_whole
        if name != "SIGUSR1":
            time.sleep(20)

    monkeypatch.setattr(COMMANDS["list"], "run_command", work)
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        if name == "SIGUSR1":  # there is nothing to be saved yet
            main(["list"])
        else:
            started = time.monotonic()
            with pytest.raises(SystemExit) as stop:
                main(["list"])
            assert stop.value.code == 128 + getattr(signal, name)
            assert time.monotonic() - started < 10  # a call that waits is ended
            assert capsys.readouterr().err == "multipde: interrupted\n"
    finally:
        signal.signal(getattr(signal, name), before)
        sys.modules.pop("received_while_importing", None)


def test_a_signal_in_the_very_last_import_is_not_lost(monkeypatch, tmp_path):
    (tmp_path / "received_at_last.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted), raising_on_signals():
        import received_at_last  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_what_starts_with_the_command_is_little():
    """Before the first line of `main` a signal ends the program in Python's way."""
    code = "import sys; before = set(sys.modules); import multipde.cli.main; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40


def test_a_signal_stops_the_command_which_says_how_to_go_on(place, tmp_path, signal_at_step, capsys):
    run = tmp_path / "run"
    command = ["train", "--data", "folder", "--root", str(place / "data"), "--quiet", "--device", "cpu"]
    command += ["--sizes", "8", "16", "--epochs", "5", "1", "--batch", "30", "--run", str(run)]
    signal_at_step(2)
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 128 + signal.SIGTERM
    errors = capsys.readouterr().err
    assert errors.startswith("multipde: stopped and saved at size ")
    assert errors.endswith(f"; go on with: multipde train --run {run} --resume\n")
    assert load_unfinished(run).config.size == 8


def test_a_signal_ends_a_measurement_with_its_processes_and_files(tmp_path):
    command = [sys.executable, "-m", "multipde", "bench", "scaling", "--processes", "2"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob("torchelastic*")):
        assert started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (128 + signal.SIGTERM, "multipde: interrupted\n")
    assert not list(tmp_path.glob("tmp*"))
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], stdout=subprocess.PIPE).stdout == b""
