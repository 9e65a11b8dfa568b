"""Time stepping: the dynamics of the paper as a table, and the block that runs one of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multipde.networks.controls import combine, interpolation_matrix
from multipde.networks.kernels.dispatch import with_layout_of
from multipde.networks.layers import ResidualLayer, SymmetricLayer
from multipde.networks.recurrence import Force, Recurrence
from multipde.networks.reversible import (
    Reverse,
    State,
    StepForce,
    propagate_reversibly,
    reverse_leapfrog,
    reverse_verlet,
)

MEMORY = ("store", "reversible", "checkpoint")


@dataclass(frozen=True)
class Dynamics:
    """One time integrator.

    Args:
        layer, num_layers: type and number of the layers F of a step, which the functions below get as ``forces``.
        start: maps features to the state.
        recurrence: the time steps as a recurrence over the layers F.
        inverse: maps (state, forces, dt) to the previous state; None where the dynamics is not reversible.
        finish: maps the state to features.
        reverse: computes the previous state and the gradient with respect to it.
        num_parts: number of parts into which the channels are divided.
    """

    equation: str
    layer: type[SymmetricLayer] | type[ResidualLayer]
    num_layers: int
    num_parts: int
    start: Callable[[Tensor], State]
    recurrence: Recurrence
    inverse: Callable[[State, tuple[Force, ...], float], State] | None
    finish: Callable[[State], Tensor]
    reverse: Reverse | None = None

    def step(self, state: State, forces: tuple[Force, ...], dt: float) -> State:
        """The next state."""
        return self.recurrence.advance(state, [forces], dt)


def _halves(y: Tensor) -> State:
    """The channels in two parts (y, z), each contiguous in memory, because layers are faster on such tensors."""
    return tuple(with_layout_of(part, y) for part in y.chunk(2, dim=1))


def _verlet_inverse(state: State, forces: tuple[Force, ...], dt: float) -> State:
    """z = z' + dt F2(y'), y = y' - dt F1(z)."""
    (y, z), (f1, f2) = state, forces
    z = z + f2(y, dt)
    return y + f1(z, -dt), z


def _leapfrog_inverse(state: State, forces: tuple[Force, ...], dt: float) -> State:
    """The inverse of a leapfrog step, which is the same step with the roles of y_next and y_prev exchanged."""
    (y_next, y), (f,) = state, forces
    return y, torch.add(f(y, dt**2) - y_next, y, alpha=2)


# forward Euler, symplectic Verlet (10), and leapfrog for (11) with the state (y, y_prev)
_EULER = (lambda y: (y,), Recurrence(0, 1, lambda dt: (dt,)), None, lambda state: state[0])
_VERLET = (
    _halves,
    Recurrence(1, 0, lambda dt: (dt, -dt), newest=1),
    _verlet_inverse,
    lambda state: torch.cat(state, dim=1),
    reverse_verlet,
)
_LEAPFROG = (
    lambda y: (y, y),
    Recurrence(-1, 2, lambda dt: (dt**2,)),
    _leapfrog_inverse,
    lambda state: state[0],
    reverse_leapfrog,
)

DYNAMICS = {
    "parabolic": Dynamics("y' = y + dt F(y)", SymmetricLayer, 1, 1, *_EULER),
    "hamiltonian": Dynamics("y' = y + dt F1(z), z' = z - dt F2(y')", SymmetricLayer, 2, 2, *_VERLET),
    "second_order": Dynamics("y_next = 2y - y_prev + dt² F(y)", SymmetricLayer, 1, 1, *_LEAPFROG),
    "resnet": Dynamics("y' = y + dt K2 σ(N(K1 y))", ResidualLayer, 1, 1, *_EULER),
}
"""parabolic (8), hamiltonian (10), second_order (11), and the plain ResNet (3) as the baseline."""


