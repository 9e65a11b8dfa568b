"""Two processes over gloo do what one does, and one of them writes."""

import json
import multiprocessing
import re
import socket

import pytest
import torch

from multipde import load
from multipde.cli.main import main
from multipde.cli.train import Train
from multipde.runtime.processes import is_first_to_report, num_processes, process_group
from tests.runtime import two_processes


def launch(monkeypatch, number: int) -> None:
    """This process looks like one of two that torchrun has started, but torchrun is gone."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", number), ("LOCAL_RANK", number)):
        monkeypatch.setenv(name, str(value))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of the two processes has found, what they have said, and where their files are.

    They have the environment that torchrun would give them; that torchrun starts them is held by the test of the
    study of scaling.
    """
    out, context = tmp_path_factory.mktemp("two"), multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=two_processes.process, args=(out, k, port)) for k in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    said = {name: (out / name).read_text() for name in ("stdout", "stderr")}
    assert [process.exitcode for process in processes] == [0, 0], said["stderr"]
    return *(json.loads((out / f"{k}.json").read_text()) for k in (0, 1)), said, out


@pytest.mark.parametrize("kind", two_processes.KINDS)
def test_steps_of_two_processes_are_those_of_one_in_float64(both, kind):
    one, (two, other) = two_processes.steps(kind), (torch.load(both[3] / f"{kind}-{k}.pt") for k in (0, 1))
    assert len([name for name in one if name.startswith("gradient")]) > 20
    assert set(one) == set(two)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(two[name], other[name]), name


def test_a_training_by_two_processes_is_that_by_one(both, tmp_path):
    rows, again = two_processes.trained(tmp_path / "a"), both[0]["rows"]
    assert again == both[1]["rows"]
    assert len(rows) == len(again) == 4
    for one, two in zip(rows, again, strict=True):
        assert [one[k] for k in ("level", "epoch", "total_flops")] == [
            two[k] for k in ("level", "epoch", "total_flops")
        ]
        for key in ("train_loss", "validation_loss"):
            assert two[key] == pytest.approx(one[key], abs=1e-4), key
        for key in ("train_accuracy", "validation_accuracy"):
            assert two[key] == pytest.approx(one[key], abs=0.04), key
    weights, others = (load(path / "a").state_dict() for path in (tmp_path, both[3]))
    for name, expected in weights.items():
        torch.testing.assert_close(others[name], expected, rtol=1e-3, atol=1e-4)


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_the_run_is_taken_up(both):
    first, second, _, out = both
    assert first["stopped"] == second["stopped"]
    assert re.match("stopped and saved at size 4 after 0 epochs and 5 steps; go on with", first["stopped"][0])
    assert (out / "b/model.safetensors").read_bytes() == (out / "a/model.safetensors").read_bytes()


def test_only_the_first_process_writes_and_talks(both):
    first, _, said, out = both
    assert first["stopped"][1] == first["process"]  # the lock is the first one's
    assert said["stdout"].count("test accuracy") == 3  # of a, b and r, a line each
    assert len((out / "a/metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((out / "a/run.json").read_text())["provenance"]["machine"]["processes"] == 2
    assert not (out / "c").exists()
    assert "warn" not in said["stderr"].lower(), said["stderr"]


def test_processes_agree(both):
    first, second = both[:2]
    assert (first["turn"], second["turn"]) == ("made", "found")
    different = {name for name in first if first[name] != second[name]}
    assert different == {"turn", "process", "command"}
    assert (first["processes"], first["sum"], first["mean"], first["largest"]) == (2, 3, 1.5, [1, 3])
    assert (first["writer"], first["taken"]) == ({"rank": 0}, 0)
    assert first["epochs"] >= 2
    assert first["best"] == 0.5  # of the metrics 0 and 1
    number, note, refused = first["agreed"]
    assert number == max(int(path.name[-4:]) for path in (both[3] / "a").glob("checkpoint-*"))
    assert note == ""
    assert re.match("ValueError: checkpoint must be readable in all processes, got .*, which is not in some", refused)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("told", "FileExistsError: found by 0"),
        ("taken directory", "FileExistsError: directory must be new or empty, got .*; type --resume to go on with"),
        ("uneven", r"ValueError: batch must be a multiple of the .* \(2\), got 125; start 1, or type --batch 124 for"),
        ("uneven training", r"ValueError: batch must be a multiple .* \(2\), got 25; start 1, or type --batch 24"),
        (
            "devices",
            r"ValueError: processes must be at most as many as devices \(1\), got 2; start 1, or type --device cpu",
        ),
        ("one device", "ValueError: device must be cuda or cpu for several processes, got cuda:0; type --device cpu"),
        ("metal", "ValueError: device must be cuda or cpu for several processes, got mps; type --device cpu"),
        (
            "nan",
            "DivergedError: loss must stay finite, got nan in opening .* at size 4, epoch 1, step 3; type a smaller",
        ),
        (
            "unused",
            "ValueError: parameters must have gradients where .*, got none for other.weight; type --freeze other",
        ),
        ("disk", "OSError: run directory must stay where it is while it is trained, got none at"),
    ],
)
def test_what_one_process_finds_wrong_both_raise(both, name, message):
    assert re.match(message, both[0][name])
    assert both[1][name] == both[0][name]


def test_both_roll_back_where_one_diverges(both):
    assert both[0]["rolled back"] == "none"
    (rollback,) = json.loads((both[3] / "r/result.json").read_text())["rollbacks"]
    assert re.match("loss must stay finite, got nan in opening", rollback["error"])


def test_the_command_tells_what_is_wrong_once(both):
    first, second, _, out = both
    advice = f"multipde: directory must be new or empty, got {out}; type --resume to go on with a run\n"
    assert sorted([first["command"], second["command"]]) == [[2, ""], [2, advice]]  # whichever is the first


@pytest.mark.parametrize("number", [0, 1])
def test_commands_for_one_process_refuse_several(number, capsys, monkeypatch, tmp_path):
    launch(monkeypatch, number)
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(tmp_path)])
    line = "multipde: processes must be one for all commands but train, got 2; leave torchrun out\n"
    assert capsys.readouterr().err == (line if number == 0 else "")


def test_a_process_that_has_gone_is_told_in_a_line(capsys, monkeypatch):
    def run_command(self, typed):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(Train, "run_command", run_command)
    with pytest.raises(RuntimeError, match="Connection closed"):
        main(["train"])
    launch(monkeypatch, 0)
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert capsys.readouterr().err == "multipde: processes must all run until the end, got one that has ended\n"


def test_what_processes_say_of_each_other_is_told_in_a_line(capsys, monkeypatch):
    def run_command(self, typed):
        raise RuntimeError("NCCL error: invalid usage\nDuplicate GPU detected : rank 0 and rank 1")

    monkeypatch.setattr(Train, "run_command", run_command)
    launch(monkeypatch, 0)
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    said = "processes must reach each other, got: NCCL error: invalid usage Duplicate GPU detected : rank 0 and rank 1"
    assert capsys.readouterr().err == f"multipde: {said}\n"


def test_a_finish_by_several_processes_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    launch(monkeypatch, 0)
    with pytest.raises(ValueError, match="all_sizes must be left out with several processes, got 2; type multipde co"):
        Train(run=tmp_path, resume=True, all_sizes=(8, 16))._trained(())


def test_a_process_that_is_alone_tells_and_joins_nobody(monkeypatch):
    with process_group():
        assert num_processes() == 1
    assert is_first_to_report()
    for number in (0, 1):
        launch(monkeypatch, number)
        assert is_first_to_report() == (number == 0)
