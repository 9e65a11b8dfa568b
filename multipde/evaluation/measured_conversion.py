"""Conversion with a report: what was done to every layer, and what it was good for beside the trivial rivals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from multipde.conversions.calibration import calibrate
from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.layer_inputs import WatchedCopy
from multipde.conversions.recalibration import recalibrate
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES, RECALIBRATION_IMAGES
from multipde.conversions.stable_conversion import STABILITY_IMAGES, stabilized
from multipde.data.batches import Normalize, drawn_indices, evaluation_batches
from multipde.data.datasets import ImageData, split_indices
from multipde.data.images import ImageSet
from multipde.evaluation.conversion_report import Candidate, ConversionReport, LayerReport
from multipde.evaluation.metrics import Metrics, evaluate_batches
from multipde.mesh.pyramid import prolong_images, resize_images
from multipde.mesh.reparametrize import skipped_layers, stencil_layers
from multipde.mesh.transfer import CALIBRATED, METHODS
from multipde.networks.network import PDENet, model_flops
from multipde.stability.bounds import StepStability, stability_report, step_ratios

CONSISTENCY_IMAGES = 32
"""Training images on which the outputs of the layers are compared."""

AUTO_METHODS = ("copy", "calibrated", "calibrated_full", "rediscretize", "galerkin")
"""Tried in this order; the first of the best is taken."""


def convert_reported(
    model: nn.Module,
    data: ImageData | None,
    *,
    old_size: int,
    new_size: int,
    method: str = "auto",
    steps: int | str | None = None,
    normalize: Normalize | None = None,
    split: tuple[int, float] = (0, 0.2),
    num_images: int = 2000,
    device: torch.device | None = None,
    amp: str = "off",
) -> tuple[nn.Module, ConversionReport]:
    """Convert any classifier to images of another size, recalibrate its BatchNorm, and say what came of it.

    Candidates are the converted networks of all methods tried, and the rivals: the old network at the old size (a bound
    on what to hope for) and the old network on images of the new size that are brought to the old one. All are tested
    on the same test images.

    Args:
        data: images at least as fine as the finer size; None for a conversion without measurements.
        method: one of the methods, or ``"auto"`` for the one with the best accuracy on held back training images (copy
            where there are none).
        steps: new number of time steps of a `PDENet`, or ``"auto"``, see `multipde.training.switch`.
        normalize: of the images; by mean and standard deviation of the data if left out.
        split: seed and share by which training images are held back; those of the training, where they are known.
        num_images: test images, and held back ones.

    Raises:
        ValueError: what `convert` raises.
    """
    factor, device = new_size / old_size, device or torch.device("cpu")
    if data is None:
        chosen = "copy" if method == "auto" else method
        move = conversion(model, factor=factor, method=chosen, steps=_given(steps))
        new = move(model)
        return new, ConversionReport(old_size, new_size, chosen, _layers(model, new), skipped_layers(model))
    bench = _Bench(data, normalize or Normalize(data.mean, data.std), split, num_images, device, amp)
    model = model.to(device)
    methods = AUTO_METHODS if method == "auto" else tuple(dict.fromkeys(("copy", method)))
    calibration_images = bench.draw(CALIBRATION_IMAGES, max(old_size, new_size))
    stability_images = bench.draw(STABILITY_IMAGES, new_size)
    bounds = _step_bounds(model, bench.draw(STABILITY_IMAGES, old_size))
    candidates = [bench.test(f"original at {old_size}", model, old_size, old_size)]
    if new_size != old_size:
        candidates.append(bench.test(f"original, {new_size} -> {old_size}", model, new_size, old_size))
    nets: dict[str, tuple[nn.Module, int, Conversion]] = {}
    for name in methods if new_size != old_size else ("copy",):
        calibration = calibration_images if name in CALIBRATED else None
        move = conversion(model, factor=factor, method=name, calibration=calibration)
        if steps == "auto" and isinstance(model, PDENet):
            move = stabilized(move, model, step_ratios(bounds), stability_images)
        elif steps is not None and steps != "auto":
            move = replace(move, steps=_given(steps))
        new = move(model).to(device)
        candidates.append(bench.test(name, new, new_size, new_size, recalibrated=False))
        num = recalibrate(new, bench.recalibration_images(new_size))
        if num:
            candidates.append(bench.test(f"{name}, recalibrated", new, new_size, new_size, recalibrated=True))
        nets[name] = new, num, move
    best = max(nets, key=lambda name: _final(candidates, name).validation)
    chosen = best if method == "auto" or method not in nets else method
    new, num, move = nets[chosen]
    same_time = new if move.steps is None else replace(move, steps=None)(model)  # layers are compared at equal times
    measured = nets["calibrated"][2].calibration if "calibrated" in nets else None
    if measured is None and new_size != old_size:
        measured = calibrate(model, factor, calibration_images)
    exponents = {} if measured is None else measured.exponents()
    consistency = _consistency(model, same_time, *(bench.draw(CONSISTENCY_IMAGES, s) for s in (old_size, new_size)))
    return new, ConversionReport(
        old_size,
        new_size,
        chosen,
        _layers(model, same_time, exponents, consistency),
        skipped_layers(model),
        num,
        bench.num_test,
        candidates,
        bounds,
        _step_bounds(new, stability_images),
    )


def _step_bounds(model: nn.Module, images: Tensor) -> list[StepStability]:
    """The step bounds of a network that has any."""
    if not isinstance(model, PDENet) or model.config.dynamics == "resnet":
        return []
    return stability_report(model, images)


class _Bench:
    """The images on which a conversion is measured: calibration, held back and test."""

    def __init__(
        self,
        data: ImageData,
        normalize: Normalize,
        split: tuple[int, float],
        num_images: int,
        device: torch.device,
        amp: str,
    ):
        self.data, self.normalize, self.device, self.amp = data, normalize, device, amp
        self.train, held_back = split_indices(len(data.train), *split)
        self.held_back = held_back[:num_images]
        self.test_indices = drawn_indices(len(data.test), num_images, (0, "test"))
        self.num_test = len(self.test_indices)

    def draw(self, num: int, size: int) -> Tensor:
        """The first of a random order of the training images."""
        return torch.cat([x for x, _ in self._batches(self.data.train, self.train[:num], size)])

    def recalibration_images(self, size: int) -> Iterator[Tensor]:
        num = RECALIBRATION_IMAGES
        return (x for x, _ in self._batches(self.data.train, self.train[:num], size))

    def test(self, name: str, net: nn.Module, size: int, inside: int, recalibrated: bool = False) -> Candidate:
        """A network on images of a size, brought to the size inside."""
        validation = self._evaluate(net, self.data.train, self.held_back, size, inside)
        found = self._evaluate(net, self.data.test, self.test_indices, size, inside)
        channels = len(self.data.mean)
        flops = model_flops(net, (1, channels, inside, inside))
        return Candidate(
            name, inside, recalibrated, validation.accuracy, found.accuracy, found.loss, flops, found.images_per_second
        )

    def _evaluate(self, net: nn.Module, images: ImageSet, indices: Tensor, size: int, inside: int) -> Metrics:
        batches = ((_brought_to(x, inside), y) for x, y in self._batches(images, indices, size))
        return evaluate_batches(net, batches, self.device, self.amp)

    def _batches(self, images: ImageSet, indices: Tensor, size: int):
        return evaluation_batches(images, indices, size, 250, self.device, self.normalize)


def _brought_to(x: Tensor, size: int) -> Tensor:
    return prolong_images(x, size, order=1) if size > x.shape[-1] else resize_images(x, size)


def _final(candidates: Sequence[Candidate], method: str) -> Candidate:
    return [c for c in candidates if c.name.split(",")[0] == method][-1]


def _layers(
    old: nn.Module,
    new: nn.Module,
    exponents: dict[str, float] | None = None,
    consistency: dict[str, float] | None = None,
) -> list[LayerReport]:
    after = stencil_layers(new)
    return [
        LayerReport(
            name,
            layer.weight.detach().double().norm().item(),
            after[name].weight.detach().double().norm().item() if name in after else math.nan,
            (consistency or {}).get(name),
            (exponents or {}).get(name),
        )
        for name, layer in stencil_layers(old).items()
    ]


def _consistency(old: nn.Module, new: nn.Module, old_images: Tensor, new_images: Tensor) -> dict[str, float]:
    """Relative difference of what every layer gives at its first use, on the coarser of the two meshes."""
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


def _given(steps: int | str | None) -> int | None:
    return None if isinstance(steps, str) else steps


def check_conversion_method(method: str) -> None:
    """Raise ValueError for a method that `convert_reported` does not know."""
    known = ("auto", *METHODS, *CALIBRATED)
    if method not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, got {method!r}")
