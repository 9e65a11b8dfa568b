"""Conversion of whole networks between meshes: the map of every stencil, and the change of the time grid."""

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
    """A conversion as plain data; calling it with a network gives the converted network, a new module.

    A conversion maps the parameters linearly, p' = P p. Momentum can therefore be mapped by P too, so that a momentum
    step and the conversion commute: see `carry_optimizer_state`.

    Args:
        factor: new size / old size, one number or one per axis.
        method: ``"copy"``, ``"rediscretize"``, ``"galerkin"``, or the method of the calibration.
        steps: new numbers of time steps of a `PDENet`; None keeps them.
        calibration: the measured maps of a calibrated method.
        keep_reference: change only the mesh size, not the stored parameters. This rediscretises the stencils, ignores
            the method, and leaves the optimizer's state valid.
        block_scales: for each block of a `PDENet`, a number by which its stencils are multiplied after the conversion.
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
        """The network whose stored parameters are mapped by P⁻ᵀ, as gradients are, instead of P.

        If the parameters p are the stencils themselves, P is the map M of the taps; if W = G p are the stencils, P is
        G⁻¹ M G. The number of steps must stay, since the map has no inverse otherwise.
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
        moved: Any = replace(spec, size=size, reference=spec.references) if kept else spec.on_mesh(size)
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
        p.move(*([h / f for h, f in zip(old, factor, strict=True)] for old in (p.mesh_size, p.reference)))
        if new is not None:
            stored.copy_(new if is_dual else p.right_inverse(new))

    def _matrix(self, name: str, layer: _ConvNd, factor: tuple[float, ...], reaction: str) -> Tensor | None:
        """The map M of a layer; None stands for the identity."""
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
    """Convert a trained network to images of another size; the result is a new module, the given one does not change.

    The method maps every stencil; strides, padding, 1x1 and transposed convolutions stay. The running statistics of
    BatchNorm are copied; `recalibrate` measures them at the new size. Without calibration images the default method is
    ``copy``, which leaves all weights as they are: only the mesh sizes and the description change. With calibration
    images the default is the calibrated map, which changes the stencils.

    Args:
        model: any module, reparametrised or plain.
        size: new image side in pixels, one number or one per axis; the model must carry a description or be
            reparametrised.
        factor: new size / old size, instead of the size: 2 makes the mesh finer, 0.5 coarser.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``, see `transfer_stencil`; ``"calibrated"`` or
            ``"calibrated_full"``, see `calibrate`.
        steps: number of time steps of a `PDENet`, one number or one per block; the final time T is kept and the
            controls are interpolated.
        calibration: a few hundred normalised images on the finer of the two meshes, see `calibrate`.

    Raises:
        ValueError: size and factor are both given, or none of size, factor and steps; the size is given but the mesh of
            the model is not known; the network cannot have the size; the method is unknown, or needs images.

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
    """The `Conversion` that `convert` would apply to a model; `carry_optimizer_state` needs it. It converts nothing.

    ``convert(model, size=64)`` equals ``conversion(model, size=64)(model)``; arguments and errors are the same.
    """
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
    """Set the mesh sizes to exactly those of the description, because repeated divisions accumulate rounding errors."""
    h, reference = [1 / s for s in spec.sizes], [1 / s for s in spec.references]
    for layer in stencil_layers(model).values():
        if p := stencil_parametrization(layer):
            p.move(h, reference)
