"""Maps of stencils between meshes. Every method scales the derivative terms; the table says by what."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multipde.mesh.separable import per_axis
from multipde.mesh.stencil import StencilBasis


@dataclass(frozen=True)
class Method:
    """A row of the table: the term of order k is multiplied by factor^(exponent · k), factor = new size / old size.

    Args:
        exponent: 1 keeps β (smooth features), 0 keeps the stencil (features rough on the scale of the mesh).
        reaction: taps of the basis in which the terms are scaled; None takes those of the layer.
    """

    exponent: float
    reaction: str | None


METHODS = {
    "copy": Method(0, None),
    "rediscretize": Method(1, None),
    "galerkin": Method(1, "141"),
}


def order_scales(method: str, width: Sequence[int], factor: Sequence[float]) -> Tensor:
    """The scale of every derivative term: s[k1, ..., kd] = Π_a factor_a^(exponent · k_a).

    >>> order_scales("rediscretize", (3,), (2.0,))
    tensor([1., 2., 4.], dtype=torch.float64)

    Args:
        width: taps per axis.
        factor: new size / old size per axis (2 is finer, 0.5 coarser).

    Shape:
        - result: width, float64
    """
    check_method(method)
    scales = torch.ones((), dtype=torch.float64)
    for w, f in zip(width, factor, strict=True):
        axis = f ** (METHODS[method].exponent * torch.arange(w, dtype=torch.float64))
        scales = scales[..., None] * axis
    return scales


def scale_orders(stencil: Tensor, scales: Tensor, reaction: str = "121") -> Tensor:
    """θ' = A diag(s) A⁻¹ θ in pixel units, in float64, returned as the stencil came.

    Shape:
        - stencil, result: (*, *width)
        - scales: width
    """
    basis = StencilBasis(tuple(scales.shape), scales.dim(), 1.0, reaction)
    beta = basis.to_beta(stencil.to("cpu", torch.float64))
    return basis.to_stencil(beta * scales).to(stencil)


def transfer_stencil(
    stencil: Tensor, method: str, factor: float | Sequence[float], dim: int = 2, reaction: str = "121"
) -> Tensor:
    """A stencil put on another mesh.

    ``copy``: θ' = θ. ``rediscretize``: θ' = A(H) A(h)⁻¹ θ, which keeps β. ``galerkin``: the same with the reaction
    [1 4 1]/6; for width 3 and H = 2h it is θ' = G θ along every axis,

        G = [[1/2, 1/8,  0 ],
             [1/2, 3/4, 1/2],
             [ 0 , 1/8, 1/2]],

    that is R K P away from the boundary, with R the 2x2 mean and P cell-centred linear interpolation. At other ratios
    and widths it is no longer a product R K P.

    Args:
        factor: new size / old size, one number or one per axis.
        dim: number of trailing axes that are the stencil.
        reaction: reaction taps of the layer's basis.

    Shape:
        - stencil, result: (*, *width)

    Raises:
        ValueError: an unknown method, a factor that is not positive.

    Reference: Ruthotto & Haber (2018), section 2.2; Haber, Ruthotto & Holtham (2017), section 3.
    """
    check_method(method)
    factors = check_factor(factor, dim)
    if method == "copy" or all(f == 1 for f in factors):
        return stencil.clone()
    scales = order_scales(method, stencil.shape[-dim:], factors)
    return scale_orders(stencil, scales, METHODS[method].reaction or reaction)


def check_method(method: str, name: str = "method") -> None:
    """Raise ValueError for a method that is not in the table."""
    if method not in METHODS:
        raise ValueError(f"{name} must be one of {', '.join(METHODS)}, got {method!r}")


def check_factor(factor: float | Sequence[float], dim: int) -> tuple[float, ...]:
    """The factor per axis; raise ValueError unless all are positive."""
    factors = per_axis(factor, dim, "factor")
    if not all(0 < f < float("inf") for f in factors):
        raise ValueError(f"factor must be positive, got {factor}")
    return tuple(float(f) for f in factors)
