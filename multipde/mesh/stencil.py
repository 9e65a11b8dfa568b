"""The β basis: a convolution stencil is a weighted sum of discretised derivatives."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from multipde.mesh.separable import apply_along_axes, in_type_of, per_axis, precise

REACTIONS = {"121": (1 / 4, 2 / 4, 1 / 4), "141": (1 / 6, 4 / 6, 1 / 6)}
"""Averaging stencils for the term of order zero: the paper's, and the one with which the Galerkin map keeps β."""


class StencilBasis:
    """The change of variables between a stencil θ and the coefficients β of derivative terms on a mesh of size h.

        θ = A(h) β,    width 3, one axis:    A(h) = [[1/4, -1/(2h), -1/h²],
                                                     [1/2,    0   ,  2/h²],
                                                     [1/4,  1/(2h), -1/h²]]

    Column k approximates (-1)^(k//2) dᵏ/dxᵏ: reaction, convection, diffusion, and for wider stencils their products

        diffusion^(k//2) · convection^(k%2) · reaction^(m - k//2 - k%2),    width 2m+1, k = 0..2m.

    In d dimensions A is the Kronecker product of the axes' matrices, so β has the shape of the stencil and β[i, j]
    belongs to d_yⁱ d_xʲ. The term of order k is exact on polynomials of degree up to k+1; the reaction of width 3
    adds h²/2 (``"121"``) or h²/3 (``"141"``) to x².

    >>> basis = StencilBasis(width=3, dim=1, mesh_size=0.5)
    >>> basis.matrix
    tensor([[ 0.2500, -1.0000, -4.0000],
            [ 0.5000,  0.0000,  8.0000],
            [ 0.2500,  1.0000, -4.0000]], dtype=torch.float64)
    >>> print(StencilBasis(width=3, dim=2, mesh_size=1 / 32))
    StencilBasis 3x3, h = 0.03125 x 0.03125, reaction 121
    orders (y, x): (0, 0) (0, 1) (0, 2) (1, 0) (1, 1) (1, 2) (2, 0) (2, 1) (2, 2)

    Args:
        width: number of taps, odd; one number or one per axis.
        dim: number of axes, 1 to 3.
        mesh_size: distance h between pixel centres, the domain side being 1; one number or one per axis.
        reaction: averaging taps of the term of order zero, ``"121"`` for [1 2 1]/4 (the paper) or ``"141"`` for
            [1 4 1]/6.

    Convention: stencils are applied as torch applies them (correlation), so that order 1 is +d/dx; order 2 is -d²/dx²,
        the paper's sign, under which a positive coefficient diffuses.

    Raises:
        ValueError: width is even, mesh_size is not positive, reaction is unknown, or dim is outside 1..3.

    Reference: Ruthotto & Haber (2018), section 2.2.
    """

    def __init__(
        self,
        width: int | Sequence[int] = 3,
        dim: int = 2,
        mesh_size: float | Sequence[float] = 1.0,
        reaction: str = "121",
    ):
        if dim not in (1, 2, 3):
            raise ValueError(f"dim must be 1, 2 or 3, got {dim}")
        self.dim = dim
        self.width = per_axis(width, dim, "width")
        self.mesh_size = tuple(float(h) for h in per_axis(mesh_size, dim, "mesh_size"))
        if any(w < 1 or w % 2 == 0 for w in self.width):
            raise ValueError(f"width must be odd and positive, got {width}")
        check_mesh_size(self.mesh_size)
        if reaction not in REACTIONS:
            raise ValueError(f"reaction must be one of {', '.join(REACTIONS)}, got {reaction!r}")
        self.reaction = reaction

    @property
    def orders(self) -> list[tuple[int, ...]]:
        """Multi-index of each column of the matrix, row-major."""
        return list(itertools.product(*(range(w) for w in self.width)))

    @cached_property
    def axis_matrices(self) -> list[Tensor]:
        """The factors of the Kronecker product, one float64 matrix (width, width) per axis."""
        return [_axis_matrix(w, h, self.reaction) for w, h in zip(self.width, self.mesh_size, strict=True)]

    @property
    def matrix(self) -> Tensor:
        """A(h) in float64: flattened stencil = matrix @ flattened β, both row-major."""
        return reduce(torch.kron, self.axis_matrices)

    def to_stencil(self, beta: Tensor) -> Tensor:
        """θ = A(h) β, (*, *width), computed in float64 on the CPU and returned with the dtype and device of β."""
        self._check_shape(beta, "beta")
        return in_type_of(apply_along_axes(self.axis_matrices, precise(beta)), beta)

    def to_beta(self, stencil: Tensor) -> Tensor:
        """β = A(h)⁻¹ θ, (*, *width), axis by axis in float64 on the CPU, returned with the dtype and device of θ."""
        self._check_shape(stencil, "stencil")
        inverses = [torch.linalg.inv(a) for a in self.axis_matrices]
        return in_type_of(apply_along_axes(inverses, precise(stencil)), stencil)

    def _check_shape(self, x: Tensor, name: str) -> None:
        if tuple(x.shape[-self.dim :]) != self.width:
            raise ValueError(f"{name} must end in the axes {self.width}, got shape {tuple(x.shape)}")

    def __str__(self) -> str:
        width, h = ("x".join(f"{v:g}" for v in self.width), " x ".join(f"{v:g}" for v in self.mesh_size))
        axes, orders = ", ".join(("z", "y", "x")[-self.dim :]), " ".join(str(o) for o in self.orders)
        return f"StencilBasis {width}, h = {h}, reaction {self.reaction}\norders ({axes}): {orders}"


