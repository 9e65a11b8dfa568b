"""The kernels of the norms in C++ for the processor, compiled when they are first needed.

Each does what the kernel of the same name in `multipde.networks.kernels` or `multipde.networks.batchnorm` does, for
features with the channels innermost in memory in float32 or bfloat16. They read memory once where what torch.compile
makes of those reads it twice or three times, and are compiled once and not for every shape.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).parent / "norms.cpp"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fopenmp", "-shared", "-fPIC")
FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""Tried in turn: not every compiler knows all."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class NoCompilerError(RuntimeError):
    """There is no C++ compiler with OpenMP, or it does not compile."""


def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NoCompilerError: says in one line what is missing.
    """
    built, reason = _built()
    if built is None:
        raise NoCompilerError(reason)
    return built


@cache
def _built() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none: of the last compiler that was tried."""
    reason = "none"
    for compiler in (os.environ.get("CXX"), *COMPILERS):
        if compiler and shutil.which(compiler):
            try:
                return _compiled_by(compiler), ""
            except (OSError, NoCompilerError) as error:
                reason = f"{compiler} with {error}"
    return None, reason


def _compiled_by(compiler: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "norms.so"
        for flags in FOR_THIS_PROCESSOR:
            command = [compiler, *FLAGS, *flags, str(SOURCE), "-o", str(target)]
            tried = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if tried.returncode == 0:
                return ctypes.CDLL(str(target))
    said = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
    raise NoCompilerError(next((line for line in said if "error" in line), said[-1]))


def handles(y: Tensor, axis: int = -1) -> bool:
    """Whether there are kernels for features, or lines or cells of them, with the channels in the axis."""
    if y.device.type != "cpu" or y.dtype not in DTYPES or type(y) not in (Tensor, torch.nn.Parameter):
        return False
    innermost = y.is_contiguous() if axis == -1 else y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
    return innermost and y.numel() > 0 and _built()[0] is not None


def tv_forward(
    y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool, axis: int = -1
) -> tuple[Tensor, Tensor]:
    per_pixel = list(y.shape)
    per_pixel[axis] = 1
    out, r = torch.empty_like(y), y.new_empty(per_pixel, dtype=torch.float32)
    _call("tv_forward", y, axis, y, scale, bias, float(eps), relu, out, r, r.numel())
    return out, r


def tv_backward(
    g: Tensor, y: Tensor, r: Tensor, scale: Tensor, bias: Tensor, relu: bool, axis: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    dy, totals = torch.empty_like(y), _per_channel(y, axis)
    _call("tv_backward", y, axis, g, y, r, scale, bias, relu, dy, totals, r.numel())
    return dy, *totals.unbind()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = _per_channel(x)
    _call("moments", x, -1, x, mean, variance, x.numel() // x.shape[-1])
    return mean, variance


def pooled_affine_relu(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows, side, width, _, channels = x.shape
    out = x.new_empty(rows, width, channels)
    _call("pooled_forward", x, -1, x, mean, scale, bias, out, rows, width, side)
    return out


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    totals = _per_channel(x)
    _call("pooled_sums", x, -1, g, x, mean, scale, bias, totals, x.shape[0], x.shape[2], x.shape[1])
    first, second = totals
    return first, second


def pooled_affine_relu_backward(
    g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, mean_g: Tensor, slope: Tensor
) -> Tensor:
    dx = torch.empty_like(x)
    _call("pooled_backward", x, -1, g, x, mean, scale, bias, mean_g, slope, dx, x.shape[0], x.shape[2], x.shape[1])
    return dx


def _per_channel(y: Tensor, axis: int = -1) -> Tensor:
    """Room for two numbers per channel."""
    return y.new_empty((2, y.shape[axis]), dtype=torch.float32)


def _call(name: str, y: Tensor, axis: int, *args: Tensor | float | int) -> None:
    """The function for features like y, with their number of channels and the number of threads; what is given per
    channel is made float32 and must have as many numbers, or one."""
    num = y.shape[axis]
    args = tuple(a.float().expand(num).contiguous() if _differs(a, num) else a for a in args)
    given = [_as_c(a) for a in (*args, num, torch.get_num_threads())]
    getattr(library(), f"{name}_{DTYPES[y.dtype]}")(*given)


def _differs(a: Tensor | float | int, num: int) -> bool:
    """Whether it is given per channel, and otherwise than the functions take it."""
    if not isinstance(a, Tensor) or a.dim() != 1:
        return False
    return a.dtype != torch.float32 or a.shape[0] != num or not a.is_contiguous()


def _as_c(a: Tensor | float | int) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int64:
    """Tensors by address."""
    if isinstance(a, Tensor):
        return ctypes.c_void_p(a.data_ptr())
    return ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a)
