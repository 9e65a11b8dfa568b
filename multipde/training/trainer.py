"""The trainer from coarse to fine: it trains a level, converts the network, and trains the next level."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from multipde.conversions.optimizer_state import carry_optimizer_state
from multipde.data.datasets import ImageData
from multipde.data.images import Batch
from multipde.evaluation.metrics import Metrics, evaluate_batches
from multipde.mesh.reparametrize import set_mesh_size
from multipde.networks.a_trous import end_dilation
from multipde.networks.detail import keeps_function
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Advance
from multipde.runtime.device import Compute
from multipde.runtime.processes import broadcast_weights, check_batch, largest, num_processes, on_rank_zero
from multipde.runtime.signals import Interrupted, PendingSignals
from multipde.storage.run_directory import checkpoints_of, last_number, resume_command
from multipde.training.checkpoint import write_checkpoint
from multipde.training.divergence import rollback_record
from multipde.training.fine_tuning import FineTuning
from multipde.training.job import read_agreed
from multipde.training.level import Level
from multipde.training.listeners import Listeners
from multipde.training.monitor import DivergedError, DivergenceError, check_finite, check_metric, checked
from multipde.training.objective import Objective
from multipde.training.optimizers import optimizer_flops
from multipde.training.precise import num_precise, precise_statistics
from multipde.training.samples import Samples
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.snapshot import Snapshot, opening_stencils
from multipde.training.state import TrainState
from multipde.training.step import TrainStep
from multipde.training.stopping import stopping_rule
from multipde.training.switch import check_moves, move_line, move_record, plan_move

MOVE_IMAGES = 2000
"""Number of validation images on which the accuracy before and after a move between levels is measured."""


class Trainer:
    """Trains one network through all levels of a schedule.

    Every random draw is named by (seed, level, epoch, batch), so there is no state of random generators to save, and a
    training can be resumed after any step. Each process has a trainer; all do the same on their slices of the batches,
    and rank zero writes the files. Call `begin` or `restore` before `run`.

    Args:
        schedule: the levels, together with the network.
        run_dir: the directory in which checkpoints are written.
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
        self.compute = Compute.of(settings.device, settings.amp).distributed()
        given = objective or Objective()
        self.samples = Samples(data, settings, schedule.configs()[0], self.compute, given.augment)
        self.objective = self.samples.weighted(given)
        for level in schedule.levels:
            check_batch(min(level.batch, len(self.samples.indices)), num_processes())
        self.stopping = stopping_rule(schedule, settings)
        check_moves(schedule, settings)
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}
        self.signals = PendingSignals()
        self.after_epoch: Callable[[], None] = lambda: None

    def begin(self, net: nn.Module, index: int | None = None) -> None:
        """Train this network, which has the size of the current level or of that index, with a new optimizer."""
        self.net = self.compute.place(net)
        self.image_size = spec_of(net).sizes[0]
        tuning = FineTuning.of(self.settings, self.schedule.levels, self.state.index if index is None else index)
        self.step = TrainStep(self.net, self.settings, self.compute, self.objective, tuning)
        self.saved_at = time.monotonic()

    def restore(self, checkpoints: Sequence[Path]) -> None:
        """Continue from the first checkpoint that is whole; ValueError if there is none for this schedule."""
        net, self.best, self.state, optimizer_state, note = read_agreed(checkpoints, self.schedule)
        self.begin(net)  # synchronises the processes: all have read the checkpoint before rank zero writes the next one
        self.step.set_state(optimizer_state)
        if note:
            self.log.say(note)

    def run(self) -> nn.Module:
        """Train the rest of the schedule and return the network with the best weights of the last level.

        Raises:
            DivergedError: the training diverged and was given up.
            Interrupted: a signal asked to stop; a checkpoint is saved.
            OSError: a checkpoint cannot be written; the previous one remains.
        """
        with self.log.log.progress(self._planned_flops(), self.state.flops) as advance:
            if not self._checkpoints():
                self._write_checkpoint()
            while not self._is_finished():
                try:
                    if self.state.epoch == self.state.batch == 0:
                        self._begin_level()
                    while not self._is_done():
                        self._epoch(self.level, self.step.image_flops(self.level), advance)
                    if self.state.index + 1 < len(self.schedule.levels):
                        self._next_level()
                except DivergenceError as error:
                    self._recover(error)
        self.net.load_state_dict(self.best)
        return self.step.frozen.release().eval()

    @property
    def level(self) -> Level:
        """The current level, with the number of epochs that the stopping rule has fixed for it, if any."""
        level, planned = self.schedule.levels[self.state.index], self.state.pace.get("planned")
        return level if planned is None else replace(level, epochs=planned)

    def _is_finished(self) -> bool:
        p = self.state
        return len(p.levels) == len(self.schedule.levels) and p.index + 1 == len(p.levels)

    def _is_done(self) -> bool:
        level = self.level
        return self.state.pace["leave"] if level.epochs is None else self.state.epoch >= level.num_epochs

    def _planned_flops(self) -> float:
        """Floating point operations of the whole schedule; for a budget in time, those of one epoch per level."""
        if self.stopping is not None and self.stopping.budget.unit == "flops":
            return self.stopping.budget.amount
        pairs, own = zip(self.schedule.levels, self.schedule.flops(), strict=True), optimizer_flops(self.step.optimizer)
        return sum((f + own / level.batch) * self.samples.num_in_level(level, 1) for level, f in pairs)

    def _epoch_flops(self, index: int) -> float:
        level = self.schedule.levels[index]
        images = self.samples.num_in_epoch(level) + num_precise(self.samples, level) * level.crops_per_image / 3
        return self.step.image_flops(level) * images

    def _begin_level(self) -> None:
        """If epochs are not given, fix the budget of this level, and the number of epochs of the last level."""
        p = self.state
        if self.stopping is not None:
            is_last = p.index + 1 == len(self.schedule.levels)
            started = p.moves[-1]["accuracy_recalibrated"] if p.index else self.validate(MOVE_IMAGES).accuracy
            p.pace = self.stopping.begin(p.pace, p.flops, p.seconds, self._epoch_flops(p.index), started, is_last)

    def validate(self, num: int | None = None, interruptible: bool = False, net: nn.Module | None = None) -> Metrics:
        """Accuracy and loss on the first ``num`` validation images, or on all, of the trained network or another.

        Args:
            interruptible: a signal stops the validation, which is repeated when the training is resumed.
        """
        feed, spec = self.samples.train, spec_of(self.net)
        batches = feed.at(spec.detail).evaluation(self.samples.held_back[:num], spec.image_sizes[0])
        return self._evaluate(self._check_signals(batches, is_saved=False) if interruptible else batches, net)

    def test(self) -> Metrics:
        """Accuracy and loss on the test images, of the best weights after everything is trained and saved."""
        level = self.schedule.levels[-1]
        batches = self.samples.test.at(level.detail).evaluation(None, level.image_size)
        return checked(self._evaluate(self._check_signals(batches, is_saved=True)), "test", DivergedError)

    def _evaluate(self, batches: Iterator[Batch], net: nn.Module | None = None) -> Metrics:
        loss, metric = self.objective.loss, self.objective.metric
        return check_metric(evaluate_batches(net or self.net, batches, self.compute, loss=loss, metric=metric), metric)

    def _check_signals(self, batches: Iterable[Batch], is_saved: bool) -> Iterator[Batch]:
        """The batches, with pending signals obeyed before each; see `_obey_signals`."""
        for batch in batches:
            if any(largest(self.signals.stop, self.signals.save)):
                self._obey_signals(is_saved)
            yield batch

    def _epoch(self, level: Level, flops: float, advance: Advance) -> None:
        """Train the rest of an epoch and validate; write the row of the metrics file and a checkpoint."""
        p = self.state
        self._train_epoch(level, flops, advance)
        self.step.monitor.settle()
        started, net = time.perf_counter(), self.step.judged()
        num_measured = precise_statistics(net, self.samples, level, p.index)
        measured = time.perf_counter() - started
        validation = checked(self.validate(interruptible=True, net=net), "validation")
        row = {"level": p.index + 1, **level.sides, "steps": list(spec_of(self.net).block_steps)}
        row |= p.end_epoch(flops, replace(validation, seconds=validation.seconds + measured), num_measured)
        if level.epochs is None and self.stopping is not None:
            follows = self._epoch_flops(p.index + 1)
            p.pace = self.stopping.after_epoch(p.pace, p.epoch, p.flops, p.seconds, validation.accuracy, follows)
        if p.is_best(validation):
            self.best = {name: t.detach().cpu().clone() for name, t in net.state_dict().items()}
        self.log.row(row, level.num_epochs)
        if self._is_done():
            p.end_level(row, p.epoch - 1 + level.share_of_epoch(p.epoch - 1))
            stencils = opening_stencils(self.net, self.best)
            self.log.level(p.index, level.size, Snapshot(stencils, validation.confusion, p.rows))
        self.after_epoch()
        self._write_checkpoint()
        self._obey_signals(is_saved=True)

    def _train_epoch(self, level: Level, flops: float, advance: Advance) -> None:
        """Train the rest of a pass over the training images; a checkpoint can be written after every step."""
        p = self.state
        batches = self.samples.epoch(level, p.index, p.epoch, p.batch)
        self.step.frozen.train_mode()
        started = time.perf_counter() - p.epoch_seconds
        p.on_device(self.compute.device)
        for x, labels in batches:
            done, after = self.samples.shares(level, p.epoch, p.num_images)
            if level.a_trous and end_dilation(self.net, after, level.a_trous):
                p.best_accuracy = None  # that of another network
            rate = p.rate_scale * self.schedule.rate(p.index, done)
            self._set_image_size(x.shape[-1])
            loss, scores = self.step(x, labels, rate, x.shape[-1] == (level.crop or level.image_size))
            p.count(loss, scores, labels)
            if p.epoch == 0 and p.batch == 1:
                self.step.state()  # raises for what no checkpoint can hold
            p.epoch_seconds = time.perf_counter() - started
            text = f"size {level.label}, epoch {p.epoch + 1} of {level.num_epochs or 'auto'}"
            advance(flops * len(labels) * num_processes(), text)
            self._obey_signals()
        self._set_image_size(level.size)

    def _obey_signals(self, is_saved: bool = False) -> None:
        """Write a checkpoint where one is due or requested, unless the state is saved; raise Interrupted to stop."""
        # a request that one process has received holds for all
        is_due = time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_every
        stop, save, is_due = largest(self.signals.stop, self.signals.save, is_due)
        if (is_due or save or stop) and not is_saved:
            self._write_checkpoint()
        if save:
            self.signals.save = False
            self.log.say(f"saved at {self.state.reached(self.level.label)}, as requested by a signal")
        if stop:
            how = f"go on with: {resume_command(self.run_dir, self.schedule.network, self.objective.loss)}"
            raise Interrupted(f"stopped and saved at {self.state.reached(self.level.label)}; {how}", stop)

    def _recover(self, error: DivergenceError) -> None:
        """Return to the last checkpoint with half the learning rate; DivergedError where the training gives up."""
        p, found = self.state, self._checkpoints()
        rollback = rollback_record(error, p, self.level, self.settings.on_divergence, next(iter(found), None))
        self.restore(found)
        self.state.rate_scale, self.state.rollbacks = p.rate_scale / 2, [*p.rollbacks, rollback]
        self.log.keep_rows(self.state.rows)
        self._write_checkpoint()
        reached, rate = self.state.reached(self.level.label), rollback["learning_rate"]
        self.log.say(f"{rollback['error']}: back to {found[0].name}, {reached}; learning rate {rate:g} from here")

    def _next_level(self) -> None:
        """Convert network and optimizer state to the next level, recalibrate BatchNorm, and report the accuracies."""
        p = self.state
        old_level, level = self.schedule.levels[p.index : p.index + 2]
        started = time.perf_counter()
        if self.settings.average:  # the statistics of the average were measured, and not those of the weights
            precise_statistics(self.net, self.samples, old_level, p.index)
        measured = [self.validate(MOVE_IMAGES)]
        self._obey_signals(is_saved=True)
        evaluator, steps = self.samples.evaluator(p.index + 1), self.schedule.configs()[p.index + 1].block_steps
        move = plan_move(self.net, level, steps, self.settings, evaluator)
        self._obey_signals(is_saved=True)
        old_net, old_step, rule = self.net, self.step, self.settings.momentum_rule
        self.begin(move(self.step.frozen.release()), p.index + 1)
        carry_optimizer_state(move, old_net, old_step.optimizer, self.net, self.step.optimizer, rule)
        self.step.groups.go_on(old_step.groups)
        measured.append(self.validate(MOVE_IMAGES))
        if not keeps_function(spec_of(old_net), spec_of(self.net)):
            evaluator.recalibrate(self.net, level.image_size, self.settings.calibration_images)
        broadcast_weights(self.net)
        measured.append(self.validate(MOVE_IMAGES))
        report = evaluator.step_bounds(self.net, level.image_size)
        record, self.best = move_record(move, spec_of(old_net), spec_of(self.net), measured, report), {}
        p.begin_level(record, time.perf_counter() - started)
        self.log.say(move_line(old_level, level, record))

    def _set_image_size(self, size: int) -> None:
        """Compute the stencils for images of a size, if the parameters belong to the finest mesh."""
        if self.settings.coordinates == "finest" and size != self.image_size:
            set_mesh_size(self.net, 1 / size)
            self.image_size = size

    def _write_checkpoint(self) -> None:
        """Write a checkpoint to resume from; DivergenceError for values that are not finite."""
        self.step.monitor.settle()
        self._set_image_size(self.level.size)
        kept = self.step.state()
        check_finite(self.net, kept)
        p, what = self.state, (self.net, self.best, self.state.record(), kept, self.settings.keep)
        p.checkpoints = 1 + on_rank_zero(lambda: last_number(self.run_dir))
        p.written = on_rank_zero(lambda: write_checkpoint(self.run_dir, p.checkpoints, *what))
        self.saved_at = time.monotonic()

    def _checkpoints(self) -> list[Path]:
        """The checkpoints that rank zero finds, the newest first."""
        return on_rank_zero(lambda: checkpoints_of(self.run_dir))
