"""A stencil computed from a stored parameter and the mesh size, as a torch parametrization of a weight."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multipde.mesh.stencil import REACTIONS, StencilBasis, check_mesh_size

COORDINATES = ("stencil", "beta")


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
        check_mesh_size(mesh_size)
        self.mesh_size, self.reference = tuple(float(h) for h in mesh_size), tuple(float(h) for h in reference)
        self.is_identity = self.coordinates == "stencil" and self.mesh_size == self.reference
        self._compute_matrix()

    def tap_matrix(self) -> Tensor:
        """The matrix G = A(h/h_ref) S of W = G p, of shape (n, n) for n taps, in float64."""
        ratio = [h / ref for h, ref in zip(self.mesh_size, self.reference, strict=True)]
        matrix = StencilBasis(self.width, len(self.width), ratio, self.reaction).matrix
        return matrix @ torch.linalg.inv(self.unit_basis.matrix) if self.coordinates == "stencil" else matrix

    def _compute_matrix(self) -> None:
        self.matrix = self.tap_matrix().to(self.matrix.device, self.matrix.dtype)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._compute_matrix()  # rounded from float64 in the new precision
        return self

    def basis(self) -> StencilBasis:
        """The basis in physical units on the layer's present mesh."""
        h = [h * s for h, s in zip(self.mesh_size, self.stride, strict=True)]
        return StencilBasis(self.width, len(self.width), h, self.reaction)

    def forward(self, p: Tensor) -> Tensor:
        return p if self.is_identity else self._multiply(self.matrix.to(p.dtype), p)

    def right_inverse(self, stencil: Tensor) -> Tensor:
        """The parameter that gives this stencil on the present mesh, computed in float64."""
        if self.is_identity:
            return stencil
        ratio = [h / ref for h, ref in zip(self.mesh_size, self.reference, strict=True)]
        beta = StencilBasis(self.width, len(self.width), ratio, self.reaction).to_beta(stencil.to("cpu", torch.float64))
        return (self.unit_basis.to_stencil(beta) if self.coordinates == "stencil" else beta).to(stencil)

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
        return (p.flatten(-len(self.width)) @ matrix.T).view(p.shape)

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
