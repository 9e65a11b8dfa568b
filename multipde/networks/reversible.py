"""Backpropagation through time steps that recomputes states instead of storing them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multipde.networks.kernels.fused_layer import Layer as FusedLayer
from multipde.networks.kernels.fused_layer import Scheme, fused_layers
from multipde.networks.layers import ResidualLayer, SymmetricLayer

State = tuple[Tensor, ...]
Controls = tuple[Tensor, ...]


@dataclass(frozen=True)
class StepForce:
    """The layer F of one step with the controls at its time; calling it with y and a factor returns factor · F(y)."""

    layer: SymmetricLayer | ResidualLayer
    controls: Controls

    def __call__(self, y: Tensor, factor: float = 1.0) -> Tensor:
        return self.layer.force(y, self.controls, factor)

    def is_fused(self, y: Tensor) -> bool:
        """Whether `kernels.fused_layer` computes the step from y."""
        return self.layer.is_fused(y, self.controls[0])

    def for_kernels(self, factor: float) -> FusedLayer:
        """The controls of factor · F as `kernels.fused_layer` takes them."""
        stencil, scale, bias = self.controls[:3]
        return FusedLayer(stencil, scale, bias, self.layer.second(self.controls, factor))


@dataclass
class StepVJP:
    """F at a state together with its vector-Jacobian product: one evaluation of F serves both.

    The controls θ may belong to another graph; ``grads`` is factor · (∂F/∂θ)ᵀ g of the last call.
    """

    layer: SymmetricLayer | ResidualLayer
    controls: Controls
    grads: Controls = ()

    def __call__(self, y: Tensor, g: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """factor · F(y) and factor · (∂F/∂y)ᵀ g, both new tensors; sets ``grads``."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            controls = tuple(c.detach().requires_grad_() for c in self.controls)
            f = self._force(y, controls, factor)
        dy, *grads = torch.autograd.grad(f, (y, *controls), g.to(f.dtype))
        self.grads = tuple(grads)
        return f.detach().to(g.dtype), dy

    def _force(self, y: Tensor, controls: Controls, factor: float) -> Tensor:
        """factor · F(y), by the kernel that the time step took."""
        force = StepForce(self.layer, controls)
        if not force.is_fused(y):
            return force(y, factor)
        alone = Scheme(0, 0, self.layer.eps, self.layer.activation == "relu")
        return fused_layers(None, y, [force.for_kernels(factor)], alone)[1]


Reverse = Callable[[list[Tensor], list[Tensor], tuple[StepVJP, ...], float], None]
"""(state, its gradient, vjps, dt): replaces the tensors in both lists by those of the step before, one by one, so that
each is freed as early as possible; the tensors themselves are not modified."""


def reverse_verlet(state: list[Tensor], grads: list[Tensor], vjps: tuple[StepVJP, ...], dt: float) -> None:
    """Backpropagate through y' = y + dt F1(z), z' = z - dt F2(y').

    z = z' + dt F2(y'),   g_y = g_y' - dt J2ᵀ g_z'
    y = y' - dt F1(z),    g_z = g_z' + dt J1ᵀ g_y
    """
    for vjp, factor, here, there in ((vjps[1], -dt, 0, 1), (vjps[0], dt, 1, 0)):
        f, dy = vjp(state[here], grads[there], factor)
        state[there] = torch.sub(state[there], f, out=f)
        grads[here] = dy.add_(grads[here])
        del f, dy


def reverse_leapfrog(state: list[Tensor], grads: list[Tensor], vjps: tuple[StepVJP, ...], dt: float) -> None:
    """Backpropagate through y_next = 2y - y_prev + dt² F(y), which maps (y, y_prev) to (y_next, y).

    y_prev = 2y - y_next + dt² F(y),   g_y = g_y' + 2 g_next + dt² Jᵀ g_next,   g_prev = -g_next
    """
    f, dy = vjps[0](state[1], grads[0], dt**2)
    state[:] = state[1], f.add_(state[1], alpha=2).sub_(state[0])
    grads[:] = dy.add_(grads[0], alpha=2).add_(grads[1]), -grads[0]


def propagate_reversibly(
    state: State,
    forces: Sequence[tuple[StepForce, ...]],
    dt: float,
    step: Callable[[State, tuple[Callable[[Tensor, float], Tensor], ...], float], State],
    reverse: Reverse,
) -> State:
    """Apply all steps to a state (tensors of one shape) and store only the last state for the backward pass.

    The gradients equal those of storing every state, up to rounding. The backward pass recomputes the states; it
    evaluates each F once, for both the state and the gradient, so that a training step takes 4/3 of the work. States
    are in float32 or float64, even where autocast computes F in lower precision. There are no second derivatives.
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
        """The controls by step and layer, from one flat sequence."""
        rest = iter(flat)
        return [[tuple(next(rest) for _ in range(n)) for n in lengths] for lengths in self.lengths]


def _present_autocast(device: str) -> Callable[[], AbstractContextManager]:
    """The present autocast setting as a context for the backward pass; no setting for a device without it (meta).

    The cache is off, because it would hold every state of the backward pass in lower precision.
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of the derivatives is asked for
            raise RuntimeError("second derivatives need memory 'store' or 'checkpoint', got reversible")
        plan, saved = ctx.plan, ctx.saved_tensors
        state, controls = list(saved[: plan.num_parts]), plan.controls(saved[plan.num_parts :])
        gradients, collected = list(grads), []
        del saved, grads
        with ctx.autocast():
            for layers, step_controls in zip(reversed(plan.layers), reversed(controls), strict=True):
                vjps = tuple(StepVJP(layer, c) for layer, c in zip(layers, step_controls, strict=True))
                plan.reverse(state, gradients, vjps, plan.dt)
                collected = [g for vjp in vjps for g in vjp.grads] + collected
        return None, *gradients, *collected
