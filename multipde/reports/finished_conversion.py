"""The last stage of ``multipde convert``: the old network teaches the converted one, beside what else could be done."""

import copy
from dataclasses import dataclass, replace

from torch import nn

from multipde.data.datasets import split_indices
from multipde.data.images import ImageSet
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.conversion_report import Candidate, ConversionReport
from multipde.mesh.randomness import OwnRandomness
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Log
from multipde.runtime.signals import STOP, pending_signals
from multipde.training.budget import Budget
from multipde.training.finish import FIRST_ROUND, Finish, Finished, FinishSettings
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
