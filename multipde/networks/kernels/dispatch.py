"""Kernels that compute a norm with its activation, with one pass over memory for each reduction.

These kernels are only fast when torch.compile has fused their loops; `kernels.native` has the same ones in C++. They
take features in the layout of `by_channel`, (lines, pixels, C) with the channels innermost or (N, C, pixels), and the
axis of the channels, -1 or 1. Sums are computed in float32 or float64; those over pixels are first taken within lines,
which fit into the processor's cache.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from multipde.networks.kernels import native

VARIANTS = 256
"""For how many shapes and precisions a process may compile a kernel; torch's own limit of 8 suffices for one level."""

RECOMPUTE_SHARED: dict[str, Any] = {"realize_reads_threshold": 64, "realize_opcount_threshold": 256}
"""torch.compile computes a value that two sums need twice; otherwise it would write it to memory, which is slower."""


@cache
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, compiled for each shape separately when it is first called with it; it has no gradient, and autocast
    does not change it."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where CUDA is missing
    once = torch.compile(kernel, dynamic=False, options=RECOMPUTE_SHARED)

    def call(y: Tensor, *args: Any) -> Any:
        detached = (a.detach() if isinstance(a, Tensor) else a for a in (y, *args))
        with torch.autocast(y.device.type, torch.bfloat16, enabled=False, cache_enabled=True):  # else it recompiles
            return once(*detached)

    return call


def kernel_for(kernel: Callable[..., Any], y: Tensor) -> Callable[..., Any]:
    """The kernel for such lines or cells of features: in C++ where `native` handles them, else compiled by torch."""
    return getattr(native, kernel.__name__) if native.handles(y) else compiled(kernel)


def channels_innermost(y: Tensor) -> bool:
    return y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)


def by_channel(y: Tensor, like: Tensor | None = None) -> tuple[Tensor, int]:
    """Flatten features (N, C, *size) to (N H, W, C) where their own channels, or those of ``like``, are innermost in
    memory, else to (N, C, pixels); the second result is the axis of the channels."""
    if channels_innermost(y if like is None else like):
        return y.movedim(1, -1).flatten(0, 1), -1
    return y.flatten(2), 1


def unflatten(flat: Tensor, y: Tensor) -> Tensor:
    """Undo `by_channel` for features of the shape and layout of y."""
    if channels_innermost(y):
        return flat.view(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)
    return flat.view(y.shape)


def with_layout_of(g: Tensor, y: Tensor) -> Tensor:
    """Features or a gradient g in the memory layout of the features y."""
    return g.contiguous(memory_format=torch.channels_last if channels_innermost(y) else torch.contiguous_format)


def wide_type(y: Tensor) -> torch.dtype:
    """The precision in which sums are computed."""
    return torch.promote_types(y.dtype, torch.float32)


def wide(y: Tensor) -> Tensor:
    """The tensor in the precision in which sums are computed."""
    return y.to(wide_type(y))


def spread(per_channel: Tensor, axis: int) -> Tensor:
    """Values per channel (C,), reshaped so that they broadcast against features."""
    return per_channel if axis == -1 else per_channel[:, None]


def sum_over_pixels(y: Tensor, axis: int) -> Tensor:
    """Sum over everything but the channels."""
    inner = [d for d in range(1, y.dim()) if d != axis % y.dim()]
    return y.sum(inner).sum(0)


def tv_forward(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool, axis: int) -> tuple[Tensor, Tensor]:
    """a r y + b with its activation, and r = 1/sqrt(Σ_c y_c² + ε)."""
    f = wide(y)
    r = torch.rsqrt(f.square().sum(axis, keepdim=True) + eps)
    out = f * r * spread(scale, axis) + spread(bias, axis)
    return (torch.relu(out) if relu else out).to(y.dtype), r


def tv_backward(
    g: Tensor, y: Tensor, r: Tensor, scale: Tensor, bias: Tensor, relu: bool, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """∂y, ∂a and ∂b, see `multipde.networks.kernels.tv_norm`; the mask of the ReLU is recomputed."""
    a, g, n = spread(scale, axis), wide(g), wide(y) * r
    if relu:
        g = torch.where(n * a + spread(bias, axis) <= 0, 0.0, g)
    q = g * n
    dy = (a * g - n * (a * q).sum(axis, keepdim=True)) * r
    return dy.to(y.dtype), sum_over_pixels(q, axis), sum_over_pixels(g, axis)
