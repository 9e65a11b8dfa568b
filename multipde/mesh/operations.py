"""How the operations of torch move the pixels of an input: every axis of every tensor is labelled by its factors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

NO_MESH, LOST, FREQUENCIES = -1, -2, -10


@dataclass(frozen=True)
class Factor:
    """A factor of an axis of a tensor: ``size`` indices along an axis of the input, ``stride`` of its pixels apart.

    ``axis`` is NO_MESH for batch and channels, LOST where an operation has mixed positions, and FREQUENCIES - k for the
    frequencies along axis k of the input. A flattened axis has several factors, of which the last varies fastest.
    """

    size: int
    axis: int = NO_MESH
    stride: float = 1.0
    is_exact: bool = True


Axis = tuple[Factor, ...]
Known = dict[tuple[int, int], float]
"""The strides that have occurred so far, by axis of the input and number of pixels."""


def label(x: Tensor, axes: Sequence[Axis]) -> None:
    x.mesh_axes = tuple(axes)  # pyright: ignore[reportAttributeAccessIssue]


def axes_of(x: Tensor) -> tuple[Axis, ...]:
    found = getattr(x, "mesh_axes", None)
    return tuple((Factor(s),) for s in x.shape) if found is None or len(found) != x.dim() else found


def _size(axis: Axis) -> int:
    return math.prod(f.size for f in axis)


def single(axis: Axis) -> Factor | None:
    """The one factor of an axis that is not trivial; None if there are several."""
    wide = [f for f in axis if f.size > 1] or [f for f in axis if f.axis >= 0] or list(axis)
    return wide[0] if len(wide) == 1 else None


def scaled(known: Known, axis: Axis, size: int, factor: float) -> Axis:
    """The axis after an operation of a stride; what it makes of an axis with several factors is lost."""
    f = single(axis)
    if f is None:
        return (Factor(size, NO_MESH if factor == 1 and size == _size(axis) else LOST),)
    new = replace(f, size=size, stride=f.stride * factor)
    if new.axis >= 0 and new.is_exact:
        known.setdefault((new.axis, size), new.stride)
    return (new,)


def resampled(known: Known, axis: Axis, size: int) -> Axis:
    """The axis after an interpolation or adaptive mean; a size that occurred before has the same mesh again."""
    f, old = single(axis), _size(axis)
    if old == size:
        return axis
    if f is None or f.axis < 0 or size == 1:
        return (Factor(size, NO_MESH if size == 1 or (f and f.axis == NO_MESH) else LOST),)
    if old % size == 0 or size % old == 0:
        return scaled(known, axis, size, old / size)
    again = known.get((f.axis, size))
    return (Factor(size, f.axis, f.stride * old / size if again is None else again, again is not None),)


def broadcast(out: Tensor, inputs: Sequence[Tensor]) -> list[Axis]:
    """The rule of operations that act pixel by pixel; an axis that has another size than all inputs is lost."""
    axes: list[Axis] = []
    for i in range(1, out.dim() + 1):
        own = [
            axes_of(t)[-i] for t in inputs if hasattr(t, "mesh_axes") and t.dim() >= i and t.shape[-i] == out.shape[-i]
        ]
        own.sort(key=lambda axis: (all(f.axis == NO_MESH for f in axis), not all(f.is_exact for f in axis)))
        unmeshed = any(t.dim() >= i and t.shape[-i] == out.shape[-i] for t in inputs)
        axes.append(own[0] if own else (Factor(out.shape[-i], NO_MESH if unmeshed or out.shape[-i] == 1 else LOST),))
    return axes[::-1]


def _convolution(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    x, stride, transposed = args[0], args[3], args[6]
    axes = axes_of(x)
    steps = list(stride) * (x.dim() - 2) if len(stride) == 1 else stride
    moved = [
        scaled(known, axis, size, 1 / s if transposed else s)
        for axis, size, s in zip(axes[2:], out.shape[2:], steps, strict=True)
    ]
    return [axes[0], (Factor(out.shape[1]),), *moved]


def _pool(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes, dim = axes_of(args[0]), len(args[1])
    steps = (args[2] if len(args) > 2 else ()) or args[1]
    moved = [scaled(known, a, s, step) for a, s, step in zip(axes[-dim:], out.shape[-dim:], steps, strict=True)]
    return [*axes[:-dim], *moved]


def _resample(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    return [resampled(known, axis, size) for axis, size in zip(axes_of(args[0]), out.shape, strict=True)]


def _pad(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    return [scaled(known, axis, size, 1) for axis, size in zip(axes_of(args[0]), out.shape, strict=True)]


def _new(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    """An empty tensor made like another is filled with it and its border, as circular padding is; if it is more than
    twice as large, nobody knows."""
    axes = axes_of(args[0])
    if len(axes) != out.dim():
        return broadcast(out, ())
    grown = [size - _size(axis) for axis, size in zip(axes, out.shape, strict=True)]
    return [
        scaled(known, axis, size, 1) if 0 <= more < _size(axis) else (Factor(size, LOST),)
        for axis, size, more in zip(axes, out.shape, grown, strict=True)
    ]


def _shuffle(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes = axes_of(args[0])
    moved = [scaled(known, a, s, _size(a) / s) for a, s in zip(axes[-2:], out.shape[-2:], strict=True)]
    return [*axes[:-3], (Factor(out.shape[-3]),), *moved]


def _slice(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes = list(axes_of(args[0]))
    dim, step = (args[1] if len(args) > 1 else 0), (args[4] if len(args) > 4 else 1)
    if out.shape[dim] != args[0].shape[dim]:
        axes[dim] = scaled(known, axes[dim], out.shape[dim], step)
    return axes


def _view(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes = axes_of(args[0])
    if tuple(args[0].shape) == tuple(out.shape):
        return list(axes)
    left = [f for axis in axes for f in axis if f.size > 1]
    made: list[Axis] = []
    for size in out.shape:
        taken: list[Factor] = []
        while (rest := size // math.prod(f.size for f in taken)) > 1:
            f = left.pop(0)
            if f.size > rest and f.size % rest == 0:  # the outer part of a factor that is divided
                inner = f.size // rest
                left.insert(0, replace(f, size=inner))
                f = replace(f, size=rest, stride=f.stride * inner)
            elif rest % f.size:
                return [(Factor(s, LOST),) for s in out.shape]
            last = taken[-1] if taken else None
            is_next = last is not None and last.axis == f.axis and last.stride == f.stride * f.size
            if last is not None and (is_next or last.axis == f.axis == NO_MESH):
                taken[-1] = replace(f, size=last.size * f.size)
            else:
                taken.append(f)
        made.append(tuple(taken) or (Factor(1),))
    return made


def _permute(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes = axes_of(args[0])
    return [axes[d] for d in args[1]]


def _transpose(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes = list(axes_of(args[0]))
    a, b = args[1:3] if len(args) > 2 else (0, -1)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _unsqueeze(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    axes, dim = list(axes_of(args[0])), args[1] % out.dim()
    return [*axes[:dim], (Factor(1),), *axes[dim:]]


def _view_as_real(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    return [*axes_of(args[0]), (Factor(2),)]


def _view_as_complex(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    return list(axes_of(args[0])[:-1])


def _squeeze(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    x, dims = args[0], _dims(args[0], args[1] if len(args) > 1 else None)
    return [axis for d, axis in enumerate(axes_of(x)) if d not in dims or x.shape[d] > 1]


def _select(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    dims = _dims(args[0], args[1] if len(args) > 1 else 0)
    return [axis for d, axis in enumerate(axes_of(args[0])) if d not in dims]


def _reduce(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    dims = _dims(args[0], args[1] if len(args) > 1 else kwargs.get("dim"))
    if out.dim() < args[0].dim():
        return [axis for d, axis in enumerate(axes_of(args[0])) if d not in dims]
    return [(Factor(1),) if d in dims else axis for d, axis in enumerate(axes_of(args[0]))]


def _dims(x: Tensor, dims: int | Sequence[int] | None) -> set[int]:
    chosen = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return {d % x.dim() for d in chosen}


def _stack(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    dim = (args[1] if len(args) > 1 else 0) % out.dim()
    axes = broadcast(args[0][0], args[0])
    return [*axes[:dim], (Factor(out.shape[dim]),), *axes[dim:]]


def _cat(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    parts = [t for t in args[0] if t.dim() == out.dim()]
    axes = broadcast(out, parts)
    has_mesh = any(f.axis != NO_MESH for t in parts for f in axes_of(t)[dim])
    axes[dim] = (Factor(out.shape[dim], LOST if has_mesh else NO_MESH),)
    return axes


def _product(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    """Products of matrices: rows of the first factor, columns of the second."""
    a, b = args[-2:]
    rows, columns = axes_of(a), axes_of(b)
    return [*rows[:-1], columns[-1]]


def _query(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    return [*axes_of(args[0])[:-1], (Factor(out.shape[-1]),)]


def _fourier(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    """The axes of a Fourier transform become frequencies; those of an inverse one are pixels again."""
    dims, axes = _dims(args[0], args[1]), list(axes_of(args[0]))
    for d in dims:
        f = single(axes[d])
        if f is not None and (f.axis >= 0 or f.axis <= FREQUENCIES):
            axes[d] = (replace(f, size=out.shape[d], axis=FREQUENCIES - f.axis),)
        else:
            axes[d] = (Factor(out.shape[d], NO_MESH if f is not None and f.axis == NO_MESH else LOST),)
    return axes


def _ordered(known: Known, out: Tensor, args: Any, kwargs: Any) -> list[Axis]:
    """Values that are sorted along an axis stand at no place of the mesh any more."""
    dims = _dims(args[0], kwargs.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1))
    return [(Factor(out.shape[d], LOST),) if d in dims else axis for d, axis in enumerate(axes_of(args[0]))]


Rule = Callable[[Known, Tensor, Any, Any], list[Axis]]
RULES: dict[Rule, str] = {
    _convolution: "convolution",
    _pad: "constant_pad_nd " + " ".join(f"{m}_pad{d}d" for m in ("reflection", "replication") for d in (1, 2, 3)),
    _new: "new_empty new_zeros new_full new_ones",
    _pool: "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d",
    _resample: " ".join(f"{p}adaptive_{m}_pool{d}d" for p in ("", "_") for m in ("avg", "max") for d in (1, 2, 3))
    + " upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
    + " _upsample_bicubic2d_aa upsample_nearest1d upsample_nearest2d upsample_nearest3d",
    _shuffle: "pixel_shuffle pixel_unshuffle",
    _slice: "slice",
    _view: "view _unsafe_view reshape _reshape_alias",
    _permute: "permute",
    _transpose: "transpose t",
    _unsqueeze: "unsqueeze",
    _view_as_real: "view_as_real",
    _view_as_complex: "view_as_complex",
    _squeeze: "squeeze",
    _select: "select unbind",
    _reduce: "mean sum amax amin max min var std var_mean logsumexp argmax",
    _fourier: "_fft_c2c _fft_r2c _fft_c2r",
    _ordered: "sort",
    _stack: "stack",
    _cat: "cat",
    _product: "mm bmm addmm baddbmm",
    _query: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math"
    + " _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention",
}
"""The rule of every operation of torch that moves positions; all others act pixel by pixel."""

RULE_OF = {name: rule for rule, names in RULES.items() for name in names.split()}
