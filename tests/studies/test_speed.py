"""The benches of speed and memory: what they count is what they say."""

import json
import sys
import types

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet
from multipde.cli.main import main
from multipde.networks.dynamics import Block
from multipde.runtime.device import Compute
from multipde.studies.bench import scaling, step_speed
from multipde.studies.bench.input import input_study
from multipde.studies.bench.memory import memory_study
from multipde.studies.bench.rivals import memcnn_block
from multipde.studies.bench.step_speed import bare_convolutions, step_study
from multipde.studies.bench.timing import PeakMemory, alternated, flops_of

CPU = torch.device("cpu")


def test_the_peak_is_that_of_tensors_alive_together():
    x = torch.zeros(1000)
    with PeakMemory([x]) as seen:
        a = x + 1
        b = a + 1
        del a
        c = b.view(10, 100)
        del b
        d = c + 1
        x.add_(1)
    assert seen.peak == 2 * 4000
    assert seen.present == 2 * 4000
    del c, d
    assert seen.present == 0


def test_small_tensors_do_not_count():
    with PeakMemory(least_bytes=100) as seen:
        kept = [torch.zeros(10), torch.zeros(30)]
    assert seen.peak == 120
    assert len(kept) == 2


def test_rivals_are_called_in_turn_after_two_rounds_of_warming_up():
    order = []
    seconds = alternated({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b"] * 5
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize(("turn_seconds", "expected"), [(0.0, 3.0), (2.0, 3.0), (4.5, 1.0)])
def test_of_a_turn_of_several_calls_the_first_does_not_count(turn_seconds, expected, monkeypatch):
    now, last = 0.0, ""

    def call(name):
        nonlocal now, last
        now, last = now + (1.0 if last == name else 3.0), name  # longer after the rival

    monkeypatch.setattr("time.perf_counter", lambda: now)
    seconds = alternated({"a": lambda: call("a"), "b": lambda: call("b")}, 2, CPU, turn_seconds)
    assert seconds == {"a": expected, "b": expected}


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_reversible_memory_stays_and_stored_memory_grows(amp, tmp_path, monkeypatch):
    monkeypatch.setattr("multipde.studies.bench.memory.has_memcnn", lambda: False)
    options = {"num_steps": (2, 8), "channels": 8, "size": 8, "batch": 4, "repeats": 1, "device": "cpu", "amp": amp}
    rows = memory_study(tmp_path / "rows.jsonl", dynamics=("hamiltonian", "parabolic"), **options)
    found = {(r["dynamics"], r["steps"], r["memory"]): r["tensors"] for r in rows}
    assert found["hamiltonian", 8, "reversible"] <= 1.1 * found["hamiltonian", 2, "reversible"]
    assert found["hamiltonian", 8, "store"] > 2.3 * found["hamiltonian", 2, "store"]
    assert found["parabolic", 8, "checkpoint"] < found["parabolic", 8, "store"]
    assert ("parabolic", 8, "reversible") not in found
    drifts = {r["memory"]: r["drift"] for r in rows if r["dynamics"] == "hamiltonian" and r["steps"] == 8}
    assert 0 < drifts["reversible"] < 1e-4
    assert drifts["store"] is drifts["checkpoint"] is None
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows) == 10


@pytest.mark.parametrize("dynamics", ["hamiltonian", "resnet"])
def test_the_floor_is_every_convolution_once(dynamics):
    from multipde.networks.cost import count_flops

    config = NetworkConfig(dynamics, (4, 6), 8, steps=2, size=8)
    net, x = PDENet(config), torch.randn(2, 3, 8, 8)
    call = bare_convolutions(net, x, Compute(CPU))
    classifier = 2 * 3 * 8 * 10
    assert flops_of(call) / 2 == pytest.approx(count_flops(config, training=True) - classifier, rel=0.02)


@pytest.fixture
def short_turns(monkeypatch, narrow_presets):
    """Networks with few channels are timed by one call a turn."""
    monkeypatch.setattr(step_speed, "TURN_SECONDS", 0.0)


@pytest.mark.usefixtures("short_turns")
def test_steps_with_as_many_pixels_at_every_size(monkeypatch):
    monkeypatch.setattr(step_speed, "BATCH", 2)
    rows = step_study(dynamics=("hamiltonian",), sizes=(4, 8), batch="auto", repeats=1, device="cpu")
    assert [(row["size"], row["batch"]) for row in rows] == [(4, 8), (8, 2)]
    assert rows[0]["images_per_second"] == pytest.approx(8 / rows[0]["step_seconds"], abs=0.1)


@pytest.mark.usefixtures("short_turns")
def test_the_command_takes_sizes(capsys):
    arguments = ["--dynamics", "hamiltonian", "--sizes", "4", "8", "--batch", "2", "--device", "cpu", "--json"]
    main(["bench", "step", *arguments])
    assert [row["size"] for row in json.loads(capsys.readouterr().out)["rows"]] == [4, 8]


def test_scaling_compares_with_the_first_number_of_processes_in_turn(monkeypatch, tmp_path):
    asked = []

    def launched(num, threads, task):
        asked.append((num, task["batch"]))
        slow = 5 if len(asked) in (1, 4) else 1  # one bad round of each
        return [{"dynamics": "resnet", "size": s, "seconds": slow * s / num} for s in (4, 8)]

    monkeypatch.setattr(scaling, "_launched", launched)
    rows = scaling.scaling_study(
        tmp_path / "r.jsonl", dynamics=("resnet",), processes=(2, 4), batch=8, rounds=3, device="cpu"
    )
    assert asked == [(2, 8), (4, 8)] * 3
    assert [(r["processes"], r["size"], r["images_per_second"], r["speedup"]) for r in rows] == [
        (2, 4, 4, 1), (2, 8, 2, 1), (4, 4, 8, 2), (4, 8, 4, 2)
    ]  # fmt: skip
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4


def test_scaling_starts_processes_that_share_a_step():
    (row,) = scaling.scaling_study(
        None, dynamics=("hamiltonian",), processes=(2,), sizes=(4,), batch=4, repeats=1, rounds=1, device="cpu"
    )
    assert (row["processes"], row["batch"]) == (2, 4)
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"], abs=0.1)


def test_processes_that_fail_are_told(monkeypatch):
    monkeypatch.setattr(scaling.sys, "executable", "false")
    with pytest.raises(ValueError, match="processes must finish, got no result from 1"):
        scaling.scaling_study(None, processes=(1,), device="cpu")


def test_more_processes_than_gpus_are_refused_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("multipde.runtime.device.choose_device", lambda device: torch.device("cuda"))
    with pytest.raises(
        ValueError, match=r"processes must be at most as many as devices \(2\), got 4; start 2, or type"
    ):
        scaling.scaling_study(None, processes=(1, 4))


@pytest.mark.usefixtures("short_turns")
def test_a_step_is_measured_beside_its_floor(tmp_path):
    rows = step_study(
        tmp_path / "r.jsonl", dynamics=("hamiltonian",), sizes=(4,), batch=4, optimizer="muon", repeats=1, device="cpu",
        amp="bf16",
    )  # fmt: skip
    (row,) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert row == rows[0]
    assert row["step_over_floor"] == pytest.approx(row["step_seconds"] / row["floor_seconds"], abs=1e-3)
    assert row["images_per_second"] == pytest.approx(4 / row["step_seconds"], abs=0.1)
    assert row["optimizer"] == "muon"
    assert row["floor_gflops"] > 0
    assert row["product_gflops"] > 0
    assert row["precise_share"] == pytest.approx(4 * row["precise_seconds"] / (10_000 * row["step_seconds"]))
    assert 0 < row["optimizer_share"] < 1


def test_an_emptied_storage_counts_no_more():
    with PeakMemory() as seen:
        a = torch.zeros(1000)
        a.untyped_storage().resize_(0)
        b = torch.zeros(500)
    assert (seen.peak, seen.present) == (4000, 2000)
    del a, b


def test_the_rival_block_is_the_same_function_with_the_same_weights(monkeypatch):
    """A stand-in with memcnn's interface and documented equations."""

    class AdditiveCoupling(nn.Module):
        def __init__(self, Fm, Gm):
            super().__init__()
            self.Fm, self.Gm = Fm, Gm

        def forward(self, x):
            y, z = x.chunk(2, dim=1)
            y = y + self.Fm(z)
            return torch.cat((y, z + self.Gm(y)), dim=1)

    stand_in = types.ModuleType("memcnn")
    stand_in.__dict__.update(AdditiveCoupling=AdditiveCoupling, InvertibleModuleWrapper=lambda fn, keep_input: fn)
    monkeypatch.setitem(sys.modules, "memcnn", stand_in)
    block = Block("hamiltonian", 4, 3, dt=0.5).double()
    y = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    rival = memcnn_block(block)
    torch.testing.assert_close(rival(y), block(y))
    assert {id(p) for p in rival.parameters()} == {id(p) for p in block.parameters()}


def test_the_input_of_every_level_is_measured_beside_that_of_the_full_size(tmp_path):
    rows = input_study(tmp_path / "r.jsonl", side=48, coarsest=8, batch=3, num_batches=2, repeats=1, device="cpu")
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == rows
    assert [(r["source"], r["size"]) for r in rows] == [
        (source, size) for size in (8, 16, 32, 48) for source in ("streamed", "shards", "memory")
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(6 / row["own_seconds"], abs=0.1)
        assert row["full_over_own"] == pytest.approx(row["full_seconds"] / row["own_seconds"], abs=1e-3)
        whole = row["size"] > 24 or row["source"] == "memory"  # the same pixels, but for rounding
        assert row["rms"] <= (0.3 if whole else 2.0)
        assert (row["rms"] > 0) == (row["source"] != "memory" and row["size"] < 48)


def test_sizes_of_the_input_study_must_be_positive():
    with pytest.raises(ValueError, match="side must be positive, got 0"):
        input_study(None, side=0)
