"""Maps of stencils between meshes: each is a matrix on the taps, and the fixed methods are rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from multipde.mesh.modes import ordinary_tensors
from multipde.mesh.separable import in_type_of, per_axis, precise
from multipde.mesh.stencil import StencilBasis, axis_map, check_condition, order_powers


@dataclass(frozen=True)
class Method:
    """A row of the table: the term of order k is multiplied by factor^(exponent · k), factor = new size / old size.

    Args:
        exponent: 1 keeps β, which suits smooth features; 0 keeps the stencil, which suits features that vary from
            pixel to pixel.
        reaction: averaging taps of the basis in which the terms are scaled; None for those of the layer.
    """

    exponent: float
    reaction: str | None


METHODS = {"copy": Method(0, None), "rediscretize": Method(1, None), "galerkin": Method(1, "141")}
CALIBRATED = ("calibrated", "calibrated_full")
"""Methods whose map is measured on images, layer by layer: see `multipde.calibrate`."""


def scaling_matrix(scales: Tensor, reaction: str = "121") -> Tensor:
    """The map A diag(s) A⁻¹ of n taps that scales every derivative term, for h = 1; (n, n) in float64."""
    basis = StencilBasis(tuple(scales.shape), scales.dim(), 1.0, reaction).matrix
    return torch.linalg.solve(basis.T, (basis * scales.flatten().to(basis)).T).T


def map_stencil(matrix: Tensor, stencil: Tensor) -> Tensor:
    """θ' = M θ for every stencil of (out, in, *width) and a matrix (n, n), computed in float64 for n taps."""
    flat = precise(stencil).reshape(-1, len(matrix))
    return in_type_of((flat @ matrix.T.to(flat.dtype)).view(stencil.shape), stencil)


def acting_matrix(matrix: Tensor, kind: str = "map") -> Tensor:
    """P itself; for the kind ``"dual"`` P⁻ᵀ, as gradients are mapped where parameters are mapped by P; for ``"square"``
    the squares of the entries of P⁻ᵀ, as means of squared gradients are, if those of different taps are uncorrelated.
    """
    if kind == "map":
        return matrix
    dual = torch.linalg.inv(matrix).T
    return dual if kind == "dual" else dual.square()


def transfer_matrix(method: str, width: Sequence[int], factor: Sequence[float], reaction: str = "121") -> Tensor:
    """The matrix M (n, n) of a fixed method on n taps, θ' = M θ, in float64; the identity where all scales are one.

    It is the Kronecker product of a map per axis. There and back loses about a fiftieth of its condition number times
    the machine epsilon; ValueError where that is too much, see `check_condition`.
    """
    check_fixed(method)
    scales = order_powers(width, factor, METHODS[method].exponent)
    reaction = METHODS[method].reaction or reaction
    check_condition([torch.diag(s) for s in scales], factor, f"the map by {method}")  # a lower bound, found at once
    maps = [torch.eye(len(s)).to(s) if bool((s == 1).all()) else axis_map(len(s), s, reaction) for s in scales]
    check_condition(maps, factor, f"the map by {method}")
    return reduce(torch.kron, maps)


@ordinary_tensors()
def transfer_stencil(
    stencil: Tensor, method: str, factor: float | Sequence[float], dim: int = 2, reaction: str = "121"
) -> Tensor:
    """Move a stencil θ from a mesh of size h to a mesh of size H; A is the matrix of `StencilBasis`.

    ``copy``: θ' = θ. ``rediscretize``: θ' = A(H) A(h)⁻¹ θ, which keeps β. ``galerkin``: ``rediscretize`` with the
    reaction [1 4 1]/6; for width 3 and H = 2h it is θ' = G θ along every axis,

        G = [[1/2, 1/8,  0 ],
             [1/2, 3/4, 1/2],
             [ 0 , 1/8, 1/2]].

    Away from the boundary this is the Galerkin product R K P, where K is the convolution with θ, R the 2x2 mean and P
    cell-centred linear interpolation. At other ratios and widths it is no longer such a product.

    Args:
        stencil: one stencil, or any number of them with leading axes.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``.
        factor: new size / old size = h/H, one number or one per axis; 2 is finer, 0.5 coarser.
        dim: number of trailing axes that are the taps.
        reaction: averaging taps of the term of order zero in the layer's basis, ``"121"`` or ``"141"``.

    Shape:
        - stencil, result: (*, *width)

    Raises:
        ValueError: the method is unknown or needs images, the factor is not positive, or the stencils are too wide for
            the map to be inverted in float64 (17x17 taps at a factor of 2).

    Reference: Ruthotto & Haber (2018), section 2.2; Haber, Ruthotto & Holtham (2017), section 3.
    """
    check_fixed(method)
    factors = check_factor(factor, dim)
    if METHODS[method].exponent == 0 or all(f == 1 for f in factors):
        return stencil.clone()
    return map_stencil(transfer_matrix(method, stencil.shape[-dim:], factors, reaction), stencil)


def check_method(method: str, name: str = "method") -> None:
    """Raise ValueError for a method that is neither in the table nor calibrated."""
    if method not in (*METHODS, *CALIBRATED):
        raise ValueError(f"{name} must be one of {', '.join((*METHODS, *CALIBRATED))}, got {method!r}")


def check_fixed(method: str) -> None:
    """Raise ValueError for a method that is not in the table."""
    check_method(method)
    if method in CALIBRATED:
        raise ValueError(f"method must be one of {', '.join(METHODS)} where there are no images, got {method!r}")


def check_factor(factor: float | Sequence[float], dim: int) -> tuple[float, ...]:
    """The factor per axis; raise ValueError unless all are positive."""
    factors = per_axis(factor, dim, "factor")
    if not all(0 < f < float("inf") for f in factors):
        raise ValueError(f"factor must be positive, got {factor}")
    return tuple(float(f) for f in factors)
