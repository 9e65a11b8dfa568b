"""Backpropagation through time steps that recomputes states instead of storing them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multipde.networks.layers import ResidualLayer, SymmetricLayer

State = tuple[Tensor, ...]
Controls = tuple[Tensor, ...]


@dataclass(frozen=True)
class StepForce:
    """The layer F of one step, with the controls of its time; called with y and a factor it gives factor · F(y)."""

    layer: SymmetricLayer | ResidualLayer
    controls: Controls

    def __call__(self, y: Tensor, factor: float = 1.0) -> Tensor:
        return self.layer.force(y, self.controls, factor)


@dataclass
class Pull:
    """F at a state together with the pull-back of a gradient through it: one evaluation serves both.

    Args:
        layer: F.
        controls: θ, without history.
        grads: where ∂θ goes.
    """

    layer: SymmetricLayer | ResidualLayer
    controls: Controls
    grads: Controls = ()

    def __call__(self, y: Tensor, g: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """factor · F(y) and factor · (∂F/∂y)ᵀ g, both new tensors; keeps factor · (∂F/∂θ)ᵀ g."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            controls = tuple(c.detach().requires_grad_() for c in self.controls)
            f = self.layer.force(y, controls, factor)
        dy, *grads = torch.autograd.grad(f, (y, *controls), g.to(f.dtype))
        self.grads = tuple(grads)
        return f.detach().to(g.dtype), dy


Reverse = Callable[[list[Tensor], list[Tensor], tuple[Pull, ...], float], None]
"""(state, its gradient, pulls, dt): both lists become those of the step before, tensor by tensor, so that nothing is
alive longer than it is needed; the tensors themselves are not written to."""


def reverse_verlet(state: list[Tensor], grads: list[Tensor], pulls: tuple[Pull, ...], dt: float) -> None:
    """Back through y' = y + dt F1(z), z' = z - dt F2(y').

    z = z' + dt F2(y'),   g_y = g_y' - dt J2ᵀ g_z'
    y = y' - dt F1(z),    g_z = g_z' + dt J1ᵀ g_y
    """
    for pull, factor, here, there in ((pulls[1], -dt, 0, 1), (pulls[0], dt, 1, 0)):
        f, pulled = pull(state[here], grads[there], factor)
        state[there] = torch.sub(state[there], f, out=f)
        grads[here] = pulled.add_(grads[here])
        del f, pulled


def reverse_leapfrog(state: list[Tensor], grads: list[Tensor], pulls: tuple[Pull, ...], dt: float) -> None:
    """Back through y_next = 2y - y_prev + dt² F(y), which maps (y, y_prev) to (y_next, y).

    y_prev = 2y - y_next + dt² F(y),   g_y = g_y' + 2 g_next + dt² Jᵀ g_next,   g_prev = -g_next
    """
    f, pulled = pulls[0](state[1], grads[0], dt**2)
    state[:] = state[1], f.add_(state[1], alpha=2).sub_(state[0])
    grads[:] = pulled.add_(grads[0], alpha=2).add_(grads[1]), -grads[0]


def propagate_reversibly(
    state: State,
    forces: Sequence[tuple[StepForce, ...]],
    dt: float,
    step: Callable[[State, tuple[Callable[[Tensor, float], Tensor], ...], float], State],
    reverse: Reverse,
) -> State:
    """All steps forwards, keeping nothing but the last state for the way back.

    The gradients are those of storing every state, up to rounding: the states of the way back are recomputed, each F is
    evaluated once there for both the state and the gradient, so that a training step takes 4/3 of the work. States are
    kept in float32 or wider, also where autocast computes F in less. Gradients of gradients are not to be had.

    Shape:
        - state: tensors of one shape (N, C, *size)
    """
    state = tuple(y if y.dtype in (torch.float32, torch.float64) else y.float() for y in state)
    layers = [tuple(f.layer for f in fs) for fs in forces]
    flat = [c for fs in forces for f in fs for c in f.controls]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (*state, *flat)):
        for fs in forces:
            state = step(state, fs, dt)
        return state
    lengths = [[len(f.controls) for f in fs] for fs in forces]
    return _Propagation.apply(_Plan(layers, lengths, dt, step, reverse, len(state)), *state, *flat)  # pyright: ignore


@dataclass(frozen=True)
class _Plan:
    layers: list[tuple[SymmetricLayer | ResidualLayer, ...]]
    lengths: list[list[int]]
    dt: float
    step: Any
    reverse: Reverse
    num_parts: int

    def controls(self, flat: Sequence[Tensor]) -> list[list[Controls]]:
        """The flat controls by step and layer."""
        rest, result = iter(flat), []
        for lengths in self.lengths:
            result.append([tuple(next(rest) for _ in range(n)) for n in lengths])
        return result


def _present_autocast(device: str) -> Callable[[], AbstractContextManager]:
    """Mixed precision as it is now, to be entered on the way back; on a device without it (meta) nothing.

    Without the cache, which would keep every state of the way back in less precision.
    """
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled, cache_enabled=False)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> State:
        state, flat = tensors[: plan.num_parts], tensors[plan.num_parts :]
        ctx.plan, ctx.autocast = plan, _present_autocast(state[0].device.type)
        for layers, controls in zip(plan.layers, plan.controls(flat), strict=True):
            forces = tuple(StepForce(layer, c) for layer, c in zip(layers, controls, strict=True))
            state = plan.step(state, forces, plan.dt)
        ctx.save_for_backward(*state, *flat)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors
        state, controls = list(saved[: plan.num_parts]), plan.controls(saved[plan.num_parts :])
        gradients, collected = list(grads), []
        del saved, grads
        with ctx.autocast():
            for layers, step_controls in zip(reversed(plan.layers), reversed(controls), strict=True):
                pulls = tuple(Pull(layer, c) for layer, c in zip(layers, step_controls, strict=True))
                plan.reverse(state, gradients, pulls, plan.dt)
                collected = [g for pull in pulls for g in pull.grads] + collected
        return None, *gradients, *collected
