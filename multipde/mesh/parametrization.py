"""A stencil computed from a stored parameter and the mesh size, as a torch parametrization of a weight."""

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from multipde.mesh.separable import apply_along_axes, precise
from multipde.mesh.stencil import REACTIONS, StencilBasis, axis_map, check_condition, check_mesh_size, order_powers

COORDINATES = ("stencil", "beta")

NARROW = 7
"""Stencils of more taps per axis are computed in float64, whatever the type of their weights."""


KEPT_TO = 1e-2, 1e-3
"""By how much a stencil may change in relative terms when it is stored on another mesh, in 16 bits and in more."""


@torch.no_grad()
def register(layer: nn.Module, parametrization: nn.Module) -> None:
    """Give the weight of a layer a parametrization; the parameter object stays, and the gradient hooks of DDP on it."""
    weight: Any = layer.weight
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)  # torch takes the hooks off this one
    parametrize.register_parametrization(layer, "weight", parametrization)
    stored: Any = layer.parametrizations.weight  # pyright: ignore[reportAttributeAccessIssue]
    with torch.inference_mode() if weight.is_inference() else nullcontext():  # a network may be made in this mode
        weight.copy_(stored.original)
    stored.original = weight


class StencilParametrization(nn.Module):
    """A torch parametrization that computes the stencil W on the present mesh from a parameter p on a reference mesh.

        W(h) = A(h/h_ref) S p,    S = A(1)⁻¹ for coordinates "stencil",  S = I for coordinates "beta"

    A is the matrix of `StencilBasis`. With "stencil", p is the stencil on the reference mesh, and W = p without any
    computation at h = h_ref; with "beta", p holds dimensionless coefficients of the derivative terms. Both are well
    conditioned near the reference mesh. Coefficients in physical units are not (the condition number of A⊗A is 5e10 at
    h = 1/224), so they are computed on demand, see `coefficients`.

    Both mesh sizes are those of the network's input; those of the layer are ``stride`` times as large. The state dict
    holds them as a float64 tensor. A state dict from another mesh moves the layer to that mesh, with a warning.

    Args:
        width: number of taps, per axis.
        mesh_size: present mesh size h of the network's input, per axis.
        reference: mesh size h_ref of the network's input to which p belongs, per axis.
        stride: distance of this layer's taps in units of the input's mesh size, per axis.
        coordinates: what p holds: ``"stencil"`` (taps on the reference mesh) or ``"beta"`` (coefficients).
        reaction: averaging taps of the term of order zero, see `StencilBasis`.

    Shape:
        - p, W: (out channels, in channels / groups, *width)
    """

    matrix: Tensor

    def __init__(
        self,
        width: Sequence[int],
        mesh_size: Sequence[float],
        reference: Sequence[float],
        stride: Sequence[float],
        coordinates: str = "stencil",
        reaction: str = "121",
    ):
        super().__init__()
        if coordinates not in COORDINATES:
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}")
        check_mesh_size(mesh_size)
        check_mesh_size(reference, "reference")
        self.width, self.stride = tuple(width), tuple(stride)
        self.reference = tuple(float(h) for h in reference)
        self.coordinates, self.reaction = coordinates, reaction
        self.unit_basis = StencilBasis(self.width, len(self.width), 1.0, reaction)
        self.register_buffer("matrix", torch.empty(0), persistent=False)
        self.move(mesh_size, self.reference)

    def move(self, mesh_size: Sequence[float], reference: Sequence[float]) -> None:
        """Set the mesh of the layer and the reference mesh of its parameter; the values of p do not change."""
        self.check_move(mesh_size, reference)
        self.mesh_size, self.reference = tuple(float(h) for h in mesh_size), tuple(float(h) for h in reference)
        self.is_identity = self.coordinates == "stencil" and self.mesh_size == self.reference
        self._compute_matrix()

    def check_move(self, mesh_size: Sequence[float], reference: Sequence[float]) -> None:
        """Raise ValueError for a mesh on which the stencil cannot be computed from p, and back, in float64."""
        check_mesh_size(mesh_size)
        ratio = [h / ref for h, ref in zip(mesh_size, reference, strict=True)]
        if max(self.width) > NARROW and any(r != 1 for r in ratio):
            if self.coordinates == "stencil":  # the scales are the eigenvalues: a lower bound, found at once
                check_condition(
                    [torch.diag(s) for s in order_powers(self.width, ratio, -1)], ratio, "the change of the mesh"
                )
            check_condition(self._maps(ratio), ratio, "the change of the mesh")

    def tap_matrix(self) -> Tensor:
        """The matrix G = A(h/h_ref) S of W = G p, of shape (n, n) for n taps, in float64."""
        return reduce(torch.kron, self._maps([h / r for h, r in zip(self.mesh_size, self.reference, strict=True)]))

    def _maps(self, ratio: Sequence[float], power: int = 1) -> list[Tensor]:
        """The factors of G along the axes, or those of the map of stencils inverted (power -1)."""
        scales = order_powers(self.width, ratio, -power)
        if self.coordinates == "stencil" or power == -1:
            return [axis_map(w, s, self.reaction) for w, s in zip(self.width, scales, strict=True)]
        return [a * s for a, s in zip(self.unit_basis.axis_matrices, scales, strict=True)]

    def _compute_matrix(self) -> None:
        identity = torch.eye(math.prod(self.width), dtype=torch.float64)  # which `forward` does not multiply by
        matrix = identity if self.is_identity else self.tap_matrix()
        is_wide = max(self.width) > NARROW and self.matrix.device.type != "mps"  # computed in float64 throughout
        own = torch.promote_types(self.matrix.dtype, torch.float32)  # also where parameters have lower precision
        self.matrix = matrix.to(self.matrix.device, torch.float64 if is_wide else own)

    def _apply(self, fn, recurse=True):
        if self.matrix.is_meta and torch.get_default_device().type != "meta":  # it cannot be moved to another device
            self.matrix = torch.empty(0, dtype=self.matrix.dtype, device="cpu")
        super()._apply(fn, recurse)
        self._compute_matrix()  # rounded from float64 in the new precision
        return self

    def basis(self) -> StencilBasis:
        """The basis in physical units on the layer's present mesh."""
        h = [h * s for h, s in zip(self.mesh_size, self.stride, strict=True)]
        return StencilBasis(self.width, len(self.width), h, self.reaction)

    def forward(self, p: Tensor) -> Tensor:
        if self.is_identity:
            return p
        if self.matrix.device != p.device:  # p was put in the place of another one, as by load_state_dict(assign=True)
            self.matrix = self.matrix.new_empty(0, device=p.device)
            self._compute_matrix()
        device = p.device.type
        is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # differences of coefficients cancel in lower precision
        with torch.autocast(device, enabled=False) if is_cast else nullcontext():
            return self._multiply(self.matrix, p).to(p.dtype)

    def right_inverse(self, stencil: Tensor) -> Tensor:
        """The parameter that gives this stencil on the present mesh, computed in float64."""
        if self.is_identity or stencil.is_meta:
            return stencil
        ratio = [h / ref for h, ref in zip(self.mesh_size, self.reference, strict=True)]
        moved = apply_along_axes(self._maps(ratio, -1), precise(stencil))
        return (moved if self.coordinates == "stencil" else self.unit_basis.to_beta(moved)).to(stencil)

    @torch.no_grad()
    def parameter_of(self, stencil: Tensor, name: str) -> Tensor:
        """`right_inverse` of the stencil of a layer; ValueError unless it gives that stencil in its own precision."""
        p = self.right_inverse(stencil)
        if stencil.is_meta or torch.get_default_device().type == "meta" or not bool(stencil.isfinite().all()):
            return p
        change = float(
            (precise(self(p)) - precise(stencil)).abs().max() / precise(stencil).abs().max().clamp_min(1e-300)
        )
        if not change <= KEPT_TO[stencil.dtype.to_real().itemsize >= 4]:
            kind = str(stencil.dtype).removeprefix("torch.")
            raise ValueError(
                f"reference must be nearer to the mesh size for {name!r} with {self.width} taps in {kind}, "
                f"got {self.reference} for {self.mesh_size}, which changes its stencils by {change:.1%}"
            )
        return p

    def reference_stencil(self, p: Tensor) -> Tensor:
        """The stencil on the reference mesh, on which the regulariser and the box are defined."""
        return p if self.coordinates == "stencil" else self._multiply(self.unit_basis.matrix.to(p), p)

    def reference_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to p, from the gradient with respect to `reference_stencil(p)`."""
        matrix = self.unit_basis.matrix.to(gradient)
        return gradient if self.coordinates == "stencil" else self._multiply(matrix.T, gradient)

    def reference_parameter(self, stencil: Tensor) -> Tensor:
        """The parameter that gives this stencil on the reference mesh: the inverse of `reference_stencil`."""
        return stencil if self.coordinates == "stencil" else self.unit_basis.to_beta(stencil)

    def _multiply(self, matrix: Tensor, p: Tensor) -> Tensor:
        common = torch.promote_types(p.dtype, matrix.dtype)
        return (p.flatten(-len(self.width)).to(common) @ matrix.T.to(common)).view(p.shape)

    def get_extra_state(self) -> Tensor:
        names = [COORDINATES.index(self.coordinates), list(REACTIONS).index(self.reaction)]
        return torch.tensor([*self.mesh_size, *self.reference, *names], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        dim = len(self.width)
        if state.shape != (2 * dim + 2,) or state[-2:].tolist() != self.get_extra_state()[-2:].tolist():
            kind = f"{dim} axes in coordinates {self.coordinates!r} with reaction {self.reaction!r}"
            raise ValueError(f"state dict must hold stencils of {kind}, got mesh record {state.tolist()}")
        mesh_size, reference = tuple(state[:dim].tolist()), tuple(state[dim : 2 * dim].tolist())
        if mesh_size != self.mesh_size:
            change = f"{self.mesh_size} becomes {mesh_size}; set_mesh_size moves it back"
            warnings.warn(f"mesh size follows the state dict: {change}", stacklevel=2)
        self.move(mesh_size, reference)

    def extra_repr(self) -> str:
        return f"mesh_size={self.mesh_size}, reference={self.reference}, stride={self.stride}, {self.coordinates}"
