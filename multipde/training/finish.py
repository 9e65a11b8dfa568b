"""The finish of a conversion: the old network teaches the converted one, on images that need no labels."""

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from multipde.conversions.recalibration import recalibrate
from multipde.conversions.sample_sizes import RECALIBRATION_IMAGES
from multipde.data.augmentation import Augmentation
from multipde.data.datasets import split_indices
from multipde.data.feed import Feed
from multipde.data.image_data import ImageData
from multipde.data.images import ImageSet, Key
from multipde.data.unlabelled import load_unlabelled
from multipde.evaluation.metrics import fastest, scored_batches
from multipde.mesh.modes import eval_mode, ordinary_tensors
from multipde.networks.all_sizes import AllSizes, networks_of
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Advance
from multipde.runtime.device import Compute
from multipde.runtime.signals import PendingSignals
from multipde.training.budget import Budget
from multipde.training.every_size import EverySize, EverySizeStep, seen
from multipde.training.finish_settings import SEVERAL_RATE, Finished, FinishSettings, finish_budget
from multipde.training.objective import Objective
from multipde.training.settings import TrainSettings

FIRST_ROUND = 5000
"""Images of the first round where the end is found automatically; every further round has twice as many."""
LEAST_GAIN = 0.0025
"""A round that adds less to the share of right held-back images than this is the last one."""
MOST_HELD_BACK = 2000
"""Largest number of images on which the networks are compared."""
TOLERANCE = 0.01
"""With a share of right images that is less than this below that of the old network, nothing is left to learn."""


@ordinary_tensors()
@torch.enable_grad()
def finish(
    new: nn.Module,
    old: nn.Module,
    images: Any,
    *,
    budget: str = "auto",
    label_share: float = 0.0,
    learning_rate: float | None = None,
    batch: int = FinishSettings.batch,
    seed: int = 0,
    device: str | torch.device = "auto",
    amp: str = "off",
    compile: bool = False,
) -> Finished:
    """Let a trained network teach the one that was converted from it, on images that need no labels.

    A fifth of the images, at most 2,000, is held back; on these the two networks are compared: by their accuracy where
    the images have labels, and otherwise by the share of images for which both name the same class. The networks
    themselves do not change: a copy of the converted one learns, see `FinishSettings`. One for several sizes learns at
    all of them together: every batch is seen at every size.

    Args:
        new, old: the converted and the trained network, with their descriptions, see `describe`; new may be a network
            for several sizes, see `share_stencils`.
        images: a folder of images, flat or in classes; images (N, C, *size), uint8 or on [0, 1]; or an `ImageData`.
        budget: ``"2min"``, ``"20000images"``, or ``"auto"``: until accuracy or agreement grows no longer, and not at
            all where it is less than one point below that of the old network.
        label_share: share of the labels in the target, positive only for an `ImageData`.
        learning_rate: of the first step; None for 0.05, or 0.01 for a network for several sizes.
        batch, seed, compile: see `FinishSettings`.
        device, amp: as in `TrainSettings`.

    Raises:
        ValueError: there are too few images, they are too small, or the old network names one class for all of them.
    """
    if learning_rate is None:
        learning_rate = SEVERAL_RATE if isinstance(new, AllSizes) else FinishSettings.learning_rate
    settings = FinishSettings(
        finish_budget(budget),
        label_share=label_share,
        learning_rate=learning_rate,
        batch=batch,
        seed=seed,
        compile=compile,
    )
    if label_share and not isinstance(images, ImageData):
        raise ValueError(f"label_share must be zero for images without labels, got {label_share}")
    found = load_unlabelled(images, finest_side(new, old))
    indices, held_back = split_indices(len(found), seed)
    copied, labelled = (copy.deepcopy(new), copy.deepcopy(old)), isinstance(images, ImageData)
    parts = indices, held_back[:MOST_HELD_BACK]
    return Finish(*copied, found, *parts, Compute.of(device, amp), settings, labelled=labelled).run()


def finest_side(*nets: nn.Module) -> int:
    """The largest side of the images that any of the networks sees."""
    return max(spec_of(each).image_sizes[0] for net in nets for each in networks_of(net))


def answers(net: nn.Module, images: ImageSet, indices: Tensor | None, compute: Compute) -> Tensor:
    """The classes (num,) that a network names for images, or for those with these indices, at its own size."""
    spec = spec_of(net)
    batches = Feed(images, Normalize.of(spec), compute).evaluation(indices, spec.image_sizes[0])
    return torch.cat([scores.argmax(1) for scores, _ in scored_batches(net, batches, compute)])


