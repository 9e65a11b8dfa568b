"""Coarse to fine in Lightning: a callback around `CoarseToFine`; needs ``pip install 'multipde[lightning]'``."""

from functools import wraps
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from multipde.training.coarse_to_fine import CoarseToFine


class GrowingNetwork(Callback):
    """Resizes the images of every batch to the present level, and lets the network grow in the middle of ``fit``.

    The network stays the same object with the same parameters, so that the optimizers and schedulers of the module go
    on. ``training_step`` gets the resized batch, ``validation_step`` too. The state is in Lightning's checkpoints.

    Args:
        levels: the levels; with the unit ``"reports"`` the metric ``monitor`` is reported after every validation.
        network: name of the attribute of the Lightning module that holds the network.
        ema: name of the attribute that holds an average of it, if there is one.
        monitor: name of a logged metric that should grow.

    Raises:
        ValueError: when ``fit`` begins: the module has no such attribute; after a validation: it has not logged the
            metric.
    """

    def __init__(self, levels: CoarseToFine, network: str, ema: str | None = None, monitor: str | None = None):
        if levels.unit == "reports" and monitor is None:
            raise ValueError("monitor must name a logged metric where levels are as long as it grows, got None")
        self.levels, self.network, self.ema, self.monitor = levels, network, ema, monitor
        self._steps: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in (self.network, *([] if self.ema is None else [self.ema])):
            if not hasattr(pl_module, name):
                raise ValueError(f"network must name an attribute of {type(pl_module).__name__}, got {name!r}")
        ema = None if self.ema is None else getattr(pl_module, self.ema)
        self.levels.begin(getattr(pl_module, self.network), trainer.optimizers, ema)
        for name, brought in (("training_step", self.levels.step), ("validation_step", self.levels.resized)):
            own = self._steps[name] = getattr(pl_module, name)
            setattr(pl_module, name, _resizing(own, brought))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._steps and self.monitor is not None and not trainer.sanity_checking:  # within fit
            if self.monitor not in trainer.callback_metrics:
                known = ", ".join(trainer.callback_metrics) or "none"
                raise ValueError(f"monitor must be a logged metric ({known}), got {self.monitor!r}")
            self.levels.report(float(trainer.callback_metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        return self.levels.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels.load_state_dict(state_dict)

    def _give_back(self, pl_module: LightningModule) -> None:
        """Remove the methods that hide those of the module's class."""
        for name in self._steps:
            pl_module.__dict__.pop(name, None)
        self._steps = {}


def _resizing(step: Any, resized: Any) -> Any:
    """The step of a module with resized images; Lightning asks for its signature, which is that of the step."""

    @wraps(step)
    def call(batch: Any, *more: Any) -> Any:
        return step(resized(batch), *more)

    return call
