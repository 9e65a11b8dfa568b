"""Reparametrisation of any module, so that its convolutions know their mesh size, and the way back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from multipde.mesh.modes import eval_mode
from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.separable import per_axis
from multipde.mesh.stencil import check_mesh_size


def stencil_layers(module: nn.Module) -> dict[str, _ConvNd]:
    """The convolutions of a module that are derivative stencils, by name: Conv1d/2d/3d of odd width, not 1x1."""
    return {name: layer for name, layer in _convolutions(module).items() if not _reason_to_skip(layer)}


def skipped_layers(module: nn.Module) -> dict[str, str]:
    """The convolutions of a module that are no derivative stencils, by name, with the reason, such as "1x1".

    An opening composed with a mean is not among them: `convert` moves it as the stencil that it is on the mesh.
    """
    composed = composed_layers(module)
    reasons = {n: _reason_to_skip(layer) for n, layer in _convolutions(module).items() if n not in composed}
    return {name: reason for name, reason in reasons.items() if reason}


def detail_of(module: nn.Module) -> int:
    """Image pixels per mesh cell along every axis: above 1 for a module with a composed opening, see `with_detail`."""
    return max((getattr(layer, "detail", 1) for layer in _convolutions(module).values()), default=1)


def composed_layers(module: nn.Module) -> dict[str, _ConvNd]:
    """The opening of a module by name if it is composed with a mean, see `with_detail`; empty otherwise."""
    return {name: layer for name, layer in _convolutions(module).items() if detail_of(layer) > 1}


def stencil_parametrization(layer: nn.Module) -> StencilParametrization | None:
    """The StencilParametrization of a layer's weight, None for a plain layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    last = layer.parametrizations.weight[-1]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    return last if isinstance(last, StencilParametrization) else None


