"""Files whole or not at all, whatever the system does in between; and strangers' files."""

# pyright: reportOptionalMemberAccess=false

import json
import os
import resource
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from multipde import NetworkConfig, PDENet, load, save
from multipde.cli.main import main
from multipde.storage import files
from multipde.storage.files import check_sums, write_directory, write_file
from multipde.storage.opening import clear_stale
from multipde.storage.records import read_record
from multipde.storage.rows import append_row, read_rows
from multipde.storage.run_directory import clear_partials, newest_checkpoint
from multipde.storage.schema import NETWORK as NETWORK_RECORD
from multipde.storage.stored_network import read_spec
from multipde.storage.tensors import tensor_bytes
from multipde.training.checkpoint import read_checkpoint, write_checkpoint
from multipde.training.level import Level
from multipde.training.schedule import Schedule
from multipde.training.state import TrainState, state_from_record
from tests.fixtures import as_format_1

NETWORK = NetworkConfig("parabolic", (4,), 4, steps=2, size=8)


def test_a_file_is_written_whole_and_its_checksum_is_that_of_the_system(tmp_path):
    write_file(tmp_path / "a", b"one")
    write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    write_directory(tmp_path / "d", {"x": b"1", "y": b"22"})
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "d", capture_output=True, text=True)
    assert done.stdout == "x: OK\ny: OK\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint_and_one_clear_line(call, tmp_path, monkeypatch):
    net = PDENet(NETWORK)
    state = TrainState().record()
    write_checkpoint(tmp_path, 1, net, {}, state, {})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match=r"^/.*/checkpoint-0002 must be writable, got: No space left on device$"):
        write_checkpoint(tmp_path, 2, net, {}, state, {})
    with pytest.raises(OSError, match="metrics.jsonl must be writable"):
        write_file(tmp_path / "metrics.jsonl", b"x")
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path).name == "checkpoint-0001"
    assert load(tmp_path).config == NETWORK
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0001"]


@pytest.mark.usefixtures("few_shapes")
def test_a_real_limit_of_the_system_is_told_in_one_line(tmp_path, capsys):
    arguments = ["train", "--data", "shapes", "--sizes", "8", "--epochs", "0.5", "--device", "cpu", "--quiet", "--run"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main([*arguments, str(tmp_path / "run")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 2
    line = f"multipde: {tmp_path}/run/checkpoint-0001 must be writable, got: File too large\n"
    assert capsys.readouterr().err == line
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_run_directory_that_is_gone_or_no_directory_is_told(tmp_path):
    with pytest.raises(OSError, match="run directory must stay where it is while it is trained, got none at"):
        write_checkpoint(tmp_path / "gone", 1, PDENet(NETWORK), {}, {}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="must be writable, got: Not a directory"):
        save(PDENet(NETWORK), tmp_path / "file/net")


MACHINE = {"machine": {"processor": "x", "cores": 2}}


def test_a_torn_row_is_cut_off_before_the_next(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_row(file, MACHINE | {"a": 1})
    with file.open("a") as handle:
        handle.write('{"a": 2, "torn')
    append_row(file, MACHINE | {"a": 3})
    assert [row["a"] for row in read_rows(file)] == [1, 3]
    assert file.read_text().count("\n") == 2


def test_what_an_interrupted_writer_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint-0003.partial-7").mkdir()
    (tmp_path / ".checkpoint-0003.partial-7/a").write_text("{")
    (tmp_path / ".run.json.partial-0123456789abcdef").write_text("{")
    (tmp_path / ".own.partial-7").write_text("of the user")
    clear_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".own.partial-7"]


@pytest.fixture
def net(tmp_path):
    return save(PDENet(NETWORK), tmp_path / "net")


def test_a_flipped_bit_is_noticed(net):
    data = bytearray((net / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (net / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model.safetensors must have its checksum in SHA256SUMS, got another"):
        load(net)


def test_a_file_without_checksum_is_noticed(net):
    (net / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match="must have its checksum"):
        check_sums(net, "model.safetensors")


def test_bad_numbers_are_named_with_their_tensor(net):
    for bad, message in ((float("nan"), "nan"), (float("inf"), "inf")):
        tensors = load_file(net / "model.safetensors")
        tensors["classifier.weight"][0, 0] = bad
        save_file(tensors, net / "model.safetensors")
        as_format_1(net)
        with pytest.raises(ValueError, match=f"must hold finite weights, got {message} in classifier.weight"):
            load(net)


def edit(net, **changes):
    record = json.loads((net / "config.json").read_text())
    record["network"] |= changes
    (net / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": [10**9]},
        {"channels": [10**9], "out_channels": 10**9},
        {"out_channels": 10**12},
        {"classes": 10**15},
        {"steps": 10**9},
        {"steps": 10**6, "controls": 2},
        {"width": 10**5 + 1},
        {"size": 10**400},
        {"size": 2**60, "channels": [4] * 60},
        {"dt": 10**400},
        {"dt": float("nan")},
        {"mean": [float("nan")] * 3, "std": [1, 1, 1]},
        {"class_names": ["\x1b[2J"] * 10},
        {"class_names": [["a"]] * 10},
        {"eps": "small"},
        {"dim": 3},
    ],
)
def test_memory_is_not_taken_for_what_a_config_claims(changes, net):
    edit(as_format_1(net), **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        load(net)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_huge_sparse_file_is_not_read(net):
    as_format_1(net)
    header = json.dumps({"classifier.weight": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}).encode()
    with (net / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**38)
    with pytest.raises(ValueError, match=r"must (hold the weights|be a safetensors file)"):
        load(net)
    with (net / "config.json").open("wb") as file:
        file.truncate(2**38)
    with pytest.raises(ValueError, match="config.json must be at most 4,194,304 bytes long, got 274,877,906,944"):
        load(net)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "SHA256SUMS"])
def test_a_pipe_is_not_waited_for(name, net):
    (net / name).unlink()
    os.mkfifo(net / name)
    with pytest.raises(ValueError, match="must be a regular file, got something else"):
        load(net)


def test_records_are_checked(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="must be JSON"):
        read_record(file, NETWORK_RECORD)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="must be JSON"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 99},
        {"epoch": 1},
        {"batch": 3},
        {"rate_scale": -1.0},
        {"num_images": 9},
        {"index": 7},
        {"batch": "3"},
        {"moves": [{}]},
        {"levels": [{}]},
        {"x": 1},
    ],
)
def test_a_state_that_the_schedule_cannot_have_is_refused(changes, tmp_path):
    plan = Schedule([Level(4, 1), Level(8, 1)], NETWORK)
    record = TrainState().record()
    assert state_from_record(record, plan, tmp_path) == TrainState()
    with pytest.raises(ValueError, match=r"must (hold|describe)"):
        state_from_record(record | changes, plan, tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"epoch": -1}, "epoch must be a whole number from 0"),
        ({"loss_sum": float("nan")}, "loss_sum must be a number, got nan"),
        ({"flops": 10**400}, "must have whole numbers below 2"),
    ],
)
def test_a_state_with_a_number_out_of_its_range_is_refused(changes, line, tmp_path):
    write_checkpoint(tmp_path, 1, PDENet(NETWORK), {}, TrainState().record() | changes, {})
    with pytest.raises(ValueError, match=line):
        read_checkpoint(tmp_path / "checkpoint-0001")


