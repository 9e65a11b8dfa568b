"""The loss, the metric and the optimizer of a training."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from multipde.evaluation.metrics import Score


@dataclass(frozen=True)
class Objective:
    """The loss, the metric and the optimizer of a training.

    Args:
        loss: a function of (scores, labels) to the mean loss of the images; cross entropy if None.
        metric: a function of (scores, labels) to a mean over the images, larger being better; the accuracy if None.
        optimizer: a function of the parameters to an optimizer; SGD with momentum if None. The learning rate of a
            parameter group is that of the schedule times the group's ``rate_factor``, if it has one.
    """

    loss: Score | None = None
    metric: Score | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None

    def mean_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return (self.loss or functional.cross_entropy)(scores, labels)

    def record(self) -> dict[str, str | None]:
        """The names of the functions, None for the defaults."""
        return {entry.name: _name(getattr(self, entry.name)) for entry in fields(self)}

    def check_same(self, recorded: Any) -> None:
        """Raise ValueError unless loss, metric and optimizer have the names that a run has recorded."""
        known = recorded if isinstance(recorded, Mapping) else {}
        for name, given in self.record().items():
            if known.get(name) != given:
                raise ValueError(
                    f"{name} must be that of the run, {known.get(name) or 'none'}, got {given or 'none'}; "
                    f"pass {name}= as when the run began"
                )


def _name(value: Any) -> str | None:
    return None if value is None else getattr(value, "__qualname__", type(value).__qualname__)
