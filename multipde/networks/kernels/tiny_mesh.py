"""Convolutions on a mesh of at most two pixels per axis, as products with one matrix.

Of the 3ᵈ taps of a stencil in d dimensions only 2ᵈ meet such a mesh from any of its pixels: the others meet the zeros
around it. The matrix of the convolution therefore takes fewer operations than its stencil, in two dimensions 16 of 36
per pair of channels, and a processor does matrix products faster than convolutions of so few pixels.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from multipde.mesh.modes import ordinary_tensors

FEWEST_IMAGES = 32
"""For fewer images it takes longer to make the matrix than to convolve."""


def is_worthwhile(y: Tensor, stencil: Tensor) -> bool:
    """Whether a convolution of features (N, C, *size) is faster as a product with `matrix_of` its stencil."""
    is_tiny = max(y.shape[2:]) <= 2 and min(stencil.shape[2:]) >= 3
    return is_tiny and y.device.type == "cpu" and len(y) >= FEWEST_IMAGES


def matrix_of(stencil: Tensor, size: tuple[int, ...]) -> Tensor:
    """The matrix of a convolution with zero padding, which keeps the size; that of its transpose is the transpose.

    Shape:
        - stencil: (C', C, *width), odd widths
        - result: (P C', P C) for P pixels, those of the channels of a pixel one after the other
    """
    num, taps = math.prod(size), _taps(size, tuple(stencil.shape[2:]))
    blocks = (stencil.flatten(2) @ taps.to(stencil)).unflatten(2, (num, num))
    return blocks.permute(2, 0, 3, 1).reshape(num * stencil.shape[0], num * stencil.shape[1])


def product(y: Tensor, matrix: Tensor) -> Tensor:
    """The matrix times the features of every image: (N, C, *size) to (N, C', *size), with the channels innermost."""
    rows = functional.linear(y.movedim(1, -1).flatten(1), matrix)
    return rows.unflatten(1, (*y.shape[2:], -1)).movedim(-1, 1)


@cache
def _taps(size: tuple[int, ...], width: tuple[int, ...]) -> Tensor:
    """Which tap connects two pixels: (taps, P²) of zeros and ones, the pixel of the result before that of the input."""
    axes = []
    with ordinary_tensors():
        for side, taps in zip(size, width, strict=True):
            found = torch.zeros(taps, side, side)
            for to in range(side):
                for of in range(side):
                    found[of - to + taps // 2, to, of] = 1
            axes.append(found)
        whole = axes[0]
        for axis in axes[1:]:
            whole = torch.einsum("tpq,urs->tuprqs", whole, axis).flatten(4, 5).flatten(2, 3).flatten(0, 1)
        return whole.flatten(1)
