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
        network: name of the attribute of the model that holds the network which grows; None where it is the model.

    Raises:
        ValueError: there is no such attribute; no such metric after two evaluations; or no state of the levels beside
            the checkpoint from which the training goes on.
    """

    def __init__(self, levels: CoarseToFine, monitor: str | None = None, network: str | None = None):
        if levels.unit == "reports" and monitor is None:
            raise ValueError(
                "monitor must name a metric of an evaluation where levels are as long as it grows, got None"
            )
        self.levels, self.monitor, self.network = levels, monitor, network
        self._handle: Any = None
        self._others: set[frozenset[str]] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take model and optimizer, and the state of the checkpoint from which the training goes on."""
        if state.global_step:
            file = _checkpoint(args, state) / FILE
            if args.resume_from_checkpoint and Path(args.resume_from_checkpoint).is_dir():  # named, perhaps elsewhere
                file = Path(args.resume_from_checkpoint) / FILE
            if not file.exists():
                raise ValueError(
                    f"levels must go on from step {state.global_step} as they were, got no {file}; copy the "
                    "checkpoint there, or name it in TrainingArguments(resume_from_checkpoint=)"
                )
            self.levels.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
        model, optimizer = given["model"], given["optimizer"]
        if self.network is not None and not isinstance(getattr(model, self.network, None), nn.Module):
            raise ValueError(f"network must name a module in {type(model).__name__}, got {self.network!r}")
        self._remove()  # of a training that was interrupted
        net = model if self.network is None else getattr(model, self.network)
        self.levels.begin(net, getattr(optimizer, "optimizer", optimizer))
        self._handle = model.register_forward_pre_hook(_resizing(self.levels), with_kwargs=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.is_world_process_zero:
            write_file(_checkpoint(args, state) / FILE, json.dumps(self.levels.state_dict()).encode())

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics = given.get("metrics") or {}
        if self.monitor is None or self._handle is None:  # no training is going on
            return
        if self.monitor in metrics:
            self._others.clear()
            self.levels.report(float(metrics[self.monitor]))
        elif (names := frozenset(metrics) - {"epoch"}) in self._others:  # again, without it in between
            raise ValueError(f"monitor must be a metric ({', '.join(metrics) or 'none'}), got {self.monitor!r}")
        else:  # of another one of several data sets, perhaps
            self._others.add(names)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


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
