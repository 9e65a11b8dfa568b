"""Coarse to fine: train a level, convert the network, train the next."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from multipde.data.batches import (
    Normalize,
    drawn_images,
    evaluation_batches,
    images_per_epoch,
    training_batches,
)
from multipde.data.datasets import ImageData, split_indices
from multipde.data.seeds import stream_seed
from multipde.mesh.reparametrize import set_mesh_size
from multipde.networks.calibration import Calibration, recalibrate
from multipde.networks.config import NetworkConfig
from multipde.networks.convert import conversion
from multipde.networks.momentum import carry_optimizer_state
from multipde.networks.network import PDENet
from multipde.training.checkpoint import write_checkpoint
from multipde.training.conditioning import Preconditioner, frozen_statistics
from multipde.training.evaluate import Metrics, autocast, choose_device, evaluate_batches, place
from multipde.training.log import Advance, Log
from multipde.training.pace import pace_of
from multipde.training.regularization import Regularizer, project_to_box
from multipde.training.schedule import Level, Schedule, level_flops
from multipde.training.settings import TrainSettings
from multipde.training.switch import DrawImages, check_moves, plan_move

MOVE_IMAGES = 2000
"""Validation images on which a move between levels is judged."""

UNKNOWN_EPOCHS = 10
"""Length of a level that is left by its gain, as far as its learning rate is concerned."""


@dataclass
class TrainState:
    """Where a training stands; with the network, all that a checkpoint holds.

    Args:
        index: of the level in the schedule.
        epoch: epochs of this level that are done.
        checkpoints: how many were written.
        flops: spent so far.
        seconds: spent so far.
        moves: a record for every move between levels.
        pace: where the numbers of epochs are found while training, see `Pace`.
    """

    index: int = 0
    epoch: int = 0
    checkpoints: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    levels: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    pace: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains one network through a schedule; every random draw is named by (seed, level, epoch, batch).

    Args:
        net: the network of the first level, or of the level at which `restore` takes up.
        schedule: with its network.
        run_dir: where checkpoints go.
    """

    def __init__(
        self, net: PDENet, schedule: Schedule, data: ImageData, settings: TrainSettings, run_dir: Path, log: Log
    ):
        self.schedule, self.data, self.settings, self.run_dir, self.log = schedule, data, settings, run_dir, log
        self.device = choose_device(settings.device)
        autocast(self.device, settings.amp)  # a wrong name is told before anything is done
        self.train_indices, self.validation_indices = split_indices(len(data.train), settings.seed, settings.validation)
        self.normalize = Normalize(net.config.mean, net.config.std)
        self.regularizer = Regularizer(settings.alpha1, settings.alpha2)
        self.net = place(net, self.device)
        self.present_size = net.config.sizes[0]
        finest = settings.coordinates == "finest"
        self.preconditioner = Preconditioner(settings.conditioning) if finest and settings.conditioning else None
        self.optimizer = self._make_optimizer(self.net)
        self.pace = pace_of(schedule, settings)
        check_moves(schedule, settings)
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}

    def run(self) -> PDENet:
        """All that is left of the schedule; the best weights at the last level."""
        with self.log.progress(self._planned_flops(), self.state.flops) as advance:
            while True:
                if self.state.epoch == 0:
                    self._begin_level()
                while not self._is_done():
                    self._epoch(self.level, level_flops(self.level, self.net.config), advance)
                if self.state.index + 1 == len(self.schedule.levels):
                    break
                self._next_level()
        self.net.load_state_dict(self.best)
        return self.net

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

    def restore(self, best: dict[str, Tensor], trainer: Mapping[str, Any]) -> None:
        """Take up where a checkpoint was written."""
        self.best = best
        self.state = TrainState(**trainer["state"])
        parameters = dict(self.net.named_parameters())
        for name, buffer in trainer["momentum"].items():
            p = parameters[name]
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(buffer)

    def validate(self, size: int, num_images: int | None = None) -> Metrics:
        """Accuracy and loss on the validation images."""
        indices = self.validation_indices[:num_images]
        batches = evaluation_batches(self.data.train, indices, size, 250, self.device, self.normalize)
        return evaluate_batches(self.net, batches, self.device, self.settings.amp)

    def _make_optimizer(self, net: PDENet) -> torch.optim.SGD:
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=self.settings.momentum, fused=fused)

    def _epoch(self, level: Level, flops: float, advance: Advance) -> None:
        p, started = self.state, time.perf_counter()
        loss, accuracy, num_images = self._train_epoch(level, flops, advance)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise ValueError(
                f"loss must stay finite, got {loss} at size {level.size}, epoch {p.epoch + 1}; type a smaller "
                f"--learning-rate than {level.learning_rate:g}"
            )
        validation = self.validate(level.size)
        p.epoch += 1
        p.flops += flops * num_images
        p.seconds += time.perf_counter() - started
        if level.epochs is None and self.pace is not None:
            follows = self._epoch_flops(p.index + 1)
            p.pace = self.pace.after_epoch(p.pace, p.epoch, p.flops, p.seconds, validation.accuracy, follows)
        if validation.accuracy > p.best_accuracy:
            p.best_accuracy = validation.accuracy
            self.best = {name: t.detach().cpu().clone() for name, t in self.net.state_dict().items()}
        row = {
            "level": self.schedule.number(p.index),
            "size": level.size,
            "steps": list(self.net.config.block_steps),
            "epoch": p.epoch,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "seconds": round(seconds, 3),
            "images_per_second": round(num_images / seconds, 1),
            "total_seconds": round(p.seconds, 3),
            "total_flops": p.flops,
        }
        self.log.metrics(row)
        self.log.say(
            f"size {level.size:>3}  epoch {p.epoch:>2}/{level.num_epochs or '?'}  loss {loss:.3f}  "
            f"train {accuracy:6.1%}  validation {validation.accuracy:6.1%}  "
            f"{row['images_per_second']:>6.0f} images/s  {p.seconds:>5.0f} s"
        )
        if self._is_done():
            p.levels.append({k: row[k] for k in ("level", "size", "steps", "total_seconds", "total_flops")})
            p.levels[-1]["epochs"] = round(p.epoch - 1 + level.share_of_epoch(p.epoch - 1), 4)
            p.levels[-1]["validation_accuracy"] = p.best_accuracy
        self._write_checkpoint()

    def _train_epoch(self, level: Level, flops: float, advance: Advance) -> tuple[float, float, int]:
        """One pass over the training images: mean loss, accuracy and number of images."""
        p, s = self.state, self.settings
        batches = training_batches(
            self.data.train,
            self.train_indices,
            level.sizes,
            level.batch,
            self.device,
            self.normalize,
            key=(s.seed, "train", p.index, p.epoch),
            augment=s.augment,
            share=level.share_of_epoch(p.epoch),
        )
        num_epoch = images_per_epoch(len(self.train_indices), level.batch)
        num_level = sum(
            images_per_epoch(len(self.train_indices), level.batch, level.share_of_epoch(e))
            for e in range(level.num_epochs or UNKNOWN_EPOCHS)
        )
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        num_images = 0
        self.net.train()
        for x, labels in batches:
            rate = self.schedule.rate(p.index, (p.epoch * num_epoch + num_images) / num_level)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._put_on(x.shape[-1])
            with autocast(self.device, s.amp), frozen_statistics(self.net, x.shape[-1] != level.size):
                scores = self.net(x)
            loss = functional.cross_entropy(scores.float(), labels)
            self.optimizer.zero_grad(set_to_none=True)
            (loss + self.regularizer(self.net)).backward()
            if self.preconditioner is not None:
                self.preconditioner(self.net)
            self.optimizer.step()
            if s.box:
                project_to_box(self.net, s.box)
            loss_sum += loss.detach() * len(labels)
            correct += (scores.argmax(1) == labels).sum()
            num_images += len(labels)
            advance(flops * len(labels), f"size {level.size}, epoch {p.epoch + 1} of {level.num_epochs or 'auto'}")
        self._put_on(level.size)
        return loss_sum.item() / num_images, correct.item() / num_images, num_images

    def _next_level(self) -> None:
        """Convert network and momentum to the next level, measure BatchNorm anew, and say what the move cost."""
        p = self.state
        old_level, level = self.schedule.levels[p.index : p.index + 2]
        started = time.perf_counter()
        before = self.validate(old_level.size, MOVE_IMAGES).accuracy
        move = plan_move(
            self.net, level, self.schedule.configs()[p.index + 1].block_steps, self.settings, self.draw(p.index + 1)
        )
        method = "keeping the parameter" if move.keep_reference else move.method
        old_net, old_optimizer = self.net, self.optimizer
        self.net = place(move(old_net), self.device)  # pyright: ignore[reportArgumentType]
        self.optimizer = self._make_optimizer(self.net)
        rule = self.settings.momentum_rule
        carry_optimizer_state(move, old_net, old_optimizer, self.net, self.optimizer, rule)
        moved = self.validate(level.size, MOVE_IMAGES).accuracy
        recalibrate(self.net, self.calibration_images(level.size, p.index + 1))
        after = self.validate(level.size, MOVE_IMAGES).accuracy
        p.index, p.epoch, p.best_accuracy = p.index + 1, 0, -1.0
        self.present_size = level.size
        p.seconds += time.perf_counter() - started
        p.moves.append(
            {
                "from": old_level.size,
                "to": level.size,
                "method": method,
                "exponents": _rounded(move.calibration),
                "steps": list(self.net.config.block_steps),
                "block_scales": None if move.block_scales is None else list(move.block_scales),
                "accuracy_before": before,
                "accuracy_moved": moved,
                "accuracy_recalibrated": after,
            }
        )
        self.log.say(
            f"move {old_level.size} -> {level.size} by {method}: validation {before:.1%} before, "
            f"{moved:.1%} after, {after:.1%} with BatchNorm recalibrated"
        )

    def draw(self, index: int) -> DrawImages:
        """Training images to measure on at the move to the index-th level."""
        key = (self.settings.seed, "calibrate", index)

        def draw(num: int, size: int) -> Tensor:
            data = self.data.train, self.train_indices
            return torch.cat(list(drawn_images(*data, num, size, self.device, self.normalize, key)))

        return draw

    def _put_on(self, size: int) -> None:
        """Stencils for images of that size, where the parameter belongs to the finest mesh."""
        if self.settings.coordinates == "finest" and size != self.present_size:
            set_mesh_size(self.net, 1 / size)
            self.present_size = size

    def calibration_images(self, size: int, index: int) -> Iterator[Tensor]:
        """Training images on which BatchNorm is measured anew at the index-th level."""
        num, key = self.settings.calibration_images, (self.settings.seed, "calibrate", index)
        return drawn_images(self.data.train, self.train_indices, num, size, self.device, self.normalize, key)

    def _write_checkpoint(self) -> None:
        self.state.checkpoints += 1
        momentum = {
            name: self.optimizer.state[p]["momentum_buffer"].detach().cpu().clone()
            for name, p in self.net.named_parameters()
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        trainer = {"state": vars(self.state).copy(), "momentum": momentum}
        write_checkpoint(self.run_dir, self.state.checkpoints, self.net, self.best, trainer)


def initial_network(config: NetworkConfig, seed: int, reference: int | None = None) -> PDENet:
    """A network with the weights that the seed draws.

    Args:
        reference: size on whose mesh the stencils are drawn, and to which the stored parameter belongs from then on;
            None for that of the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        if reference is None:
            return PDENet(config)
        net = PDENet(replace(config, size=reference, reference=reference))
    move = replace(conversion(net, size=config.size), keep_reference=True)
    return move(net)  # pyright: ignore[reportReturnType]


def _rounded(calibration: Calibration | None) -> dict[str, float] | None:
    return None if calibration is None else {k: round(e, 3) for k, e in calibration.exponents().items()}
