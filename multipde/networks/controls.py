"""The time grid of the controls θ(t): interpolation between grids with different numbers of nodes."""

import torch
from torch import Tensor

INTERPOLATIONS = ("linear", "constant")


def interpolation_matrix(num_from: int, num_to: int, interpolation: str = "linear") -> Tensor:
    """The matrix M (num_to, num_from) in float64 of the interpolation between two time grids: θ' = M θ.

    A grid with n nodes on [0, T] has them at t_i = i T/n. Between nodes θ is linear (or constant, equal to the node
    on the left); after the last node it is constant.

    >>> interpolation_matrix(2, 4)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    if num_from < 1 or num_to < 1:
        raise ValueError(f"num_from and num_to must be positive, got {num_from} and {num_to}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
    matrix = torch.zeros(num_to, num_from, dtype=torch.float64, device="cpu")
    for j in range(num_to):
        left, rest = divmod(j * num_from, num_to)
        share = rest / num_to if interpolation == "linear" and left + 1 < num_from else 0.0
        matrix[j, left] = 1 - share
        if share:
            matrix[j, left + 1] = share
    return matrix


def combine(rows: list[tuple[Tensor, ...]], weights: list[float]) -> tuple[Tensor, ...]:
    """Σ_i weights[i] rows[i] for tuples of tensors, without zero weights; a single row of weight one is not copied."""
    used = [(w, row) for w, row in zip(weights, rows, strict=True) if w]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]
    (w, first), *others = used
    result = tuple(w * t for t in first)
    for w, row in others:
        result = tuple(torch.add(a, b, alpha=w) for a, b in zip(result, row, strict=True))
    return result
