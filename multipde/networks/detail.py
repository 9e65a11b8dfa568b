"""The detail level: a network on a coarse mesh that takes finer images, through an opening composed with their mean."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multipde.mesh.modes import copied, eval_mode, first_input, hooked, ordinary_tensors
from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.reparametrize import (
    bake,
    composed_layers,
    detail_of,
    stencil_layers,
    stencil_parametrization,
    stored_stencils,
)
from multipde.mesh.tracing import is_torchs_own
from multipde.networks.model_spec import Model, ModelSpec, check_detail, find_spec


def with_detail(model: Model, detail: int, *, example: Tensor | None = None) -> Model:
    """Make a network that computes the same function for images that are ``detail`` times as large along every axis.

    The convolution that reads the images is composed with the mean over cells of detail pixels per axis. A stencil θ of
    w taps with stride s and padding p becomes one of w·detail taps with stride s·detail and padding p·detail:

        K[detail · t + r] = θ[t] / detail^dim,    0 <= r < detail along every axis

    All other layers stay, BatchNorm included, so that the scores, and the cost of all but the first layer, are those of
    the old network on averaged images. Training then uses the detail of the images that the mean discards. To return to
    detail 1 the repeated taps are summed, θ[t] = Σ_r K[detail · t + r]; this inverts the composition, and discards what
    was trained besides.

    Args:
        model: any module in which a single convolution, with zero or circular padding, reads the images and nothing
            else does. The module that is given is not changed.
        detail: side of the images / side of the mesh, at least 1; it replaces the present detail of the model.
        example: a batch of images for the model, needed where it has no description. Only its shape matters.

    Raises:
        ValueError: the detail is no positive whole number, or the model has no opening that can be composed.
    """
    model = copied(model)
    set_detail(model, detail, example)
    return model


@ordinary_tensors()
def set_detail(model: nn.Module, detail: int, example: Tensor | None = None) -> None:
    """The change of `with_detail`, in place; the description of the model, if it has one, changes with it."""
    check_detail(detail)
    spec, present = find_spec(model), detail_of(model)
    if detail != present:
        found = next(iter(composed_layers(model).values()), None)
        if found is None:
            if example is None and spec is None:
                raise ValueError("example must be given for a model without a description, got None")
            shape = (2, spec.in_channels, *spec.sizes) if spec and example is None else example.shape  # pyright: ignore
            found = opening_of(model, shape)
        common = math.gcd(present, detail)
        _average_back(model, found, present // common)
        _compose(found, detail // common)
    if spec is not None and spec.detail != detail:
        model.multipde_spec = spec.on_mesh(spec.size, detail)  # pyright: ignore[reportArgumentType]


def keeps_function(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a conversion only composes the opening further, so that the network computes the same as before."""
    return new.detail > old.detail and new.detail % old.detail == 0 and new == old.on_mesh(old.size, new.detail)


def composed_taps(taps: Tensor, detail: int) -> Tensor:
    """The product of a stencil and the mean over detail pixels per axis: (*, *, w, w) to (*, *, w detail, w detail)."""
    for axis in range(2, taps.dim()):
        taps = taps.repeat_interleave(detail, axis)
    return taps / detail ** (taps.dim() - 2)


def averaged_taps(taps: Tensor, detail: int) -> Tensor:
    """The left inverse of `composed_taps`: the sum over the taps that belong to one tap of the coarse stencil."""
    for axis in range(2, taps.dim()):
        taps = taps.unflatten(axis, (-1, detail)).sum(axis + 1)
    return taps