@pytest.mark.parametrize("pace", [{}, {"planned": "x"}, {"leave": False}, {"planned": 10**400}, {"leave": []}])
def test_a_pace_that_no_training_has_is_refused(pace, tmp_path):
    plan = Schedule([Level(4, None), Level(8, None)], NETWORK)
    record = TrainState(batch=1, num_images=5, epoch_seconds=1.0).record()
    with pytest.raises(ValueError, match=r"must (hold|describe)"):
        state_from_record(record | {"pace": pace}, plan, tmp_path)


def test_numbers_that_a_network_cannot_hold_are_refused(net):
    tensors = load_file(net / "model.safetensors")
    weight = tensors["classifier.weight"]
    for changed, message in (
        (weight.to(torch.float8_e4m3fn), "must hold weights in float16 to float64, got torch.float8_e4m3fn"),
        (weight.to(torch.complex64), "must hold weights in float16 to float64, got torch.complex64"),
        (weight.double() * 0 + 1e300, "must hold finite weights, got inf in classifier.weight"),
    ):
        save_file(tensors | {"classifier.weight": changed}, net / "model.safetensors")
        as_format_1(net)
        with pytest.raises(ValueError, match=message):
            load(net)


def test_the_sums_of_an_epoch_come_back_exactly(tmp_path):
    state = TrainState(epoch_seconds=1.0)
    for i in range(5):
        state.count(torch.tensor(0.1 + i), torch.eye(3), torch.arange(3))
    again = state_from_record(json.loads(json.dumps(state.record())), Schedule([Level(8, 1)], NETWORK), tmp_path)
    assert again.record() == state.record()
    assert (again.num_correct, again.num_images) == (15, 15)


def test_a_name_that_the_format_keeps_for_itself_is_refused():
    with pytest.raises(ValueError, match="tensors must have other names than __metadata__"):
        tensor_bytes({"__metadata__": torch.zeros(2)})


def test_what_a_killed_conversion_or_report_left_is_removed_by_the_next_one(tmp_path):
    net = PDENet(NetworkConfig("parabolic", (4, 6), 8, size=16))
    names = ["net", "net", "other", "net"]
    left = [tmp_path / f".{name}.partial-{number:016x}" for number, name in enumerate(names)]
    for partial in left:
        partial.mkdir()
        (partial / "model.safetensors").touch()
    for partial in left[:3]:
        os.utime(partial, (0, 0))
    save(net, tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([left[2].name, left[3].name, "net"])
    page = tmp_path / ".report.html.partial-0123456789abcdef"
    page.touch()
    os.utime(page, (0, 0))
    clear_stale(tmp_path / "report.html")
    assert not page.exists()
