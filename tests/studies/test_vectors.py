"""A measurement is held to narrower vectors in a process of its own, and what that cannot measure is said in a line."""

import json
from pathlib import Path

import pytest
import torch

from multipde.networks.kernels.native import build
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.studies.bench import step_speed, vectors
from multipde.studies.bench.step_speed import step_study
from multipde.studies.bench.timing import flops_of, matrix_product

CAPABILITY = torch.backends.cpu.get_cpu_capability()
needs_avx2 = pytest.mark.skipif(CAPABILITY not in ("AVX2", "AVX512"), reason="a processor with AVX2 is needed")
SMALL = {"dynamics": ("hamiltonian",), "sizes": (4,), "batch": 2, "repeats": 1, "device": "cpu"}


def failing(**options):
    """A study, for a process of its own."""
    raise ValueError(f"batch must be positive, got {options['batch']}")


def quick(**options):
    """The study of a step, each of which is taken once, for a process of its own."""
    step_speed.TURN_SECONDS = 0.0
    return step_study(**options)


@needs_avx2
def test_the_step_is_measured_with_the_vectors_that_it_is_held_to(tmp_path, monkeypatch):
    def held_to(vectors, study, options, log):
        assert study == "multipde.studies.bench.step_speed:step_study"
        return vectors_held_to(vectors, f"{Path(__file__).stem}:quick", options, log)

    vectors_held_to = vectors.held_to
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(step_speed, "held_to", held_to)
    (row,) = step_study(tmp_path / "rows.jsonl", **SMALL, vectors="avx2")
    assert row["vectors"] == "AVX2"
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [row]
    assert vectors.are_held("widest")
    assert not vectors.are_held("avx2")


def test_a_measurement_without_tiles_is_named_so(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert vectors.name_of_own() == "AVX512"
    assert not vectors.are_held("avx512")
    for name, value in vectors.VECTORS["avx512"].items():
        monkeypatch.setenv(name, value)
    assert vectors.are_held("avx512")
    assert vectors.name_of_own() == "AVX512 without AMX"


def test_an_error_comes_back_as_one_line(monkeypatch):
    def run(command, env):  # in this process
        vectors._measure(json.loads(command[-2]), Path(command[-1]))
        return vectors.subprocess.CompletedProcess(command, 0)

    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(vectors.subprocess, "run", run)
    with pytest.raises(ValueError, match="^batch must be positive, got 0$"):
        vectors.held_to("avx2", f"{Path(__file__).stem}:failing", {"out": None, "batch": 0}, Log(quiet=True))


def test_a_processor_without_wider_vectors_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(vectors.subprocess, "run", lambda *args, **options: vectors.subprocess.CompletedProcess([], 1))
    notes = {"avx2": "torch has no vectors wider than those of AVX2 here", "avx512": "this processor has no AMX"}
    for name, note in notes.items():
        with pytest.raises(ValueError, match="got exit status 1"):
            vectors.held_to(name, "a:b", {"out": None}, Log())
        assert f"note: {note}; --vectors {name} changes nothing" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "device", "amp", "capability", "message"),
    [
        ("avx3", "cpu", "off", "AVX512", "vectors must be one of widest, avx512, avx2, got 'avx3'"),
        ("avx2", "cpu", "bf16", "AVX512", "amp must be off with vectors avx2, which have no bf16; type --amp off"),
        ("avx2", "cuda", "off", "AVX512", "vectors must be widest on cuda, got 'avx2'; type --device cpu"),
        ("avx2", "cpu", "off", "DEFAULT", "vectors must be widest on a processor without AVX2, got 'avx2'"),
        ("avx512", "cuda", "bf16", "AVX512", "vectors must be widest on cuda, got 'avx512'; type --device cpu"),
        ("avx512", "cpu", "bf16", "AVX2", "vectors must be widest on a processor without AVX512, got 'avx512'"),
    ],
)
def test_what_cannot_be_held_is_refused(name, device, amp, capability, message, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with pytest.raises(ValueError, match=f"^{message}$"):
        vectors.check_vectors(name, Compute(torch.device(device), amp))


def test_narrower_vectors_have_a_library_of_their_own(monkeypatch, compiler):
    _, path = next(build._compilers())
    keys, flags = set(), []
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)  # noqa: B023
        keys.add(build._key(path, "norms"))
        flags.append("-mno-avx512f" in build._flags())
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    keys.add(build._key(path, "norms"))
    assert len(keys) == 3
    assert flags == [False, True]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_rate_of_the_machine_is_that_of_a_product_in_the_same_precision(amp):
    product = matrix_product(Compute(torch.device("cpu"), amp))
    assert product().dtype == (torch.float32 if amp == "off" else torch.bfloat16)
    assert flops_of(product) == 2 * 1024**3
