"""Layers s_{k+1} = α s_{k-1} + β s_k + K2 σ(N(K1 s_k)) in one pass over the images and one back.

An image stays in the processor's cache through both convolutions, the norm, the sum and all gradients, and the states
of a group of images through all layers. This is for features in float32, and for those in bfloat16 where a processor
has tiles for products of matrices (AMX) or the bfloat16 vectors of AVX-512.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multipde.networks.kernels import native
from multipde.networks.kernels.dispatch import with_layout_of
from multipde.networks.kernels.native import blocks
from multipde.networks.kernels.native.blocks import Scheme
from multipde.networks.kernels.tv_norm import tv_norm

SHARE_USED = 0.75
"""The kernels compute a multiple of channels; where less of it is used, the parts of a layer are faster."""


class Layer(NamedTuple):
    """The controls of K2 σ(N(K1 x)): K1, scale and bias of N, K2. Stencils are (C, C, 3, 3)."""

    first: Tensor
    scale: Tensor
    bias: Tensor
    second: Tensor


def is_worthwhile(x: Tensor, stencil: Tensor) -> bool:
    """Whether `fused_layers` computes layers of features x with such stencils, faster than their parts."""
    if torch.compiler.is_compiling() or stencil.shape[2:] != (blocks.SIDE,) * 2:
        return False
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else stencil.dtype
    if x.dtype != precision or not native.handles(x, 1) or not blocks.is_available(precision):
        return False
    num = x.shape[1]
    return num >= SHARE_USED * (num + -num % blocks.multiple(precision))


def fused_layers(before: Tensor | None, x: Tensor, layers: Sequence[Layer], scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The last two states after s_0, which is ``before``, and s_1, which is x.

    Args:
        before: features of the shape of x; None where α is zero.
        x: features (N, C, H, W) for which `is_worthwhile` holds.
    """
    return _FusedLayers.apply(before, x, scheme, *(t for layer in layers for t in layer))  # pyright: ignore


class _FusedLayers(torch.autograd.Function):
    """With G_k the gradient at s_k and dz = N'ᵀ σ' K2ᵀ G_{k+1}:

    G_k = α G_{k+2} + β G_{k+1} + K1ᵀ dz,   ∂K1 from s_k and dz,   ∂K2 from σ(N(K1 s_k)) and G_{k+1}
    """

    @staticmethod
    def forward(ctx: Any, before: Tensor | None, x: Tensor, scheme: Scheme, *controls: Tensor) -> tuple[Tensor, Tensor]:
        given = None if before is None else with_layout_of(before.to(x), x)
        states, kept = blocks.layers(given, x, _packed(controls, x.dtype), scheme)
        ctx.save_for_backward(before, *states[:-1], *kept, *controls)
        ctx.scheme = scheme
        ctx.set_materialize_grads(False)
        return states[-2], states[-1]

    @staticmethod
    def backward(ctx: Any, later: Tensor | None, g: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        before, *rest = ctx.saved_tensors
        num = len(rest) // (2 + len(Layer._fields))
        states, kept, controls = rest[:num], rest[num : 2 * num], rest[2 * num :]
        if g is None and later is None:
            return (None,) * (3 + len(controls))
        if torch.is_grad_enabled():  # for second derivatives
            return _by_autograd(ctx.scheme, before, states[0], controls, (later, g))
        x, wants_before = states[0], before is not None and ctx.needs_input_grad[0]
        g = torch.zeros_like(x) if g is None else with_layout_of(g, x)
        later = None if later is None else with_layout_of(later, x)
        packed, wants_second = _packed(controls, x.dtype, transposed=True), wants_before and num > 1
        dx, second, found = blocks.layers_backward(states, kept, (g, later), packed, ctx.scheme, wants_second)
        of_controls = [d.to(t) for d, t in zip((d for of_layer in found for d in of_layer), controls, strict=True)]
        d_before, alpha = g if wants_before and num == 1 else second, ctx.scheme.alpha
        return d_before if d_before is None or alpha == 1 else alpha * d_before, dx, None, *of_controls


def _by_layer(controls: Sequence[Tensor]) -> list[Layer]:
    num = len(Layer._fields)
    return [Layer(*controls[i : i + num]) for i in range(0, len(controls), num)]


def _packed(controls: Sequence[Tensor], dtype: torch.dtype, transposed: bool = False) -> list[blocks.Controls]:
    """The controls as the kernels for features of a type take them."""

    def stencils(own: Tensor) -> Tensor:
        return blocks.packed(own, dtype, transposed)

    def numbers(own: Tensor) -> Tensor:
        return blocks.filled(own, dtype)

    return [
        blocks.Controls(stencils(c.first), stencils(c.second), numbers(c.scale), numbers(c.bias))
        for c in _by_layer(controls)
    ]


def _by_autograd(
    scheme: Scheme,
    before: Tensor | None,
    x: Tensor,
    controls: Sequence[Tensor],
    gradients: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of the states and the controls, with a graph of their own."""
    with torch.enable_grad():  # views tell those apart that are one tensor
        before, x, *controls = (None if t is None else t.view_as(t) for t in (before, x, *controls))  # pyright: ignore
        past, last = before, x
        for first, scale, bias, second in _by_layer(controls):
            n = tv_norm(functional.conv2d(last, first.to(x), padding=1), scale, bias, scheme.eps, scheme.relu)
            new = functional.conv2d(n, second.to(x), padding=1) + scheme.beta * last
            past, last = last, new if past is None else new + scheme.alpha * past
    given = [(s, g) for s, g in zip((past, last), gradients, strict=True) if s is not None and g is not None]
    inputs = [t if t is not None and t.requires_grad else None for t in (before, x, *controls)]
    wanted = [t for t in inputs if t is not None]
    states, at_states = zip(*given, strict=True)
    found = iter(torch.autograd.grad(states, wanted, at_states, create_graph=True, allow_unused=True))
    d_before, dx, *rest = (None if t is None else next(found) for t in inputs)
    return d_before, dx, None, *rest
