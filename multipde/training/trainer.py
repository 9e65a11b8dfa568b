"""Coarse to fine: train a level, convert the network, train the next."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from multipde.conversions.optimizer_state import carry_optimizer_state
from multipde.data.datasets import ImageData
from multipde.data.images import Batch
from multipde.evaluation.metrics import Metrics, evaluate_batches
from multipde.mesh.reparametrize import set_mesh_size
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Advance
from multipde.runtime.device import Compute
from multipde.runtime.processes import broadcast_weights, check_batch, largest, num_processes, on_rank_zero
from multipde.runtime.signals import Interrupted, PendingSignals
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.checkpoint import read_checkpoint, write_checkpoint
from multipde.training.level import Level, level_flops
from multipde.training.listeners import Listeners
from multipde.training.monitor import DivergedError, DivergenceError, check_finite
from multipde.training.objective import Objective
from multipde.training.samples import Samples
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.snapshot import Snapshot, opening_stencils
from multipde.training.state import TrainState, state_from_record
from multipde.training.step import TrainStep
from multipde.training.stopping import pace_of
from multipde.training.switch import check_moves, move_record, plan_move, stability_warning

MOVE_IMAGES = 2000
"""Validation images on which a move between levels is judged."""

UNKNOWN_EPOCHS = 10
"""Length of a level that is left by its gain, as far as its learning rate is concerned."""

MANY_ROLLBACKS = 3
"""How often a training goes back to its last checkpoint before it gives up."""


class Trainer:
    """Trains one network through a schedule; every random draw is named by (seed, level, epoch, batch).

    So there is no random state to be kept, and a training can be left and taken up after any step. Of several processes
    each runs one of these, and all do the same on their slices of the batches; only rank zero writes files and speaks.
    `begin` or `restore` gives it the network before `run`.

    Args:
        schedule: with its network.
        run_dir: where checkpoints go.
    """

    def __init__(
        self,
        schedule: Schedule,
        data: ImageData,
        settings: TrainSettings,
        run_dir: Path,
        log: Listeners,
        objective: Objective | None = None,
    ):
        self.schedule, self.settings, self.run_dir, self.log = schedule, settings, run_dir, log
        self.objective = objective or Objective()
        self.compute = Compute.of(settings.device, settings.amp).distributed()
        self.samples = Samples(data, settings, schedule.configs()[0], self.compute)
        for level in schedule.levels:
            check_batch(min(level.batch, len(self.samples.indices)), num_processes())
        self.pace = pace_of(schedule, settings)
        check_moves(schedule, settings)
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}
        self.signals = PendingSignals()
        self.after_epoch: Callable[[], None] = lambda: None

    def begin(self, net: nn.Module) -> None:
        """From now on it is this network that is trained, which is that of the present level."""
        self.net = self.compute.place(net)
        self.present_size = spec_of(net).sizes[0]
        self.step = TrainStep(self.net, self.settings, self.compute, self.objective)
        self.saved_at = time.monotonic()

    def restore(self, checkpoint: Path) -> None:
        """Take up where a checkpoint was written.

        Raises:
            ValueError: one that is damaged, or not of this schedule.
        """
        net, self.best, record, optimizer_state = read_checkpoint(checkpoint, self.schedule.network)
        self.state = state_from_record(record, self.schedule, checkpoint)
        self.begin(net)  # where the processes meet: all have read before one writes
        self.step.set_state(optimizer_state)

    def run(self) -> nn.Module:
        """All that is left of the schedule; the best weights at the last level.

        Raises:
            DivergedError: the training is given up.
            Interrupted: a signal asked to stop; everything is saved.
            OSError: a checkpoint cannot be written; the one before is still there.
        """
        with self.log.progress(self._planned_flops(), self.state.flops) as advance:
            if self._newest_checkpoint() is None:
                self._write_checkpoint()
            while not self._is_finished():
                try:
                    if self.state.epoch == self.state.batch == 0:
                        self._begin_level()
                    while not self._is_done():
                        self._epoch(self.level, level_flops(self.level, spec_of(self.net)), advance)
                    if self.state.index + 1 < len(self.schedule.levels):
                        self._next_level()
                except DivergenceError as error:
                    self._recover(error)
        self.net.load_state_dict(self.best)
        return self.net

    @property
    def level(self) -> Level:
        """The present level, with the number of epochs that was found for it."""
        level, planned = self.schedule.levels[self.state.index], self.state.pace.get("planned")
        return level if planned is None else replace(level, epochs=planned)

    def _is_finished(self) -> bool:
        p = self.state
        return len(p.levels) == len(self.schedule.levels) and p.index + 1 == len(p.levels)

    def _is_done(self) -> bool:
        level = self.level
        return self.state.pace["leave"] if level.epochs is None else self.state.epoch >= level.num_epochs

    def _planned_flops(self) -> float:
        """Work of the whole schedule; of a budget in time, as much as an epoch of each level."""
        if self.pace is not None and self.pace.budget.unit == "flops":
            return self.pace.budget.amount
        pairs = zip(self.schedule.levels, self.schedule.flops(), strict=True)
        return sum(f * self.samples.num_in_level(level, 1) for level, f in pairs)

    def _epoch_flops(self, index: int) -> float:
        level = self.schedule.levels[index]
        return level_flops(level, spec_of(self.net)) * self.samples.num_in_epoch(level)

    def _begin_level(self) -> None:
        """Where epochs are not given: what this level may cost, and, for the last one, how many it will have."""
        p = self.state
        if self.pace is not None:
            is_last = p.index + 1 == len(self.schedule.levels)
            started = p.moves[-1]["accuracy_recalibrated"] if p.index else self._accuracy()
            p.pace = self.pace.begin(p.pace, p.flops, p.seconds, self._epoch_flops(p.index), started, is_last)

    def _accuracy(self) -> float:
        """On some of the validation images, to judge a move between levels."""
        return self.validate(spec_of(self.net).sizes[0], MOVE_IMAGES).score

    def validate(self, size: int, num_images: int | None = None, heed: bool = False) -> Metrics:
        """Accuracy and loss on the validation images.

        Args:
            heed: stop where that is asked for; the validation will be done anew.
        """
        batches = self.samples.train.evaluation(self.samples.held_back[:num_images], size)
        return self._evaluate(batches, False if heed else None)

    def test(self) -> Metrics:
        """Accuracy and loss on the test images of the best weights, when everything is trained and saved."""
        return self._evaluate(self.samples.test.evaluation(None, self.schedule.levels[-1].size), True)

    def _evaluate(self, batches: Iterator[Batch], is_saved: bool | None) -> Metrics:
        """Accuracy and loss, every process on its slice of the batches.

        Args:
            is_saved: the last checkpoint is of this very moment; None to heed no signals.
        """
        wanted = batches if is_saved is None else self._heeding(batches, is_saved)
        loss, metric = self.objective.loss, self.objective.metric
        return evaluate_batches(self.net, wanted, self.compute, loss=loss, metric=metric)

    def _heeding(self, batches: Iterable[Batch], is_saved: bool) -> Iterator[Batch]:
        """The batches, as long as no signal asks to stop."""
        for batch in batches:
            stop, save = largest(self.signals.stop, self.signals.save)
            if stop or save:
                self._heed(is_saved)
            yield batch

    def _epoch(self, level: Level, flops: float, advance: Advance) -> None:
        """What is left of an epoch, its validation, its row and its checkpoint."""
        p = self.state
        self._train_epoch(level, flops, advance)
        self.step.monitor.settle()
        validation = self.validate(level.size, heed=True)
        steps = list(spec_of(self.net).block_steps)
        row = {"level": p.index + 1, "size": level.size, "steps": steps}
        row |= p.end_epoch(flops, validation)
        if level.epochs is None and self.pace is not None:
            follows = self._epoch_flops(p.index + 1)
            p.pace = self.pace.after_epoch(p.pace, p.epoch, p.flops, p.seconds, validation.score, follows)
        if validation.score > p.best_accuracy:
            p.best_accuracy = validation.score
            self.best = {name: t.detach().cpu().clone() for name, t in self.net.state_dict().items()}
        self.log.row(row, level.num_epochs)
        if self._is_done():
            p.end_level(row, p.epoch - 1 + level.share_of_epoch(p.epoch - 1))
            stencils = opening_stencils(self.net, self.best)
            self.log.level(p.index, level.size, Snapshot(stencils, validation.confusion, p.rows))
        self.after_epoch()
        self._write_checkpoint()
        self._heed(is_saved=True)

    def _train_epoch(self, level: Level, flops: float, advance: Advance) -> None:
        """What is left of a pass over the training images; the state is whole after every step."""
        p = self.state
        batches = self.samples.epoch(level, p.index, p.epoch, p.batch)
        num_epoch, num_level = self.samples.num_in_epoch(level), self.samples.num_in_level(level, UNKNOWN_EPOCHS)
        self.net.train()
        started = time.perf_counter() - p.epoch_seconds
        p.on_device(self.compute.device)
        for x, labels in batches:
            rate = p.rate_scale * self.schedule.rate(p.index, (p.epoch * num_epoch + p.num_images) / num_level)
            self._put_on(x.shape[-1])
            loss, scores = self.step(x, labels, rate, x.shape[-1] == level.size)
            p.count(loss, scores, labels)
            p.epoch_seconds = time.perf_counter() - started
            advance(
                flops * len(labels) * num_processes(),
                f"size {level.size}, epoch {p.epoch + 1} of {level.num_epochs or 'auto'}",
            )
            self._heed()
        self._put_on(level.size)

    def _heed(self, is_saved: bool = False) -> None:
        """Save where it is time or was asked for; stop where that was asked for."""
        is_due = time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_every
        stop, save, is_due = largest(self.signals.stop, self.signals.save, is_due)  # what one is asked for, all do
        if (is_due or save or stop) and not is_saved:
            self._write_checkpoint()
        if save:
            self.signals.save = False
            self.log.say(f"saved at {self.state.reached(self.level.size)}, as was asked for")
        if stop:
            how = f"go on with: multipde train --run {self.run_dir} --resume"
            raise Interrupted(f"stopped and saved at {self.state.reached(self.level.size)}; {how}", stop)

    def _recover(self, error: DivergenceError) -> None:
        """Go back to the last checkpoint with half the learning rate, or give up."""
        p, last = self.state, self._newest_checkpoint()
        text = f"{error} at size {self.level.size}, epoch {p.epoch + 1}, step {p.batch + 1}"
        rate = p.rate_scale * self.level.learning_rate
        if self.settings.on_divergence == "stop" or len(p.rollbacks) == MANY_ROLLBACKS or last is None:
            advice = f"type a smaller --learning-rate than {rate:g}"
            if self.settings.on_divergence == "stop":
                advice += ", or --on-divergence rollback"
            tried = f" after {len(p.rollbacks)} rollbacks" if p.rollbacks else ""
            raise DivergedError(f"{text}{tried}; {advice}. What was saved before is in {last}") from None
        history = [*p.rollbacks, {"error": text, "learning_rate": rate / 2}]
        scale = p.rate_scale / 2
        self.restore(last)
        self.state.rate_scale, self.state.rollbacks = scale, history
        self.state.checkpoints = p.checkpoints
        self.log.keep_rows(self.state.rows)
        self._write_checkpoint()
        self.log.say(
            f"{text}: back to {last.name}, {self.state.reached(self.level.size)}; learning rate {rate / 2:g} from here"
        )

    def _next_level(self) -> None:
        """Convert network and optimizer state to the next level, measure BatchNorm anew, and say what that cost."""
        p = self.state
        old_level, level = self.schedule.levels[p.index : p.index + 2]
        started = time.perf_counter()
        accuracies = [self._accuracy()]
        self._heed(is_saved=True)
        evaluator, steps = self.samples.evaluator(p.index + 1), self.schedule.configs()[p.index + 1].block_steps
        move = plan_move(self.net, level, steps, self.settings, evaluator)
        self._heed(is_saved=True)
        old_net, old_optimizer = self.net, self.step.optimizer
        self.begin(move(old_net))
        rule = self.settings.momentum_rule
        carry_optimizer_state(move, old_net, old_optimizer, self.net, self.step.optimizer, rule)
        accuracies.append(self._accuracy())
        evaluator.recalibrate(self.net, level.size, self.settings.calibration_images)
        broadcast_weights(self.net)
        accuracies.append(self._accuracy())
        ratios, warning = stability_warning(self.net, evaluator)
        record = move_record(move, old_level.size, spec_of(self.net), accuracies, ratios)
        self.best = {}
        p.begin_level(record, time.perf_counter() - started)
        self.log.say(
            f"move {old_level.size} -> {level.size} by {record['method']}: validation {accuracies[0]:.1%} before, "
            f"{accuracies[1]:.1%} after, {accuracies[2]:.1%} with BatchNorm recalibrated"
        )
        if warning:
            self.log.say(f"warning: {warning}")

    def _put_on(self, size: int) -> None:
        """Stencils for images of that size, where the parameter belongs to the finest mesh."""
        if self.settings.coordinates == "finest" and size != self.present_size:
            set_mesh_size(self.net, 1 / size)
            self.present_size = size

    def _write_checkpoint(self) -> None:
        """Everything that is needed to go on, unless it has gone wrong unnoticed."""
        self.step.monitor.settle()
        self._put_on(self.level.size)
        kept = self.step.state()
        check_finite(dict(self.net.state_dict()), kept)
        self.state.checkpoints += 1
        record, number, best = self.state.record(), self.state.checkpoints, self.best
        on_rank_zero(lambda: write_checkpoint(self.run_dir, number, self.net, best, record, kept))
        self.saved_at = time.monotonic()

    def _newest_checkpoint(self) -> Path | None:
        """The one that rank zero sees."""
        return on_rank_zero(lambda: newest_checkpoint(self.run_dir))
