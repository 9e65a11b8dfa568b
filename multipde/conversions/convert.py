"""Whole networks between meshes: every stencil by its map, and the time grid."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.conversions.calibration import Calibration, calibrate
from multipde.conversions.time_steps import with_steps
from multipde.mesh.reparametrize import (
    check_unshared,
    mesh_size,
    stencil_layers,
    stencil_parametrization,
    stored_parameter,
)
from multipde.mesh.separable import per_axis
from multipde.mesh.transfer import CALIBRATED, METHODS, check_factor, check_method, map_stencil, transfer_matrix
from multipde.networks.model_spec import Model, ModelSpec, check_mesh, find_spec


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

    def __call__(self, model: Model) -> Model:
        return self._applied(model)

    def dual(self, model: Model) -> Model:
        """The network whose stored parameters were mapped by P⁻ᵀ instead of P, as their gradients are.

        Where the parameters are the stencils themselves P is the map M of the taps; in other coordinates, stencils
        being W = G p, it is G⁻¹ M G.

        Raises:
            ValueError: the number of steps changes, for which M has no inverse.
        """
        spec = find_spec(model)
        if spec is not None and self.steps is not None and spec.with_steps(self.steps) != spec:
            raise ValueError(f"steps must stay for the dual map, got {self.steps}")
        return self._applied(model, is_dual=True)

    def _applied(self, model: Model, is_dual: bool = False) -> Model:
        check_method(self.method)
        check_unshared(stencil_layers(model))
        spec = find_spec(model)
        if spec is not None:
            check_mesh(model)
        elif self.steps is not None:
            raise ValueError(f"steps must be left out for a model without a description, got {self.steps}")
        model = copy.deepcopy(model)
        for name, layer in stencil_layers(model).items():
            self._move(name, layer, is_dual)
        if spec is None:
            return model
        size, kept = self._new_size(spec), self.keep_reference
        moved: Any = replace(spec, size=size, reference=spec.references) if kept else spec.on_mesh(size)  # pyright: ignore
        model.multipde_spec = moved
        _settle_mesh(model, moved)
        return model if self.steps is None else with_steps(model, self.steps)

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

    def _new_size(self, spec: ModelSpec) -> int | tuple[int, ...]:
        factor = check_factor(self.factor, spec.dim)
        sizes = [s * f for s, f in zip(spec.sizes, factor, strict=True)]
        if any(abs(s - round(s)) > 1e-6 for s in sizes):
            raise ValueError(f"factor must give a whole number of pixels, got {self.factor} for {spec.sizes}")
        rounded = tuple(round(s) for s in sizes)
        return rounded[0] if len(set(rounded)) == 1 else rounded


def convert(
    model: Model,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
    calibration: Tensor | None = None,
) -> Model:
    """A trained network for images of another size, as a new module; the given one stays as it is.

    Every stencil is moved by the method; strides, padding, 1x1 and transposed convolutions stay. Statistics of
    BatchNorm are copied: `recalibrate` measures them at the new size.

    Args:
        model: any module, reparametrised or plain.
        size: new image size, one number or one per axis; needs a `PDENet` or a reparametrised module.
        factor: instead of the size, new size / old size: 2 is finer, 0.5 coarser.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``, see `transfer_stencil`; ``"calibrated"`` or
            ``"calibrated_full"``, see `calibrate`. Left out: calibrated where there are images; elsewhere copy,
            which leaves every weight as it is and changes nothing but the mesh.
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
    if factor is None or not stencil_layers(model):
        return Conversion(moved, "copy", blocks)
    return Conversion(moved, chosen, blocks, calibrate(model, moved, calibration, chosen))


def _factor_to(model: nn.Module, size: int | Sequence[int]) -> tuple[float, ...]:
    spec = find_spec(model)
    if spec is not None:
        new = per_axis(size, spec.dim, "size")
        return tuple(n / s for n, s in zip(new, spec.sizes, strict=True))
    try:
        h = mesh_size(model)
    except ValueError:
        raise ValueError("factor must be given for a plain module, whose mesh is not known, got size") from None
    dim = len(next(iter(stencil_layers(model).values())).kernel_size)
    return tuple(n * v for n, v in zip(per_axis(size, dim, "size"), per_axis(h, dim, "mesh_size"), strict=True))


def _settle_mesh(model: nn.Module, spec: ModelSpec) -> None:
    """Mesh sizes as the description has them, free of the rounding of repeated divisions."""
    h, reference = [1 / s for s in spec.sizes], [1 / s for s in spec.references]
    for layer in stencil_layers(model).values():
        if p := stencil_parametrization(layer):
            p.move(h, reference)