def stored_parameter(layer: nn.Module) -> nn.Parameter:
    """The parameter of a layer's stencils that an optimizer updates: the weight, or p in a reparametrised layer."""
    if stencil_parametrization(layer):
        return layer.parametrizations.weight.original  # pyright: ignore
    return layer.weight  # pyright: ignore[reportReturnType]


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
    not change: 1x1, transposed or of even width.

    A change of the mesh keeps the differential operator of ordinary, grouped and dilated convolutions. Two errors of
    order h remain. A convolution of stride s puts its outputs at every s-th pixel centre, which is (s-1)h/2 away from
    the centres of the coarser cells, so its output is shifted by another distance on another mesh; and zero padding
    acts on a border of p pixels, whose width is proportional to h.

    Args:
        mesh_size: mesh size of the module's input (1/size for images on the unit square), one number or one per axis.
        reference: mesh size to which the stored parameters belong; the present one if left out.
        coordinates: what is stored, ``"stencil"`` or ``"beta"``, see `StencilParametrization`.
        reaction: averaging taps of the term of order zero, ``"121"`` or ``"141"``, see `StencilBasis`.
        stride: mesh size in front of the module's first layer in units of ``mesh_size``, for part of a larger network.
        example: a batch for the module, which is run once to measure how far pooling and strides coarsen the mesh in
            front of each layer; without it all layers are taken to be on the mesh of the input.

    Raises:
        ValueError: the module has no stencil or is reparametrised already, two layers share a weight, or a mesh size is
            not positive.

    Reference: Ruthotto & Haber (2018), section 2.2.
    """
    layers = stencil_layers(module)
    if not layers:
        raise ValueError("module must have a convolution with odd stencils wider than one, got none")
    done = [name for name, layer in layers.items() if stencil_parametrization(layer)]
    if done:
        raise ValueError(f"module must be plain, got {done[0]!r} reparametrised already; use set_mesh_size or bake")
    check_unshared(layers)
    strides = _trace_strides(module, layers, example) if example is not None else {}
    made = {}
    for name, layer in layers.items():
        dim = len(layer.kernel_size)
        h = [float(v) for v in per_axis(mesh_size, dim, "mesh_size")]
        ref = h if reference is None else [float(v) for v in per_axis(reference, dim, "reference")]
        traced = strides.get(name, (1.0,) * dim)
        spacing = [stride * s * d for s, d in zip(traced, layer.dilation, strict=True)]
        made[name] = StencilParametrization(layer.kernel_size, h, ref, spacing, coordinates, reaction)
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", made[name].to(layer.weight.device, layer.weight.dtype))
    return module


def set_mesh_size(module: nn.Module, mesh_size: float | Sequence[float]) -> None:
    """Move a reparametrised module to another mesh, in place: its stencils change, its parameters do not.

    Args:
        mesh_size: new mesh size of the module's input (1/size for images on the unit square), one number or one per
            axis; the mesh sizes of deeper layers change by the same factor.

    Raises:
        ValueError: the module is not reparametrised, or a mesh size is not positive.
    """
    found = _parametrizations(module)
    targets = [tuple(float(h) for h in per_axis(mesh_size, len(p.width), "mesh_size")) for p in found.values()]
    check_mesh_size(targets[0])
    for p, target in zip(found.values(), targets, strict=True):
        p.move(target, p.reference)


@torch.no_grad()
def set_reference(module: nn.Module, reference: float | Sequence[float]) -> None:
    """Change the reference mesh of the stored parameters, in place: the parameters change, the stencils do not.

    Args:
        reference: mesh size of the module's input to which the parameters belong from now on.

    Raises:
        ValueError: the module is not reparametrised, or a mesh size is not positive.
    """
    for name, p in _parametrizations(module).items():
        layer = module.get_submodule(name)
        stencil = layer.weight.detach().clone()  # pyright: ignore
        p.move(p.mesh_size, [float(h) for h in per_axis(reference, len(p.width), "reference")])
        stored_parameter(layer).copy_(p.right_inverse(stencil))


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
        name: p.basis().to_beta(module.get_submodule(name).weight.detach().to("cpu", torch.float64))  # pyright: ignore
        for name, p in _parametrizations(module).items()
    }


def bake(module: nn.Module) -> nn.Module:
    """Turn reparametrised layers into plain convolutions with the stencils of the present mesh; return the same module.

    Raises:
        ValueError: the module is not reparametrised.
    """
    for name in _parametrizations(module):
        layer = module.get_submodule(name)
        cls = type(layer)  # deep copies share it, and torch deletes its property `weight`
        own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        layer.__class__ = type(cls.__name__, cls.__bases__, own)  # pyright: ignore
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def _parametrizations(module: nn.Module) -> dict[str, StencilParametrization]:
    found = {name: p for name, layer in stencil_layers(module).items() if (p := stencil_parametrization(layer))}
    if not found:
        raise ValueError("module must be reparametrised, got a plain one; use reparametrize(module, mesh_size) first")
    return found


def _convolutions(module: nn.Module) -> dict[str, _ConvNd]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _ConvNd)}


def _reason_to_skip(layer: _ConvNd) -> str:
    if isinstance(layer, _ConvTransposeNd):
        return "transposed"
    if (detail := detail_of(layer)) > 1:
        return f"composed with the mean of {detail} pixels per axis"
    if all(w == 1 for w in layer.kernel_size):
        return "1x1"
    if any(w % 2 == 0 for w in layer.kernel_size):
        return "even width"
    plain = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return "" if plain or stencil_parametrization(layer) else "parametrised otherwise"


def check_unshared(layers: Mapping[str, _ConvNd]) -> None:
    """Raise ValueError if two layers share a weight, which would then be converted twice."""
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        first = owner.setdefault(id(stored_parameter(layer)), name)
        if first != name:
            raise ValueError(f"layers must not share a weight, got {first!r} and {name!r} with the same one")


def _trace_strides(module: nn.Module, layers: Mapping[str, _ConvNd], example: Tensor) -> dict[str, tuple[float, ...]]:
    """The ratio of each layer's mesh size to that of the example, from the size of the layer's first input."""
    sizes: dict[str, tuple[int, ...]] = {}

    def record(name: str):
        def hook(_, inputs):
            sizes.setdefault(name, tuple(inputs[0].shape[2:]))

        return hook

    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    try:
        with eval_mode(module), torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    full = tuple(example.shape[2:])
    kept = {name: size for name, size in sizes.items() if len(size) == len(full)}
    return {name: tuple(map(_nearest_ratio, full, size)) for name, size in kept.items()}


def _nearest_ratio(full: int, size: int) -> float:
    return float(round(full / size)) if size <= full else 1.0 / round(size / full)
