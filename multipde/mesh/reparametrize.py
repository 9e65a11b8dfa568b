"""Reparametrisation of any module, so that its convolutions know their mesh size, and the way back."""

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from multipde.mesh.modes import check_unshared, check_unwrapped, ordinary_tensors
from multipde.mesh.parametrization import StencilParametrization, register
from multipde.mesh.separable import per_axis, precise
from multipde.mesh.tracing import REWRITTEN, tell_unmoved, trace_meshes, uses_own_weight


def stencil_layers(module: nn.Module) -> dict[str, _ConvNd]:
    """The convolutions of a module that are derivative stencils, by name: Conv1d/2d/3d of odd width, not 1x1."""
    layers, reasons = _convolutions(module), _reasons(module)
    return {name: layer for name, layer in layers.items() if not reasons[name]}


def skipped_layers(module: nn.Module) -> dict[str, str]:
    """The convolutions of a module that are no derivative stencils, by name, with the reason, such as "1x1".

    An opening composed with a mean is not among them: `convert` moves it as the stencil that it is on the mesh. Where a
    layer stands in the network is known only after `reparametrize` with an example.
    """
    composed = composed_layers(module)
    return {name: reason for name, reason in _reasons(module).items() if reason and name not in composed}


def detail_of(module: nn.Module) -> int:
    """Image pixels per mesh cell along every axis: above 1 for a module with a composed opening, see `with_detail`."""
    return max((getattr(layer, "detail", 1) for layer in _convolutions(module).values()), default=1)


def composed_layers(module: nn.Module) -> dict[str, _ConvNd]:
    """The opening of a module by name if it is composed with a mean, see `with_detail`; empty otherwise."""
    return {name: layer for name, layer in _convolutions(module).items() if detail_of(layer) > 1}


def stencil_parametrization(layer: nn.Module) -> StencilParametrization | None:
    """The StencilParametrization of a layer's weight, None for a plain layer or one parametrised otherwise."""
    found = _parametrizations_of(layer)
    return found[0] if len(found) == 1 and isinstance(found[0], StencilParametrization) else None


def stored_parameter(layer: nn.Module) -> nn.Parameter:
    """The parameter of a layer's stencils that an optimizer updates: the weight, or p in a reparametrised layer."""
    if stencil_parametrization(layer):
        return layer.parametrizations.weight.original  # pyright: ignore
    return layer.weight  # pyright: ignore[reportReturnType]


def stored_stencils(module: nn.Module) -> dict[Tensor, StencilParametrization]:
    """The stored parameters of the reparametrised stencils of a module, each with its parametrization."""
    layers = stencil_layers(module).values()
    return {stored_parameter(layer): p for layer in layers if (p := stencil_parametrization(layer))}


