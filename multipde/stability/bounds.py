"""Bounds on the time step dt: for N = identity from |K|, and measured along data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from multipde.networks.model_spec import spec_of
from multipde.stability.norms import step_norms


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
    return _bound(dynamics, [norm**2 for norm in norms])


def _bound(dynamics: str, rho: Sequence[float]) -> float:
    """Largest stable dt from ρ = |K|², or from ρ = |∂F/∂y| where N is not the identity."""
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
    """One time step of a network on its mesh.

    Args:
        block: number of the block.
        step: number of the step in it.
        norms: |K| of the step's layers, zero padding included.
        bound: largest stable dt for N = identity, see `step_bound`.
        measured: largest stable dt for the measured ρ = |∂F/∂y|, N and σ included; the smallest over the images.
    """

    block: int
    step: int
    dt: float
    norms: tuple[float, ...]
    bound: float
    measured: float

    @property
    def verdict(self) -> str:
        """Whether dt is within both bounds, the measured one only, or none."""
        if self.dt > self.measured:
            return "above the bound"
        return "stable" if self.dt <= self.bound else "stable on data"


def stability_report(
    model: nn.Module, batch: Tensor, *, num_iterations: int = 15, seed: int = 0
) -> list[StepStability]:
    """Step bounds of every time step of a network: for N = identity from |K|, and measured along a batch.

    |K| comes from power iteration on the operator with its boundary. With the TV norm |K| gives no bound. Therefore the
    norm of the Jacobian J of each layer F is estimated from below at the layer's input, by power iteration on JᵀJ for
    every image, and ρ = |J| replaces |K|² in the bound. This is a measurement and no proof.

    Args:
        batch: some ten images as the model takes them, at its size.

    Raises:
        ValueError: a dynamics without a bound (resnet).
    """
    dynamics = spec_of(model).label
    _bound(dynamics, [1.0, 1.0])
    found = []
    for s in step_norms(model, batch, num_iterations=num_iterations, seed=seed):
        measured = min(_bound(dynamics, per_image) for per_image in zip(*s.jacobians, strict=True))
        found.append(StepStability(s.block, s.step, s.dt, s.norms, step_bound(dynamics, s.norms), measured))
    return found


def stable_steps(report: Sequence[StepStability], allowed: Sequence[float] | None = None) -> tuple[int, ...]:
    """The time steps that each block needs, at least its present number, to keep dt within the measured bound, T fixed.

    Args:
        allowed: for each block the largest dt/bound to be accepted; 1 if left out or smaller.
    """
    result = []
    for k in sorted({s.block for s in report}):
        mine = [s for s in report if s.block == k]
        ratio = max(s.dt / s.measured for s in mine)
        limit = max(1.0, allowed[k]) if allowed else 1.0
        result.append(max(len(mine), math.ceil(len(mine) * ratio / limit - 1e-9)))
    return tuple(result)


def step_ratios(report: Sequence[StepStability]) -> tuple[float, ...]:
    """The largest dt/(measured bound) in each block."""
    return tuple(max(s.dt / s.measured for s in report if s.block == k) for k in sorted({s.block for s in report}))
