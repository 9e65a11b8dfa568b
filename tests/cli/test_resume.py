"""Options beside --resume: what agrees with the record passes, the rest is refused by its name."""

import json
import shutil

import pytest

from multipde.cli.main import main
from tests.fixtures import as_format_1


@pytest.fixture
def refused(capsys, place):
    """A function that resumes the run with options and returns the line by which they are refused."""

    def call(*options):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--run", str(place / "run"), "--resume", *options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    "options",
    [
        ["--sizes", "8", "16"],
        ["--epochs", "1", "1", "--batch", "30", "--learning-rate", "0.1", "--policy", "across"],
        ["--dynamics", "hamiltonian", "--data", "folder"],
        ["--amp", "off", "--seed", "0", "--recipe", "fast", "--no-tensorboard", "--no-mixed", "--whiten"],
        ["--device", "cpu", "--quiet"],
    ],
)
@pytest.mark.usefixtures("without_report")
def test_options_that_agree_with_the_record_pass(options, place, capsys):
    main(["train", "--run", str(place / "run"), "--resume", *options])
    assert "is finished; nothing to do" in capsys.readouterr().out or "--quiet" in options


@pytest.mark.usefixtures("without_report")
def test_the_command_by_which_a_run_began_may_be_typed_again(place, tmp_path, capsys):
    record = json.loads((as_format_1(shutil.copytree(place / "run", tmp_path / "run")) / "run.json").read_text())
    record["provenance"]["command"] = "multipde train --batch auto --work 10 30 --preset my-own"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    resumed = ["train", "--run", str(tmp_path / "run"), "--resume", "--batch", "auto", "--work", "10", "30"]
    main(resumed)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*resumed[:-1], "40"])
    assert "work must be that of the run, got --work 10.0 40.0; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--sizes 8 32", "sizes must be that of the run, 8 16, got --sizes 8 32; leave it out"),
        ("--epochs 1 2", "epochs must be that of the run, 1.0 1.0, got --epochs 1.0 2.0; leave it out"),
        ("--dynamics resnet", "dynamics must be that of the run, hamiltonian, got --dynamics resnet; leave it out"),
        ("--seed 3", "seed must be that of the run, 0, got --seed 3; leave it out"),
        ("--no-whiten", "whiten must be that of the run, True, got --no-whiten; leave it out"),
        ("--batch auto", "batch must be that of the run, 30 30, got --batch auto; leave it out"),
        ("--preset shapes-resnet", "preset must be that of the run, got --preset shapes-resnet; leave it out"),
        ("--download", "download must be that of the run, got --download; leave it out"),
    ],
)
def test_options_that_do_not_agree_are_refused_by_name(options, line, refused):
    assert refused(*options.split()) == f"multipde: {line}\n"


def test_the_default_value_is_refused_where_the_run_has_another(place, tmp_path, capsys):
    record = json.loads((as_format_1(shutil.copytree(place / "run", tmp_path / "run")) / "run.json").read_text())
    record["settings"] |= {"amp": "bf16", "seed": 3}
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    for options, was in ((["--amp", "off"], "bf16"), (["--seed=0"], "3")):
        with pytest.raises(SystemExit):
            main(["train", "--run", str(tmp_path / "run"), "--resume", *options])
        assert f"must be that of the run, {was}, got {options[0][:5]}" in capsys.readouterr().err


@pytest.mark.usefixtures("without_report")
def test_another_device_is_taken_with_a_note(place, tmp_path, capsys):
    record = json.loads((as_format_1(shutil.copytree(place / "run", tmp_path / "run")) / "run.json").read_text())
    (tmp_path / "run/result.json").unlink()
    record["settings"]["device"] = "cuda:7"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    main(["train", "--run", str(tmp_path / "run"), "--resume", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "note: the device is cpu, and was cuda:7 when the run began: the last bits may differ" in shown
    assert "test accuracy" in shown
