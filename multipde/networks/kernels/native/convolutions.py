"""The layers of a network for use alone in C++: whole layers F, and convolutions with bias and ReLU, forwards."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from multipde.networks.kernels.native.build import library

PANEL = 16
"""Output channels are computed in groups of this number."""

P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64


def packed(taps: Tensor) -> Tensor:
    """Stencils (O, I, w, w) in the order of ``convolution.h``, a vector; missing channels of the last panel are 0."""
    num, num_in, side = taps.shape[:3]
    panels = -(-num // PANEL)
    full = taps.new_zeros(panels * PANEL, num_in, side, side)
    full[:num] = taps
    return full.view(panels, PANEL, num_in, side, side).permute(0, 3, 4, 2, 1).flatten().float()


def per_panel(values: Tensor) -> Tensor:
    """One number per channel, (C,) or (C, 1, 1), with zeros up to whole panels."""
    full = values.new_zeros(-(-values.numel() // PANEL) * PANEL)
    full[: values.numel()] = values.flatten()
    return full.float()


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
    eps: float,
    norm: bool,
    relu: bool,
) -> Tensor:
    """out = α a + β b + K2 σ(N(K1 x)), with N as in `TVNorm`, for the terms (α, a) and (β, b).

    Args:
        x: features (N, C, H, W) in float32, channels innermost in memory, as a, b and out; out may be one of them.
        first, second: the stencils K1 and K2, `packed`.
        scale, bias: of the norm, `per_panel`; without norm 1 and 0.
        side: number of taps per axis, odd.
    """
    (alpha, a), (beta, b) = terms
    num, channels, height, width = x.shape
    vectors = (t.data_ptr() for t in (first, scale, bias))
    shape = num, height, width, channels, torch.get_num_threads()
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


def convolution_relu(x: Tensor, taps: Tensor, bias: Tensor, channels: int, side: int) -> Tensor:
    """max(0, K x + bias) with zeros around the images, for `packed` stencils and a bias `per_panel`.

    Shape:
        - x: (N, C, H, W) in float32, channels innermost in memory
        - result: (N, channels, H, W)
    """
    num, own, height, width = x.shape
    out = torch.empty((num, channels, height, width), memory_format=torch.channels_last)
    given = (t.data_ptr() for t in (x, out, taps, bias))
    _convolution_relu()(*given, side, num, height, width, own, channels, torch.get_num_threads())
    return out


@cache
def _layer() -> Callable[..., None]:
    function = library("convolutions").layer
    function.argtypes, function.restype = (P, P, F, P, F, P, P, P, P, F, N, N, P, *(N,) * 6), None
    return function


@cache
def _convolution_relu() -> Callable[..., None]:
    function = library("convolutions").convolution_relu
    function.argtypes, function.restype = (P, P, P, P, *(N,) * 7), None
    return function
