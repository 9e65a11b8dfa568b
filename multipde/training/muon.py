"""Muon: orthogonalised momentum for the stencils of convolutions, and SGD for all other parameters."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ops: Any = torch  # its operations on lists of tensors have no types
KEY = "momentum_buffer"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LEAST_NORM = 1e-12
"""A matrix of a smaller Frobenius norm is not scaled up to one."""


class Muon(torch.optim.Optimizer):
    """An optimizer with orthogonalised momentum: the change of a stencil tensor has singular values near lr.

        v ← μ v + g,   u = g + μ v (Nesterov) or v,   p ← (1 - lr λ) p - lr sqrt(max(1, rows/columns)) orth(u)

    A tensor (O, I, taps) is the matrix (O, I·taps); with k convolution groups it is k matrices (O/k, I·taps). orth is
    the polar factor U Vᵀ, approximated as in `orthogonalized`, so that |orth(u)| ≤ 1.21 in the spectral norm. A
    convolution of w taps per axis in d dimensions has at most w^(d/2) times the norm of its matrix, attained by equal
    taps, so that a step moves the operator by

        |ΔK| ≤ 1.21 w^(d/2) sqrt(max(1, rows/columns)) lr,   and dt |K|² by at most dt |ΔK| (2 |K| + |ΔK|)

    Zero padding does not enlarge the norm. In a parameter group with ``orthogonal=False``, orth is the identity and the
    factor one: stochastic gradient descent with momentum.

    Args:
        params: parameters or parameter groups, which may have their own values of the other arguments.
        lr: learning rate.
        momentum: μ in [0, 1).
        nesterov: use Nesterov's momentum.
        weight_decay: λ, decoupled from the gradient.
        orthogonal: whether orth is applied; the parameters must have at least two axes for it.
        conv_groups: number of convolution groups k of each parameter.

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
    ):
        given = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, given | {"orthogonal": orthogonal, "conv_groups": conv_groups})

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
        found = [(u, group["conv_groups"]) for group, _, us in updates if group["orthogonal"] for u in us]
        directions = iter(orthogonal_stencils(found))
        for group, params, momenta in updates:
            moved = [next(directions) for _ in params] if group["orthogonal"] else momenta
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
            if self.state[p].get(KEY) is None:
                self.state[p][KEY] = torch.zeros_like(p)
        grads, momenta = [p.grad for p in params], [self.state[p][KEY] for p in params]
        ops._foreach_mul_(momenta, group["momentum"])
        ops._foreach_add_(momenta, grads)
        if not group["nesterov"]:
            return params, momenta
        return params, list(ops._foreach_add(grads, momenta, alpha=group["momentum"]))

    def flops(self) -> int:
        """Floating point operations of the products in one step, multiply and add as two."""
        total = 0
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else ():
                m, n = sorted((len(p) // group["conv_groups"], p.numel() // len(p)))
                total += group["conv_groups"] * _matrix_flops(m, n, _in_bf16(p))
        return total


def orthogonal_stencils(stencils: list[tuple[Tensor, int]]) -> list[Tensor]:
    """orth of stencils, each given with its number of convolution groups, times sqrt(max(1, rows/columns)).

    All matrices of one shape, or of its transpose, are one batch.

    Shape:
        - stencils, result: (O, I, *taps) each
    """
    batches: dict[tuple, list[int]] = {}
    matrices = [u.movedim(1, -1).reshape(k, len(u) // k, -1) for u, k in stencils]  # the order of columns is free
    for i, x in enumerate(matrices):
        batches.setdefault((*sorted(x.shape[1:]), x.dtype, x.device), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(stencils)
    for numbers in batches.values():
        wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in (matrices[i] for i in numbers)]
        parts = orthogonalized(torch.cat(wide)).split([len(x) for x in wide])
        for i, part in zip(numbers, parts, strict=True):
            rows, columns = matrices[i].shape[1:]
            result = part if rows <= columns else part.mT * math.sqrt(rows / columns)
            num, channels, *taps = stencils[i][0].shape
            found[i] = result.reshape(num, *taps, channels).movedim(-1, 1)
    return found


def orthogonalized(x: Tensor) -> Tensor:
    """The polar factors U Vᵀ of matrices x = U S Vᵀ, up to singular values in about [0.68, 1.21] instead of one.

    After division by the Frobenius norm, five iterations of Newton-Schulz, whose coefficients raise small singular
    values as fast as possible:

        x ← (a + b A + c A²) x,   A = x xᵀ,   a = 3.4445, b = -4.7750, c = 2.0315

    The polynomials commute with A. For long rows all iterations are therefore computed on the small matrices A, and
    their product is applied once. In bf16, on a GPU, the rounding of A would grow, and x itself is iterated.

    Shape:
        - x, result: (k, m, n), m ≤ n

    Reference: Jordan et al. (2024); the iteration is that of Schulz (1933), Iterative Berechnung der reziproken Matrix.
    """
    x = x / x.flatten(1).norm(dim=1).clamp_min(LEAST_NORM).view(-1, 1, 1)
    dtype = x.dtype
    if _in_bf16(x) or not _has_long_rows(*x.shape[1:]):
        x = x.bfloat16() if _in_bf16(x) else x
        for _ in range(ITERATIONS):
            x = torch.bmm(_polynomial(torch.bmm(x, x.mT)), x)
        return x.to(dtype)
    gram, product = torch.bmm(x, x.mT), None
    for i in range(ITERATIONS):
        q = _polynomial(gram)
        product = q if product is None else torch.bmm(q, product)
        gram = torch.bmm(torch.bmm(q, gram), q) if i + 1 < ITERATIONS else gram
    return torch.bmm(product, x)  # pyright: ignore[reportArgumentType]


def _polynomial(gram: Tensor) -> Tensor:
    """a + b A + c A²."""
    a, b, c = COEFFICIENTS
    q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    q.diagonal(dim1=1, dim2=2).add_(a)
    return q


def _has_long_rows(m: int, n: int) -> bool:
    """Whether products of (m, m) matrices are cheaper than products with (m, n) in every iteration."""
    return 2 * n > 3 * m


def _in_bf16(x: Tensor) -> bool:
    """Whether products are computed in bf16: on a GPU, unless in float64; on a processor float32 is faster."""
    return x.device.type == "cuda" and x.dtype != torch.float64


def _matrix_flops(m: int, n: int, in_bf16: bool) -> int:
    """Floating point operations of `orthogonalized` for one matrix."""
    if _has_long_rows(m, n) and not in_bf16:
        return 2 * m * m * (2 * n + (4 * ITERATIONS - 3) * m)
    return 2 * m * m * (2 * n + m) * ITERATIONS
