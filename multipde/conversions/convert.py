"""Conversion of whole networks between meshes: the map of every stencil, and the change of the time grid."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.conversions.calibration import Calibration, calibrate
from multipde.conversions.left_alone import layers_to_leave, marked, tell_left_alone
from multipde.conversions.new_size import factor_to, size_after
from multipde.conversions.time_steps import with_steps
from multipde.mesh.modes import averaged, check_unshared, copied, ordinary_tensors
from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.reparametrize import (
    composed_layers,
    detail_of,
    mesh_parametrizations,
    stencil_layers,
    stencil_parametrization,
    stored_parameter,
)
from multipde.mesh.transfer import CALIBRATED, METHODS, acting_matrix, check_factor, check_method, map_stencil
from multipde.mesh.transfer import transfer_matrix as matrix_of
from multipde.networks.a_trous import a_trous
from multipde.networks.detail import averaged_taps, composed_taps, set_detail, with_detail
from multipde.networks.input_size import fit_input_size
from multipde.networks.inputs import ImageBatch, network_inputs, one_batch
from multipde.networks.model_spec import Model, check_detail, check_mesh, check_whole, find_spec


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
        detail: new detail of the opening, see `with_detail`; None keeps it. The largest common divisor of the old and
            the new detail is kept while the mesh changes: of a composed opening, the stencil that acts on averaged
            images is converted by the method (copied by calibrated ones), and the remainder is copied.
        a_trous: put a network with a detail on the mesh of its images, with dilated blocks, see `a_trous`.
        skip: names of stencils that keep their numbers, as ``copy`` does, each with the reason.
    """

    factor: float | tuple[float, ...] = 1.0
    method: str = "copy"
    steps: int | tuple[int, ...] | None = None
    calibration: Calibration | None = None
    keep_reference: bool = False
    block_scales: tuple[float, ...] | None = None
    detail: int | None = None
    a_trous: bool = False
    skip: tuple[tuple[str, str], ...] = ()

    def __call__(self, model: Model) -> Model:
        return self.acting(model)

    def dual(self, model: Model) -> Model:
        """The network whose stored parameters are mapped by P⁻ᵀ, as gradients are, instead of P.

        If the parameters p are the stencils themselves, P is the map M of the taps; if W = G p are the stencils, P is
        G⁻¹ M G. The number of steps must stay, since the map has no inverse otherwise.
        """
        spec = find_spec(model)
        if spec is not None and self.steps is not None and spec.with_steps(self.steps) != spec:
            raise ValueError(f"steps must stay for the dual map, got {self.steps}")
        if (detail := max(detail_of(model), self.detail or 1)) > 1:
            raise ValueError(f"detail must be 1 for the dual map, got {detail}")
        return self.acting(model, "dual")

    @ordinary_tensors()
    def acting(self, model: Model, kind: str = "map") -> Model:
        """The network whose stored parameters are mapped as `acting_matrix` says; the number of steps changes by P."""
        check_method(self.method)
        if (inner := averaged(model)) is not None:
            return copied(model, given={inner: self.acting(inner, kind)})
        check_whole(model)
        spec = find_spec(model)
        if spec is not None:
            check_mesh(model)
        elif self.steps is not None:
            raise ValueError(f"steps must be left out for a model without a description, got {self.steps}")
        model = a_trous(model) if self.a_trous else copied(model)
        with marked(model, self.skip):
            self._move_all(model, kind)
        return model if spec is None or self.steps is None else with_steps(model, self.steps)

    def _move_all(self, model: nn.Module, kind: str) -> None:
        check_unshared(model, map(stored_parameter, stencil_layers(model).values()))
        if self.keep_reference and self.skip:
            raise ValueError(f"skip must be left out where the stored parameters stay, got {self.skip[0][0]}")
        detail = detail_of(model) if self.detail is None else self.detail
        set_detail(model, self.common_detail(model))
        layers = stencil_layers(model)
        matrices = {name: self._matrix(name, layer) for name, layer in layers.items()}  # all errors before any change
        for name, p in mesh_parametrizations(model).items():
            if name not in layers and not self.keep_reference:
                self._put_on_mesh(p)
        for name, layer in layers.items():
            self._move(layer, matrices[name], kind)
        if kind == "map":
            self._move_composed(model)
        if (spec := find_spec(model)) is not None:
            size, kept = size_after(spec, self.factor), self.keep_reference
            moved: Any = replace(spec, size=size, reference=spec.references) if kept else spec.on_mesh(size)
            model.multipde_spec = moved
            for p in mesh_parametrizations(model).values():  # exactly, because repeated divisions accumulate errors
                p.move([1 / s for s in moved.sizes], [1 / r for r in moved.references])
        set_detail(model, detail)
        if kind == "map":  # a resized grid of positions is interpolated, which has no inverse
            fit_input_size(model)

    def common_detail(self, model: nn.Module) -> int:
        """The detail that the opening keeps while the mesh changes."""
        return math.gcd(detail_of(model), self.detail or detail_of(model))

    @torch.no_grad()
    def _move_composed(self, model: nn.Module) -> None:
        """K' = K + C (M - I) D K, where D averages an opening back to the mesh and C composes it again."""
        layer = next(iter(composed_layers(model).values()), None)
        if layer is None or vars(layer).get("left_alone"):
            return
        if self.keep_reference:
            raise ValueError(f"detail must be 1 where the stored parameters stay, got {detail_of(layer)}")
        factor, detail = check_factor(self.factor, len(layer.kernel_size)), detail_of(layer)
        width = [w // detail for w in layer.kernel_size]
        if self.calibration is not None or all(f == 1 for f in factor) or any(w % 2 == 0 for w in width):
            return
        taps = averaged_taps(layer.weight, detail)
        reaction = next((p.reaction for p in mesh_parametrizations(model).values()), "121")
        change = matrix_of(self.method, width, factor, reaction) - torch.eye(math.prod(width), dtype=torch.float64)
        layer.weight += composed_taps(map_stencil(change, taps), detail)

    @torch.no_grad()
    def _move(self, layer: _ConvNd, matrix: Tensor | None, kind: str) -> None:
        p = stencil_parametrization(layer)
        if p is None:
            if matrix is not None:
                layer.weight.copy_(map_stencil(acting_matrix(matrix, kind), layer.weight))
            return
        if self.keep_reference:
            factor = check_factor(self.factor, len(layer.kernel_size))
            p.move([h / f for h, f in zip(p.mesh_size, factor, strict=True)], p.reference)
            return
        stored, new = stored_parameter(layer), None
        if matrix is not None and kind != "map":
            g = p.tap_matrix()
            new = map_stencil(acting_matrix(torch.linalg.solve(g, matrix @ g), kind), stored)
        elif matrix is not None:
            new = map_stencil(matrix, layer.weight)
        self._put_on_mesh(p)
        if new is not None:
            stored.copy_(p.right_inverse(new) if kind == "map" else new)

    def _put_on_mesh(self, p: StencilParametrization) -> None:
        factor = check_factor(self.factor, len(p.width))
        p.move(*([h / f for h, f in zip(old, factor, strict=True)] for old in (p.mesh_size, p.reference)))

    def _matrix(self, name: str, layer: _ConvNd) -> Tensor | None:
        """The map M of a layer; None stands for the identity."""
        factor, p = check_factor(self.factor, len(layer.kernel_size)), stencil_parametrization(layer)
        if p is not None and self.keep_reference:
            return None
        if self.calibration is not None:
            matrix = self.calibration.matrices[name]
        elif METHODS[self.method].exponent == 0 or all(f == 1 for f in factor):
            matrix = None
        else:
            matrix = matrix_of(self.method, layer.kernel_size, factor, p.reaction if p else "121")
        if self.block_scales and name.startswith("blocks."):
            unmoved = torch.eye(math.prod(layer.kernel_size), dtype=torch.float64)
            matrix = self.block_scales[int(name.split(".")[1])] * (unmoved if matrix is None else matrix)
        return matrix


@ordinary_tensors()
def convert(
    model: Model,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
    calibration: ImageBatch | None = None,
    detail: int | None = None,
    skip: str | Sequence[str] = (),
    example: Tensor | None = None,
) -> Model:
    """Convert a trained network to another mesh, for images of another size; the result is a new module.

    The method maps every stencil; strides, padding, 1x1 and transposed convolutions stay (a warning names those wider
    than one). The running statistics of BatchNorm are copied; `recalibrate` measures them at the new size. Without
    calibration images the default method is ``copy``, which leaves all weights as they are: only the mesh sizes and the
    description change. With calibration images the default is the calibrated map, which changes the stencils.

    Args:
        model: any module, reparametrised or plain.
        size: new size of the mesh, which is that of the images at detail 1, one number or one per axis; the model must
            carry a description or be reparametrised.
        factor: new size / old size, instead of the size: 2 makes the mesh finer, 0.5 coarser.
        method: ``"copy"``, ``"rediscretize"`` or ``"galerkin"``, see `transfer_stencil`; ``"calibrated"`` or
            ``"calibrated_full"``, see `calibrate`.
        steps: number of time steps of a `PDENet`, one number or one per block; the final time T is kept and the
            controls are interpolated.
        calibration: a few hundred normalised images on the finer of the two meshes, see `calibrate`; if both networks
            have a detail above 1, they have the size of the images of that mesh.
        detail: image pixels per pixel of the mesh, see `with_detail`; None keeps that of the model. Mesh and opening
            move together: from size 16, detail 2, to size 32, detail 1, the opening is averaged back to the mesh first.
        skip: stencils that keep their numbers: names of layers, of modules around them, or patterns (``"*.se.*"``).
        example: a batch of images, or its shape on the meta device, for a model without a description. A convolution
            that does not run along the axes of the images, or whose weight is rewritten at use, is then left alone.

    Raises:
        ValueError: size and factor are both given, or none of size, factor, steps and detail; the size is given but the
            mesh of the model is not known; the network cannot have the size or the detail; the method is unknown, or
            needs images; there is nothing to move.

    Reference: Ruthotto & Haber (2018), section 2.2; Haber, Ruthotto & Holtham (2017).
    """
    given: Any = {"size": size, "factor": factor, "method": method, "steps": steps, "detail": detail, "skip": skip}
    move = conversion(model, **given, calibration=calibration, example=example)
    if size is not None or factor is not None:
        tell_left_alone(averaged(model) or model, move.skip, move.factor, detail)
    return move(model)


@ordinary_tensors()
def conversion(
    model: nn.Module,
    *,
    size: int | Sequence[int] | None = None,
    factor: float | Sequence[float] | None = None,
    method: str | None = None,
    steps: int | Sequence[int] | None = None,
    calibration: ImageBatch | None = None,
    detail: int | None = None,
    skip: str | Sequence[str] = (),
    example: Tensor | None = None,
) -> Conversion:
    """The `Conversion` that `convert` would apply to a model; `carry_optimizer_state` needs it."""
    if size is not None and factor is not None:
        raise ValueError(f"factor must be left out where size is given, got size={size} and factor={factor}")
    model = averaged(model) or model
    check_whole(model)
    if size is None and factor is None and steps is None and detail is None:
        raise ValueError("size, factor, steps or detail must be given, got none of them")
    if detail is not None:
        check_detail(detail)
    chosen = method or ("copy" if calibration is None else "calibrated")
    check_method(chosen)
    if size is not None:
        if min(size if isinstance(size, Sequence) else [size]) < 1:
            raise ValueError(f"size must be positive, got {size}")
        factor = factor_to(model, size)
    moved = 1.0 if factor is None else tuple(factor) if isinstance(factor, Sequence) else float(factor)
    blocks = tuple(steps) if isinstance(steps, Sequence) else steps
    if example is None and calibration is not None and find_spec(model) is None:
        example = network_inputs(model, calibration, "calibration")
    with one_batch("calibration") if calibration is not None else nullcontext():
        left = layers_to_leave(model, skip, example)
    plain = Conversion(moved, chosen, blocks, detail=detail, skip=left)
    if chosen not in CALIBRATED:
        return plain
    if calibration is None:
        raise ValueError(f"calibration must hold images for the method {chosen!r}, got None")
    with marked(model, left):
        if factor is None or not stencil_layers(model):
            return replace(plain, method="copy")
        common = plain.common_detail(model)
        at_common = model if common == detail_of(model) else with_detail(model, common)
        return replace(plain, calibration=calibrate(at_common, moved, calibration, chosen))
