"""Coarse to fine: train a level, convert the network, train the next."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from multipde.conversions.optimizer_state import carry_optimizer_state
from multipde.conversions.recalibration import recalibrate
from multipde.data.batches import Normalize, images_per_epoch
from multipde.data.datasets import ImageData, split_indices
from multipde.data.feed import Feed
from multipde.data.images import Batch
from multipde.evaluation.metrics import Metrics, evaluate_batches
from multipde.mesh.reparametrize import set_mesh_size
from multipde.networks.network import PDENet
from multipde.runtime.console import Advance
from multipde.runtime.device import Compute
from multipde.runtime.processes import (
    broadcast_weights,
    check_batch,
    largest,
    num_processes,
    on_rank_zero,
)
from multipde.runtime.signals import Interrupted, PendingSignals
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.checkpoint import read_checkpoint, write_checkpoint
from multipde.training.level import Level, level_flops
from multipde.training.log import TrainingLog
from multipde.training.monitor import DivergedError, DivergenceError, check_finite
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.snapshot import Snapshot, opening_stencils
from multipde.training.state import TrainState, state_from_record
from multipde.training.step import TrainStep
from multipde.training.stopping import pace_of
from multipde.training.switch import DrawImages, check_moves, move_record, plan_move, stability_warning

MOVE_IMAGES = 2000
"""Validation images on which a move between levels is judged."""

UNKNOWN_EPOCHS = 10
"""Length of a level that is left by its gain, as far as its learning rate is concerned."""

MANY_ROLLBACKS = 3
"""How often a training goes back to its last checkpoint before it gives up."""


class Trainer:
    """Trains one network through a schedule; every random draw is named by (seed, level, epoch, batch).

    So there is no random state to be kept, and a training can be left and taken up after any step. Of several processes
    each runs one of these, and all do the same on their slices of the batches; only the writer's files and words count.

    Args:
        net: the network of the first level, or of the level at which `restore` takes up.
        schedule: with its network.
        run_dir: where checkpoints go.
    """

    def __init__(
        self, net: PDENet, schedule: Schedule, data: ImageData, settings: TrainSettings, run_dir: Path, log: TrainingLog
    ):
        self.schedule, self.data, self.settings, self.run_dir, self.log = schedule, data, settings, run_dir, log
        self.compute = Compute.of(settings.device, settings.amp).distributed()
        self.device = self.compute.device
        self.train_indices, self.validation_indices = split_indices(len(data.train), settings.seed, settings.validation)
        for level in schedule.levels:
            check_batch(min(level.batch, len(self.train_indices)), num_processes())
        self.feed = Feed(data.train, Normalize.of(net.config), self.compute)
        self.pace = pace_of(schedule, settings)
        check_moves(schedule, settings)
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}
        self.signals = PendingSignals()
        self.after_epoch: Callable[[], None] = lambda: None
        self._take(self.compute.place(net))

    def _take(self, net: PDENet) -> None:
        """From now on it is this network that is trained."""
        self.net, self.present_size = net, net.config.sizes[0]
        self.step = TrainStep(net, self.settings, self.device)
        self.saved_at = time.monotonic()

    def run(self) -> PDENet:
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
                        self._epoch(self.level, level_flops(self.level, self.net.config), advance)
                    if self.state.index + 1 < len(self.schedule.levels):
                        self._next_level()
                except DivergenceError as error:
                    self._recover(error)
        self.net.load_state_dict(self.best)
        return self.net

    def _is_finished(self) -> bool:
        p = self.state
        return len(p.levels) == len(self.schedule.levels) and p.index + 1 == len(p.levels)

    @property
    def level(self) -> Level:
        """The present level, with the number of epochs that was found for it."""
        level, planned = self.schedule.levels[self.state.index], self.state.pace.get("planned")
        return level if planned is None else replace(level, epochs=planned)

    def _planned_flops(self) -> float:
        """Work of the whole schedule; of a budget in time, as much as an epoch of each level."""
        if self.pace is not None and self.pace.budget.unit == "flops":
            return self.pace.budget.amount
        num = len(self.train_indices)
        return sum(
            f * sum(images_per_epoch(num, level.batch, level.share_of_epoch(e)) for e in range(level.num_epochs or 1))
            for level, f in zip(self.schedule.levels, self.schedule.flops(), strict=True)
        )

    def _epoch_flops(self, index: int) -> float:
        level = self.schedule.levels[index]
        return level_flops(level, self.net.config) * images_per_epoch(len(self.train_indices), level.batch)

    def _begin_level(self) -> None:
        """Where epochs are not given: what this level may cost, and, for the last one, how many it will have."""
        p = self.state
        if self.pace is not None:
            is_last = p.index + 1 == len(self.schedule.levels)
            started = p.moves[-1]["accuracy_recalibrated"] if p.index else self._first_accuracy()
            p.pace = self.pace.begin(p.pace, p.flops, p.seconds, self._epoch_flops(p.index), started, is_last)

    def _first_accuracy(self) -> float:
        return self.validate(self.net.config.sizes[0], MOVE_IMAGES).accuracy

    def _is_done(self) -> bool:
        level = self.level
        return self.state.pace["leave"] if level.epochs is None else self.state.epoch >= level.num_epochs

    def restore(self, checkpoint: Path) -> None:
        """Take up where a checkpoint was written.

        Raises:
            ValueError: one that is damaged, or not of this schedule.
        """
        net, self.best, record, momentum = read_checkpoint(checkpoint)
        self.state = state_from_record(record, self.schedule, checkpoint)
        self._take(self.compute.place(net))  # where the processes meet: all have read before one writes
        self.step.set_momentum(momentum)

    def validate(self, size: int, num_images: int | None = None, heed: bool = False) -> Metrics:
        """Accuracy and loss on the validation images.

        Args:
            heed: stop where that is asked for; the validation will be done anew.
        """
        indices = self.validation_indices[:num_images]
        return self._evaluate(self.feed, indices, size, False if heed else None)

    def test(self) -> Metrics:
        """Accuracy and loss on the test images of the best weights, when everything is trained and saved."""
        return self._evaluate(replace(self.feed, images=self.data.test), None, self.schedule.levels[-1].size, True)

    def _evaluate(self, feed: Feed, indices: Tensor | None, size: int, is_saved: bool | None) -> Metrics:
        """Accuracy and loss, every process on its slice of the batches.

        Args:
            is_saved: the last checkpoint is of this very moment; None to heed no pending.
        """
        batches = feed.evaluation(indices, size)
        wanted = batches if is_saved is None else self._heeding(batches, is_saved)
        return evaluate_batches(self.net, wanted, self.compute)

    def _heeding(self, batches: Iterable[Batch], is_saved: bool) -> Iterator[Batch]:
        """The batches, as long as nobody asks to stop."""
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
        row = {"level": self.schedule.number(p.index), "size": level.size, "steps": list(self.net.config.block_steps)}
        row |= p.end_epoch(flops, validation)
        if level.epochs is None and self.pace is not None:
            follows = self._epoch_flops(p.index + 1)
            p.pace = self.pace.after_epoch(p.pace, p.epoch, p.flops, p.seconds, validation.accuracy, follows)
        if validation.accuracy > p.best_accuracy:
            p.best_accuracy = validation.accuracy
            self.best = {name: t.detach().cpu().clone() for name, t in self.net.state_dict().items()}
        self.log.metrics(row)
        self.log.say(
            f"size {level.size:>3}  epoch {p.epoch:>2}/{level.num_epochs or '?'}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation {validation.accuracy:6.1%}  "
            f"{row['images_per_second']:>6.0f} images/s  {p.seconds:>5.0f} s"
        )
        if self._is_done():
            p.end_level(row, p.epoch - 1 + level.share_of_epoch(p.epoch - 1))
            stencils = opening_stencils(self.net, self.best)
            self.log.snapshot(p.index, Snapshot(stencils, validation.confusion, p.rows))
        self.after_epoch()
        self._write_checkpoint()
        self._heed(is_saved=True)

    def _train_epoch(self, level: Level, flops: float, advance: Advance) -> None:
        """What is left of a pass over the training images; the state is whole after every step."""
        p, s = self.state, self.settings
        batches = self.feed.training(
            self.train_indices,
            level.sizes,
            level.batch,
            key=(s.seed, "train", p.index, p.epoch),
            augment=s.augment,
            share=level.share_of_epoch(p.epoch),
            start=p.batch,
        )
        num_epoch = images_per_epoch(len(self.train_indices), level.batch)
        num_level = sum(
            images_per_epoch(len(self.train_indices), level.batch, level.share_of_epoch(e))
            for e in range(level.num_epochs or UNKNOWN_EPOCHS)
        )
        self.net.train()
        started = time.perf_counter() - p.epoch_seconds
        p.on_device(self.device)
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

    def _place(self) -> str:
        p = self.state
        return f"size {self.level.size}, epoch {p.epoch + 1}, step {p.batch + 1}"

    def _recover(self, error: DivergenceError) -> None:
        """Go back to the last checkpoint with half the learning rate, or give up."""
        p, last, text = self.state, self._newest_checkpoint(), f"{error} at {self._place()}"
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
        """Convert network and momentum to the next level, measure BatchNorm anew, and say what the move cost."""
        p = self.state
        old_level, level = self.schedule.levels[p.index : p.index + 2]
        started = time.perf_counter()
        accuracies = [self.validate(old_level.size, MOVE_IMAGES).accuracy]
        self._heed(is_saved=True)
        draw, steps = self.draw(p.index + 1), self.schedule.configs()[p.index + 1].block_steps
        move = plan_move(self.net, level, steps, self.settings, draw)
        self._heed(is_saved=True)
        old_net, old_optimizer = self.net, self.step.optimizer
        self._take(self.compute.place(move(old_net)))  # pyright: ignore[reportArgumentType]
        rule = self.settings.momentum_rule
        carry_optimizer_state(move, old_net, old_optimizer, self.net, self.step.optimizer, rule)
        accuracies.append(self.validate(level.size, MOVE_IMAGES).accuracy)
        recalibrate(self.net, self.calibration_images(level.size, p.index + 1))
        broadcast_weights(self.net)
        accuracies.append(self.validate(level.size, MOVE_IMAGES).accuracy)
        ratios, warning = stability_warning(self.net, draw)
        record = move_record(move, old_level.size, self.net.config, accuracies, ratios)
        self.best = {}
        p.begin_level(record, time.perf_counter() - started)
        self.log.say(
            f"move {old_level.size} -> {level.size} by {record['method']}: validation {accuracies[0]:.1%} before, "
            f"{accuracies[1]:.1%} after, {accuracies[2]:.1%} with BatchNorm recalibrated"
        )
        if warning:
            self.log.say(f"warning: {warning}")

    def draw(self, index: int) -> DrawImages:
        """Training images to measure on at the move to the index-th level."""
        key = (self.settings.seed, "calibrate", index)

        def draw(num: int, size: int) -> Tensor:
            return torch.cat(list(self.feed.drawn(self.train_indices, num, size, key)))

        return draw

    def _put_on(self, size: int) -> None:
        """Stencils for images of that size, where the parameter belongs to the finest mesh."""
        if self.settings.coordinates == "finest" and size != self.present_size:
            set_mesh_size(self.net, 1 / size)
            self.present_size = size

    def calibration_images(self, size: int, index: int) -> Iterator[Tensor]:
        """Training images on which BatchNorm is measured anew at the index-th level."""
        num, key = self.settings.calibration_images, (self.settings.seed, "calibrate", index)
        return self.feed.drawn(self.train_indices, num, size, key)

    def _write_checkpoint(self) -> None:
        """Everything that is needed to go on, unless it has gone wrong unnoticed."""
        self.step.monitor.settle()
        self._put_on(self.level.size)
        momentum = self.step.momentum()
        check_finite(dict(self.net.state_dict()), momentum)
        self.state.checkpoints += 1
        record = self.state.record()
        on_rank_zero(
            lambda: write_checkpoint(self.run_dir, self.state.checkpoints, self.net, self.best, record, momentum)
        )
        self.saved_at = time.monotonic()

    def _newest_checkpoint(self) -> Path | None:
        """That which the writer sees."""
        return on_rank_zero(lambda: newest_checkpoint(self.run_dir))
