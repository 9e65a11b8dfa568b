"""What a training minimises, by what its network is judged, and with which optimizer, where the user has wishes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from multipde.evaluation.metrics import Score


@dataclass(frozen=True)
class Objective:
    """Loss, metric and optimizer of a training; what is None is as ever.

    Args:
        loss: (scores, labels) to the mean over the images of what is minimised; cross entropy if left out.
        metric: (scores, labels) to the mean over the images of what tells how good the network is, more being better;
            the accuracy if left out.
        optimizer: parameters to an optimizer over them; SGD with momentum if left out. Its learning rates follow the
            schedule: that of a group is the rate of the schedule times the group's ``rate_factor``, if it has one.
    """

    loss: Score | None = None
    metric: Score | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None

    def mean_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return (self.loss or functional.cross_entropy)(scores, labels)

    def record(self) -> dict[str, str | None]:
        """The names of what was given."""
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
