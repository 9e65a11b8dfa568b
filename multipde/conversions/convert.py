"""Whole networks between meshes: every stencil by its map, and the time grid."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.conversions.calibration import Calibration, calibrate
from multipde.mesh.reparametrize import (
    bake,
    check_unshared,
    mesh_size,
    stencil_layers,
    stencil_parametrization,
    stored_parameter,
)
from multipde.mesh.separable import per_axis
from multipde.mesh.transfer import CALIBRATED, METHODS, check_factor, check_method, map_stencil, transfer_matrix
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
        method: ``"copy"``, ``"rediscretize"``, ``"galerkin"``, or what was calibrated.
        steps: new numbers of time steps of a `PDENet`, None to keep them.
        calibration: of a calibrated method.
        keep_reference: the stored parameter stays, and its reference mesh with it, so that the stencils follow by
            rediscretisation and nothing moves that an optimizer sees; the method then has no say.
        block_scales: of a `PDENet`, by what the stencils of each block are multiplied as well.
    """

    factor: float | tuple[float, ...] = 1.0
    method: str = "copy"
    steps: int | tuple[int, ...] | None = None
    calibration: Calibration | None = None
    keep_reference: bool = False
    block_scales: tuple[float, ...] | None = None

    def __call__(self, model: nn.Module) -> nn.Module:
        return self._applied(model)

    def dual(self, model: nn.Module) -> nn.Module:
        """The network whose stored parameters were mapped by P⁻ᵀ instead of P, as their gradients are.

        Where the parameters are the stencils themselves P is the map M of the taps; in other coordinates, stencils
        being W = G p, it is G⁻¹ M G.

        Raises:
            ValueError: the number of steps changes, for which M has no inverse.
        """
        if isinstance(model, PDENet) and self.steps not in (None, model.config.steps, model.config.block_steps):
            raise ValueError(f"steps must stay for the dual map, got {self.steps}")
        return self._applied(model, is_dual=True)

    def _applied(self, model: nn.Module, is_dual: bool = False) -> nn.Module:
        check_method(self.method)
        check_unshared(stencil_layers(model))
        if isinstance(model, PDENet):
            model.check_mesh()
        model = copy.deepcopy(model)
        for name, layer in stencil_layers(model).items():
            self._move(name, layer, is_dual)
        if isinstance(model, PDENet):
            size, config = self._new_size(model), model.config
            kept = self.keep_reference
            model.config = replace(config, size=size, reference=config.references) if kept else config.on_mesh(size)
            _settle_mesh(model)
            if self.steps is not None:
                model = _with_steps(model, self.steps)
        elif self.steps is not None:
            raise ValueError(f"steps must be left out for a model that is no PDENet, got {self.steps}")
        return model

    @torch.no_grad()
    def _move(self, name: str, layer: _ConvNd, is_dual: bool) -> None:
        factor = check_factor(self.factor, len(layer.kernel_size))
        p = stencil_parametrization(layer)
        if p is not None and self.keep_reference:
            p.move([h / f for h, f in zip(p.mesh_size, factor, strict=True)], p.reference)
            return
        matrix = self._matrix(name, layer, factor, p.reaction if p else "121")
        if self.block_scales and name.startswith("blocks."):
            unmoved = torch.eye(math.prod(layer.kernel_size), dtype=torch.float64)
            matrix = self.block_scales[int(name.split(".")[1])] * (unmoved if matrix is None else matrix)
        if p is None:
            if matrix is not None:
                layer.weight.copy_(map_stencil(torch.linalg.inv(matrix).T if is_dual else matrix, layer.weight))
            return
        stored, new = stored_parameter(layer), None
        if matrix is not None and is_dual:
            g = p.tap_matrix()
            new = map_stencil(torch.linalg.inv(torch.linalg.solve(g, matrix @ g)).T, stored)
        elif matrix is not None:
            new = map_stencil(matrix, layer.weight)
        p.move(
            [h / f for h, f in zip(p.mesh_size, factor, strict=True)],
            [h / f for h, f in zip(p.reference, factor, strict=True)],
        )
        if new is not None:
            stored.copy_(new if is_dual else p.right_inverse(new))

    def _matrix(self, name: str, layer: _ConvNd, factor: tuple[float, ...], reaction: str) -> Tensor | None:
        """M of a layer, None for the identity."""
        if self.calibration is not None:
            return self.calibration.matrices[name]
        if METHODS[self.method].exponent == 0 or all(f == 1 for f in factor):
            return None
        return transfer_matrix(self.method, layer.kernel_size, factor, reaction)

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
    calibration: Tensor | None = None,
) -> nn.Module:
    """A trained network for images of another size, as a new module; the given one stays as it is.

    Every stencil is moved by the method; strides, padding, 1x1 and transposed convolutions stay. Statistics of
    BatchNorm are copied: `recalibrate` measures them at the new size.

    Args:
        model: any module, reparametrised or plain.
        size: new image size, one number or one per axis; needs a `PDENet` or a reparametrised module.
        factor: instead of the size, new size / old size: 2 is finer, 0.5 coarser.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``, see `transfer_stencil`; ``"calibrated"`` or
            ``"calibrated_full"``, see `calibrate`. Left out: calibrated where there are images, copy elsewhere.
        steps: of a `PDENet`, one number or one per block; T stays and the controls are interpolated.
        calibration: a few hundred images as the model takes them, on the finer of the two meshes.

    Raises:
        ValueError: both or none of size, factor and steps; a size where the mesh is not known; a size that the
            network cannot have; an unknown method; a calibrated one without images.

    Reference: Ruthotto & Haber (2018), section 2.2; Haber, Ruthotto & Holtham (2017).
    """
    return conversion(model, size=size, factor=factor, method=method, steps=steps, calibration=calibration)(model)


def conversion(
    model: nn.Module,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
    calibration: Tensor | None = None,
) -> Conversion:
    """The map that `convert` applies, kept for the optimizer state. Arguments and errors as there."""
    if size is not None and factor is not None:
        raise ValueError(f"factor must be left out where size is given, got size={size} and factor={factor}")
    if size is None and factor is None and steps is None:
        raise ValueError("size, factor or steps must be given, got none of them")
    chosen = method or ("copy" if calibration is None else "calibrated")
    check_method(chosen)
    if size is not None:
        if min(size if isinstance(size, Sequence) else [size]) < 1:
            raise ValueError(f"size must be positive, got {size}")
        factor = _factor_to(model, size)
    moved = 1.0 if factor is None else tuple(factor) if isinstance(factor, Sequence) else float(factor)
    blocks = tuple(steps) if isinstance(steps, Sequence) else steps
    if chosen not in CALIBRATED:
        return Conversion(moved, chosen, blocks)
    if calibration is None:
        raise ValueError(f"calibration must hold images for the method {chosen!r}, got None")
    if factor is None or (isinstance(model, PDENet) and not stencil_layers(model)):
        return Conversion(moved, "copy", blocks)
    return Conversion(moved, chosen, blocks, calibrate(model, moved, calibration, chosen))


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
