"""Conversion with a report: the change of every layer, and the accuracy in comparison with simple baselines."""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from multipde.conversions.convert import conversion
from multipde.conversions.layer_inputs import WatchedCopy
from multipde.evaluation.candidates import Converted, Evaluator
from multipde.evaluation.conversion_report import ConversionReport, LayerReport
from multipde.mesh.pyramid import resize_images
from multipde.mesh.reparametrize import composed_layers, detail_of, skipped_layers, stencil_layers
from multipde.mesh.transfer import CALIBRATED, METHODS

CONSISTENCY_IMAGES = 32
"""Number of training images on which the outputs of the layers are compared."""

AUTO_METHODS = ("copy", "calibrated", "calibrated_full", "rediscretize", "galerkin")
"""The methods that ``auto`` tries, in this order; of equally accurate ones it takes the first."""


def convert_reported(
    model: nn.Module,
    evaluator: Evaluator | None,
    *,
    old_size: int,
    new_size: int,
    method: str = "auto",
    steps: int | str | None = None,
    detail: int | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """Convert any classifier to images of another size, recalibrate its BatchNorm, and report the measurements.

    Candidates are the converted networks of all methods that are tried, and two baselines: the old network at the old
    size, and the old network on images of the new size that are resized to the old one. All are tested on the same
    test images.

    Args:
        old_size, new_size: sides of the images that the old and the new network see.
        evaluator: with images at least as fine as the finer size; None for a conversion without measurements.
        method: a method of `convert`, or ``"auto"`` for the one with the best accuracy on held-back training images
            (``copy`` without images).
        steps: new number of time steps of a `PDENet`, or ``"auto"``, see `stabilized`.
        detail: new detail of the network, see `with_detail`; None keeps it.
    """
    details = detail_of(model), detail or detail_of(model)
    old_mesh, new_mesh = old_size // details[0], new_size // details[1]
    factor, is_moved = new_mesh / old_mesh, new_mesh != old_mesh
    if evaluator is None:
        chosen = "copy" if method == "auto" else method
        blocks = None if isinstance(steps, str) else steps
        new = conversion(model, factor=factor, method=chosen, steps=blocks, detail=detail)(model)
        return new, ConversionReport(old_size, new_size, chosen, _layers(model, new, {}, {}), skipped_layers(model))
    model = evaluator.compute.place(model)
    methods = AUTO_METHODS if method == "auto" else tuple(dict.fromkeys(("copy", method)))
    candidates = [evaluator.candidate(f"original at {old_size}", model, old_size)]
    if new_size != old_size:
        candidates.append(evaluator.candidate(f"original, {new_size} -> {old_size}", model, new_size, old_size))
    tried: dict[str, Converted] = {}
    for name in methods if is_moved else ("copy",):
        tried[name] = evaluator.convert(model, old_size, new_size, name, steps, detail)
        candidates += tried[name].measured
    best = max(tried, key=lambda name: tried[name].measured[-1].validation)
    chosen = best if method == "auto" or method not in tried else method
    new, move = tried[chosen].net, tried[chosen].move
    same_time = new if move.steps is None else replace(move, steps=None)(model)  # layers are compared at equal times
    calibration = tried["calibrated"].move.calibration if "calibrated" in tried else None
    if calibration is None and is_moved:
        calibration = evaluator.plan(model, old_size, new_size, "calibrated", detail=detail).calibration
    exponents = {} if calibration is None else calibration.exponents()
    sides = zip((old_size, new_size), details, strict=True)
    old_images, new_images = (evaluator.images(CONSISTENCY_IMAGES, size, d) for size, d in sides)
    return new, ConversionReport(
        old_size,
        new_size,
        chosen,
        _layers(model, same_time, exponents, _consistency(model, same_time, old_images, new_images)),
        skipped_layers(model),
        tried[chosen].num_recalibrated,
        len(evaluator.tested),
        candidates,
        evaluator.step_bounds(model, old_size),
        evaluator.step_bounds(new, new_size),
    )


def _layers(
    old: nn.Module,
    new: nn.Module,
    exponents: Mapping[str, float],
    consistency: Mapping[str, float],
) -> list[LayerReport]:
    before, after = (composed_layers(model) | stencil_layers(model) for model in (old, new))
    return [
        LayerReport(
            name,
            layer.weight.detach().double().norm().item(),
            after[name].weight.detach().double().norm().item() if name in after else math.nan,
            consistency.get(name),
            exponents.get(name),
        )
        for name, layer in before.items()
    ]


def _consistency(old: nn.Module, new: nn.Module, old_images: Tensor, new_images: Tensor) -> dict[str, float]:
    """Relative difference of the outputs of every layer at its first use, on the coarser of the two meshes."""
    outputs: list[dict[str, Tensor]] = []
    for model, images in ((old, old_images), (new, new_images)):
        given: dict[str, Tensor] = {}

        def keep(name: str, layer: nn.Module, x: Tensor, given: dict[str, Tensor] = given) -> None:
            if name not in given:
                given[name] = layer.forward(x).cpu()

        WatchedCopy(model).run(images, keep)
        outputs.append(given)
    errors = {}
    for name, y in outputs[0].items():
        z = outputs[1].get(name)
        if z is None or z.shape[:2] != y.shape[:2]:
            continue
        size = [min(a, b) for a, b in zip(y.shape[2:], z.shape[2:], strict=True)]
        a, b = resize_images(y, size), resize_images(z, size)
        errors[name] = ((a - b).norm() / a.norm().clamp_min(1e-30)).item()
    return errors


def check_conversion_method(method: str) -> None:
    """Raise ValueError for a method that `convert_reported` does not know."""
    known = ("auto", *METHODS, *CALIBRATED)
    if method not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, got {method!r}")
