"""Measurements in which a processor is held to narrower vectors or to no tiles, in a process of their own."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multipde.runtime.console import Log
from multipde.runtime.device import Compute, cpu_has
from multipde.runtime.spawning import SAFE_PATH

VECTORS = {
    "widest": {},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    },
}
"""What holds torch and our kernels, oneDNN and MKL to vectors of these names; each reads it once, when it starts. What
torch.compile has kept for wider vectors is not taken: torch 2.14 would, and compute something wrong. The name
avx512 means AVX-512 without AMX, the tiles for products of matrices, which only oneDNN and our kernels use."""

CAPABLE = {"avx512": ("AVX512",), "avx2": ("AVX512", "AVX2")}
"""For each name, torch's names of the vectors of processors that can be held to it."""


def check_vectors(vectors: str, compute: Compute) -> None:
    """Raise ValueError for unknown vectors, and for such as the computation cannot be held to."""
    if vectors not in VECTORS:
        raise ValueError(f"vectors must be one of {', '.join(VECTORS)}, got {vectors!r}")
    if vectors == "widest":
        return
    if compute.device.type != "cpu":
        raise ValueError(f"vectors must be widest on {compute.device}, got {vectors!r}; type --device cpu")
    if vectors == "avx2" and compute.amp != "off":
        raise ValueError(f"amp must be off with vectors {vectors}, which have no {compute.amp}; type --amp off")
    if torch.backends.cpu.get_cpu_capability() not in CAPABLE[vectors]:
        raise ValueError(f"vectors must be widest on a processor without {CAPABLE[vectors][-1]}, got {vectors!r}")


def name_of_own() -> str:
    """What a table calls the vectors of this process."""
    return torch.backends.cpu.get_cpu_capability() + (" without AMX" if are_held("avx512") else "")


def are_held(vectors: str) -> bool:
    """Whether this process was started so that it computes with these vectors."""
    return all(os.environ.get(name) == value for name, value in VECTORS[vectors].items())


def held_to(vectors: str, study: str, options: Mapping[str, Any], log: Log) -> list[dict[str, Any]]:
    """The rows of a study that a process of its own measures with these vectors, and prints as this one would.

    Args:
        study: the study as ``"module:function"``, with ``vectors`` and ``log`` among its arguments.
        options: its other arguments, as JSON has them; ``out`` may be a path.

    Raises:
        ValueError: what the study raised, or that the process ended otherwise.
    """
    if vectors == "avx2" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.say("note: torch has no vectors wider than those of AVX2 here; --vectors avx2 changes nothing")
    if vectors == "avx512" and not cpu_has("amx_bf16"):
        log.say("note: this processor has no AMX; --vectors avx512 changes nothing")
    out = options["out"] and str(options["out"])
    shown = {"quiet": log.quiet, "needed": log.out.needed, "stream": log.out.name}
    task = {"study": study, "options": {**options, "out": out, "vectors": vectors}, "log": shown}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "result.json"
        command = [sys.executable, "-m", "multipde.studies.bench.vectors", json.dumps(task), str(file)]
        environment = os.environ | SAFE_PATH | VECTORS[vectors] | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        status = subprocess.run(command, env=environment).returncode
        if not file.exists():
            raise ValueError(f"vectors must be such as this processor can compute with, got exit status {status}")
        result = json.loads(file.read_text(encoding="utf-8"))
    if "error" in result:
        raise ValueError(result["error"])
    return result["rows"]


def _measure(task: dict[str, Any], file: Path) -> None:
    """Run the study of a task and write its rows, or its error."""
    options, (module, function) = task["options"], task["study"].split(":")
    options |= {"out": options["out"] and Path(options["out"]), "log": Log(**task["log"])}
    try:
        result = {"rows": getattr(importlib.import_module(module), function)(**options)}
    except (ValueError, OSError) as error:
        result = {"error": str(error)}
    file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _measure(json.loads(sys.argv[1]), Path(sys.argv[2]))
