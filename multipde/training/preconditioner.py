"""A preconditioner for gradients of stencil parameters that belong to a finer mesh than the images."""

import torch
from torch import Tensor, nn

from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.reparametrize import stored_stencils


class Preconditioner:
    """Preconditions the gradient of a stored parameter p, from which the stencils on another mesh are W = G p.

        g ← (GᵀG)⁻q g

    A step along the plain gradient, q = 0, changes W by G Gᵀ times its own gradient, which for a halving of the mesh
    hardly moves the high orders (eigenvalues down to 1/256 for width 3). q = 1 changes W by its own gradient; q = 1/2
    by the square root of G Gᵀ times it. The minimiser does not change, since the gradient of the penalty is multiplied
    too.

    Args:
        power: q in [0, 1].
    """

    def __init__(self, power: float):
        self.power = power
        self._matrices: dict[tuple, Tensor] = {}

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> None:
        """Multiply the gradients of all stencils whose mesh is not their reference mesh, in place."""
        for stored, p in stored_stencils(module).items():
            if (grad := stored.grad) is not None and not p.is_identity:
                flat = grad.flatten(2) @ self.matrix(p).to(grad)
                grad.copy_(flat.view(grad.shape))

    def matrix(self, p: StencilParametrization) -> Tensor:
        """The symmetric matrix (GᵀG)⁻q (n, n) of a layer with n taps, in float64."""
        ratio = tuple(h / ref for h, ref in zip(p.mesh_size, p.reference, strict=True))
        key = (p.width, ratio, p.coordinates, p.reaction)
        if key not in self._matrices:
            values, vectors = torch.linalg.eigh((g := p.tap_matrix()).T @ g)
            self._matrices[key] = vectors @ torch.diag(values.clamp_min(1e-30) ** -self.power) @ vectors.T
        return self._matrices[key]
