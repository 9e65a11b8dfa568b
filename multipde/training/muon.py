"""Muon: orthogonalised momentum for the stencils of convolutions, and SGD for all other parameters."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from multipde.mesh.parametrization import StencilParametrization
from multipde.training.orthogonal import in_bf16, matrix_flops, orthogonal_stencils

ops: Any = torch  # its operations on lists of tensors have no types
MOMENTUM_KEY = "momentum_buffer"
"""The name under which an optimizer of torch keeps the momentum of a parameter."""


class Muon(torch.optim.Optimizer):
    """An optimizer with orthogonalised momentum: the change of a stencil tensor has singular values near lr.

        v ← μ v + g,   u = g + μ v (Nesterov) or v,   p ← (1 - lr λ) p - lr sqrt(max(1, rows/columns)) orth(u)

    A tensor (O, I, taps) is the matrix (O, I·taps); with k convolution groups it is k matrices (O/k, I·taps). orth is
    the polar factor U Vᵀ, approximated as in `orthogonalized`, so that |orth(u)| ≤ 1.21 in the spectral norm. A
    convolution of w taps per axis in d dimensions has at most w^(d/2) times the norm of its matrix, attained by equal
    taps, so that a step moves the operator by

        |ΔK| ≤ 1.21 w^(d/2) sqrt(max(1, rows/columns)) lr,   and dt |K|² by at most dt |ΔK| (2 |K| + |ΔK|)

    Zero padding does not enlarge the norm. Where p is the parameter of stencils W = G p, in other coordinates or on
    another mesh, the update of W is orthogonalised: p ← p - lr sqrt(...) G⁻¹ orth(G⁻ᵀ u), so that W moves as if it were
    the parameter. In a parameter group with ``orthogonal=False``, orth is the identity and the factor one: stochastic
    gradient descent with momentum.

    Args:
        params: parameters or parameter groups, which may have their own values of the other arguments.
        lr: learning rate.
        momentum: μ in [0, 1).
        nesterov: use Nesterov's momentum.
        weight_decay: λ, decoupled from the gradient.
        orthogonal: whether orth is applied; the parameters must have at least two axes for it.
        conv_groups: number of convolution groups k of each parameter.
        parametrizations: the parametrizations G of parameters that are not stencils themselves.

    Raises:
        ValueError: a value is outside its range, or a parameter has less than two axes or no k equal parts.

    Reference: Jordan et al. (2024), Muon: An optimizer for hidden layers in neural networks; Bernstein & Newhouse
        (2024), Old optimizer, new norm: An anthology.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.6,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
        conv_groups: int = 1,
        parametrizations: Mapping[Tensor, StencilParametrization] | None = None,
    ):
        given = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, given | {"orthogonal": orthogonal, "conv_groups": conv_groups})
        self.parametrizations = dict(parametrizations or {})
        self._inverses: dict[tuple, Tensor] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in any optimizer of torch."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
        for p in group["params"] if group["orthogonal"] else ():
            if p.dim() < 2 or group["conv_groups"] < 1 or len(p) % group["conv_groups"]:
                shape = f"shape {tuple(p.shape)} with {group['conv_groups']} groups"
                raise ValueError(f"orthogonal must be False for a parameter that is no stencil, got {shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [(group, *self._updates(group)) for group in self.param_groups]
        found = [
            (self._of_stencil(p, u), group["conv_groups"])
            for group, params, us in updates
            if group["orthogonal"]
            for p, u in zip(params, us, strict=True)
        ]
        directions = iter(orthogonal_stencils(found))
        for group, params, momenta in updates:
            moved = [self._of_parameter(p, next(directions)) for p in params] if group["orthogonal"] else momenta
            if params and group["weight_decay"]:
                ops._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if params:
                ops._foreach_add_(params, moved, alpha=-group["lr"])
        return loss

    def _updates(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that have a gradient, and their updates u from the momentum."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params or not group["momentum"]:
            return params, [p.grad for p in params]
        for p in params:
            if self.state[p].get(MOMENTUM_KEY) is None:
                self.state[p][MOMENTUM_KEY] = torch.zeros_like(p)
        grads, momenta = [p.grad for p in params], [self.state[p][MOMENTUM_KEY] for p in params]
        ops._foreach_mul_(momenta, group["momentum"])
        ops._foreach_add_(momenta, grads)
        if not group["nesterov"]:
            return params, momenta
        return params, list(ops._foreach_add(grads, momenta, alpha=group["momentum"]))

    def _inverse(self, p: Tensor) -> Tensor | None:
        """G⁻¹ of a parameter from which the stencils W = G p follow; None where p is the stencils themselves."""
        found = self.parametrizations.get(p)
        if found is None or found.is_identity:
            return None
        key = (found.width, found.mesh_size, found.reference, found.coordinates, found.reaction)
        if key not in self._inverses:
            self._inverses[key] = torch.linalg.inv(found.tap_matrix())
        return self._inverses[key].to(p)

    def _of_stencil(self, p: Tensor, u: Tensor) -> Tensor:
        """G⁻ᵀ u, the momentum of the stencils from that of their parameter."""
        inverse = self._inverse(p)
        return u if inverse is None else (u.flatten(2) @ inverse).view(u.shape)

    def _of_parameter(self, p: Tensor, change: Tensor) -> Tensor:
        """G⁻¹ ΔW, the change of the parameter that changes the stencils by ΔW."""
        inverse = self._inverse(p)
        return change if inverse is None else (change.flatten(2) @ inverse.mT).view(change.shape)

    def flops(self) -> int:
        """Floating point operations of the products in one step, multiply and add as two."""
        total = 0
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else ():
                m, n = sorted((len(p) // group["conv_groups"], p.numel() // len(p)))
                total += group["conv_groups"] * matrix_flops(m, n, in_bf16(p))
        return total