def opening_of(model: nn.Module, shape: Sequence[int]) -> _ConvNd:
    """The one convolution of a model that reads images of a shape; ValueError with the reason where there is none.

    The model is run once on the meta device, which computes only shapes, or where it is if that fails.
    """
    try:
        readers, others = _readers_of(copied(model, shapes_only=True), torch.zeros(*shape, device="meta"))
    except (RuntimeError, TypeError):
        readers, others = _readers_of(model, next(model.parameters()).new_zeros(*shape))
    rule = "detail must be 1 where"
    if others:
        raise ValueError(f"{rule} anything but one convolution reads the images, got {others[0]}")
    if len(readers) != 1:
        raise ValueError(f"{rule} not exactly one convolution reads the images, got {len(readers)}")
    name = readers[0]
    layer: _ConvNd = model.get_submodule(name)  # pyright: ignore[reportAssignmentType]
    shared = sum(p is layer.weight for m in model.modules() for p in m._parameters.values() if p is not None) > 1
    plain = isinstance(layer._parameters.get("weight"), nn.Parameter) or stencil_parametrization(layer)
    if not is_torchs_own(layer):  # padding and stencil cannot be composed with a mean
        raise ValueError(f"{rule} the opening has a forward of its own, got {type(layer).__name__} in {name!r}")
    if layer.padding_mode not in ("zeros", "circular"):
        raise ValueError(f"{rule} the padding of the opening is neither zeros nor circular, got {layer.padding_mode!r}")
    if any(d != 1 for d in layer.dilation):
        raise ValueError(f"{rule} the opening is dilated, got dilation {tuple(layer.dilation)} in {name!r}")
    if layer.padding == "same" and any(w % 2 == 0 for w in layer.kernel_size):
        raise ValueError(f"{rule} the padding of the opening has two unequal sides, got 'same' in {name!r}")
    if shared or not plain:
        raise ValueError(f"{rule} the stencils of the opening are shared or parametrised, got such ones in {name!r}")
    return layer


def _readers_of(model: nn.Module, example: Tensor) -> tuple[list[str], list[str]]:
    """The names of the convolutions that are called with the images, and the other operations that read them."""
    readers: list[str] = []
    example = example.to(next(model.parameters(), example).dtype)
    watch, layers = _Watch(example), {m: name for name, m in model.named_modules() if isinstance(m, _ConvNd)}

    def enter(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not isinstance(layer, _ConvTransposeNd) and first_input(inputs, named) is example:
            readers.append(layers[layer])  # pyright: ignore[reportArgumentType]
            watch.is_inside = True

    def leave(layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        watch.is_inside = False

    before = (layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers)
    after = (layer.register_forward_hook(leave) for layer in layers)
    with hooked(before), hooked(after), eval_mode(model), torch.no_grad(), watch:
        model(example)
    return readers, watch.others


class _Watch(TorchDispatchMode):
    """Records every operation outside the opening that reads the images or a view of them."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images, self.others, self.is_inside = images.untyped_storage()._cdata, [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.is_inside:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if any(t.untyped_storage()._cdata == self.images for t in tensors):
                self.others.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _average_back(model: nn.Module, layer: _ConvNd, factor: int) -> None:
    """Sum the repeated taps; a stencil that is no longer composed gets the mesh of the others of the model."""
    if factor == 1:
        return
    taps = averaged_taps(layer.weight, factor)
    _reshape(layer, taps, [s // factor for s in layer.stride], [p // factor for p in _paddings(layer)])
    layer.detail = detail_of(layer) // factor  # pyright: ignore[reportArgumentType]
    p = next(iter(stored_stencils(model).values()), None)
    if p is not None and layer in stencil_layers(model).values():
        own = StencilParametrization(
            layer.kernel_size, p.mesh_size, p.reference, (1.0,) * len(layer.stride), p.coordinates, p.reaction
        )
        own.to(layer.weight.device, layer.weight.dtype)
        parametrize.register_parametrization(layer, "weight", own)


@torch.no_grad()
def _compose(layer: _ConvNd, factor: int) -> None:
    if factor == 1:
        return
    if stencil_parametrization(layer):
        bake(layer)
    taps = composed_taps(layer.weight, factor)
    _reshape(layer, taps, [s * factor for s in layer.stride], [p * factor for p in _paddings(layer)])
    layer.detail = detail_of(layer) * factor  # pyright: ignore[reportArgumentType]


def _reshape(layer: _ConvNd, taps: Tensor, stride: list[int], padding: list[int]) -> None:
    layer.weight = nn.Parameter(taps.detach(), requires_grad=layer.weight.requires_grad)
    layer.kernel_size, layer.stride, layer.padding = tuple(taps.shape[2:]), tuple(stride), tuple(padding)
    layer._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]


def _paddings(layer: _ConvNd) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        return tuple(w // 2 if layer.padding == "same" else 0 for w in layer.kernel_size)
    return layer.padding
