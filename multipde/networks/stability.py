"""Stability of the time steps: operator norms, bounds on dt, and the energy of the hyperbolic dynamics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multipde.networks.layers import CONVOLVE, CONVOLVE_TRANSPOSED, SymmetricLayer


@torch.no_grad()
def operator_norm(
    stencils: Tensor, size: int | Sequence[int], *, tolerance: float = 1e-6, num_iterations: int = 1000, seed: int = 0
) -> float:
    """|K| of a convolution with zero padding on a mesh of the given size, by power iteration on KᵀK.

    The true operator is iterated, boundary included, in float64.

    Args:
        stencils: all stencils of the layer.
        size: pixels of the mesh, one number or one per axis.
        tolerance: relative change of the norm at which to stop.
        num_iterations: at most that many.

    Shape:
        - stencils: (out channels, in channels, *width), odd widths

    Returns:
        The largest singular value, from below.
    """
    dim = stencils.dim() - 2
    weight = stencils.detach().to("cpu", torch.float64)
    padding = [w // 2 for w in weight.shape[2:]]
    sizes = (size,) * dim if isinstance(size, int) else tuple(size)
    x = torch.randn(1, weight.shape[1], *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x /= x.norm()
    norm = 0.0
    for _ in range(num_iterations):
        y = CONVOLVE[dim](x, weight, padding=padding)
        previous, norm = norm, y.norm().item()
        if norm == 0 or abs(norm - previous) <= tolerance * norm:
            break
        x = CONVOLVE_TRANSPOSED[dim](y, weight, padding=padding)
        x /= x.norm()
    return norm


def step_bound(dynamics: str, norms: Sequence[float]) -> float:
    """Largest stable dt for N = identity, from the norms |K| of one step's layers.

        parabolic     dt |K|² <= 2,     for any nondecreasing σ with Lipschitz constant 1
        second_order  dt |K| < 2,       for linear σ and θ constant in time
        hamiltonian   dt |K1| |K2| < 2, for linear σ and θ constant in time

    With the TV norm (9) these are no bounds, only a scale.

    Args:
        norms: |K|, or |K1| and |K2| for hamiltonian.

    Raises:
        ValueError: a dynamics without a bound.

    Reference: Ruthotto & Haber (2018), section 3; Ascher (2010).
    """
    if dynamics == "hamiltonian":
        product = norms[0] * norms[1]
    elif dynamics == "parabolic":
        product = norms[0] ** 2
    elif dynamics == "second_order":
        product = norms[0]
    else:
        raise ValueError(f"dynamics must be parabolic, hamiltonian or second_order to have a bound, got {dynamics!r}")
    return 2 / product if product else float("inf")


@torch.no_grad()
def energy(layer: SymmetricLayer, y: Tensor, velocity: Tensor) -> Tensor:
    """The energy (12) of the second-order dynamics, one value per image.

        E = 1/2 (|v|² + (K y)ᵀ σ(K y))

    Its drift along a leapfrog path is O(dt²) for constant θ, N = identity, and σ the identity or ReLU, for which
    the second term is the potential of F.

    Shape:
        - y, velocity: (N, C, *size)
        - result: (N,)

    Reference: Ruthotto & Haber (2018), eq. (12).
    """
    controls = layer.controls()
    ky = CONVOLVE[layer.dim](y, controls[0], padding=layer.padding)
    return (velocity.flatten(1).square().sum(1) + (ky * layer.hidden(y, controls)).flatten(1).sum(1)) / 2
