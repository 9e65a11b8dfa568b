"""Candidates for another image size: every network is converted, recalibrated and tested in the same way."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from multipde.conversions.convert import Conversion, conversion
from multipde.conversions.recalibration import recalibrate
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES, RECALIBRATION_IMAGES
from multipde.conversions.stable_conversion import STABILITY_IMAGES, stabilized
from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import ImageSet, Key
from multipde.evaluation.conversion_report import Candidate
from multipde.evaluation.metrics import Metrics, evaluate_batches
from multipde.mesh.pyramid import prolong_images, resize_images
from multipde.mesh.reparametrize import detail_of
from multipde.mesh.transfer import CALIBRATED
from multipde.networks.cost import model_flops
from multipde.networks.detail import keeps_function
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import find_spec, spec_of
from multipde.runtime.device import Compute
from multipde.stability.bounds import StepStability, stability_report, step_ratios


@dataclass(frozen=True)
class Converted:
    """A converted network, with its measurements before and, if it has BatchNorm, after recalibration."""

    net: nn.Module
    move: Conversion
    num_recalibrated: int
    measured: list[Candidate]


@dataclass(frozen=True)
class Evaluator:
    """Converts networks and tests them on the images of one data set.

    Conversions are calibrated, and BatchNorm is recalibrated, on training images that are not held back for validation.

    Args:
        drawable: the training images that are not held back.
        held_back: the training images on which candidates are validated; none where that is not needed.
        tested: the test images on which candidates are tested.
        key: key of the random order in which images are drawn.

    Shape:
        - drawable, held_back, tested: (num,), indices
    """

    data: ImageData
    normalize: Normalize
    compute: Compute
    drawable: Tensor
    held_back: Tensor
    tested: Tensor
    key: Key

    @classmethod
    def of(
        cls,
        data: ImageData,
        compute: Compute,
        normalize: Normalize | None = None,
        *,
        split: tuple[int, float] = (0, 0.2),
        num_images: int | None = None,
    ) -> "Evaluator":
        """An evaluator on the images of a data set.

        Args:
            normalize: normalisation of the images; by mean and standard deviation of the data if left out.
            split: seed and share by which training images are held back; those of the training, where they are known.
            num_images: use only this many test images, a fixed random subset, and at most as many held-back images.
        """
        drawable, held_back = split_indices(len(data.train), *split)
        tested = drawn_indices(len(data.test), num_images, (0, "test"))
        key = (split[0], "calibrate")
        return cls(data, normalize or Normalize.of(data), compute, drawable, held_back[:num_images], tested, key)

    def draw(self, num: int, size: int, detail: int = 1) -> Iterator[Tensor]:
        """Batches with at most ``num`` normalised training images in all, the same images at every size."""
        return self._feed(self.data.train, detail).drawn(self.drawable, num, size, self.key)

    def images(self, num: int, size: int, detail: int = 1) -> Tensor:
        """The images of `draw` as one batch."""
        return torch.cat(list(self.draw(num, size, detail)))

    def plan(
        self,
        net: nn.Module,
        old_size: int,
        size: int,
        method: str,
        steps: int | str | tuple[int, ...] | None = None,
        num_images: int = CALIBRATION_IMAGES,
        detail: int | None = None,
    ) -> Conversion:
        """The conversion of a network, calibrated on images where the method needs them.

        Args:
            steps: new numbers of time steps; ``"auto"`` for as many as keep the network stable, see `stabilized`.
            num_images: largest number of images for the calibration.
            detail: new detail of the network, see `with_detail`; None keeps it.
        """
        old_detail = detail_of(net)
        new_detail = old_detail if detail is None else detail
        common, old_mesh, mesh = math.gcd(old_detail, new_detail), old_size // old_detail, size // new_detail
        images, method = None, method if mesh != old_mesh or method not in CALIBRATED else "copy"
        if method in CALIBRATED:
            images = self.images(num_images, max(old_mesh, mesh) * common, common)
        move = conversion(net, factor=mesh / old_mesh, method=method, calibration=images, detail=detail)
        if steps != "auto":
            return move if steps is None else replace(move, steps=steps)
        before = self.step_bounds(net, old_size)
        if not before:
            return move
        return stabilized(move, net, step_ratios(before), self.images(STABILITY_IMAGES, size, new_detail))

    def convert(
        self,
        net: nn.Module,
        old_size: int,
        size: int,
        method: str,
        steps: int | str | None = None,
        detail: int | None = None,
    ) -> Converted:
        """Convert a network, test it, recalibrate it and test it again. Arguments and errors as for `plan`."""
        started = time.perf_counter()
        move = self.plan(net, old_size, size, method, steps, detail=detail)
        new = self.compute.place(move(net))
        num = len(self.drawable)
        learned, spent = min(num, CALIBRATION_IMAGES) if move.calibration else 0, time.perf_counter() - started
        measured = [replace(self.candidate(method, new, size), num_learned=learned, seconds=spent)]
        old, started = find_spec(net), time.perf_counter() - spent
        num = 0 if old and keeps_function(old, spec_of(new)) else self.recalibrate(new, size)
        if num:
            learned, spent = learned + min(len(self.drawable), RECALIBRATION_IMAGES), time.perf_counter() - started
            found = self.candidate(f"{method}, recalibrated", new, size)
            measured.append(replace(found, recalibrated=True, num_learned=learned, seconds=spent))
        return Converted(new, move, num, measured)

    def recalibrate(self, net: nn.Module, size: int, num_images: int = RECALIBRATION_IMAGES) -> int:
        """Measure the running statistics of BatchNorm anew, in place; return the number of BatchNorm layers."""
        return recalibrate(net, self.draw(num_images, size, detail_of(net)))

    def step_bounds(self, net: nn.Module, size: int) -> list[StepStability]:
        """The bounds on the time steps of a network along training images; empty for a network that has none."""
        spec = find_spec(net)
        if spec is None or not spec.has_step_bounds:
            return []
        return stability_report(net, self.images(STABILITY_IMAGES, size, detail_of(net)))

    def candidate(self, name: str, net: nn.Module, size: int, inside: int | None = None) -> Candidate:
        """Measure a network on the held-back and the test images.

        Args:
            size: the size at which images are read.
            inside: the size to which they are then resized for the network; ``size`` if left out.
        """
        side, validation = inside or size, math.nan
        if len(self.held_back):
            validation = self._evaluate(net, self.data.train, self.held_back, size, side).accuracy
        found = self.test(net, size, side)
        flops = model_flops(net, (1, len(self.data.mean), side, side))
        numbers = validation, found.accuracy, found.loss, flops, found.images_per_second
        return Candidate(name, side, False, *numbers, found)

    def test(self, net: nn.Module, size: int, inside: int | None = None) -> Metrics:
        """Measure accuracy, loss and speed on the test images, after one batch that is not timed."""
        self._evaluate(net, self.data.test, self.tested[:250], size, inside or size)
        return self._evaluate(net, self.data.test, self.tested, size, inside or size)

    def _evaluate(self, net: nn.Module, images: ImageSet, indices: Tensor, size: int, inside: int) -> Metrics:
        feed = self._feed(images, detail_of(net))
        batches = ((_brought_to(x, inside), labels) for x, labels in feed.evaluation(indices, size))
        return evaluate_batches(net, batches, self.compute)

    def _feed(self, images: ImageSet, detail: int) -> Feed:
        return Feed(images, self.normalize.at(detail), self.compute)


def _brought_to(x: Tensor, size: int) -> Tensor:
    return prolong_images(x, size, order=1) if size > x.shape[-1] else resize_images(x, size)
