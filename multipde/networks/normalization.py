"""The TV norm (9) with its activation in few passes over memory, forwards and backwards."""

from typing import Any

import torch
from torch import Tensor


def tv_norm(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool = False) -> Tensor:
    """Eq. (9) for given scale and bias, followed by ReLU if asked for.

        N(y) = a · y / sqrt(Σ_c y_c² + ε) + b

    Shape:
        - y, result: (N, C, *size)
        - scale, bias: (C,)

    Reference: Ruthotto & Haber (2018), eq. (9).
    """
    return _TVNorm.apply(y, scale, bias, eps, relu)  # pyright: ignore[reportReturnType]


def _plain(y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    """The formula; its derivatives are those of autograd."""
    inverse = torch.rsqrt(y.square().sum(dim=1, keepdim=True) + eps)
    result = torch.addcmul(_spread(bias, y), y * inverse, _spread(scale, y))
    return torch.relu(result) if relu else result


class _TVNorm(torch.autograd.Function):
    """With r = 1/sqrt(Σ y² + ε), n = r y, and g the gradient behind the activation:

    ∂y = r (a g - n Σ_c a_c g_c n_c),   ∂a = Σ g n,   ∂b = Σ g over images and pixels

    With the channels innermost in memory all three sums are products of a matrix and a vector. Where derivatives of
    the gradient are wanted it is computed by autograd from the formula.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        squares = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=_wide(y)).square_()
        r = squares.add_(eps).rsqrt_().to(y.dtype)
        out = torch.addcmul(_spread(bias, y), y * r, _spread(scale, y))
        out = out.relu_() if relu else out
        ctx.save_for_backward(y, scale, bias, r, *([out] if relu else []))
        ctx.eps, ctx.relu = eps, relu
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, scale, bias, r, *out = ctx.saved_tensors
        if torch.is_grad_enabled():  # for derivatives of the gradient
            inputs = [t for t in (y, scale, bias) if t.requires_grad]
            found = iter(torch.autograd.grad(_plain(y, scale, bias, ctx.eps, ctx.relu), inputs, g, create_graph=True))
            return *(next(found) if t.requires_grad else None for t in (y, scale, bias)), None, None
        g = torch.ops.aten.threshold_backward(g, out[0], 0) if ctx.relu else g.clone()
        axes = (0, *range(2, y.dim()))
        n = y * r
        q = g * n
        a = scale.to(y.dtype)
        if y.dim() == 4 and q.is_contiguous(memory_format=torch.channels_last):
            rows = q.permute(0, 2, 3, 1).reshape(-1, len(a))
            dot = (rows @ a).view(len(y), 1, *y.shape[2:])
        else:
            dot = (q * _spread(a, y)).sum(1, keepdim=True)
        da, db = q.sum(axes, dtype=_wide(y)).to(scale), g.sum(axes, dtype=_wide(y)).to(bias)
        del q
        return g.mul_(_spread(a, y)).addcmul_(n, dot, value=-1).mul_(r), da, db, None, None


def _wide(y: Tensor) -> torch.dtype:
    """In which sums are kept."""
    return torch.promote_types(y.dtype, torch.float32)


def _spread(per_channel: Tensor, y: Tensor) -> Tensor:
    return per_channel.view(-1, *(1,) * (y.dim() - 2)).to(y.dtype)
