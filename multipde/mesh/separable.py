"""Linear maps that factor over the axes of a tensor: one matrix per axis."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def apply_along_axes(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply (M_1 ⊗ ... ⊗ M_d) with matrices (m_i, n_i) to x (*, n_1, ..., n_d), which gives (*, m_1, ..., m_d)."""
    for axis, matrix in enumerate(matrices, start=-len(matrices)):
        x = (x.movedim(axis, -1) @ matrix.T.to(x.dtype)).movedim(-1, axis)
    return x


def precise(x: Tensor) -> Tensor:
    """The values on the CPU in double precision, real or complex."""
    return x.to("cpu", torch.complex128 if x.is_complex() else torch.float64)


def in_type_of(values: Tensor, x: Tensor) -> Tensor:
    """Values on the device of x and in its type, or in the default one where x has integers, which would cut them."""
    is_fractional = x.is_floating_point() or x.is_complex()
    return values.to(x.device, x.dtype if is_fractional else torch.get_default_dtype())


def per_axis(value: T | Sequence[T], dim: int, name: str) -> tuple[T, ...]:
    """Repeat one value for every axis, or check that there is one value per axis."""
    if not isinstance(value, Sequence):
        return (value,) * dim
    if len(value) != dim:
        raise ValueError(f"{name} must be one number or {dim} numbers (one per axis), got {tuple(value)}")
    return tuple(value)
