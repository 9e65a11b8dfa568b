"""Whole networks between meshes: stencils, time grid, optimizer state, BatchNorm statistics."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from multipde.mesh.modes import evaluation_mode
from multipde.mesh.reparametrize import (
    bake,
    check_unshared,
    mesh_size,
    stencil_layers,
    stencil_parametrization,
    stored_parameter,
)
from multipde.mesh.separable import per_axis
from multipde.mesh.transfer import check_factor, check_method, transfer_stencil
from multipde.networks.controls import interpolation_matrix
from multipde.networks.dynamics import Block
from multipde.networks.network import PDENet


@dataclass(frozen=True)
class Conversion:
    """A linear map of the parameters of a network; calling it gives the converted network, a new module.

    Because it is linear, momentum moves by the same map, so that a momentum step and the conversion commute: see
    `carry_optimizer_state`.

    Args:
        factor: new size / old size, one number or one per axis.
        method: a key of `multipde.mesh.transfer.METHODS`.
        steps: new numbers of time steps of a `PDENet`, None to keep them.
    """

    factor: float | tuple[float, ...] = 1.0
    method: str = "copy"
    steps: int | tuple[int, ...] | None = None

    def __call__(self, model: nn.Module) -> nn.Module:
        check_method(self.method)
        check_unshared(stencil_layers(model))
        if isinstance(model, PDENet):
            model.check_mesh()
        model = copy.deepcopy(model)
        for layer in stencil_layers(model).values():
            self._move(layer)
        if isinstance(model, PDENet):
            model.config = model.config.on_mesh(self._new_size(model))
            _settle_mesh(model)
            if self.steps is not None:
                model = _with_steps(model, self.steps)
        elif self.steps is not None:
            raise ValueError(f"steps must be left out for a model that is no PDENet, got {self.steps}")
        return model

    @torch.no_grad()
    def _move(self, layer: _ConvNd) -> None:
        dim = len(layer.kernel_size)
        factor = check_factor(self.factor, dim)
        p = stencil_parametrization(layer)
        weight = layer.weight
        if p is None:
            weight.copy_(transfer_stencil(weight, self.method, factor, dim))
            return
        new = transfer_stencil(weight, self.method, factor, dim, p.reaction)
        p.move(
            [h / f for h, f in zip(p.mesh_size, factor, strict=True)],
            [h / f for h, f in zip(p.reference, factor, strict=True)],
        )
        if self.method != "copy":
            stored_parameter(layer).copy_(p.right_inverse(new))

    def _new_size(self, model: PDENet) -> int | tuple[int, ...]:
        factor = check_factor(self.factor, model.config.dim)
        sizes = [s * f for s, f in zip(model.config.sizes, factor, strict=True)]
        if any(abs(s - round(s)) > 1e-6 for s in sizes):
            raise ValueError(f"factor must give a whole number of pixels, got {self.factor} for {model.config.sizes}")
        rounded = tuple(round(s) for s in sizes)
        return rounded[0] if len(set(rounded)) == 1 else rounded


def convert(
    model: nn.Module,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
) -> nn.Module:
    """A trained network for images of another size, as a new module; the given one stays as it is.

    Every stencil is moved by the method; strides, padding, 1x1 and transposed convolutions stay. Statistics of
    BatchNorm are copied: `recalibrate` measures them at the new size.

    Args:
        model: any module, reparametrised or plain.
        size: new image size, one number or one per axis; needs a `PDENet` or a reparametrised module.
        factor: instead of the size, new size / old size: 2 is finer, 0.5 coarser.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``, see `transfer_stencil`; copy if left out.
        steps: of a `PDENet`, one number or one per block; T stays and the controls are interpolated.

    Raises:
        ValueError: both or none of size, factor and steps; a size where the mesh is not known; a size that the
            network cannot have; an unknown method.

    Reference: Ruthotto & Haber (2018), section 2.2; Haber, Ruthotto & Holtham (2017).
    """
    return conversion(model, size=size, factor=factor, method=method, steps=steps)(model)


def conversion(
    model: nn.Module,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
) -> Conversion:
    """The map that `convert` applies, kept for the optimizer state. Arguments and errors as there."""
    if size is not None and factor is not None:
        raise ValueError(f"factor must be left out where size is given, got size={size} and factor={factor}")
    if size is None and factor is None and steps is None:
        raise ValueError("size, factor or steps must be given, got none of them")
    if method is not None:
        check_method(method)
    if size is not None:
        if min(size if isinstance(size, Sequence) else [size]) < 1:
            raise ValueError(f"size must be positive, got {size}")
        factor = _factor_to(model, size)
    moved = 1.0 if factor is None else tuple(factor) if isinstance(factor, Sequence) else float(factor)
    return Conversion(moved, method or "copy", tuple(steps) if isinstance(steps, Sequence) else steps)


def carry_optimizer_state(
    conversion: Conversion,
    old_model: nn.Module,
    old_optimizer: torch.optim.Optimizer,
    new_model: nn.Module,
    new_optimizer: torch.optim.Optimizer,
) -> None:
    """Move an optimizer's state with the network, by parameter name.

    Momentum moves by the linear map of the parameters themselves, v' = L v: then (p - lr v)' = p' - lr v'. An optimizer
    that keeps more than momentum (second moments, which are no linear quantity) is carried for the parameters that the
    conversion leaves as they are; the others start anew.

    Args:
        new_model: what ``conversion(old_model)`` gave.
        new_optimizer: a fresh optimizer of the same kind over the parameters of the new model.
    """
    old = {name: (p, old_optimizer.state.get(p, {})) for name, p in old_model.named_parameters()}
    only_momentum = all(set(state) <= set(LINEAR_STATE) for _, state in old.values())
    linear = [key for key in LINEAR_STATE if only_momentum and _has(old, key)]
    moved = {key: _moved_state(conversion, old_model, old, key) for key in linear}
    for name, p in new_model.named_parameters():
        if only_momentum:
            for key, values in moved.items():  # fused optimizers need the layout of the parameter
                new_optimizer.state[p][key] = torch.empty_like(p).copy_(values[name])
        elif name in old and old[name][1] and torch.equal(p.detach().cpu(), old[name][0].detach().cpu()):
            new_optimizer.state[p] = {
                key: torch.empty_like(p).copy_(v) if isinstance(v, Tensor) and v.shape == p.shape else copy.deepcopy(v)
                for key, v in old[name][1].items()
            }


def _has(old: dict[str, tuple[nn.Parameter, dict]], key: str) -> bool:
    return any(state.get(key) is not None for _, state in old.values())


@torch.no_grad()
def _moved_state(
    conversion: Conversion, model: nn.Module, old: dict[str, tuple[nn.Parameter, dict]], key: str
) -> dict[str, Tensor]:
    """The conversion applied to a copy of the model that holds the momentum in place of the parameters."""
    holder = copy.deepcopy(model)
    for name, p in holder.named_parameters():
        buffer = old[name][1].get(key)
        p.zero_() if buffer is None else p.copy_(buffer)
    return {name: p.detach() for name, p in conversion(holder).named_parameters()}


LINEAR_STATE = ("momentum_buffer", "exp_avg")
"""State of torch's optimizers that is a running mean of gradients."""


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the statistics of every BatchNorm layer anew: cumulative means over the batches.

    Only these statistics change; weights and the training flags stay.

    Args:
        batches: images as the model takes them, a few hundred in all.

    Returns:
        How many layers were measured.

    Raises:
        ValueError: no batch was given.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momentum = [m.momentum for m in norms]
    saved = [copy.deepcopy(m.state_dict()) for m in norms]
    num_batches = 0
    try:
        with evaluation_mode(model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = None
                m.train()
            for images in batches if norms else ():
                model(images)
                num_batches += 1
        if norms and not num_batches:
            raise ValueError("batches must hold at least one batch of images, got none")
    except BaseException:
        for m, state in zip(norms, saved, strict=True):
            m.load_state_dict(state)
        raise
    finally:
        for m, value in zip(norms, momentum, strict=True):
            m.momentum = value
    return len(norms)


def _factor_to(model: nn.Module, size: int | Sequence[int]) -> tuple[float, ...]:
    if isinstance(model, PDENet):
        new = per_axis(size, model.config.dim, "size")
        return tuple(n / s for n, s in zip(new, model.config.sizes, strict=True))
    try:
        h = mesh_size(model)
    except ValueError:
        raise ValueError("factor must be given for a plain module, whose mesh is not known, got size") from None
    dim = len(next(iter(stencil_layers(model).values())).kernel_size)
    return tuple(n * v for n, v in zip(per_axis(size, dim, "size"), per_axis(h, dim, "mesh_size"), strict=True))


def _settle_mesh(net: PDENet) -> None:
    """Mesh sizes as the config has them, free of the rounding of repeated divisions."""
    h, reference = [1 / s for s in net.config.sizes], [1 / s for s in net.config.references]
    for layer in stencil_layers(net).values():
        if p := stencil_parametrization(layer):
            p.move(h, reference)


def _with_steps(net: PDENet, steps: int | tuple[int, ...]) -> PDENet:
    config = net.config.with_steps(steps)
    if config is net.config:
        return net
    with torch.random.fork_rng(devices=[]):
        result = PDENet(config).train(net.training)
    if not any(stencil_parametrization(layer) for layer in stencil_layers(net).values()) and config.width > 1:
        bake(result)
    reference = next(net.parameters())
    result.to(reference.device, reference.dtype)
    result.opening, result.connectors, result.classifier = net.opening, net.connectors, net.classifier
    for old, new in zip(net.blocks, result.blocks, strict=True):
        _interpolate_controls(old, new, config.interpolation)  # pyright: ignore[reportArgumentType]
    return result


@torch.no_grad()
def _interpolate_controls(old: Block, new: Block, interpolation: str) -> None:
    matrix = interpolation_matrix(len(old.controls), len(new.controls), interpolation)
    nodes = [dict(node.named_parameters()) for node in old.controls]
    for row, node in zip(matrix.tolist(), new.controls, strict=True):
        for name, p in node.named_parameters():
            p.copy_(sum(w * old_node[name] for w, old_node in zip(row, nodes, strict=True) if w))  # pyright: ignore
