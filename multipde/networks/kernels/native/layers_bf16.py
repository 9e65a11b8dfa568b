"""The layers of a network in training in bfloat16 in C++, for processors with AMX or bfloat16 vectors (AVX-512)."""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multipde.mesh.modes import ordinary_tensors
from multipde.networks.kernels.native.build import NoCompilerError, library

SIDE = 3
"""Taps per axis of the stencils."""

P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64


class _Block(ctypes.Structure):
    """``Block`` of ``layers_bf16.cpp``."""

    _fields_: ClassVar = [
        *((name, N) for name in ("layers", "images", "height", "width", "channels", "threads", "relu")),
        *((name, F) for name in ("alpha", "beta", "eps")),
        *((name, P) for name in ("first", "second", "scale", "bias")),
    ]


@cache
def is_available() -> bool:
    """Whether this processor and system have such instructions, and the kernels are or can be compiled."""
    try:
        return bool(library("layers_bf16").available())
    except NoCompilerError:
        return False


class Controls(NamedTuple):
    """The controls of K2 σ(N(K1 x)) in the order of the kernels: both stencils `packed`, scale and bias `filled`."""

    first: Tensor
    second: Tensor
    scale: Tensor
    bias: Tensor


class Scheme(NamedTuple):
    """What layers have in common: α and β of s_{k+1} = α s_{k-1} + β s_k + F(s_k), ε of the norm N, and whether σ is
    ReLU or the identity."""

    alpha: float
    beta: float
    eps: float
    relu: bool


def filled(values: Tensor) -> Tensor:
    """One number per channel in float32, with zeros up to a multiple of 16."""
    return functional.pad(values.float(), (0, -len(values) % 16))


def packed(stencils: Tensor, transposed: bool = False) -> Tensor:
    """Stencils (C, C, 3, 3), or those of the transposed convolution, in bfloat16 in the order of ``matrix_tiles.h``
    and ``dot_products.h``."""
    with_zero = functional.pad(stencils.detach().to(torch.bfloat16).flatten(), (0, 1))
    return with_zero.index_select(0, _order(len(stencils), transposed))


@cache
def _order(channels: int, transposed: bool) -> Tensor:
    """Where the numbers of `packed` stencils stand among the stencils; those that do not exist, for channels up to a
    multiple of 16, after the last."""
    with ordinary_tensors():
        last, more = SIDE**2 * channels**2, -channels % 16
        places = torch.arange(last).view(channels, channels, SIDE, SIDE)
        places = transposed_stencil(places) if transposed else places
        rows = functional.pad(places.permute(2, 3, 1, 0), (0, more, 0, more), value=last).flatten(1, 2)
        if channels + more == 16 and library("layers_bf16").packs_pairs():  # the pairs of ``convolve_pairs``
            taps = functional.pad(rows.view(SIDE, SIDE, 16, 16), (0, 0, 0, 0, 1, 1), value=last)
            rows = taps[:, [0, 1, 2, 3, 1, 2, 3, 4]].flatten(1, 2)
        rows = functional.pad(rows, (0, 0, 0, -rows.shape[1] % 32), value=last)
        chunks = rows.view(SIDE, -1, 16, 2, (channels + more) // 16, 16)
        return chunks.permute(4, 0, 1, 2, 5, 3).flatten()


def transposed_stencil(stencil: Tensor) -> Tensor:
    """The stencil of Kᵀ as one of a plain convolution, for odd widths."""
    return stencil.transpose(0, 1).flip(*range(2, stencil.dim()))


def layers(
    before: Tensor | None, x: Tensor, block: Sequence[Controls], scheme: Scheme
) -> tuple[list[Tensor], list[Tensor]]:
    """The states s_{k+1} = α s_{k-1} + β s_k + K2 σ(N(K1 s_k)) after s_0, which is ``before``, and s_1, which is x.

    Args:
        before, x: (N, C, H, W) in bfloat16, channels innermost in memory; None where α is zero.

    Returns:
        all states from x on, and K1 s_k for every layer, as `layers_backward` takes both
    """
    num, _, height, width = x.shape
    states = [x, *(torch.empty_like(x) for _ in block)]
    positions = height * (width + 2)  # with the margin of ``image_bf16.h``
    kept = [x.new_empty(num, positions + -positions % 16, len(block[0].scale)) for _ in block]
    common, _arrays = _common(x, block, scheme)
    _function("layers", 3)(
        ctypes.byref(common), _pointers([before if before is not None else x, *states]), _pointers(kept)
    )
    return states, kept


def layers_backward(
    states: Sequence[Tensor],
    kept: Sequence[Tensor],
    gradients: tuple[Tensor, Tensor | None],
    transposed: Sequence[Controls],
    scheme: Scheme,
    with_second: bool,
) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """The gradients of `layers`, for its controls with the transpose of each stencil.

    Args:
        states, kept: what `layers` gave; the last state is not needed.
        gradients: those at the last state and at the one before, or None for zeros.
        with_second: whether the gradient at the second state is wanted, too; not for a single layer.

    Returns:
        those at the first state, at the second or None, and of first stencil, scale, bias and second stencil of every
        layer, in float32
    """
    x, wide = states[0], kept[0].shape[-1]
    taps, channels = (SIDE, SIDE, wide, wide), x.shape[1]
    dx, second = torch.empty_like(x), torch.empty_like(x) if with_second else None
    totals = x.new_empty(len(kept), 2 * (wide + math.prod(taps)), dtype=torch.float32)
    common, _arrays = _common(x, transposed, scheme)
    # the states begin with the one before x, whose gradient does not need it
    given = _pointers([x, *states[: len(kept)]]), _pointers(kept), _pointers(gradients)
    _function("layers_backward", 6)(ctypes.byref(common), *given, _pointers([dx, second]), totals.data_ptr())
    found = []
    for of_layer in totals:
        scale, bias, *stencils = of_layer.split((wide, wide, math.prod(taps), math.prod(taps)))
        first, last = (t.view(taps).permute(3, 2, 0, 1)[:channels, :channels] for t in stencils)
        found.append((first, scale[:channels], bias[:channels], last))
    return dx, second, found


def _common(x: Tensor, block: Sequence[Controls], scheme: Scheme) -> tuple[_Block, list[Any]]:
    """A block of the kernels for images like x, and the arrays that it points to, to be kept as long."""
    num, channels, height, width = x.shape
    first, second, scale, bias = (_pointers(tensors) for tensors in zip(*block, strict=True))
    sizes = len(block), num, height, width, channels, torch.get_num_threads(), scheme.relu
    arrays = [first, second, scale, bias]
    return _Block(*sizes, scheme.alpha, scheme.beta, scheme.eps, *map(ctypes.addressof, arrays)), arrays


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[Any]:
    return (P * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


@cache
def _function(name: str, num: int) -> Callable[..., None]:
    """A function of the library with so many pointers as arguments."""
    function = getattr(library("layers_bf16"), name)
    function.argtypes, function.restype = (P,) * num, None
    return function