class Finish:
    """Trains a converted network on the answers of the old one, each of which sees the images at its own size.

    Args:
        new, old: the converted and the old network, with their descriptions; new is changed, and may be an `AllSizes`.
        images: images at least as fine as the finer size, learned from at ``indices`` and compared at ``held_back``.
        labelled: compare the networks with the labels of the held-back images, and not with the old network's answers.
    """

    def __init__(
        self,
        new: nn.Module,
        old: nn.Module,
        images: ImageSet,
        indices: Tensor,
        held_back: Tensor,
        compute: Compute,
        settings: FinishSettings | None = None,
        signals: PendingSignals | None = None,
        labelled: bool = False,
    ):
        self.settings, self.compute, self.signals = settings or FinishSettings(), compute, signals or PendingSignals()
        self.new, self.old = compute.place(new), compute.place(old)
        self.images, self.indices, self.held_back = images, indices, held_back
        self.networks, self.side, self.spec = networks_of(self.new), finest_side(new, old), spec_of(old)
        grey = (0.5,) * self.spec.in_channels
        self.feed = Feed(images, Normalize(grey, (1.0,) * len(grey)), compute)  # the augmentation fills with grey
        own = TrainSettings(seed=self.settings.seed, compile=self.settings.compile)
        self.deadline = math.inf
        self.temperature = 1.0 if self.settings.label_share == 1 else self.settings.temperature
        self.step = EverySizeStep(EverySize(self.networks), own, compute, Objective(loss=self._loss))
        taught = answers(self.old, images, held_back, compute)
        if len(taught.unique()) < 2:
            raise ValueError(f"images must show more than one class, got {len(held_back)} held-back images of one")
        self.expected = images.labels[held_back].to(taught.device) if labelled else taught
        self.labelled = not torch.equal(taught, self.expected)  # labels that the old network gave say no more
        self.share_of_old = (taught == self.expected).double().mean().item()
        self.teacher = self.old if self.settings.label_share == 1 else fastest(self.old, len(indices), compute)

    def run(self, advance: Advance = lambda amount, text: None, keep_last: bool = False) -> Finished:
        """Train until the budget is used, or until no more held-back images are right; a signal ends it, too.

        Args:
            advance: is told of the work, see `Log.progress`.
            keep_last: keep the last weights, and not those for which most held-back images are right.
        """
        started, done, budget = time.perf_counter(), 0, self.settings.budget
        self.deadline = started + self.settings.longest
        before = best = self.share_right()
        weights, rounds = copy.deepcopy(self.new.state_dict()), []
        while not self._is_over() and (budget is not None or best < self.share_of_old - TOLERANCE):
            length = budget or Budget(FIRST_ROUND << len(rounds), "images")
            done += self._round(len(rounds), length, started, advance)
            self._recalibrate()
            found, previous = self.share_right(), best
            rounds.append((done, time.perf_counter() - started, found))
            if found > best or keep_last:
                best, weights = found, copy.deepcopy(self.new.state_dict())
            if budget is not None or found < previous + LEAST_GAIN:
                break
        self.new.load_state_dict(weights)
        self.new.eval()
        shares, seconds = (before, best, self.share_of_old), time.perf_counter() - started
        return Finished(self.new, done, seconds, *shares, rounds, self.signals.stop, len(self.held_back), self.labelled)

    def _is_over(self) -> bool:
        return bool(self.signals.stop) or time.perf_counter() > self.deadline

    def share_right(self) -> float:
        """Share of the held-back images for which the network names the label, or the class that the old one names.

        It is the mean over the sizes. Without labels the size of the old network does not count where there are
        others, because its answers are right before a step.
        """
        compared = [net for net in self.networks if self.labelled or spec_of(net) != self.spec] or self.networks
        found = [answers(net, self.images, self.held_back, self.compute) for net in compared]
        return torch.stack([each == self.expected for each in found]).double().mean().item()

    def _round(self, index: int, budget: Budget, started: float, advance: Advance) -> int:
        """Train on so many images, or until so many seconds after the start; return the number of images."""
        done, before, begun, is_timed = 0, 0.0, time.perf_counter() - started, budget.unit == "seconds"
        self.new.train()
        for x, labels in self._batches(index):
            spent = time.perf_counter() - started if is_timed else done
            share = (spent - begun) / max(budget.amount - begun, 1e-9) if is_timed else spent / budget.amount
            if share >= 1 or self._is_over():
                break
            inputs = [seen(net, x) for net in self.networks]
            self.step(inputs, self._target(x, labels), self.settings.learning_rate * (1 - share))
            done += len(x)
            advance(spent - before, f"finish, round {index + 1}")
            before = spent
        self.step.monitor.settle()
        return done

    def _batches(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images on 0..255 and their labels, pass after pass."""
        epoch, augment = 0, Augmentation.of(True, self.spec.classes)
        while True:
            key: Key = (self.settings.seed, "finish", index, epoch)
            sizes = ((self.side, 1.0),)
            for x, labels in self.feed.training(self.indices, sizes, self.settings.batch, key=key, augment=augment):
                yield 255 * (x + 0.5), labels
            epoch += 1

    @torch.no_grad()
    def _target(self, x: Tensor, labels: Tensor) -> Tensor:
        """The shares of the classes (N, classes) that the new network is to learn."""
        s, own = self.settings.label_share, functional.one_hot(labels, self.spec.classes).float()
        if s == 1:
            return own
        with eval_mode(self.teacher), self.compute.autocast():
            taught = self.teacher(seen(self.old, x)).float()
        return (1 - s) * functional.softmax(taught / self.temperature, 1) + s * own

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of the scores of all sizes, (sizes · N, classes), for the target (N, classes)."""
        t, num = self.temperature, len(self.networks)
        if num > 1:
            e, own = self.settings.ensemble, functional.softmax(scores.detach() / t, 1).view(num, *target.shape)
            mixed = (1 - e) * target + e * own.mean(0)
            target = torch.cat([mixed.repeat(num - 1, 1), target])
        return t**2 * functional.cross_entropy(scores / t, target)

    def _recalibrate(self) -> None:
        key = (self.settings.seed, "finish", "precise")
        for net in self.networks:
            spec = spec_of(net)
            feed = Feed(self.images, Normalize.of(spec), self.compute)
            recalibrate(net, feed.drawn(self.indices, RECALIBRATION_IMAGES, spec.image_sizes[0], key))
