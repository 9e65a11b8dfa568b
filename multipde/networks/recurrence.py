"""The states of a time integrator as one recurrence over its layers, several of which may be one pass of a kernel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from multipde.networks.kernels.fused_layer import Scheme, fused_layers
from multipde.networks.reversible import State, StepForce

Force = Callable[[Tensor, float], Tensor]
"""Maps (y, factor) to factor · F(y)."""


@dataclass(frozen=True)
class Recurrence:
    """s_{k+1} = α s_{k-1} + β s_k + γ F(s_k), for one layer F after the other.

    Args:
        alpha, beta: α and β.
        factors: γ for every layer of a time step, of the length of the step.
        newest: where s_k stands in a state; s_{k-1} is the other part, if there is one.
    """

    alpha: float
    beta: float
    factors: Callable[[float], tuple[float, ...]]
    newest: int = 0

    def advance(self, state: State, steps: Sequence[tuple[Force, ...]], dt: float) -> State:
        """The state after several time steps, given by their forces."""
        rest = [pair for forces in steps for pair in zip(forces, self.factors(dt), strict=True)]
        before, y = state[1 - self.newest] if len(state) > 1 else None, state[self.newest]
        while rest:
            num, scheme = self._fused(y, rest)
            if scheme is not None:
                layers = [f.for_kernels(factor) for f, factor in rest[:num]]  # pyright: ignore[reportFunctionMemberAccess]
                before, y = fused_layers(before, y, layers, scheme)
            else:
                force, factor = rest[0]
                before, y = y, self._added(force(y, factor), before, y)
            before, rest = before if self.alpha else None, rest[num:]
        return (y,) if len(state) == 1 else (y, before) if self.newest == 0 else (before, y)  # pyright: ignore

    def _fused(self, y: Tensor, rest: Sequence[tuple[Force, float]]) -> tuple[int, Scheme | None]:
        """How many of the next layers are one pass over the images, and what they have in common."""
        schemes = []
        for force, _ in rest:
            if not isinstance(force, StepForce) or not force.is_fused(y):
                break
            schemes.append(Scheme(self.alpha, self.beta, force.layer.eps, force.layer.activation == "relu"))
        alike = next((i for i, scheme in enumerate(schemes) if scheme != schemes[0]), len(schemes))
        return (alike, schemes[0]) if schemes else (1, None)

    def _added(self, change: Tensor, before: Tensor | None, y: Tensor) -> Tensor:
        """change + α s_{k-1} + β s_k, in the memory of the change, which is needed no more."""
        change = _plus(change, before, self.alpha) if before is not None and self.alpha else change
        return _plus(change, y, self.beta) if self.beta else change


def _plus(change: Tensor, y: Tensor, factor: float) -> Tensor:
    """change + factor · y in the memory of the change, one of four passes over memory less; a change in lower precision
    than y gets new memory."""
    if change.dtype != y.dtype:
        return change.add(y, alpha=factor)
    return change.add_(y, alpha=factor)
