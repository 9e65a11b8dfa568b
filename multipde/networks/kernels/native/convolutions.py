"""The layers of a network for use alone in C++: whole layers F, and convolutions with bias and ReLU, forwards."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from multipde.networks.kernels.native.build import library

P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64


def packed(taps: Tensor) -> Tensor:
    """Stencils (O, I, w, w) in the order of ``convolution.h``, a vector; missing channels of the last panel are 0."""
    return in_order(taps).float()


def in_order(taps: Tensor) -> Tensor:
    """The numbers of `packed` in their own type."""
    num_in, side = taps.shape[1:3]
    return _in_panels(taps).view(-1, _panel(), num_in, side, side).permute(0, 3, 4, 2, 1).flatten()


def per_panel(values: Tensor) -> Tensor:
    """One number per channel, (C,) or (C, 1, 1), with zeros up to whole panels."""
    return _in_panels(values.flatten()).float()


def _in_panels(values: Tensor) -> Tensor:
    """The values with zeros after the last channel, up to whole panels."""
    full = values.new_zeros(-(-len(values) // _panel()) * _panel(), *values.shape[1:])
    full[: len(values)] = values
    return full


def layer(
    x: Tensor,
    terms: tuple[tuple[float, Tensor], tuple[float, Tensor]],
    first: Tensor,
    scale: Tensor,
    bias: Tensor,
    second: Tensor,
    out: Tensor,
    *,
    side: int,
    distance: int,
    eps: float,
    norm: bool,
    relu: bool,
) -> Tensor:
    """out = α a + β b + K2 σ(N(K1 x)), with N as in `TVNorm`, for the terms (α, a) and (β, b).

    Args:
        x: features (N, C, H, W) in float32, channels innermost in memory, or the same part of such channels as a, b and
            out; out may be one of them.
        first, second: the stencils K1 and K2, `packed`.
        scale, bias: of the norm, `per_panel`; without norm 1 and 0.
        side: number of taps per axis, odd.
        distance: numbers in memory from one pixel to the next, which is that of all channels.
    """
    (alpha, a), (beta, b) = terms
    num, channels, height, width = x.shape
    vectors = (t.data_ptr() for t in (first, scale, bias))
    shape = num, height, width, channels, distance, torch.get_num_threads()
    _layer()(
        x.data_ptr(),
        a.data_ptr(),
        alpha,
        b.data_ptr(),
        beta,
        out.data_ptr(),
        *vectors,
        eps,
        norm,
        relu,
        second.data_ptr(),
        side,
        *shape,
    )
    return out


def convolution_relu(x: Tensor, taps: Tensor, bias: Tensor, channels: int, side: int, cell: int = 1) -> Tensor:
    """The mean of max(0, K x + b) over cells, with zeros around the images, for `packed` stencils, b `per_panel`.

    Args:
        cell: side of the cells in pixels; 1 takes no mean.

    Shape:
        - x: (N, C, H, W) in float32, channels innermost in memory
        - result: (N, channels, H / cell, W / cell), rounded down
    """
    num, own, height, width = x.shape
    out = torch.empty((num, channels, height // cell, width // cell), memory_format=torch.channels_last)
    given = (t.data_ptr() for t in (x, out, taps, bias))
    _convolution_relu()(*given, side, cell, num, height, width, own, channels, torch.get_num_threads())
    return out


@cache
def _panel() -> int:
    """The number of output channels that are computed together, as many as a vector of the processor has numbers."""
    return library("convolutions").panel()


@cache
def _layer() -> Callable[..., None]:
    function = library("convolutions").layer
    function.argtypes, function.restype = (P, P, F, P, F, P, P, P, P, F, N, N, P, *(N,) * 7), None
    return function


@cache
def _convolution_relu() -> Callable[..., None]:
    function = library("convolutions").convolution_relu
    function.argtypes, function.restype = (P, P, P, P, *(N,) * 8), None
    return function
