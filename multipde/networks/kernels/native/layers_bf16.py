"""The layers of a network in training in C++, in bfloat16, on processors with tiles for products of matrices (AMX)."""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multipde.mesh.modes import ordinary_tensors
from multipde.networks.kernels.native.build import NoCompilerError, library

SIDE = 3
"""Taps per axis of the stencils."""

P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
CONTROLS = P, P, P, F, N, P
"""Types of `Controls.arguments`."""


@cache
def is_available() -> bool:
    """Whether this processor and system have such tiles, and the kernels are or can be compiled."""
    try:
        return bool(library("layers_bf16").available())
    except NoCompilerError:
        return False


class Controls(NamedTuple):
    """The controls of K2 σ(N(K1 x)) in the order of the kernels: both stencils `packed`, scale and bias `filled`."""

    first: Tensor
    second: Tensor
    scale: Tensor
    bias: Tensor
    eps: float
    relu: bool

    def arguments(self) -> tuple[int | float, ...]:
        first, second, scale, bias = (t.data_ptr() for t in self[:4])
        return first, scale, bias, self.eps, self.relu, second


def filled(values: Tensor) -> Tensor:
    """One number per channel in float32, with zeros up to a multiple of 16."""
    return functional.pad(values.float(), (0, -len(values) % 16))


def packed(stencils: Tensor, transposed: bool = False) -> Tensor:
    """Stencils (C, C, 3, 3), or those of the transposed convolution, in bfloat16 in the order of ``matrix_tiles.h``."""
    with_zero = functional.pad(stencils.detach().to(torch.bfloat16).flatten(), (0, 1))
    return with_zero.index_select(0, _order(len(stencils), transposed))


@cache
def _order(channels: int, transposed: bool) -> Tensor:
    """Where the numbers of `packed` stencils stand among the stencils; those that do not exist, for channels up to a
    multiple of 16, after the last."""
    with ordinary_tensors():
        last, more = SIDE**2 * channels**2, -channels % 16
        places = torch.arange(last).view(channels, channels, SIDE, SIDE)
        places = transposed_stencil(places) if transposed else places
        rows = functional.pad(places.permute(2, 3, 1, 0), (0, more, 0, more), value=last).flatten(1, 2)
        rows = functional.pad(rows, (0, 0, 0, -rows.shape[1] % 32), value=last)
        chunks = rows.view(SIDE, -1, 16, 2, (channels + more) // 16, 16)
        return chunks.permute(4, 0, 1, 2, 5, 3).flatten()


def transposed_stencil(stencil: Tensor) -> Tensor:
    """The stencil of Kᵀ as one of a plain convolution, for odd widths."""
    return stencil.transpose(0, 1).flip(*range(2, stencil.dim()))


def layer(x: Tensor, a: Tensor, alpha: float, beta: float, controls: Controls) -> tuple[Tensor, Tensor]:
    """α a + β x + K2 σ(N(K1 x)), and K1 x as `layer_backward` takes it.

    Args:
        x, a: (N, C, H, W) in bfloat16, channels innermost in memory.
    """
    num, channels, height, width = x.shape
    out, kept = torch.empty_like(x), x.new_empty(num, height, width, len(controls.scale))
    images = x.data_ptr(), a.data_ptr(), alpha, beta, out.data_ptr(), kept.data_ptr()
    _layer()(*images, *controls.arguments(), num, height, width, channels, torch.get_num_threads())
    return out, kept


def layer_backward(
    x: Tensor, g: Tensor, kept: Tensor, a: Tensor, alpha: float, beta: float, transposed: Controls
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `layer`, where g is that at its result, for its controls with the transpose of each stencil.

    Returns:
        α a + β g + K1ᵀ dz, where dz is the gradient at K1 x; those of K1, scale, bias and K2, in float32
    """
    (num, channels, height, width), wide = x.shape, kept.shape[-1]
    dx, taps = torch.empty_like(x), (SIDE, SIDE, wide, wide)
    totals = x.new_empty(2 * (wide + math.prod(taps)), dtype=torch.float32)
    images = x.data_ptr(), g.data_ptr(), kept.data_ptr(), a.data_ptr(), alpha, beta, dx.data_ptr(), totals.data_ptr()
    _layer_backward()(*images, *transposed.arguments(), num, height, width, channels, torch.get_num_threads())
    scale, bias, *stencils = totals.split((wide, wide, math.prod(taps), math.prod(taps)))
    first, second = (t.view(taps).permute(3, 2, 0, 1)[:channels, :channels] for t in stencils)
    return dx, first, scale[:channels], bias[:channels], second


@cache
def _layer() -> Callable[..., None]:
    function = library("layers_bf16").layer
    function.argtypes, function.restype = (P, P, F, F, P, P, *CONTROLS, *(N,) * 5), None
    return function


@cache
def _layer_backward() -> Callable[..., None]:
    function = library("layers_bf16").layer_backward
    function.argtypes, function.restype = (P, P, P, P, F, F, P, P, *CONTROLS, *(N,) * 5), None
    return function
