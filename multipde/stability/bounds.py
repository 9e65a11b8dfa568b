"""Bounds on the time step dt: from |K| for layers without norm, and measured along data."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from multipde.mesh.modes import ordinary_tensors
from multipde.networks.model_spec import spec_of
from multipde.stability.norms import step_norms


def step_bound(dynamics: str, norms: Sequence[float]) -> float:
    """The largest stable time step dt of layers F(y) = -Kᵀ σ(K y) without norm, from the operator norms |K|.

        parabolic     dt |K|² <= 2,     for any nondecreasing σ with Lipschitz constant 1
        second_order  dt |K| < 2,       for linear σ and θ constant in time
        hamiltonian   dt |K1| |K2| < 2, for linear σ and θ constant in time

    For layers with the TV norm (9) these are no bounds; they only give the order of magnitude.

    Args:
        dynamics: ``"parabolic"``, ``"second_order"`` or ``"hamiltonian"``.
        norms: the norms of the layers of one step, (|K|,) or (|K1|, |K2|) for hamiltonian, see `operator_norm`.

    Raises:
        ValueError: the dynamics has no bound.

    Reference: Ruthotto & Haber (2018), section 3; Ascher (2010).
    """
    return _bound(dynamics, [norm**2 for norm in norms])


def _bound(dynamics: str, rho: Sequence[float]) -> float:
    """The largest stable dt from ρ = |K|² for layers without norm, or from a measured ρ = |∂F/∂y|."""
    if dynamics == "hamiltonian":
        product = math.sqrt(rho[0] * rho[1])
    elif dynamics == "parabolic":
        product = rho[0]
    elif dynamics == "second_order":
        product = math.sqrt(rho[0])
    else:
        raise ValueError(f"dynamics must be parabolic, hamiltonian or second_order to have a bound, got {dynamics!r}")
    return 2 / product if product else math.inf


@dataclass(frozen=True)
class StepStability:
    """The bounds on dt for one time step of a network.

    Args:
        block: index of the block, from 0.
        step: index of the step in the block, from 0.
        dt: the time step that the network has.
        norms: operator norms |K| of the step's layers on their mesh, with zero padding.
        bound: largest stable dt from |K|, see `step_bound`; a bound only for layers without norm.
        measured: largest stable dt from ρ = |∂F/∂y| measured along the images, with norm and activation; the smallest
            over the images.
    """

    block: int
    step: int
    dt: float
    norms: tuple[float, ...]
    bound: float
    measured: float

    @property
    def verdict(self) -> str:
        """A word that says whether dt is within both bounds, within the measured one only, or within none."""
        if self.dt > self.measured:
            return "above the bound"
        return "stable" if self.dt <= self.bound else "stable on data"


@ordinary_tensors()
def stability_report(
    model: nn.Module, batch: Tensor, *, num_iterations: int = 15, seed: int = 0
) -> list[StepStability]:
    """Compute two bounds on dt for every time step of a network: from the operator norm |K|, and measured on a batch.

    |K| comes from power iteration on the convolution with its zero padding. With the TV norm |K| gives no bound.
    Therefore the norm of the Jacobian J = ∂F/∂y of each layer F is estimated from below at the layer's input, by power
    iteration on JᵀJ for every image, and ρ = |J| replaces |K|² in the bound. This is a measurement and no proof.

    Args:
        model: a `PDENet`.
        batch: about ten normalised images at the model's size.
        num_iterations: number of power iterations for |J|.
        seed: seed of the random vectors with which the power iterations start.

    Raises:
        ValueError: the dynamics has no bound (resnet).
    """
    dynamics = spec_of(model).label
    _bound(dynamics, [1.0, 1.0])
    found = []
    for s in step_norms(model, batch, num_iterations=num_iterations, seed=seed):
        measured = min(_bound(dynamics, per_image) for per_image in zip(*s.jacobians, strict=True))
        found.append(StepStability(s.block, s.step, s.dt, s.norms, step_bound(dynamics, s.norms), measured))
    return found


def stable_steps(report: Sequence[StepStability], allowed: Sequence[float] | None = None) -> tuple[int, ...]:
    """The number of time steps that each block needs to keep dt = T/steps within the measured bound.

    The number is at least the present one; the final time T of each block is fixed.

    Args:
        report: the result of `stability_report`.
        allowed: the largest accepted dt/bound of each block, at least 1; 1 for all blocks if left out.
    """
    result = []
    for (k, num), ratio in zip(sorted(Counter(s.block for s in report).items()), step_ratios(report), strict=True):
        limit = max(1.0, allowed[k]) if allowed else 1.0
        result.append(max(num, math.ceil(num * ratio / limit - 1e-9)))
    return tuple(result)


def step_ratios(report: Sequence[StepStability]) -> tuple[float, ...]:
    """The largest dt/(measured bound) in each block."""
    return tuple(max(s.dt / s.measured for s in report if s.block == k) for k in sorted({s.block for s in report}))
