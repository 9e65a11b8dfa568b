"""Growth of perturbations through the time steps: measured along data, and bounds that are proved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multipde.mesh.modes import eval_mode, ordinary_tensors
from multipde.networks.dynamics import Block, check_dynamics
from multipde.networks.model_spec import spec_of
from multipde.stability.norms import block_inputs, jacobian_norm, step_norms

HYPERBOLIC = ("hamiltonian", "second_order")
"""The dynamics that have an energy."""


@dataclass(frozen=True)
class BlockGrowth:
    """Growth |δY(T)|/|δY(0)| of infinitesimal perturbations of the features Y through one block.

    Args:
        block: index of the block, from 0.
        random: growth of a random perturbation, for every image, and where the block is dilated for every shift of the
            coarser mesh; likewise worst and measured_bound.
        worst: largest growth |∂Y(T)/∂Y(0)| for every image, estimated from below by power iteration.
        bound: bound on the largest growth from the operator norms |K|, see `growth_bound`. It is proved for networks
            with norm ``"none"``; with the TV norm it only gives the order of magnitude.
        measured_bound: for every image, the bound from |∂F/∂y| measured at every step, with norm and activation. It
            holds at that image for every norm, except that |∂F/∂y| is estimated from below.
    """

    block: int
    random: tuple[float, ...]
    worst: tuple[float, ...]
    bound: float
    measured_bound: tuple[float, ...]


def growth_bound(dynamics: str, rho: Sequence[Sequence[float]], dt: float, *, dissipative: bool) -> float:
    """Bound the growth |δY(T)|/|δY(0)| of perturbations through a block, given bounds ρ on |∂F/∂y| for every step.

    For each step a small nonnegative matrix bounds the parts of the perturbation; their product gives the bound.

        parabolic, resnet  |δy'| <= s |δy|
        hamiltonian        |δy'| <= |δy| + dt ρ1 |δz|,  |δz'| <= |δz| + dt ρ2 |δy'|
        second_order       |δy'| <= s |δy| + |δd|,  |δd'| <= |δd| + dt² ρ |δy|,  d = y - y_prev, δd(0) = 0

    With τ = dt, or τ = dt² for second_order, s = max(1, τ ρ - 1) if ∂F/∂y is symmetric and negative semidefinite, and
    s = 1 + τ ρ otherwise. So a parabolic block does not amplify perturbations if dt ρ <= 2. The other bounds grow with
    T: only for linear σ and constant θ it is proved that hyperbolic blocks stay bounded within `step_bound`.

    Args:
        dynamics: ``"parabolic"``, ``"hamiltonian"``, ``"second_order"`` or ``"resnet"``.
        rho: for every step one ρ per layer; without norm ρ = |K|², or |K1| |K2| for resnet.
        dt: length of a time step of the block.
        dissipative: whether ∂F/∂y is symmetric and negative semidefinite, as it is for a `SymmetricLayer` without norm
            and with nondecreasing σ.

    Raises:
        ValueError: the dynamics is unknown, or resnet is said to be dissipative.

    Reference: Ruthotto & Haber (2018), section 3.
    """
    check_dynamics(dynamics, 2)
    if dissipative and dynamics == "resnet":
        raise ValueError("dissipative must be False for resnet, whose layer is not symmetric, got True")
    parts = 2 if dynamics in HYPERBOLIC else 1
    product = torch.eye(parts, dtype=torch.float64)
    for values in rho:
        tau = dt**2 if dynamics == "second_order" else dt
        scaled = [tau * r for r in values]
        stay = max(1.0, scaled[0] - 1) if dissipative else 1 + scaled[0]
        if dynamics == "hamiltonian":
            rows = [[1.0, scaled[0]], [scaled[1], 1 + scaled[0] * scaled[1]]]
        elif dynamics == "second_order":
            rows = [[stay, 1.0], [scaled[0], 1.0]]
        else:
            rows = [[stay]]
        product = torch.tensor(rows, dtype=torch.float64) @ product
    if dynamics == "second_order":
        return product[0, 0].item()
    return torch.linalg.matrix_norm(product, 2).item()


@ordinary_tensors()
def growth_report(model: nn.Module, batch: Tensor, *, num_iterations: int = 30, seed: int = 0) -> list[BlockGrowth]:
    """Measure the growth of small perturbations through every block at the features of a batch, and compute its bounds.

    Args:
        model: a `PDENet`.
        batch: about ten normalised images at the model's size.
        num_iterations: number of steps of every power iteration.
        seed: seed of the random perturbations.
    """
    steps = step_norms(model, batch, num_iterations=num_iterations, seed=seed)
    config: Any = spec_of(model)
    dissipative = config.norm == "none" and config.dynamics != "resnet"
    found: list[BlockGrowth] = []
    with eval_mode(model):
        for k, block, y in block_inputs(model, batch):

            def flow(y: Tensor, block: Block = block) -> Tensor:
                state = block.scheme.start(y)  # with the graph for derivatives, whatever ``memory`` the block has
                for forces in block.forces():
                    state = block.scheme.step(state, forces, block.dt)
                return block.scheme.finish(state)

            mine = [s for s in steps if s.block == k]
            proved = [[norm**2 for norm in s.norms] for s in mine]
            per_image = [[[rho[i] for rho in s.jacobians] for s in mine] for i in range(len(y))]
            random, worst = (tuple(jacobian_norm(flow, y, num, seed)) for num in (1, num_iterations))
            bound = growth_bound(config.dynamics, proved, block.dt, dissipative=config.dynamics != "resnet")
            measured = tuple(growth_bound(config.dynamics, r, block.dt, dissipative=dissipative) for r in per_image)
            found.append(BlockGrowth(k, random, worst, bound, measured))
    return found
