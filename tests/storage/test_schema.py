"""Records of strangers: typed, bounded and versioned, and refused in one line before anything is made of them."""

import json
import os
import shutil
import warnings
import zipfile

import pytest
import torch

from multipde import Level, NetworkConfig, PDENet, Schedule, TrainSettings, load, resume, save, train
from multipde.conversions.state_dict import read_state_dict
from multipde.networks.limits import DEPTH, ENTRIES, HEADER_BYTES, ROWS_BYTES, TENSORS
from multipde.reports.run_record import read_run
from multipde.runtime.device import Compute
from multipde.storage import schema
from multipde.storage.records import parsed, read_record
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import checkpoints_of
from multipde.training.checkpoint import read_checkpoint
from tests.fixtures import as_format_1

NETWORK = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)
with warnings.catch_warnings(action="ignore"):  # torch tells that such tensors are old
    QUANTIZED = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan, settings = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)]), TrainSettings(device="cpu")
    data, place = {"num_train": 50, "num_test": 20}, tmp_path_factory.mktemp("run") / "run"
    return train(NETWORK, plan, "shapes", place, settings=settings, data_options=data, quiet=True).directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edited(file, change):
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else None
    record = rows[0] if rows else json.loads(file.read_text())
    change(record)
    text = "".join(json.dumps(row) + "\n" for row in rows) if rows else json.dumps(record)
    file.write_text(text)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run.json", lambda r: r.update(provenance="x"), "provenance must be a record, got 'x'"),
        ("run.json", lambda r: r["provenance"].update(data=None), "data must be a record, got None"),
        ("run.json", lambda r: r.update(format=True), "must be a record of multipde, got no format number"),
        ("run.json", lambda r: r.update(format=0), "format must be a whole number from 1 to 2, got 0"),
        ("run.json", lambda r: r.update(format=3), "must have format 2 or older, got 3; update multipde"),
        ("run.json", lambda r: r.update(levels=[]), "levels must be a list of 1 to 100 values"),
        ("run.json", lambda r: r["levels"][0].update(size=2**31), "size must be at most 32,768, got 2147483648"),
        ("run.json", lambda r: r["levels"][0].pop("size"), "levels[0].size must be a whole number from 1"),
        ("run.json", lambda r: r["levels"][0].update(epochs=1e-9), "epochs must lie between 1e-06 and 1e"),
        ("run.json", lambda r: r["levels"][1].update(steps=10**7), "steps must be at most 2,000 in all blocks"),
        ("run.json", lambda r: r["network"].update(steps=10**7), "steps must be at most 2,000 in all blocks"),
        ("run.json", lambda r: r["network"].update(size=2**31), "size must be at most 32,768"),
        ("run.json", lambda r: r.update(objective=[1]), "objective must be a record"),
        ("result.json", lambda r: r.update(rollbacks=5), "rollbacks must be a list of 0 to 10 values, got 5"),
        ("result.json", lambda r: r.update(flops=0), "flops must be a number from 1, got 0"),
        ("result.json", lambda r: r["levels"][0].update(total_flops=0), "total_flops must be a number from 1, got 0"),
        ("result.json", lambda r: r["moves"][0].update(images=3), "images must be a list of 2 to 2 values, got 3"),
        ("metrics.jsonl", lambda r: r.update(total_flops=0), "total_flops must be a number from 1, got 0 in line 1"),
        ("metrics.jsonl", lambda r: r.update(train_loss={"a": [1]}), "train_loss must be a number, got {'a': [1]}"),
        ("metrics.jsonl", lambda r: r.update(size=2**31), "size must be a whole number from 1 to 32768"),
        ("metrics.jsonl", lambda r: r.update(x=[[[[[[[[[[[[[1]]]]]]]]]]]]]), f"nested {DEPTH} times, got more"),
    ],
)
def test_what_no_run_has_is_refused(name, change, message, run):
    as_format_1(run)
    edited(run / name, change)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        read_run(run)
    assert message in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "result.json", "level-1-4px.safetensors", "config.json"])
def test_a_finished_run_is_sealed(name, run, finished):
    read_run(run)
    data = bytearray((run / name).read_bytes())
    data[-3] ^= 1
    (run / name).write_bytes(data)
    for call in (read_run, lambda run: resume(run, quiet=True)):
        with pytest.raises(ValueError, match=f"{name} must (have its checksum in SHA256SUMS, got another|be JSON)"):
            call(run)
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"must hold {name}, got none|run must be|must be finished|no directory"):
        read_run(run)


