"""The layers of a network in training in C++: in float32, and in bfloat16 where processors have AMX or its vectors."""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multipde.mesh.modes import ordinary_tensors
from multipde.networks.kernels.native import convolutions
from multipde.networks.kernels.native.build import NoCompilerError, library

LIBRARIES = {torch.float32: "layers_float32", torch.bfloat16: "layers_bf16"}
"""Name of the library for features of each type."""

SIDE = 3
"""Taps per axis of the stencils."""

P, F, N = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64


class _Block(ctypes.Structure):
    """``Block`` of ``block.h``."""

    _fields_: ClassVar = [
        *((name, N) for name in ("layers", "images", "height", "width", "channels", "threads", "relu")),
        *((name, F) for name in ("alpha", "beta", "eps")),
        *((name, P) for name in ("first", "second", "scale", "bias")),
    ]


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether there are kernels for features of this type that this processor and system can run."""
    try:
        return dtype in LIBRARIES and bool(library(LIBRARIES[dtype]).available())
    except NoCompilerError:
        return False


@cache
def multiple(dtype: torch.dtype) -> int:
    """The number of channels that are computed together; where fewer are left, the others are zeros."""
    return library(LIBRARIES[dtype]).multiple()


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


def filled(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One number per channel in float32, with zeros up to the `multiple` for features of a type."""
    return functional.pad(values.float(), (0, -len(values) % multiple(dtype)))


def packed(stencils: Tensor, dtype: torch.dtype, transposed: bool = False) -> Tensor:
    """Stencils (C, C, 3, 3), or those of the transposed convolution, in the type of the features and in the order of
    its kernels: that of ``convolution.h``, or of ``matrix_tiles.h`` and ``dot_products.h``."""
    with_zero = functional.pad(stencils.detach().to(dtype).flatten(), (0, 1))
    return with_zero.index_select(0, _order(len(stencils), dtype, transposed))


@cache
def _order(channels: int, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Where the numbers of `packed` stencils stand among the stencils; those that do not exist, for channels up to the
    `multiple`, after the last."""
    with ordinary_tensors():
        last = SIDE**2 * channels**2
        places = torch.arange(last).view(channels, channels, SIDE, SIDE)
        places = transposed_stencil(places) if transposed else places
        if dtype == torch.float32:
            return (convolutions.in_order(places + 1) - 1) % (last + 1)
        return _order_of_pairs(places, last)


def _order_of_pairs(places: Tensor, last: int) -> Tensor:
    """The order of ``matrix_tiles.h`` and ``dot_products.h``."""
    channels = len(places)
    more = -channels % 16
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
        before, x: (N, C, H, W) in float32 or bfloat16, channels innermost in memory; None where α is zero.

    Returns:
        all states from x on, and K1 s_k for every layer, as `layers_backward` takes both
    """
    states = [x, *(torch.empty_like(x) for _ in block)]
    common, _arrays = _common(x, block, scheme)
    size = _function(x.dtype, "kept_size", 1)(ctypes.byref(common))
    kept = [x.new_empty(len(x), size) for _ in block]
    before = before if before is not None else x
    _function(x.dtype, "layers", 3)(ctypes.byref(common), _pointers([before, *states]), _pointers(kept))
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
    x, wide = states[0], len(transposed[0].scale)
    taps, channels = (SIDE, SIDE, wide, wide), x.shape[1]
    dx, second = torch.empty_like(x), torch.empty_like(x) if with_second else None
    totals = x.new_empty(len(kept), 2 * (wide + math.prod(taps)), dtype=torch.float32)
    common, _arrays = _common(x, transposed, scheme)
    # the states begin with the one before x, whose gradient does not need it
    given = _pointers([x, *states[: len(kept)]]), _pointers(kept), _pointers(gradients)
    _function(x.dtype, "layers_backward", 6)(ctypes.byref(common), *given, _pointers([dx, second]), totals.data_ptr())
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
def _function(dtype: torch.dtype, name: str, num: int) -> Callable[..., int]:
    """A function of the library for features of a type, with so many pointers as arguments."""
    function = getattr(library(LIBRARIES[dtype]), name)
    function.argtypes, function.restype = (P,) * num, N
    return function
