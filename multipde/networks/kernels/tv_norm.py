"""The TV norm (9) with its activation in few passes over memory, forwards and backwards."""

from typing import Any

import torch
from torch import Tensor

from multipde.networks.kernels import dispatch as kernels
from multipde.networks.kernels import native
from multipde.networks.kernels.dispatch import channels_innermost, wide, wide_type


def tv_norm(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool = False, compiled: bool = False) -> Tensor:
    """The norm of `TVNorm` with scale a and bias b of shape (C,), followed by ReLU if wanted."""
    if torch.compiler.is_compiling():  # torch.compile fuses the passes, those of the gradient too
        return _plain(y, scale, bias, eps, relu)
    return _TVNorm.apply(y, scale, bias, eps, relu, compiled)  # pyright: ignore[reportReturnType]


def _plain(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    """The formula, differentiated by autograd."""
    squares = wide(y).square().sum(dim=1, keepdim=True)
    inverse = torch.rsqrt(squares + eps).to(y.dtype)
    result = torch.addcmul(_spread(bias, y), y * inverse, _spread(scale, y))
    return torch.relu(result) if relu else result


class _TVNorm(torch.autograd.Function):
    """With r = 1/sqrt(Σ y² + ε), n = r y, and g the gradient at the input of the activation:

    ∂y = r (a g - n Σ_c a_c g_c n_c),   ∂a = Σ g n,   ∂b = Σ g over images and pixels

    With the channels innermost in memory, the sum over them is computed as a matrix-vector product. Where second
    derivatives are required, autograd differentiates the formula.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool, compiled: bool) -> Tensor:
        ctx.eps, ctx.relu, ctx.compiled = eps, relu, compiled
        if compiled:
            ctx.native = native.handles(y, 1)
            out, r = (native.tv_forward if ctx.native else _forward_by_torch)(y, scale, bias, eps, relu, 1)
            ctx.save_for_backward(y, scale, bias, r)
            return out
        squares = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=wide_type(y)).square_()
        r = squares.add_(eps).rsqrt_().to(y.dtype)
        n = y * _over_channels(r, y)
        out = torch.addcmul(_spread(bias, y), n, _spread(scale, y), out=n)
        out = out.relu_() if relu else out
        ctx.save_for_backward(y, scale, bias, r, *([out] if relu else []))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, scale, bias, r, *out = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            inputs = [t for t in (y, scale, bias) if t.requires_grad]
            found = iter(torch.autograd.grad(_plain(y, scale, bias, ctx.eps, ctx.relu), inputs, g, create_graph=True))
            return *(next(found) if t.requires_grad else None for t in (y, scale, bias)), *(None,) * 3
        if ctx.compiled:
            backward = native.tv_backward if ctx.native else _backward_by_torch
            dy, da, db = backward(kernels.with_layout_of(g, y), y, r, scale, bias, ctx.relu, 1)
            return dy, da.to(scale), db.to(bias), None, None, None
        g = torch.ops.aten.threshold_backward(g, out[0], 0) if ctx.relu else g.clone()
        axes = (0, *range(2, y.dim()))
        r = _over_channels(r, y)
        n = y * r
        q = g * n
        a = scale.to(y.dtype)
        if channels_innermost(q):
            rows = q.permute(0, 2, 3, 1).reshape(-1, len(a))
            dot = (rows @ a).view(len(y), 1, *y.shape[2:])
        else:
            dot = (q * _spread(a, y)).sum(1, keepdim=True)
        da, db = q.sum(axes, dtype=wide_type(y)).to(scale), g.sum(axes, dtype=wide_type(y)).to(bias)
        del q
        return g.mul_(_spread(a, y)).addcmul_(n, _over_channels(dot, y), value=-1).mul_(r), da, db, *(None,) * 3


def _forward_by_torch(
    y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool, _: int = 1
) -> tuple[Tensor, Tensor]:
    flat, axis = kernels.by_channel(y)
    out, r = kernels.compiled(kernels.tv_forward)(flat, scale, bias, eps, relu, axis)
    return kernels.unflatten(out, y), r


def _backward_by_torch(
    g: Tensor, y: Tensor, r: Tensor, scale: Tensor, bias: Tensor, relu: bool, _: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    (flat, axis), (g, _) = kernels.by_channel(y), kernels.by_channel(g, like=y)
    dy, da, db = kernels.compiled(kernels.tv_backward)(g, flat, r, scale, bias, relu, axis)
    return kernels.unflatten(dy, y), da, db


def _over_channels(per_pixel: Tensor, y: Tensor) -> Tensor:
    """Values per pixel (N, 1, *size) as factors of y: for broadcasting, or expanded in memory where that is faster.

    In bfloat16 torch vectorises over 32 channels and handles fewer one by one, which for 16 channels takes four times
    as long as an expansion by the outer product with ones and a product with the result.
    """
    if y.dtype != torch.bfloat16 or y.device.type != "cpu" or not channels_innermost(y):
        return per_pixel
    rows = per_pixel.reshape(-1, 1) @ per_pixel.new_ones(1, y.shape[1])
    return rows.view(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)


def _spread(per_channel: Tensor, y: Tensor) -> Tensor:
    return per_channel.view(-1, *(1,) * (y.dim() - 2)).to(y.dtype)