class Block(nn.Module):
    """Several time steps of one dynamics on one mesh; F is a `SymmetricLayer`, for resnet a `ResidualLayer`.

        parabolic, resnet  y' = y + dt F(y)
        hamiltonian        y' = y + dt F1(z),  z' = z - dt F2(y'),  where y and z are halves of the channels
        second_order       y_next = 2y - y_prev + dt² F(y)

    The weights θ of F (stencils, scale and bias), called controls, are stored at the nodes of a time grid with at most
    as many nodes as steps; each step uses θ interpolated at its time.

    Args:
        dynamics: ``"parabolic"``, ``"hamiltonian"``, ``"second_order"`` or ``"resnet"``.
        channels: number of channels C; even for hamiltonian.
        steps: number of time steps.
        dt: length of a time step.
        controls: number of nodes of the time grid of θ; None for one node per step.
        width, dim, norm, activation, eps: arguments of the layers F, see `SymmetricLayer`.
        interpolation: how θ varies between the nodes, ``"linear"`` or ``"constant"``.
        memory: what is stored for the backward pass: ``"store"`` everything; ``"reversible"`` only the last state, for
            hamiltonian and second_order; ``"checkpoint"`` the state of every step.

    Shape:
        - y, result: (batch, C, *size)

    Raises:
        ValueError: the dynamics is unknown or not reversible, channels are odd for hamiltonian, or there are more
            controls than steps.
    """

    def __init__(
        self,
        dynamics: str,
        channels: int,
        steps: int = 3,
        dt: float = 1.0,
        controls: int | None = None,
        *,
        width: int = 3,
        dim: int = 2,
        norm: str = "tv",
        activation: str = "relu",
        eps: float = 1e-3,
        interpolation: str = "linear",
        memory: str = "store",
    ):
        super().__init__()
        check_dynamics(dynamics, channels)
        check_memory(memory, dynamics)
        num_controls = steps if controls is None else controls
        if not 1 <= num_controls <= steps:
            raise ValueError(f"controls must be between 1 and steps = {steps}, got {num_controls}")
        self.dynamics, self.steps, self.dt, self.memory = dynamics, steps, dt, memory
        part = channels // self.scheme.num_parts
        self.controls = nn.ModuleList(
            nn.ModuleList(
                self.scheme.layer(part, width, dim, norm, activation, eps) for _ in range(self.scheme.num_layers)
            )
            for _ in range(num_controls)
        )
        self.time_weights: list[list[float]] = interpolation_matrix(num_controls, steps, interpolation).tolist()

    @property
    def scheme(self) -> Dynamics:
        """The time integrator."""
        return DYNAMICS[self.dynamics]

    def forces(self) -> list[tuple[StepForce, ...]]:
        """The layers F of every step with the controls at its time, for which every stencil is computed once."""
        nodes = [[layer.controls() for layer in node] for node in self.controls]  # pyright: ignore
        own = len(self.controls) == self.steps
        layers = [list(self.controls[j if own else 0]) for j in range(self.steps)]  # pyright: ignore
        return [
            tuple(StepForce(layer, combine([node[i] for node in nodes], row)) for i, layer in enumerate(present))
            for present, row in zip(layers, self.time_weights, strict=True)
        ]

    def propagate(self, state: State) -> State:
        """Apply all steps to a state, storing for the backward pass what ``memory`` says."""
        scheme, forces = self.scheme, self.forces()
        if self.memory == "reversible" and scheme.reverse is not None:
            return propagate_reversibly(state, forces, self.dt, scheme.step, scheme.reverse)
        if self.memory != "checkpoint" or not torch.is_grad_enabled():
            return scheme.recurrence.advance(state, forces, self.dt)
        for present in forces:
            state = checkpoint(scheme.step, state, present, self.dt, use_reentrant=False, preserve_rng_state=False)
        return state

    def inverse(self, state: State) -> State:
        """Undo all steps: the state from which `propagate` computed the given one."""
        if self.scheme.inverse is None:
            raise ValueError(f"dynamics must be hamiltonian or second_order to be inverted, got {self.dynamics!r}")
        for forces in reversed(self.forces()):
            state = self.scheme.inverse(state, forces, self.dt)
        return state

    def forward(self, y: Tensor) -> Tensor:
        return self.scheme.finish(self.propagate(self.scheme.start(y)))

    def extra_repr(self) -> str:
        return f"{self.dynamics}: {self.scheme.equation}, steps={self.steps}, dt={self.dt:g}"


def check_memory(memory: str, dynamics: str) -> None:
    """Raise ValueError for an unknown kind of memory, or one that the dynamics does not support."""
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of {', '.join(MEMORY)}, got {memory!r}")
    if memory == "reversible" and DYNAMICS[dynamics].reverse is None:
        raise ValueError(f"memory must be store or checkpoint for {dynamics}, which is not reversible, got {memory!r}")


def check_dynamics(dynamics: str, channels: int) -> None:
    """Raise ValueError for an unknown dynamics, or channels that do not divide into its parts."""
    if dynamics not in DYNAMICS:
        raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}, got {dynamics!r}")
    if channels < 1 or channels % DYNAMICS[dynamics].num_parts:
        raise ValueError(f"channels must be positive and even for {dynamics}, got {channels}")