def test_checksums_that_were_deleted_are_missed(run, tmp_path):
    newest = checkpoints_of(run)[0]
    (newest / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=f"{newest} must hold SHA256SUMS, got none: it has been deleted"):
        read_checkpoint(newest)
    (run / "SHA256SUMS").unlink()
    for call in (load, read_run):
        with pytest.raises(ValueError, match=f"{run} must hold SHA256SUMS, got none: it has been deleted"):
            call(run)
    (save(PDENet(NETWORK), tmp_path / "net") / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="must hold SHA256SUMS, got none"):
        load(tmp_path / "net")


def test_checksums_name_nothing_elsewhere(run):
    (run / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n")
    with pytest.raises(ValueError, match="must name files beside it, got '../../etc/passwd'"):
        read_run(run)


def test_metrics_that_never_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=f"{name} must be a regular file, got something else"):
            read_metrics(tmp_path / name)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"long must be at most {ROWS_BYTES:,} bytes long"):
        read_metrics(tmp_path / "long")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), "nested 12 times, got more"),
        ("[" + "1," * ENTRIES + "1]", "must have at most 200,000 values"),
        ('"' + "x" * 10**5 + '"', "texts of at most 65,536 characters, got 100,000"),
        ("1" * 400, "whole numbers below 2^63, got one of 1326 bits"),
        ("1" * 5000, "must be JSON, got Exceeds the limit"),
        ("[" * 10**5, "must be JSON"),
    ],
)
def test_a_record_has_bounds(text, message, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        parsed(text.encode(), tmp_path / "r.json")
    assert message in str(refused.value)


def test_a_record_of_another_version_may_have_more(tmp_path):
    record = {"format": 1, "network": {}, "from the future": [1]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert read_record(tmp_path / "config.json", schema.NETWORK) == record


@pytest.mark.parametrize("num", [TENSORS + 1, 700_000])
def test_a_header_with_very_many_names_is_refused(num, tmp_path):
    net = as_format_1(save(PDENet(NETWORK), tmp_path / "net"))
    entry = '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    text = ("{" + ", ".join([f'"{i}": {entry}' for i in range(num)]) + "}").encode()
    (net / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    words = (
        f"at most {TENSORS:,} tensors" if len(text) <= HEADER_BYTES else f"a header of at most {HEADER_BYTES:,} bytes"
    )
    with pytest.raises(ValueError, match=f"model.safetensors must h[^\n]* {words}, got"):
        load(net)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.empty(3, device="meta"), "weights must be dense tensors, got 'w'"),
        (torch.eye(3).to_sparse(), "weights must be dense tensors, got 'w'"),
        (QUANTIZED, "weights must be dense tensors, got 'w'"),
        (
            torch.zeros(1).expand(10**10),
            "weights must take as much memory as their file, got tensors that repeat",
        ),
    ],
)
def test_state_dicts_that_are_no_plain_weights_are_refused(tensor, message, tmp_path):
    torch.save({"w": tensor}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 5000
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "w.pt")


def test_a_state_dict_that_is_compressed_is_refused(tmp_path):
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.namelist():
            new.writestr(part, old.read(part))
    assert list(read_state_dict(tmp_path / "w.pt")) == ["w"]
    with pytest.raises(ValueError, match="compressed or overlapping parts"):
        read_state_dict(tmp_path / "z.pt")


def test_the_device_meta_computes_nothing():
    with pytest.raises(ValueError, match=r"device must be one that torch has here, got 'meta' \(it computes nothing\)"):
        Compute.of("meta")


@pytest.mark.parametrize("epochs", [1e9, 1e-9, float("inf"), float("nan")])
def test_epochs_have_bounds(epochs):
    with pytest.raises(ValueError, match="epochs must"):
        Level(8, epochs)
    assert Level(8, 1e-6).num_epochs == 1


def test_the_largest_number_of_epochs_is_counted_at_once(finished):
    from multipde import load_data
    from multipde.training.samples import Samples

    data = load_data("shapes", size=8, num_train=50, num_test=20)
    samples = Samples(data, TrainSettings(), load(finished).config, Compute.of("cpu"))
    assert samples.num_in_level(Level(8, 1e6, batch=20), 1) == 10**6 * samples.num_in_epoch(Level(8, 1, batch=20))
    level = Level(8, 2.5, batch=20)
    assert samples.num_in_level(level, 1) == 2 * 40 + samples.num_in_epoch(level, 0.5)