@ordinary_tensors()
def reparametrize(
    module: nn.Module,
    mesh_size: float | Sequence[float],
    *,
    reference: float | Sequence[float] | None = None,
    coordinates: str = "stencil",
    reaction: str = "121",
    stride: float = 1,
    example: Tensor | None = None,
) -> nn.Module:
    """Give every stencil of a module a mesh size, in place; the function that the module computes does not change.

    Afterwards `set_mesh_size` moves the module to another mesh. The parameter objects are kept (their names then end in
    ``.parametrizations.weight.original``), so that an existing optimizer can be used further; its momentum stays valid
    only in "stencil" coordinates with the present mesh as reference. `skipped_layers` lists the convolutions that do
    not change, with the reason.

    A change of the mesh keeps the differential operator of ordinary, grouped and dilated convolutions. Two errors
    remain. A convolution of stride s puts its outputs at every s-th pixel centre, which is (s-1)h/2 away from the
    centres of the coarser cells, so its output is shifted by another distance on another mesh. Zero padding is wrong by
    h^-k for a term of order k in the p outermost pixels, unless the features vanish at the border.

    Args:
        mesh_size: mesh size of the module's input (1/size for images on the unit square), one number or one per axis.
        reference: mesh size to which the stored parameters belong; the present one if left out.
        coordinates: what is stored, ``"stencil"`` or ``"beta"``, see `StencilParametrization`.
        reaction: averaging taps of the term of order zero, ``"121"`` or ``"141"``, see `StencilBasis`.
        stride: mesh size in front of the module's first layer in units of ``mesh_size``, for part of a larger network.
        example: a batch for the module, through which its layers are traced, see `trace_meshes`: how far strides and
            pools coarsen the mesh in front of each layer, and which layers are no stencils on the mesh of the images.
            These are left alone. Without an example all layers are taken to be on the mesh of the input.

    Raises:
        ValueError: the module has no stencil, is reparametrised already or wrapped, or a mesh size is not positive; two
            layers share a weight; the parameters of the reference do not give the stencils in their precision.

    Reference: Ruthotto & Haber (2018), section 2.2.
    """
    check_unwrapped(module)
    for layer in _convolutions(module).values():
        vars(layer).pop("left_alone", None)
    layers = stencil_layers(module)
    check_movable(module, layers)
    done = [name for name, layer in layers.items() if stencil_parametrization(layer)]
    if done:
        raise ValueError(f"module must be plain, got {done[0]!r} reparametrised already; use set_mesh_size or bake")
    check_unshared(module, map(stored_parameter, layers.values()))
    traced = trace_meshes(module, example) if example is not None else {}
    tell_unmoved(traced)
    reasons = {name: found for name, found in traced.items() if isinstance(found, str) and name in layers}
    layers = {name: layer for name, layer in layers.items() if name not in reasons}
    check_movable(module, layers, reasons)
    made = {}
    for name, layer in layers.items():
        dim, strides = len(layer.kernel_size), traced.get(name, (1.0,) * len(layer.kernel_size))
        h = [float(v) for v in per_axis(mesh_size, dim, "mesh_size")]
        ref = h if reference is None else [float(v) for v in per_axis(reference, dim, "reference")]
        spacing = [stride * float(s) * d for s, d in zip(strides, layer.dilation, strict=True)]
        made[name] = StencilParametrization(layer.kernel_size, h, ref, spacing, coordinates, reaction)
        made[name].to(layer.weight.device, layer.weight.dtype.to_real())
        made[name].parameter_of(layer.weight.detach(), name)  # all errors before any change
    _warn_of_pixels(mesh_size)
    for name, reason in reasons.items():
        module.get_submodule(name).left_alone = reason  # pyright: ignore[reportArgumentType]
    for name, layer in layers.items():
        register(layer, made[name])
    return module


@ordinary_tensors()
def set_mesh_size(module: nn.Module, mesh_size: float | Sequence[float]) -> None:
    """Move a reparametrised module to another mesh, in place: its stencils change, its parameters do not.

    Args:
        mesh_size: new mesh size of the module's input (1/size for images on the unit square), one number or one per
            axis; the mesh sizes of deeper layers change by the same factor.

    Raises:
        ValueError: the module is not reparametrised or has a detail, or a mesh size is not positive.
    """
    found = _parametrizations(module)
    targets = [tuple(float(h) for h in per_axis(mesh_size, len(p.width), "mesh_size")) for p in found.values()]
    _warn_of_pixels(mesh_size)
    for p, target in zip(found.values(), targets, strict=True):
        p.check_move(target, p.reference)
        if target != p.mesh_size and composed_layers(module):
            raise ValueError(f"module must have detail 1, got {detail_of(module)}; convert moves it with its opening")
    for p, target in zip(found.values(), targets, strict=True):
        p.move(target, p.reference)


@ordinary_tensors()
@torch.no_grad()
def set_reference(module: nn.Module, reference: float | Sequence[float]) -> None:
    """Change the reference mesh of the stored parameters, in place: the parameters change, the stencils do not.

    Args:
        reference: mesh size of the module's input to which the parameters belong from now on.

    Raises:
        ValueError: the module is not reparametrised, a mesh size is not positive, or the parameters of such a mesh do
            not give the stencils in the precision of the weights.
    """
    found = _parametrizations(module)
    targets = [[float(h) for h in per_axis(reference, len(p.width), "reference")] for p in found.values()]
    check_unshared(module, stored_stencils(module))
    spec: Any = getattr(module, "multipde_spec", None)
    described = spec and spec.with_reference(targets[0])  # all errors before any change
    moved = {}
    for (name, p), target in zip(found.items(), targets, strict=True):
        new, stencil = copy.deepcopy(p), module.get_submodule(name).weight.detach()  # pyright: ignore
        new.move(p.mesh_size, target)
        moved[name] = new.parameter_of(stencil, name)
    for (name, p), target in zip(found.items(), targets, strict=True):
        p.move(p.mesh_size, target)
        stored_parameter(module.get_submodule(name)).copy_(moved[name])
    if described:
        module.multipde_spec = described


def mesh_size(module: nn.Module) -> float | tuple[float, ...]:
    """The mesh size of a reparametrised module's input: one number, or a tuple with one per axis where they differ.

    Raises:
        ValueError: the module is not reparametrised.
    """
    h = next(iter(_parametrizations(module).values())).mesh_size
    return h[0] if len(set(h)) == 1 else h


