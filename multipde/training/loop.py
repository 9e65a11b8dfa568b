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
from multipde.mesh.transfer import CALIBRATED
from multipde.networks.calibration import Calibration, recalibrate
from multipde.networks.config import NetworkConfig
from multipde.networks.convert import Conversion, conversion
from multipde.networks.momentum import carry_optimizer_state
from multipde.networks.network import PDENet
from multipde.training.checkpoint import write_checkpoint
from multipde.training.conditioning import Preconditioner, frozen_statistics
from multipde.training.evaluate import Metrics, autocast, choose_device, evaluate_batches, place
from multipde.training.log import Advance, Log
from multipde.training.regularization import Regularizer, project_to_box
from multipde.training.schedule import Level, Schedule, level_flops
from multipde.training.settings import TrainSettings

MOVE_IMAGES = 2000
"""Validation images on which a move between levels is judged."""

CALIBRATION_IMAGES = 256
"""Training images on which derivative terms are measured; all of them go through the network at once."""


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
    """

    index: int = 0
    epoch: int = 0
    checkpoints: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    levels: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)


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
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}

    def run(self) -> PDENet:
        """All that is left of the schedule; the best weights at the last level."""
        num = len(self.train_indices)
        total = sum(
            f * sum(images_per_epoch(num, level.batch, level.share_of_epoch(e)) for e in range(level.num_epochs))
            for level, f in zip(self.schedule.levels, self.schedule.flops(), strict=True)
        )
        with self.log.progress(total, self.state.flops) as advance:
            while True:
                level = self.schedule.levels[self.state.index]
                while self.state.epoch < level.num_epochs:
                    self._epoch(level, level_flops(level, self.net.config), advance)
                if self.state.index + 1 == len(self.schedule.levels):
                    break
                self._next_level()
        self.net.load_state_dict(self.best)
        return self.net

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
            f"size {level.size:>3}  epoch {p.epoch:>2}/{level.num_epochs}  loss {loss:.3f}  train {accuracy:6.1%}  "
            f"validation {validation.accuracy:6.1%}  {row['images_per_second']:>6.0f} images/s  {p.seconds:>5.0f} s"
        )
        if p.epoch == level.num_epochs:
            p.levels.append({k: row[k] for k in ("level", "size", "total_seconds", "total_flops")})
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
            for e in range(level.num_epochs)
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
            advance(flops * len(labels), f"size {level.size}, epoch {p.epoch + 1} of {level.num_epochs}")
        self._put_on(level.size)
        return loss_sum.item() / num_images, correct.item() / num_images, num_images

    def _next_level(self) -> None:
        """Convert network and momentum to the next level, measure BatchNorm anew, and say what the move cost."""
        p = self.state
        old_level, level = self.schedule.levels[p.index : p.index + 2]
        started = time.perf_counter()
        before = self.validate(old_level.size, MOVE_IMAGES).accuracy
        move = self._move_to(level, self.schedule.configs()[p.index + 1].block_steps)
        method = "nothing moved" if move.keep_reference else move.method
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
                "accuracy_before": before,
                "accuracy_moved": moved,
                "accuracy_recalibrated": after,
            }
        )
        self.log.say(
            f"move {old_level.size} -> {level.size} by {method}: validation {before:.1%} before, "
            f"{moved:.1%} after, {after:.1%} with BatchNorm recalibrated"
        )

    def _move_to(self, level: Level, steps: tuple[int, ...]) -> Conversion:
        """The conversion to the next level, calibrated on training images if need be."""
        s, old_size = self.settings, self.net.config.sizes[0]
        if s.coordinates == "finest":
            return replace(conversion(self.net, size=level.size, steps=steps), keep_reference=True)
        images = None
        if s.transfer in CALIBRATED:
            key = (s.seed, "calibrate", self.state.index + 1)
            num, size = min(CALIBRATION_IMAGES, s.calibration_images), max(level.size, old_size)
            drawn = drawn_images(self.data.train, self.train_indices, num, size, self.device, self.normalize, key)
            images = torch.cat(list(drawn))
        return conversion(self.net, size=level.size, method=s.transfer, steps=steps, calibration=images)

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
