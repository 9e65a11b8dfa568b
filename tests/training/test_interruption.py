"""Signals, the lock, and checkpoints between epochs: nothing is lost, nothing changes."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import os
import shutil
import signal
import threading

import pytest

from multipde import Level, NetworkConfig, Schedule, TrainSettings, evaluate, load, load_data, resume, train
from multipde.runtime.console import Log
from multipde.runtime.signals import Interrupted, PendingSignals, pending_signals
from multipde.storage.lock import LOCK, locked
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.checkpoint import read_checkpoint
from multipde.training.trainer import Trainer

NETWORK = NetworkConfig("second_order", (4,), 6, steps=1, size=8)
OPTIONS = {"num_train": 150, "num_test": 40}


def run(directory, **settings):
    plan = Schedule([Level(4, 2, batch=30), Level(8, 1, batch=30)])
    chosen = TrainSettings(device="cpu", calibration_images=60, transfer="copy", **settings)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "a").directory


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 2), ("SIGTERM", 15), ("SIGHUP", 1)])
def test_a_signal_stops_after_the_step_with_everything_saved(name, status, tmp_path, signal_at_step):
    kept = signal.signal(getattr(signal, name), signal.SIG_DFL)  # nohup ignores SIGHUP, for one
    before = signal.getsignal(getattr(signal, name))
    signal_at_step(2, getattr(signal, name))
    with pytest.raises(Interrupted, match="saved at size 4 after 0 epochs and 2 steps; go on with") as stop:
        run(tmp_path / "b")
    assert stop.value.signum == status
    assert signal.getsignal(getattr(signal, name)) == before
    signal.signal(getattr(signal, name), kept)
    state = read_checkpoint(newest_checkpoint(tmp_path / "b"))[2]
    assert (state["epoch"], state["batch"], state["num_images"]) == (0, 2, 60)
    assert not (tmp_path / "b" / LOCK).exists()


def test_a_signal_during_validation_stops_there(finished, tmp_path, monkeypatch):
    original = Trainer.validate

    def validate(self, *args, **options):
        self.signals.stop = signal.SIGTERM
        return original(self, *args, **options)

    monkeypatch.setattr(Trainer, "validate", validate)
    with pytest.raises(Interrupted, match="saved at size 4 after 0 epochs and 4 steps"):
        run(tmp_path / "b")
    monkeypatch.setattr(Trainer, "validate", original)
    resume(tmp_path / "b", quiet=True)
    assert weights(tmp_path / "b") == weights(finished)
    assert len((tmp_path / "b/metrics.jsonl").read_text().splitlines()) == 3


def test_a_wish_to_save_during_validation_is_saved_before_it_is_told(tmp_path, monkeypatch, capsys):
    original, wished = Trainer.validate, []

    def validate(self, *args, **options):
        if not wished:
            wished.append(newest_checkpoint(self.run_dir).name)
            self.signals.save = True
        return original(self, *args, **options)

    monkeypatch.setattr(Trainer, "validate", validate)
    written = []
    monkeypatch.setattr(Log, "say", lambda self, text: written.append((text, newest_checkpoint(tmp_path / "b"))))
    run(tmp_path / "b")
    (told,) = [newest.name for text, newest in written if "as requested by a signal" in text]
    assert (wished, told) == (["checkpoint-0001"], "checkpoint-0002")


def test_a_signal_while_testing_stops_there_and_one_to_save_is_survived(finished, tmp_path, monkeypatch):
    original = Trainer.run

    def trained(self):
        net = original(self)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        return net

    monkeypatch.setattr(Trainer, "run", trained)
    with pytest.raises(Interrupted, match="stopped and saved at size 8 after 1 epochs; go on with"):
        run(tmp_path / "b")
    assert not (tmp_path / "b/result.json").exists()
    monkeypatch.undo()
    resume(tmp_path / "b", quiet=True)
    assert weights(tmp_path / "b") == weights(finished)


def test_a_signal_behind_the_last_step_is_passed_on_and_the_run_is_whole(finished, tmp_path, monkeypatch):
    original = Trainer.test

    def tested(self):
        metrics = original(self)
        os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(Trainer, "test", tested)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "c")
    finally:
        signal.signal(signal.SIGINT, before)
    found, undisturbed = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "c", finished))
    assert found["test_accuracy"] == undisturbed["test_accuracy"]
    assert weights(tmp_path / "c") == weights(finished)


def test_a_wish_to_save_is_heeded_and_one_is_survived_while_data_are_read(
    finished, tmp_path, monkeypatch, signal_at_step
):
    from multipde.training import run as module

    original = module.new_trainer

    def begin(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*args)

    monkeypatch.setattr(module, "new_trainer", begin)
    signal_at_step(2, signal.SIGUSR1)
    run(tmp_path / "b")
    assert weights(tmp_path / "b") == weights(finished)
    assert newest_checkpoint(tmp_path / "b").name == "checkpoint-0005"  # the start, the wish in a step, three epochs
    assert newest_checkpoint(finished).name == "checkpoint-0004"


def test_the_checkpoint_from_which_a_run_started_is_not_needed_again(finished, tmp_path, signal_at_step):
    first = tmp_path / "first"
    shutil.copytree(finished, first)
    plan, settings = Schedule([Level(8, 1, batch=30)]), TrainSettings(device="cpu")
    signal_at_step(2)
    with pytest.raises(Interrupted):
        train(None, plan, "shapes", tmp_path / "b", settings=settings, data_options=OPTIONS, init=first, quiet=True)
    signal_at_step(None)
    shutil.rmtree(first)
    done = resume(tmp_path / "b", quiet=True)
    assert [(row["size"], row["epoch"]) for row in done.metrics] == [(8, 1)]
    assert done.result["test_accuracy"] == evaluate(done.model, load_data("shapes", size=8, **OPTIONS)).accuracy


def test_a_second_interrupt_stops_at_once():
    pending = PendingSignals()
    pending.receive(signal.SIGINT)
    assert pending.stop == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        pending.receive(signal.SIGINT)


def test_other_threads_and_ignored_signals_are_left_alone():
    found = []

    def listen():
        with pending_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pending_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_frequent_checkpoints_change_nothing(finished, tmp_path):
    run(tmp_path / "b", checkpoint_every=1e-9)
    assert weights(tmp_path / "b") == weights(finished)
    assert newest_checkpoint(tmp_path / "b").name == "checkpoint-0016"  # the start, twelve steps, three epochs
    assert sorted(path.name for path in (tmp_path / "b").glob("*checkpoint-*")) == [
        "checkpoint-0015",
        "checkpoint-0016",
    ]


def test_a_run_in_use_is_refused(tmp_path, signal_at_step):
    signal_at_step(1)
    with pytest.raises(Interrupted):
        run(tmp_path / "b")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path / "b"):
            os.write(writer, b"x")
            signal.pause()
    try:
        os.read(reader, 1)
        before = sorted(path.name for path in (tmp_path / "b").iterdir())
        with pytest.raises(ValueError, match=rf"run must not be in use, got .*b, which process {child} is training"):
            resume(tmp_path / "b", quiet=True)
        assert sorted(path.name for path in (tmp_path / "b").iterdir()) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locked(tmp_path / "b"):  # the lock went with its process
        pass
    assert not (tmp_path / "b" / LOCK).exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    reader, writer = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_a_run_records_where_it_comes_from(finished):
    record = json.loads((finished / "run.json").read_text())["provenance"]
    assert record["command"]
    assert set(record["versions"]) >= {"python", "torch", "multipde", "kornia"}
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["processor"]
    assert len(record["data"]["sha256"]) == 64
    assert set(record["data"]) == {"sha256"}


def test_changed_data_and_another_machine_are_told(tmp_path, signal_at_step, capsys):
    signal_at_step(1)
    with pytest.raises(Interrupted):
        run(tmp_path / "b")
    signal_at_step(None)
    record = json.loads((tmp_path / "b/run.json").read_text())
    record["provenance"]["versions"]["torch"] = "1.0"
    (tmp_path / "b/run.json").write_text(json.dumps(record))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    resume(tmp_path / "b")
    assert "note: torch was 1.0 when the run began and is " in capsys.readouterr().out
    record["data_options"]["seed"] = 5
    (tmp_path / "c/run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"data must be those of the run, with checksum \w+..., got \w+...: images or"):
        resume(tmp_path / "c", quiet=True)


def test_deterministic_runs_are_identical(finished, tmp_path):
    import torch

    run(tmp_path / "b", deterministic=True)
    assert weights(tmp_path / "b") == weights(finished)
    assert not torch.are_deterministic_algorithms_enabled()
    assert load(tmp_path / "b").config.size == 8