def coefficients(module: nn.Module) -> dict[str, Tensor]:
    """The coefficients β = A(h)⁻¹ W of every stencil W, by name of the layer, in physical units on the layer's mesh.

    Shape:
        - values: (out channels, in channels / groups, *width), float64 on the CPU; index (i, j) of the last axes is the
          order of the derivative, see `StencilBasis`

    Raises:
        ValueError: the module is not reparametrised.
    """
    return {
        name: p.basis().to_beta(precise(module.get_submodule(name).weight.detach()))  # pyright: ignore
        for name, p in _parametrizations(module).items()
    }


@ordinary_tensors()
def bake(module: nn.Module) -> nn.Module:
    """Turn reparametrised layers into plain convolutions with the stencils of the present mesh; return the same module.

    Raises:
        ValueError: the module is not reparametrised, or two layers share a parameter.
    """
    check_unshared(module, stored_stencils(module))
    for name in _parametrizations(module):
        layer = module.get_submodule(name)
        cls = type(layer)  # deep copies share it, and torch deletes its property `weight`
        own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        layer.__class__ = type(cls.__name__, cls.__bases__, own)  # pyright: ignore
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def check_movable(module: nn.Module, layers: Mapping[str, _ConvNd], reasons: Mapping[str, str] | None = None) -> None:
    """Raise ValueError unless there is a stencil to be moved, with the reasons why the convolutions are none."""
    if layers:
        return
    why = Counter((skipped_layers(module) | dict(reasons or {})).values())
    found = ", ".join(f"{num} {reason}" for reason, num in why.most_common()) or "no convolution of torch.nn at all"
    raise ValueError(f"module must have a convolution with odd stencils wider than one on its mesh, got {found}")


def mesh_parametrizations(module: nn.Module) -> dict[str, StencilParametrization]:
    """The StencilParametrizations of a module by name of the layer; ValueError if another one is beside them."""
    found = {}
    for name, layer in _convolutions(module).items():
        if p := stencil_parametrization(layer):
            found[name] = p
        elif any(isinstance(other, StencilParametrization) for other in _parametrizations_of(layer)):
            raise ValueError(
                f"layers must have their mesh size alone, got {name!r} parametrised otherwise too; "
                "use torch.nn.utils.parametrize.remove_parametrizations"
            )
    return found


def _parametrizations(module: nn.Module) -> dict[str, StencilParametrization]:
    if not (found := mesh_parametrizations(module)):
        raise ValueError("module must be reparametrised, got a plain one; use reparametrize(module, mesh_size) first")
    return found


def _parametrizations_of(layer: nn.Module) -> list[nn.Module]:
    return list(layer.parametrizations.weight) if parametrize.is_parametrized(layer, "weight") else []  # pyright: ignore


def _convolutions(module: nn.Module) -> dict[str, _ConvNd]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _ConvNd)}


def _reasons(module: nn.Module) -> dict[str, str]:
    """For every convolution why it is no stencil, empty if it is one."""
    layers = _convolutions(module)
    dims = Counter(len(layer.kernel_size) for layer in layers.values())
    dim = max(dims, key=lambda d: (dims[d], d), default=0)  # of the images: a few others attend along channels
    return {name: _reason_to_skip(layer, dim) for name, layer in layers.items()}


def _reason_to_skip(layer: _ConvNd, dim: int) -> str:
    if isinstance(layer, _ConvTransposeNd):
        return "transposed"
    if (detail := detail_of(layer)) > 1:
        return f"composed with the mean of {detail} pixels per axis"
    if all(w == 1 for w in layer.kernel_size):
        return "1x1"
    if any(w % 2 == 0 for w in layer.kernel_size):
        return "even width"
    if left_alone := vars(layer).get("left_alone"):
        return left_alone
    if stencil_parametrization(layer):
        return ""
    if (weight := layer._parameters.get("weight")) is not None and is_lazy(weight):
        return "not initialised yet"
    if not isinstance(weight, nn.Parameter):
        return "parametrised otherwise"
    if len(layer.kernel_size) != dim:
        return f"{len(layer.kernel_size)}-D in a {dim}-D network"
    return "" if uses_own_weight(layer) else REWRITTEN


def _warn_of_pixels(mesh_size: float | Sequence[float]) -> None:
    largest = max(mesh_size) if isinstance(mesh_size, Sequence) else mesh_size
    if largest > 1:
        warnings.warn(f"mesh_size should be 1 / size in pixels, got {largest}; use 1 / {largest:g}", stacklevel=4)
