"""The libraries of the kernels in C++: compiled for this processor once, and kept for the next start."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from multipde.networks import user_cache

SOURCES = Path(__file__).parent
"""Directory of the sources; each file ``.cpp`` is a library."""

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fopenmp", "-shared", "-fPIC")
FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""Options for the present processor, tried in turn because no compiler knows all of them."""

NARROWER = {"AVX2": ("-mno-avx512f",)}
"""Options that keep the kernels to the vectors that torch takes, by its name of them, on a processor with wider ones:
ATEN_CPU_CAPABILITY=avx2 is for both."""

WITHOUT_TILES = ("-DWITHOUT_TILES",)
"""Options for kernels without tiles (AMX). ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 chooses them, and keeps oneDNN from
tiles too."""

SPACE = 32 * 2**20
"""Bytes that must be free for temporary files."""


class NoCompilerError(RuntimeError):
    """There is no C++ compiler with OpenMP, or it does not compile."""


def library(source: str = "norms") -> ctypes.CDLL:
    """The compiled kernels of a source, by its name; NoCompilerError if there are none."""
    built, reason = _built(source)
    if built is None:
        raise NoCompilerError(reason)
    return built


def is_available(source: str = "norms") -> bool:
    """Whether there are compiled kernels of a source; they are compiled where they are not kept."""
    return _built(source)[0] is not None


def is_kept(source: str) -> bool:
    """Whether the compiled kernels of a source need not be compiled, because an earlier start has kept them."""
    return any(user_cache.kept(f"{source}-{_key(path, source)}", ".so") for _, path in _compilers())


@cache
def _built(source: str = "norms") -> tuple[ctypes.CDLL | None, str]:
    """The library, or the reason why the last compiler that was tried gives none."""
    reason = "none"
    for compiler, path in _compilers():
        try:
            return _library_of(compiler, source, f"{source}-{_key(path, source)}"), ""
        except (OSError, NoCompilerError) as error:
            reason = f"{compiler} with {error}"
    return None, reason


def _compilers() -> Iterator[tuple[str, Path]]:
    """The compilers that are installed, in the order in which they are tried."""
    for compiler in (os.environ.get("CXX"), *COMPILERS):
        if compiler and (path := shutil.which(compiler)):
            yield compiler, Path(path)


def _library_of(compiler: str, source: str, name: str) -> ctypes.CDLL:
    """The library that is kept under a name; where there is none that can be loaded, a new one, which is then kept."""
    if found := user_cache.kept(name, ".so"):
        with suppress(OSError):  # a file system from which nothing may be run
            return ctypes.CDLL(str(found))
    with tempfile.TemporaryDirectory() as directory:
        if (free := shutil.disk_usage(directory).free) < SPACE:  # compilers find that out at their end, one by one
            raise NoCompilerError(f"{free >> 20} MiB free in {tempfile.gettempdir()}, where it needs {SPACE >> 20}")
        target = Path(directory) / f"{source}.so"
        _compile_to(compiler, target, source)
        try:
            user_cache.keep(target, name)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"the compiled kernels are not kept for the next start: {reason}", stacklevel=2)
        return ctypes.CDLL(str(target))


def _key(compiler: Path, source: str) -> str:
    """A checksum of all that the library depends on: its source, the compiler and its flags, the processor."""
    real = compiler.resolve()
    status = real.stat()
    parts = [str(real), str(status.st_size), str(status.st_mtime_ns), str(_flags()), platform.platform(), _processor()]
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape"))
    for file in (SOURCES / f"{source}.cpp", *sorted(SOURCES.glob("*.h"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor and what it can do, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        return "\n".join(sorted({line for line in lines if line.startswith(names)}))
    return platform.processor()


def _flags() -> tuple[str, ...]:
    """The options of the compiler, apart from those for the present processor."""
    without = WITHOUT_TILES if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX512_CORE_BF16" else ()
    return (*FLAGS, *NARROWER.get(torch.backends.cpu.get_cpu_capability(), ()), *without)


def _compile_to(compiler: str, target: Path, source: str) -> None:
    for flags in FOR_THIS_PROCESSOR:
        command = [compiler, *flags, *_flags(), str(SOURCES / f"{source}.cpp"), "-o", str(target)]
        tried = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if tried.returncode == 0:
            return
    output = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
    raise NoCompilerError(next((line for line in output if "error" in line), output[-1]))
