"""Coarse to fine in the ``Trainer`` of transformers: a callback; needs ``pip install 'multipde[huggingface]'``."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multipde.storage.files import write_file
from multipde.training.coarse_to_fine import CoarseToFine

FILE = "coarse_to_fine.json"
"""The state of the levels in every checkpoint of the trainer."""


class GrowingNetwork(TrainerCallback):
    """Resizes the images of every batch to the present level, and lets the network grow in the middle of ``train()``.

    The model is called with its images as a keyword argument, such as ``pixel_values``. It stays the same object with
    the same parameters, so that optimizer and scheduler go on. The state is in the trainer's checkpoints.

    Args:
        levels: the levels; with the unit ``"reports"`` the metric ``monitor`` is reported after every evaluation.
        monitor: name of a metric that should grow, such as ``"eval_accuracy"``.

    Raises:
        ValueError: after an evaluation: there is no such metric.
    """

    def __init__(self, levels: CoarseToFine, monitor: str | None = None):
        if levels.unit == "reports" and monitor is None:
            raise ValueError(
                "monitor must name a metric of an evaluation where levels are as long as it grows, got None"
            )
        self.levels, self.monitor = levels, monitor
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take model and optimizer, and the state of the checkpoint from which the training goes on."""
        file = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / FILE
        if state.global_step and file.exists():
            self.levels.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
        optimizer = given["optimizer"]
        self.levels.begin(given["model"], getattr(optimizer, "optimizer", optimizer))
        self._handle = given["model"].register_forward_pre_hook(_resizing(self.levels), with_kwargs=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.is_world_process_zero:
            place = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            write_file(place / FILE, json.dumps(self.levels.state_dict()).encode())

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics = given.get("metrics") or {}
        if self.monitor is not None:
            if self.monitor not in metrics:
                raise ValueError(f"monitor must be a metric ({', '.join(metrics) or 'none'}), got {self.monitor!r}")
            self.levels.report(float(metrics[self.monitor]))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self._handle is not None:
            self._handle.remove()


def _resizing(levels: CoarseToFine) -> Any:
    """A hook that brings the images to the present level, but not those with which a conversion is calibrated."""
    inside = [False]

    def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if inside[0]:
            return None
        inside[0] = True
        try:
            return args, (levels.step if module.training else levels.resized)(given)
        finally:
            inside[0] = False

    return hook
