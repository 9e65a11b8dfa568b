"""Commands in hostile surroundings: little memory, no standard output, a console of ASCII."""

import io
import os
import resource
import subprocess
import sys

import pytest

from multipde.cli.main import main

COMMAND = [sys.executable, "-m", "multipde"]


def test_too_little_memory_for_the_libraries_is_one_line():
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, preexec_fn=limit, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("multipde: memory must suffice, got: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("where", ["/dev/full", None])
def test_a_command_whose_result_is_its_output_fails_without_it(where):
    shell = f"{sys.executable} -m multipde completion bash >{where or '&-'}"
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    reason = "No space left on device" if where else "it is closed"
    assert done.stderr == f"multipde: standard output must be writable, got: {reason}\n"


def test_help_is_shown_on_a_console_of_ascii():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*COMMAND, "train", "--help"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_names_are_shown_on_a_console_of_ascii(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    main(["list"])
    assert b"hamiltonian" in shown.getvalue()


@pytest.mark.usefixtures("narrow_presets", "without_report")
def test_a_training_without_standard_output_ends_well(place, tmp_path, monkeypatch, capsys):
    from multipde.cli.main import main
    from multipde.runtime.console import StandardOutput

    monkeypatch.setattr(StandardOutput, "is_lost", False)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        arguments = ["--sizes", "8", "--epochs", "1", "--batch", "30", "--device", "cpu", "--data", "folder", "--root"]
        main(["train", *arguments, str(place / "data"), "--run", str(tmp_path / "run")])
        monkeypatch.undo()
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "run/result.json").exists()


def test_a_working_directory_that_has_been_removed_is_told(monkeypatch, capsys):
    def getcwd():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", getcwd)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "multipde: working directory must exist, got one that has been removed; cd to another\n"


@pytest.mark.parametrize(("words", "status"), [(["train", "--help"], 0), (["predict"], 2)])
def test_the_parser_ends_well_without_standard_output(words, status, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == status


def test_the_home_directory_is_meant_by_a_tilde_that_no_shell_has_expanded(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main(["convert", str(place / "net"), "--size", "8", "--out=~/new", "--device", "cpu"])
    main(["inspect", "~/new"])
    assert "~" not in "".join(capsys.readouterr())
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
