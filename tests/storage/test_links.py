"""Nothing is written through links, nothing of others is changed or deleted, and a replaced run is noticed."""

import errno
import json
import os
import shutil

import pytest

from multipde import Level, NetworkConfig, Schedule, TrainSettings, resume, train
from multipde.reports import plots
from multipde.runtime.signals import Interrupted
from multipde.storage import lock, opening
from multipde.storage.files import write_directory, write_file
from multipde.storage.lock import check_lock, locked
from multipde.storage.opening import make_directory
from multipde.storage.rows import append_row, check_rows, is_epoch
from multipde.storage.run_directory import checkpoints_of, newest_checkpoint
from multipde.training.checkpoint import write_checkpoint
from multipde.training.state import TrainState
from tests.storage.test_files import MACHINE

NETWORK = NetworkConfig("second_order", (4,), 6, steps=1, size=8)
OPTIONS = {"num_train": 90, "num_test": 40}


def run(directory, **settings):
    plan = Schedule([Level(4, 1, batch=30), Level(8, 1, batch=30)])
    chosen = TrainSettings(device="cpu", calibration_images=60, transfer="copy", **settings)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True).directory


@pytest.fixture
def stopped(tmp_path, signal_at_step):
    """A run that was stopped after its second step."""
    signal_at_step(2)
    with pytest.raises(Interrupted):
        run(tmp_path / "run")
    signal_at_step(None)
    return tmp_path / "run"


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious.txt"
    file.write_text("of the user")
    yield file
    assert file.read_text() == "of the user"


def linked(path, target):
    path.symlink_to(target)


def hard(path, target):
    path.hardlink_to(target)


def piped(path, target):
    os.mkfifo(path)


def copied(path, target):
    shutil.copy(target, path)


@pytest.mark.parametrize("put", [linked, hard, piped, copied])
def test_a_lock_that_is_none_is_refused_and_left(put, stopped, precious):
    put(stopped / ".lock", precious)
    with pytest.raises(OSError, match=r"^[^\n]*run/.lock must be [^\n]*got[^\n]*$"):
        resume(stopped, quiet=True)
    fresh = stopped.parent / "fresh"
    fresh.mkdir()
    put(fresh / ".lock", precious)
    with pytest.raises(OSError, match="must be"):
        run(fresh)
    assert [path.name for path in fresh.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "name", [".report.html.partial-7", ".run.json.partial-7", "tensorboard", "checkpoint-0001", "a"]
)
def test_a_new_run_is_not_put_into_a_directory_that_holds_anything(name, tmp_path, precious):
    (tmp_path / "run").mkdir()
    linked(tmp_path / "run" / name, precious)
    with pytest.raises(FileExistsError, match="directory must be new or empty, got"):
        run(tmp_path / "run")


