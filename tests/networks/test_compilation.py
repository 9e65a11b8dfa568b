"""Compiled norms: the same numbers, compiled once for every shape of a level, and only while training."""

import copy
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from multipde import Level, NetworkConfig, PDENet, Schedule, TrainSettings, train
from multipde.networks.compilation import check_compiler, compile_layers
from multipde.networks.kernels import dispatch as kernels
from multipde.networks.kernels.native import build
from multipde.runtime.device import Compute
from multipde.training.schedule import levels_from_lists
from multipde.training.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture
def nothing_compiled():
    """By torch, before the test, and nothing of it stays."""
    kernels.compiled.cache_clear()
    torch._dynamo.reset()
    yield
    kernels.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch, kernels_by_torch, nothing_compiled):
    """Counts compilations by torch.compile, which compile nothing."""
    counter, real = CompileCounter(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic, options: real(function, backend=counter, dynamic=dynamic)
    )
    return counter


def kernels_of(blocks: int) -> int:
    """Of every block the TV norm there and back; of opening and connectors two kernels there and two back."""
    return 2 * blocks + 4 * (blocks + 1)


@pytest.mark.parametrize(("dynamics", "channels", "mixed"), [("hamiltonian", (4, 6), False), ("parabolic", (4,), True)])
def test_a_level_compiles_once_for_every_shape_and_not_again(dynamics, channels, mixed, counter, tmp_path):
    config = NetworkConfig(dynamics, channels, 8, steps=2, size=16)
    levels = levels_from_lists((8, 16), (2, 2), batch=(50,), mixed=mixed)
    settings, few = TrainSettings(compile=True, calibration_images=64), {"num_train": 150, "num_test": 20}
    run = tmp_path / "run"
    train(config, Schedule(levels, config), "shapes", run, settings=settings, data_options=few, quiet=True)
    assert counter.frame_count == 2 * kernels_of(len(channels))


@pytest.mark.parametrize(("memory", "amp"), [("reversible", "bf16"), ("checkpoint", "off")])
def test_no_step_after_the_first_compiles(memory, amp, counter):
    net = Compute(CPU).place(PDENet(NetworkConfig("hamiltonian", (4,), 8, steps=3, size=8, memory=memory)).train())
    step = TrainStep(net, TrainSettings(compile=True), Compute(CPU, amp))
    x, labels = torch.randn(5, 3, 8, 8), torch.arange(5)
    step(x, labels, 0.1)
    after_one = counter.frame_count
    assert after_one == kernels_of(1)
    for _ in range(3):
        step(x, labels, 0.1)
    with torch.no_grad():
        net.eval()(torch.randn(3, 3, 16, 16))
    assert counter.frame_count == after_one


@pytest.mark.parametrize(
    ("by", "amp", "tolerance"), [("native", "off", 1e-5), ("native", "bf16", 2e-2), ("torch", "off", 1e-5)]
)
def test_compiled_steps_are_the_usual_ones(by, amp, tolerance, compiler, request):
    """What torch.compile makes of each kernel is held to the exact one by itself, in the laws of both norms."""
    if by == "torch":
        request.getfixturevalue("counter")
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8, memory="reversible")
    torch.manual_seed(0)
    net = Compute(CPU).place(PDENet(config).train())
    other = copy.deepcopy(net)
    steps = [
        TrainStep(n, TrainSettings(compile=c, optimizer="sgd"), Compute(CPU, amp))
        for n, c in ((net, False), (other, True))
    ]
    x, labels = torch.randn(5, 3, 8, 8), torch.arange(5)
    for _ in range(3):
        usual, compiled = (step(x, labels, 0.1)[0] for step in steps)
        assert compiled.item() == pytest.approx(usual.item(), rel=tolerance)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance)
    twin = copy.deepcopy(other)
    torch.testing.assert_close(twin(x), other(x))


@pytest.fixture(params=["none", "broken"])
def no_compiler(request, tmp_path, monkeypatch, nothing_compiled):
    """A machine without a C++ compiler, or with one that says its version and compiles nothing."""
    command = tmp_path / "cxx"
    if request.param == "broken":
        command.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "g++ 14.2.0" || exit 1\n')
        command.chmod(0o755)
    monkeypatch.setenv("CXX", str(command))
    monkeypatch.setattr(build, "COMPILERS", ())
    build._built.cache_clear()
    with inductor.patch({"cpp.cxx": (str(command),)}), fresh_cache():
        yield {"none": "none", "broken": f"{command} with exit status 1"}[request.param]
    build._built.cache_clear()


def test_without_a_compiler_one_line_says_so(no_compiler, tmp_path):
    line = f"compile needs a C++ compiler, got {no_compiler}; install it or leave --compile out"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        check_compiler(CPU)
    with pytest.raises(ValueError, match=r"^compile needs a C\+\+ compiler and the headers of Python, got [^\n]+ out$"):
        check_compiler(CPU, by_torch=True)
    config = NetworkConfig("hamiltonian", (4,), 8, steps=2, size=8)
    for other in (PDENet(config), Compute(CPU).place(PDENet(config).double()), PDENet(replace(config, dim=3))):
        with pytest.raises(ValueError, match="headers of Python"):
            compile_layers(other)
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        train(
            config,
            Schedule([Level(8, epochs=1)], config),
            "shapes",
            tmp_path / "run",
            settings=TrainSettings(compile=True),
            data_options={"num_train": 20, "num_test": 10},
        )
    assert not (tmp_path / "run").exists()


def test_what_is_compiled_can_be_given_up(compiler):
    net = PDENet(NetworkConfig("resnet", (4,), 8, steps=2, size=8))
    compile_layers(net)
    layer = net.blocks[0].controls[0][0]
    assert layer.compiled
    compile_layers(net, False)
    assert not layer.compiled


def test_a_full_disk_for_temporary_files_is_told_before_anything_is_compiled(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(build, "_compile_to", lambda *given: compiled.append(given))
    monkeypatch.setattr(build, "_built", build._built.__wrapped__)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setenv("CXX", sys.executable)  # there is a compiler
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"a C\+\+ compiler, got .* with 1 MiB free in \S+, where it needs 32; install"
    ):
        check_compiler(CPU)
    assert compiled == []
