"""A step α a + β x + K2 σ(N(K1 x)) in bfloat16 in one pass over the images forwards and one backwards.

On processors with tiles for products of matrices (AMX) the convolutions take less time than the memory between them: an
image stays in the processor's cache through both convolutions, the norm, the sum and all gradients.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multipde.networks.kernels import native
from multipde.networks.kernels.dispatch import with_layout_of
from multipde.networks.kernels.native import layers_bf16
from multipde.networks.kernels.tv_norm import tv_norm

SHARE_OF_TILES = 0.75
"""The kernels compute whole tiles of 16 channels; where fewer of them are used, the parts of a layer are faster."""


class Terms(NamedTuple):
    """α a + β x, to which a layer F(x) is added; without a only β x."""

    a: Tensor | None = None
    alpha: float = 1.0
    beta: float = 0.0

    def added_to(self, change: Tensor, x: Tensor) -> Tensor:
        """change + α a + β x, in the memory of the change, which is needed no more."""
        change = change if self.a is None else _plus(change, self.a, self.alpha)
        return _plus(change, x, self.beta) if self.beta else change


def _plus(change: Tensor, y: Tensor, factor: float) -> Tensor:
    """change + factor · y in the memory of the change, one of four passes over memory less; a change in lower precision
    than y gets new memory."""
    if change.dtype != y.dtype:
        return torch.add(change, y, alpha=factor)
    return change.add_(y, alpha=factor)


class Norm(NamedTuple):
    """The norm N between the convolutions, with its scale and bias (C,), and whether σ is ReLU or the identity."""

    scale: Tensor
    bias: Tensor
    eps: float
    relu: bool


def is_worthwhile(x: Tensor, stencil: Tensor) -> bool:
    """Whether `fused_layer` computes a layer of features x with such stencils, faster than its parts."""
    if x.dtype != torch.bfloat16 or torch.compiler.is_compiling() or stencil.shape[2:] != (layers_bf16.SIDE,) * 2:
        return False
    is_reduced = stencil.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    num = x.shape[1]
    is_full = num >= SHARE_OF_TILES * (num + -num % 16)
    return is_reduced and is_full and native.handles(x, 1) and layers_bf16.is_available()


def fused_layer(x: Tensor, first: Tensor, norm: Norm, second: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """α a + β x + K2 σ(N(K1 x)), and x itself.

    Who needs x later takes the second result: then both gradients of x are added within the pass.

    Args:
        x: features (N, C, H, W) for which `is_worthwhile` holds.
        first, second: the stencils K1 and K2 (C, C, 3, 3), with zeros around the images.
        terms: a of the shape and layout of x, α and β.
    """
    return _FusedLayer.apply(x, first, norm.scale, norm.bias, second, terms.a, norm, terms)  # pyright: ignore


class _FusedLayer(torch.autograd.Function):
    """With g the gradient at the result, h that at x as it is needed later, and dz = N'ᵀ σ' K2ᵀ g:

    ∂x = h + β g + K1ᵀ dz,   ∂a = α g,   ∂K1 from x and dz,   ∂K2 from σ(N(K1 x)) and g
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        scale: Tensor,
        bias: Tensor,
        second: Tensor,
        a: Tensor | None,
        norm: Norm,
        terms: Terms,
    ) -> tuple[Tensor, Tensor]:
        given = (x, 0.0) if a is None else (with_layout_of(a.to(x), x), terms.alpha)
        out, kept = layers_bf16.layer(x, *given, terms.beta, _packed(first, norm, second))
        ctx.save_for_backward(x, first, scale, bias, second, kept)
        ctx.eps, ctx.relu, ctx.alpha, ctx.beta = norm.eps, norm.relu, terms.alpha, terms.beta
        ctx.set_materialize_grads(False)
        return out, x

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, first, scale, bias, second, kept = ctx.saved_tensors
        if g is None:
            return later, *(None,) * 7
        da = None if not ctx.needs_input_grad[5] else g if ctx.alpha == 1 else ctx.alpha * g
        if torch.is_grad_enabled():  # for second derivatives
            return *_by_autograd(ctx, g, later), da, None, None
        g = with_layout_of(g, x)
        given = (g, 0.0) if later is None else (with_layout_of(later, x), 1.0)
        controls = _packed(first, Norm(scale, bias, ctx.eps, ctx.relu), second, transposed=True)
        dx, *grads = layers_bf16.layer_backward(x, g, kept, *given, ctx.beta, controls)
        return dx, *(d.to(t) for d, t in zip(grads, (first, scale, bias, second), strict=True)), da, None, None


def _packed(first: Tensor, norm: Norm, second: Tensor, transposed: bool = False) -> layers_bf16.Controls:
    first, second = (layers_bf16.packed(stencils, transposed) for stencils in (first, second))
    scale, bias = map(layers_bf16.filled, (norm.scale, norm.bias))
    return layers_bf16.Controls(first, second, scale, bias, norm.eps, norm.relu)


def _by_autograd(ctx: Any, g: Tensor, later: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of x and the controls, with a graph of their own."""
    x, first, scale, bias, second, _ = ctx.saved_tensors
    with torch.enable_grad():
        n = tv_norm(functional.conv2d(x, first.to(x), padding=1), scale, bias, ctx.eps, ctx.relu)
        out = functional.conv2d(n, second.to(x), padding=1) + ctx.beta * x
    inputs = [t if t.requires_grad else None for t in (x, first, scale, bias, second)]
    found = iter(torch.autograd.grad(out, [t for t in inputs if t is not None], g, create_graph=True))
    dx, *rest = (None if t is None else next(found) for t in inputs)
    return (dx if later is None or dx is None else dx + later), *rest
