"""Norm and activation in as few passes over memory as there are sums to wait for.

The kernels are slow as they stand: torch.compile writes the loops, or they are in `kernels.native`. They take
features as `by_channel` lays them out, (lines, pixels, C) with the channels innermost or (N, C, pixels), together with
the axis of the channels, -1 or 1. Sums are kept in float32 or wider, and over pixels are those of every line first,
which stay in the processor's cache.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from multipde.networks.kernels import native

VARIANTS = 256
"""For how many shapes and precisions a kernel may be compiled in a process; torch's own 8 last for one level."""

KEEP_NOTHING: dict[str, Any] = {"realize_reads_threshold": 64, "realize_opcount_threshold": 256}
"""Of what two sums need, compute it twice: torch would write it to memory in between, which takes longer."""


@cache
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, compiled for every shape by itself, when it is first called with it; it has no gradient, and under
    autocast is what it is without."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA where there is none
    once = torch.compile(kernel, dynamic=False, options=KEEP_NOTHING)

    def call(y: Tensor, *args: Any) -> Any:
        detached = (a.detach() if isinstance(a, Tensor) else a for a in (y, *args))
        with torch.autocast(y.device.type, torch.bfloat16, enabled=False, cache_enabled=True):  # else one compiles anew
            return once(*detached)

    return call


def fast(kernel: Callable[..., Any], y: Tensor) -> Callable[..., Any]:
    """A kernel for lines or cells of features: in C++ where there is one for them, else compiled by torch."""
    return getattr(native, kernel.__name__) if native.handles(y) else compiled(kernel)


def channels_innermost(y: Tensor) -> bool:
    return y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)


def by_channel(y: Tensor, like: Tensor | None = None) -> tuple[Tensor, int]:
    """Features (N, C, *size) as they lie in memory, or as others do that they are like: (N H, W, C) with the channels
    innermost, else (N, C, pixels); and the axis of the channels."""
    if channels_innermost(y if like is None else like):
        return y.movedim(1, -1).flatten(0, 1), -1
    return y.flatten(2), 1


def like_features(flat: Tensor, y: Tensor) -> Tensor:
    """What `by_channel` made of features like y, as features again."""
    if channels_innermost(y):
        return flat.view(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)
    return flat.view(y.shape)


def laid_like(g: Tensor, y: Tensor) -> Tensor:
    """Features or a gradient in the layout of the features y."""
    return g.contiguous(memory_format=torch.channels_last if channels_innermost(y) else torch.contiguous_format)


def wide_type(y: Tensor) -> torch.dtype:
    """The precision in which sums are kept."""
    return torch.promote_types(y.dtype, torch.float32)


def wide(y: Tensor) -> Tensor:
    """In the precision in which sums are kept."""
    return y.to(wide_type(y))


def spread(per_channel: Tensor, axis: int) -> Tensor:
    """Numbers per channel (C,) as factors of features."""
    return per_channel if axis == -1 else per_channel[:, None]


def over_pixels(y: Tensor, axis: int) -> Tensor:
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
    """∂y, ∂a and ∂b, see `multipde.networks.kernels.tv_norm`; where the ReLU is zero is computed anew."""
    a, g, n = spread(scale, axis), wide(g), wide(y) * r
    if relu:
        g = torch.where(n * a + spread(bias, axis) <= 0, 0.0, g)
    q = g * n
    dy = (a * g - n * (a * q).sum(axis, keepdim=True)) * r
    return dy.to(y.dtype), over_pixels(q, axis), over_pixels(g, axis)