def test_a_new_run_goes_where_one_was_killed_as_it_began(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text("process 7")
    (tmp_path / "run/.run.json.partial-0123456789abcdef").write_text("{")
    names = {path.name for path in run(tmp_path / "run").iterdir()}
    assert not any(name.startswith(".") for name in names)


def test_what_a_guesser_has_put_into_a_run_is_not_followed(stopped, precious):
    aim = stopped.parent / "elsewhere"
    aim.mkdir()
    for number in (os.getpid(), 1):
        for name in ("report.html", "metrics.jsonl", "checkpoint-0004"):
            linked(stopped / f".{name}.partial-{number}", precious)
    (stopped / "metrics.jsonl").unlink(missing_ok=True)
    for name in ("metrics.jsonl", "level-1-4px.safetensors", "model.safetensors", "result.json", "SHA256SUMS"):
        linked(stopped / name, aim / name)
    linked(stopped / "tensorboard", aim)
    record = json.loads((stopped / "run.json").read_text())
    record["settings"]["tensorboard"] = True
    (stopped / "run.json").write_text(json.dumps(record))
    resume(stopped, quiet=True)
    assert list(aim.iterdir()) == []
    assert len(list((stopped / "tensorboard-2").glob("events*"))) == 1
    assert not any(path.is_symlink() for path in stopped.iterdir() if path.name != "tensorboard")


def test_events_of_others_stay(stopped):
    (stopped / "tensorboard").mkdir()
    (stopped / "tensorboard/events.out.tfevents.own").write_text("of the user")
    record = json.loads((stopped / "run.json").read_text())
    record["settings"]["tensorboard"] = True
    (stopped / "run.json").write_text(json.dumps(record))
    resume(stopped, quiet=True)
    assert [path.name for path in (stopped / "tensorboard").iterdir()] == ["events.out.tfevents.own"]
    (stopped / "result.json").unlink()
    resume(stopped, quiet=True)
    assert len(list((stopped / "tensorboard-2").glob("events*"))) == 1
    assert not (stopped / "tensorboard-3").exists()


@pytest.mark.parametrize(
    "text", ["notes\nno newline", '{"a": 1}\n{"torn', "[1]\n", '{"torn', "\n", "[" * 10**5 + "\n", '{"machine": 1}\nx']
)
def test_rows_are_not_appended_to_a_file_that_is_not_ours(text, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(text)
    for call in (lambda: append_row(file, MACHINE), lambda: append_row(file, {}, is_epoch), lambda: check_rows(file)):
        with pytest.raises(OSError, match="notes.txt must be writable, got: a file that does not begin with a row"):
            call()
    assert file.read_text() == text


def test_rows_are_not_appended_through_links(tmp_path, precious):
    append_row(tmp_path / "rows.jsonl", MACHINE)
    linked(tmp_path / "link", tmp_path / "rows.jsonl")
    linked(tmp_path / "away", tmp_path / "nothing")
    for name in ("link", "away"):
        with pytest.raises(OSError, match="must be writable, got: no regular file"):
            append_row(tmp_path / name, MACHINE)
    assert not (tmp_path / "nothing").exists()


def test_an_empty_file_is_taken(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    check_rows(tmp_path / "rows.jsonl")
    append_row(tmp_path / "rows.jsonl", MACHINE)
    append_row(tmp_path / "rows.jsonl", MACHINE)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_replaces_one_of_ours(kind, tmp_path):
    for _ in range(2):
        figure, _ = plots.subplots(figsize=(1, 1))
        plots.save(figure, tmp_path / f"a.{kind}")
    figure, _ = plots.subplots(figsize=(1, 1))
    figure.savefig(tmp_path / f"own.{kind}")
    with pytest.raises(FileExistsError, match="must be new, or a figure that multipde wrote, got another"):
        plots.save(figure, tmp_path / f"own.{kind}")


def test_copies_of_checkpoints_stay_and_are_none(stopped, capsys):
    (number,) = {int(path.name[-4:]) for path in checkpoints_of(stopped)[:1]}
    newest = stopped / f"checkpoint-{number:04d}"
    before = {}
    for name in ("checkpoint-before-lowering-the-rate", "checkpoint-0042", "checkpoint-old.bak", "checkpoint-٣"):
        shutil.copytree(newest, stopped / name)
        before[name] = sorted(path.name for path in (stopped / name).iterdir())
    (newest / "notes.txt").write_text("of the user")
    assert newest_checkpoint(stopped) == newest
    resume(stopped, quiet=True)
    for name, files in before.items():
        assert sorted(path.name for path in (stopped / name).iterdir()) == files
    assert (newest / "notes.txt").read_text() == "of the user"
    assert newest_checkpoint(stopped).name == "checkpoint-0044"
    assert len(checkpoints_of(stopped)) == 3  # two, and the one with a file of the user


def test_an_edited_checkpoint_and_a_strange_record_delete_nothing(tmp_path, monkeypatch):
    net = NETWORK.build()
    kept = write_checkpoint(tmp_path / ".", 1, net, {}, TrainState().record(), {})
    (tmp_path / "checkpoint-0001/SHA256SUMS").write_text("")
    other = shutil.copytree(tmp_path / "checkpoint-0001", tmp_path / "elsewhere/checkpoint-0001")
    state = TrainState(written=kept | {"../elsewhere": ""}).record()
    write_checkpoint(tmp_path, 2, net, {}, state, {}, keep=1)
    assert (tmp_path / "checkpoint-0001/model.safetensors").exists()
    assert (other / "model.safetensors").exists()


def test_a_damaged_checkpoint_is_passed_over_with_a_note(stopped, capsys):
    newest, older = checkpoints_of(stopped)
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (newest / "model.safetensors").write_bytes(data)
    spoilt = shutil.copytree(stopped, stopped.parent / "spoilt")
    resume(stopped)
    said = capsys.readouterr().out
    assert f"note: {newest}/model.safetensors must have its checksum in SHA256SUMS, got another: it is damaged" in said
    assert f"going on from {older.name}" in said
    undisturbed = run(stopped.parent / "undisturbed")
    assert (stopped / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    (spoilt / older.name / "trainer.json").write_text("{")
    with pytest.raises(ValueError, match="model.safetensors must have its checksum in SHA256SUMS"):
        resume(spoilt, quiet=True)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_was_asked_for(keep, tmp_path):
    run(tmp_path / "run", keep=keep, checkpoint_every=1e-9)
    assert [int(path.name[-4:]) for path in checkpoints_of(tmp_path / "run")] == [*range(7, 7 - keep, -1)]


def test_a_training_does_not_write_into_a_run_that_has_replaced_its_own(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    with locked(place):
        write_file(place / "a", b"1")
        shutil.rmtree(place)
        with pytest.raises(OSError, match="run directory must stay where it is while it is trained, got none at"):
            check_lock(place / "a")
        (place / "x").mkdir(parents=True)
        (place / ".lock").write_text("process 1")
        for call in (
            lambda: write_file(place / "a", b"2"),
            lambda: write_file(place / "x/a", b"2"),
            lambda: write_directory(place / "checkpoint-0001", {"a": b"2"}),
            lambda: append_row(place / "rows.jsonl", MACHINE),
        ):
            with pytest.raises(OSError, match=f"is trained, got another at {place}"):
                call()
    assert (place / ".lock").read_text() == "process 1"
    assert sorted(path.name for path in place.iterdir()) == [".lock", "x"]


def test_a_run_that_is_replaced_while_it_is_trained_stops(tmp_path, monkeypatch):
    from multipde.training.step import TrainStep

    original, calls = TrainStep.__call__, []

    def step(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").mkdir()
        return original(self, *args, **options)

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(OSError, match="is trained, got another at"):
        run(tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path) as has_locks:
        assert has_locks is False
    plan, settings = Schedule([Level(4, 0.1, batch=30)]), TrainSettings(device="cpu")
    train(NETWORK, plan, "shapes", tmp_path / "run", settings=settings, data_options=OPTIONS)
    assert f"note: the file system of {tmp_path}/run has no locks" in capsys.readouterr().out
    assert lock._HELD == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_directory_that_cannot_be_synced_keeps_the_older_checkpoint(code, tmp_path, monkeypatch):
    net, state = NETWORK.build(), TrainState()
    state.written = write_checkpoint(tmp_path, 1, net, {}, state.record(), {}, keep=1)
    fsync = os.fsync

    def fails(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}") and os.path.samestat(os.fstat(handle), os.stat(tmp_path)):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(opening.os, "fsync", fails)
    with pytest.raises(OSError, match=f"checkpoint-0002 must be writable, got: {os.strerror(code)}"):
        write_checkpoint(tmp_path, 2, net, {}, state.record(), {}, keep=1)
    assert (tmp_path / "checkpoint-0001/SHA256SUMS").exists()
    monkeypatch.setattr(opening.os, "fsync", lambda handle: opening.os.lseek(-1, 0, 0))  # EBADF: also an error


def test_the_name_of_every_new_directory_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(opening, "sync_directory", synced.append)
    make_directory(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_directory(tmp_path / "file")
