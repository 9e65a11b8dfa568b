"""The energy of the dynamics: of one layer, and of the features along a network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.mesh.modes import eval_mode, ordinary_tensors
from multipde.networks.dynamics import Block, State
from multipde.networks.layers import CONVOLVE, SymmetricLayer
from multipde.networks.reversible import StepForce
from multipde.stability.norms import block_inputs


@torch.no_grad()
def energy(layer: SymmetricLayer, y: Tensor, velocity: Tensor, controls: tuple[Tensor, ...] | None = None) -> Tensor:
    """The energy (12) of the second-order dynamics y'' = F(y), one value per image.

        E = 1/2 (|v|² + (K y)ᵀ σ(N(K y)))

    Leapfrog steps conserve it up to O(dt²) if the controls θ are constant in time, the layer has no norm (N = identity)
    and σ is the identity or ReLU, for which the second term is the potential of F.

    Args:
        layer: F(y) = -Kᵀ σ(N(K y)).
        y: features.
        velocity: v, the time derivative of y.
        controls: θ to be used in place of the layer's own, see `Block.forces`.

    Shape:
        - y, velocity: (batch, C, *size)
        - result: (batch,)

    Reference: Ruthotto & Haber (2018), eq. (12).
    """
    controls = layer.controls() if controls is None else controls
    ky = CONVOLVE[layer.dim](y, controls[0], padding=layer.padding)
    return (velocity.flatten(1).square().sum(1) + (ky * layer.hidden(y, controls)).flatten(1).sum(1)) / 2


@dataclass(frozen=True)
class StateEnergy:
    """Size and energy of the features of a block at one time, per pixel, as a mean over images.

    Args:
        block: index of the block, from 0.
        time: time since the beginning of the block.
        features: size of the features, 1/2 |y|².
        energy: energy of the dynamics, see `state_energies`; None for resnet, which has none.
    """

    block: int
    time: float
    features: float
    energy: float | None


@ordinary_tensors()
@torch.no_grad()
def state_energies(model: nn.Module, batch: Tensor) -> list[StateEnergy]:
    """Compute size and energy of the features before every time step and after the last one, block by block.

        parabolic     E = 1/2 (K y)ᵀ σ(N(K y)),                         which the dynamics decreases
        second_order  E = 1/2 |v|² + 1/2 (K y)ᵀ σ(N(K y)),              eq. (12)
        hamiltonian   E = 1/2 (K1 z)ᵀ σ(N(K1 z)) + 1/2 (K2 y)ᵀ σ(N(K2 y))

    v is the central difference in time. For hamiltonian, whose parts y and z are half a step apart, y is the mean over
    two steps. The controls θ are those of the step, after the last step still those of the last step. If N is the
    identity, θ constant in time and σ the identity or ReLU, the parabolic energy does not grow for dt within
    `step_bound`, and the others are conserved up to O(dt²); otherwise this is a measurement. resnet has no energy.

    Args:
        model: a `PDENet`.
        batch: normalised images at the model's size.

    Reference: Ruthotto & Haber (2018), eq. (12).
    """
    found = []
    with eval_mode(model):
        for k, block, features in block_inputs(model, batch):
            state, forces = block.scheme.start(features), block.forces()
            for j, present in enumerate([*forces, forces[-1]]):
                half_square = block.scheme.finish(state).square().sum(1).mean().item() / 2
                following = block.scheme.step(state, present, block.dt)
                found.append(StateEnergy(k, j * block.dt, half_square, _energy(block, state, following, present)))
                state = following
    return found


def _energy(block: Block, state: State, following: State, forces: tuple[StepForce, ...]) -> float | None:
    """The energy per pixel as a mean over images; None where the dynamics has none."""
    if block.dynamics == "resnet":
        return None
    reached, velocity = (state[0],), torch.zeros_like(state[0])
    if block.dynamics == "hamiltonian":
        reached = (state[1], (state[0] + following[0]) / 2)  # F1 is applied to z, F2 to y
    elif block.dynamics == "second_order":
        velocity = (following[0] - state[1]) / (2 * block.dt)
    parts = [
        energy(f.layer, y, velocity, f.controls)  # pyright: ignore[reportArgumentType]
        for f, y in zip(forces, reached, strict=True)
    ]
    return sum(part.mean().item() for part in parts) / state[0][0, 0].numel()
