"""The kernels of the norms in C++ for the processor, compiled when they are first needed.

Each computes the same as the kernel of its name in `kernels.dispatch` or `kernels.batch_norm`, for features in float32
or bfloat16 with the channels innermost in memory. They read memory once where the code from torch.compile reads it two
or three times, and they are compiled once for all shapes, see `build`.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from multipde.networks.kernels.native.build import is_available, library

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def handles(y: Tensor, axis: int = -1) -> bool:
    """Whether there are kernels for these features, or lines or cells of features, with the channels on this axis."""
    if y.device.type != "cpu" or y.dtype not in DTYPES or type(y) not in (Tensor, torch.nn.Parameter):
        return False
    innermost = y.is_contiguous() if axis == -1 else y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
    return innermost and y.numel() > 0 and is_available()


def tv_forward(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool, axis: int = -1) -> tuple[Tensor, Tensor]:
    num = y.shape[axis]
    a, b = _for_channels(num, scale, bias)
    out, r = torch.empty_like(y), y.new_empty((y.numel() // num,), dtype=torch.float32)
    _call("tv_forward", y, num, y, a, b, eps, relu, out, r, len(r))
    return out, r.view(*y.shape[:axis], 1, *y.shape[axis:][1:])


def tv_backward(
    g: Tensor, y: Tensor, r: Tensor, scale: Tensor, bias: Tensor, relu: bool, axis: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    num = y.shape[axis]
    a, b = _for_channels(num, scale, bias)
    dy, sums = torch.empty_like(y), _per_channel(y, num)
    _call("tv_backward", y, num, g, y, r, a, b, relu, dy, sums, r.numel())
    return dy, sums[0], sums[1]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    num = x.shape[-1]
    mean, variance = _per_channel(x, num).unbind()
    _call("moments", x, num, x, mean, variance, x.numel() // num)
    return mean, variance


def pooled_affine_relu(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows, side, width, _, num = x.shape
    out = x.new_empty(rows, width, num)
    _call("pooled_forward", x, num, x, *_for_channels(num, mean, scale, bias), out, rows, width, side)
    return out


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows, side, width, _, num = x.shape
    sums = _per_channel(x, num)
    _call("pooled_sums", x, num, g, x, *_for_channels(num, mean, scale, bias), sums, rows, width, side)
    return sums[0], sums[1]


def pooled_affine_relu_backward(
    g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, mean_g: Tensor, slope: Tensor
) -> Tensor:
    rows, side, width, _, num = x.shape
    known = _for_channels(num, mean, scale, bias, mean_g, slope)
    dx = torch.empty_like(x)
    _call("pooled_backward", x, num, g, x, *known, dx, rows, width, side)
    return dx


def _per_channel(y: Tensor, num: int) -> Tensor:
    """Uninitialised memory for two numbers per channel."""
    return y.new_empty((2, num), dtype=torch.float32)


def _for_channels(num: int, *given: Tensor) -> list[Tensor]:
    """Each tensor, of one number per channel or a single one, as contiguous float32 with one number per channel."""
    return [
        t
        if t.dtype is torch.float32 and t.shape == (num,) and t.is_contiguous()
        else t.float().expand(num).contiguous()
        for t in given
    ]


P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
ARGUMENTS = {
    "tv_forward": (P, P, P, F, N, P, P, N),
    "tv_backward": (P, P, P, P, P, N, P, P, N),
    "moments": (P, P, P, N),
    "pooled_forward": (P, P, P, P, P, N, N, N),
    "pooled_sums": (P, P, P, P, P, P, N, N, N),
    "pooled_backward": (P, P, P, P, P, P, P, P, N, N, N),
}
"""Types of the arguments of the functions in C++; the numbers of channels and threads follow them."""


def _call(name: str, y: Tensor, num: int, *args: Tensor | float | int) -> None:
    """Call the function for the type of y and this number of channels; tensors are passed by address."""
    given = [a.data_ptr() if isinstance(a, Tensor) else a for a in args]
    _function(name, y.dtype)(*given, num, torch.get_num_threads())


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(library(), f"{name}_{DTYPES[dtype]}")
    function.argtypes, function.restype = (*ARGUMENTS[name], N, N), None
    return function