def check_mesh_size(mesh_size: Sequence[float], name: str = "mesh_size") -> None:
    """Raise ValueError unless every mesh size is positive and finite."""
    if not all(math.isfinite(h) and h > 0 for h in mesh_size):
        raise ValueError(f"{name} must be positive, got {mesh_size[0] if len(mesh_size) == 1 else tuple(mesh_size)}")


def order_powers(width: Sequence[int], factor: Sequence[float], exponent: float) -> list[Tensor]:
    """The scales factor^(exponent · k) of the terms of order k = 0, 1, ... along every axis; factors in float64.

    >>> order_powers((3, 5), (2.0, 0.5), 1)
    [tensor([1., 2., 4.], dtype=torch.float64), tensor([1.0000, 0.5000, 0.2500, 0.1250, 0.0625], dtype=torch.float64)]
    """
    orders = (torch.arange(w, dtype=torch.float64, device="cpu") for w in width)
    return [f ** (exponent * k) for f, k in zip(factor, orders, strict=True)]


def axis_map(width: int, scales: Tensor, reaction: str) -> Tensor:
    """The map A diag(s) A⁻¹ of the taps along one axis that scales the derivative terms, for h = 1, in float64."""
    matrix = _axis_matrix(width, 1.0, reaction)
    return (matrix * scales.to(matrix)) @ _inverse(width, reaction)


@cache
def _inverse(width: int, reaction: str) -> Tensor:
    """A⁻¹ for one axis and h = 1: exact for wide stencils, of which float64 would lose half of the digits."""
    matrix = _axis_matrix(width, 1.0, reaction)
    if width <= 15:
        return torch.linalg.inv(matrix)
    rows = [[Fraction(v) for v in row] for row in torch.cat([matrix, torch.eye(width).to(matrix)], 1).tolist()]
    for k in range(width):
        pivot = max(range(k, width), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(width):
            if i != k and rows[i][k]:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return torch.tensor([[float(v) for v in row[width:]] for row in rows], dtype=torch.float64, device="cpu")


PER_DOUBLING, IN_ALL = 2e9, 1e13
"""Largest condition numbers of a map of stencils for a factor of two, and for any factor.

There and back in float64, a stencil loses about 1e-17 times the condition number."""


def check_condition(maps: Sequence[Tensor], factor: Sequence[float], what: str) -> None:
    """Raise ValueError if the Kronecker product of maps along the axes cannot be inverted in float64.

    No other basis would help: the derivative terms of order k are scaled by factor^k, and w taps have orders to w - 1.
    """
    conditions = [float(torch.linalg.cond(each)) for each in maps]
    doublings = [max(1.0, abs(math.log2(f))) for f in factor]
    per_doubling = math.prod(c ** (1 / d) for c, d in zip(conditions, doublings, strict=True))
    if not (per_doubling <= PER_DOUBLING and math.prod(conditions) <= IN_ALL):
        width = "x".join(str(len(each)) for each in maps)
        raise ValueError(
            f"{what} must have an inverse in float64 for stencils of {width} taps, got the condition number "
            f"{math.prod(conditions):.0e}; use method 'copy', or skip= for these layers"
        )


def _axis_matrix(width: int, h: float, reaction: str) -> Tensor:
    factors = {
        "reaction": np.array(REACTIONS[reaction]),
        "convection": np.array([-1.0, 0.0, 1.0]) / (2 * h),
        "diffusion": np.array([-1.0, 2.0, -1.0]) / h**2,
    }
    columns = []
    for order in range(width):
        names = ["diffusion"] * (order // 2) + ["convection"] * (order % 2)
        names += ["reaction"] * (width // 2 - len(names))
        columns.append(reduce(np.convolve, (factors[name] for name in names), np.ones(1)))
    return torch.from_numpy(np.stack(columns, axis=1))
