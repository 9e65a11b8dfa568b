"""The last stage of ``multipde convert``: the old network teaches the converted one, beside what else could be done."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from multipde.data.datasets import split_indices
from multipde.data.image_data import ImageData, channel_statistics
from multipde.data.images import ImageSet
from multipde.data.unlabelled import load_unlabelled
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.conversion_report import Candidate, ConversionReport
from multipde.evaluation.sizes import DataSource
from multipde.mesh.randomness import OwnRandomness
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.signals import STOP, pending_signals
from multipde.storage.provenance import tested_images
from multipde.storage.run_directory import check_new
from multipde.training.budget import Budget
from multipde.training.finish import FIRST_ROUND, Finish, Finished, FinishSettings, answers, finish_budget
from multipde.training.level import Level
from multipde.training.monitor import DivergenceError


@dataclass(frozen=True)
class ConversionFinish:
    """Finishes a converted network, and adds what was measured to the report of the conversion.

    Args:
        evaluator: tests the networks; its training images are learned from.
        settings: how the network learns.
        unlabelled: other images to learn from.
        rivals: whether a network that is trained on the labels of the same images instead, and one that is trained
            from scratch, are tested as well.
    """

    evaluator: Evaluator
    settings: FinishSettings
    unlabelled: ImageSet | None = None
    rivals: bool = False

    def __call__(
        self, old: nn.Module, new: nn.Module, report: ConversionReport, log: Log
    ) -> tuple[nn.Module, ConversionReport]:
        """The finished network, which is the given one where nothing was gained, and the report with further rows."""
        found = self.trained(old, copy.deepcopy(new), self.settings, log)
        if found is None:
            return new, report
        gained = found.after > found.before
        log.say(f"finish: {'' if gained else 'nothing gained, '}{_shares(found)}")
        if not gained:
            return new, report
        own = [c for c in report.candidates if c.name.partition(",")[0] == report.method]
        candidates = [*report.candidates, self._row(f"{report.method}, finished", found, own[-1])]
        if self.rivals and self.unlabelled is None:
            same = replace(self.settings, budget=Budget(found.num_images, "images"), label_share=1.0)
            tuned = self.trained(old, copy.deepcopy(new), same, log)
            with OwnRandomness(self.settings.seed):
                net = spec_of(new).build()
            fresh = self.trained(old, net, replace(same, learning_rate=Level.learning_rate), log)
            candidates += [self._row(n, f) for n, f in (("labels instead", tuned), ("from scratch", fresh)) if f]
        bounds = self.evaluator.step_bounds(found.net, report.new_size)
        return found.net, replace(report, candidates=candidates, stability_after=bounds)

    def trained(self, old: nn.Module, new: nn.Module, settings: FinishSettings, log: Log) -> Finished | None:
        """A network after learning, with a line on it; None where nothing was left to learn."""
        e, images, parts = self.evaluator, self.unlabelled, (self.evaluator.drawable, self.evaluator.held_back)
        if images is None:
            images = e.data.train
        else:
            parts = split_indices(len(images), settings.seed)
        held_back = parts[1][: len(e.held_back)]
        with pending_signals(STOP) as signals:
            try:
                own = {"signals": signals, "labelled": self.unlabelled is None}
                finish = Finish(new, old, images, parts[0], held_back, e.compute, settings, **own)
            except ValueError as error:
                if settings.budget is not None:
                    raise
                log.say(f"no finish: {error}")
                return None
            try:
                with log.progress(settings.budget.amount if settings.budget else FIRST_ROUND) as advance:
                    found = finish.run(advance, keep_last=settings.label_share == 1)
            except DivergenceError as error:
                log.say(f"the finish is given up, and the network before it is kept: {error}")
                return None
        if found.stopped:
            log.say("stopped by a signal: the best network so far is kept")
        return found if found.rounds or found.stopped else None

    def _row(self, name: str, found: Finished, start: Candidate | None = None) -> Candidate:
        """The measurements of a network that has learned, after those of the network from which it came."""
        learned, seconds = (start.num_learned, start.seconds) if start else (0, 0.0)
        row = self.evaluator.candidate(name, found.net, spec_of(found.net).image_sizes[0])
        return replace(row, recalibrated=True, num_learned=learned + found.num_images, seconds=seconds + found.seconds)


def _shares(found: Finished) -> str:
    """How many of the held-back images are right, after a finish and before it."""
    of, before = f"of {found.num_held_back:,} held-back images", f"{found.before:.1%} before it"
    if found.labelled:
        return f"{found.after:.1%} {of} are right, {before}, and {found.old:.1%} of the old network"
    return f"the networks agree on {found.after:.1%} {of}, and on {before}"


def taught_data(old: nn.Module, images: ImageSet, name: str, compute: Compute) -> ImageData:
    """Images with the answers of a network in place of labels; a fifth of them are test images.

    Accuracy on these data is agreement with the network.
    """
    spec = spec_of(old)
    images.labels = answers(compute.place(old), images, None, compute).cpu()
    names = spec.class_names or tuple(f"class {k}" for k in range(spec.classes))
    train, test = (images.take(part) for part in split_indices(len(images), 0))
    side = spec.image_sizes[0]
    return ImageData(f"{name}, unlabelled", train, test, names, side, *channel_statistics(train, side))


def checked_budget(
    source: Path | None, out: Path | None, weights: Path | None, finish: str, unlabelled: Path | None
) -> Budget | None:
    """The budget of the finish, None without one; ValueError where the words of a conversion contradict each other."""
    if out is None:
        raise ValueError("out must be given; type --out DIR")
    check_new(out)
    budget = None if finish in ("auto", "none") else finish_budget(finish)
    if unlabelled is not None and finish == "none":
        raise ValueError(f"images must come with a finish, got {unlabelled}; type --finish auto")
    if weights is not None and source is not None:
        raise ValueError(f"weights must come with --arch alone, got {weights}; type --arch resnet18, or DIR")
    return budget


def images_for(
    old: nn.Module,
    source: Path | None,
    data: DataSource | None,
    unlabelled: Path | None,
    side: int,
    need_data: bool,
    compute: Compute,
    log: Log,
) -> tuple[ImageData | None, ImageSet | None]:
    """The images on which a conversion is measured, and others from which it learns; None where there are none.

    Where only unlabelled images are given, the answers of the old network are their labels. Where data cannot be read
    and need not be, a line says so.
    """
    images = other = None
    if data is not None:
        try:
            images = tested_images(data, side, source)
        except ValueError as error:
            if need_data:
                raise
            log.say(f"the data of the run cannot be read ({error})")
        else:
            for note in images.skipped.notes(len(images.train) + len(images.test)):
                log.say(f"note: {note}")
    if unlabelled is not None:
        other = load_unlabelled(unlabelled, side)
        if images is None:
            images, other = taught_data(old, other, unlabelled.name, compute), None
            log.say("the images have no labels: accuracy is the agreement with the old network")
    return images, other
