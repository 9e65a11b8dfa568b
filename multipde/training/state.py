"""The state of a training as plain data, which together with network and optimizer state suffices to resume it."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.evaluation.metrics import Metrics
from multipde.runtime.processes import from_rank_zero, num_processes, sum_over_processes
from multipde.storage.records import from_record
from multipde.storage.run_directory import CHECKPOINT
from multipde.training.schedule import Schedule

PACE_KEYS = ("began", "accuracy", "gain", "price", "leave", "planned")
LEVEL_KEYS = ("level", "size", "steps", "total_seconds", "total_flops", "image_size")


@dataclass
class TrainState:
    """The state of a training.

    Args:
        index: index of the current level in the schedule.
        epoch: number of finished epochs of this level.
        batch: number of finished batches of the current epoch, to which ``num_images``, ``loss_sum``, ``num_correct``
            and ``epoch_seconds`` refer.
        checkpoints: number of the last checkpoint.
        rows: number of rows in the metrics file.
        flops, seconds: total of all finished epochs.
        best_accuracy: largest accuracy on the validation images at this level, or metric of the user's; None before the
            first epoch has ended.
        kept_accuracy: accuracy of the weights with the largest metric, which are kept.
        levels, moves, rollbacks: a record for every finished level, move between levels and rollback.
        pace: state of the `StoppingRule`, where the numbers of epochs are found while training.
        rate_scale: factor of the learning rate, halved by every rollback.
        written: the checkpoints that this run has written and not yet removed, see `own`.
    """

    index: int = 0
    epoch: int = 0
    batch: int = 0
    num_images: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    epoch_seconds: float = 0.0
    checkpoints: int = 0
    rows: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float | None = None
    kept_accuracy: float | None = None
    levels: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    pace: dict[str, Any] = field(default_factory=dict)
    rate_scale: float = 1.0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.on_device(torch.device("cpu"))

    def on_device(self, device: torch.device) -> None:
        """Keep the sums of the epoch on a device, so that no step waits for a transfer."""
        self._loss = torch.tensor(self.loss_sum, device=device)
        self._correct = torch.tensor(self.num_correct, device=device)

    def count(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a finished batch: its loss, and scores and labels of this process's slice.

        Where labels are shares of the classes, a score counts as correct for the class with the largest share.
        """
        labels = labels if labels.dim() == 1 else labels.argmax(1)
        num = num_processes() * len(labels)
        self._loss += loss * num
        self._correct += sum_over_processes((scores.argmax(1) == labels).sum())
        self.batch, self.num_images = self.batch + 1, self.num_images + num

    def reached(self, size: str) -> str:
        """The position in the training as text, such as "size 8 after 1 epochs and 2 steps"."""
        steps = f" and {self.batch} steps" if self.batch else ""
        return f"size {size} after {self.epoch} epochs{steps}"

    def record(self) -> dict[str, Any]:
        """The state as plain data."""
        self.loss_sum, self.num_correct = self._loss.item(), int(self._correct.item())
        return asdict(self)

    def end_epoch(self, flops: float, validation: Metrics, num_precise: float = 0) -> dict[str, Any]:
        """End a validated epoch and return its row of the metrics file.

        Args:
            flops: those per training image, of which the forward pass has a third.
            num_precise: number of images on which BatchNorm was measured, as images of the size that is trained.
        """
        self.record()
        self.epoch, self.rows = self.epoch + 1, self.rows + 1
        self.flops += flops * (self.num_images + num_precise / 3)
        self.seconds += from_rank_zero(self.epoch_seconds + validation.seconds)
        row = {
            "epoch": self.epoch,
            "train_loss": self.loss_sum / self.num_images,
            "train_accuracy": self.num_correct / self.num_images,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            **({} if validation.metric is None else {"validation_metric": validation.metric}),
            "seconds": round(self.epoch_seconds, 3),
            "images_per_second": round(self.num_images / self.epoch_seconds, 1),
            "total_seconds": round(self.seconds, 3),
            "total_flops": self.flops,
        }
        self.batch, self.num_images, self.loss_sum, self.num_correct, self.epoch_seconds = 0, 0, 0.0, 0, 0.0
        self.on_device(self._loss.device)
        return row

    def end_level(self, row: dict[str, Any], epochs: float) -> None:
        """End a level after this number of epochs, the last of which has this row."""
        record = {k: row[k] for k in LEVEL_KEYS if k in row}
        kept = self.best_accuracy if self.kept_accuracy is None else self.kept_accuracy  # None in older checkpoints
        metric = {"validation_metric": self.best_accuracy} if "validation_metric" in row else {}
        self.levels.append(record | {"epochs": round(epochs, 4), "validation_accuracy": kept, **metric})

    def is_best(self, validation: Metrics) -> bool:
        """Whether these weights are the best ones of their level so far, which are then to be kept."""
        if self.best_accuracy is not None and validation.score <= self.best_accuracy:
            return False
        self.best_accuracy, self.kept_accuracy = validation.score, validation.accuracy
        return True

    def begin_level(self, move: dict[str, Any], seconds: float) -> None:
        """Begin the next level after a move, which is given by its record and its duration in seconds."""
        self.index, self.epoch, self.best_accuracy, self.kept_accuracy = self.index + 1, 0, None, None
        self.seconds += from_rank_zero(seconds)
        self.moves.append(move)


def state_from_record(record: Any, schedule: Schedule, file: Path) -> TrainState:
    """The state from its record; ValueError for one that a training with this schedule cannot reach."""
    state = from_record(TrainState, record, file, "the state of a training")
    state.levels = [{**done, "level": i + 1} for i, done in enumerate(state.levels)]  # formerly from the finest
    try:
        is_sound = _is_sound(state, schedule)
    except (ArithmeticError, TypeError, KeyError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{file} must hold a state of the run's schedule, got another")
    return state


def _is_sound(state: TrainState, schedule: Schedule) -> bool:
    """Whether a training with this schedule can reach a state, whose entries the schema has checked one by one."""
    if state.rate_scale <= 0 or state.index >= len(schedule.levels) or len(state.moves) != state.index:
        return False
    if not all(CHECKPOINT.fullmatch(name) for name in state.written):
        return False
    level, is_new = schedule.levels[state.index], state.epoch == state.batch == 0
    planned = state.pace.get("planned")
    epochs = level.epochs if planned is None else planned
    if level.epochs is None:
        values = state.pace.values()
        if not all(v is None or math.isfinite(v) for v in values) or not (is_new or set(PACE_KEYS) <= set(state.pace)):
            return False
    is_done = not is_new and (bool(state.pace["leave"]) if epochs is None else state.epoch >= math.ceil(epochs - 1e-9))
    return (
        len(state.levels) == state.index + is_done
        and (state.batch == 0) == (state.num_images == 0) == (state.epoch_seconds == 0)
        and state.num_images <= state.batch * level.batch
        and (epochs is None or state.epoch <= math.ceil(epochs - 1e-9))
    )
