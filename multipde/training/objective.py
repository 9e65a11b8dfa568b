"""The functions of a training that its user gives: loss, metric, optimizer, augmentation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from multipde.data.augmentation import Augmentation, ImageFunction
from multipde.evaluation.metrics import Score


@dataclass(frozen=True)
class Objective:
    """The functions of a training that its user gives: loss, metric, optimizer, augmentation.

    Args:
        loss: a function of (scores, labels) to the mean loss of the images; cross entropy if None.
        metric: a function of (scores, labels) to a mean over the images, larger being better; the accuracy if None.
        optimizer: a function of the parameters to an optimizer; that of `TrainSettings` if None. The learning rate of a
            parameter group is that of the schedule times the group's ``rate_factor``, if it has one.
        augment: a function of a batch of images on [0, 1] to a batch of the same shape, see `Augmentation`.
    """

    loss: Score | None = None
    metric: Score | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None
    augment: ImageFunction | None = None

    def training_loss(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The training loss of a batch; labels may be shares of the classes.

        By default it is the cross entropy with the labels (1-s) y + s/classes, where s is the label smoothing.

        Reference: Szegedy et al. (2016), Rethinking the Inception Architecture, section 7.
        """
        if self.loss is not None:
            return self.loss(scores, labels)
        return functional.cross_entropy(scores, labels, label_smoothing=label_smoothing)

    def check_labels(self, augment: Augmentation | None) -> None:
        """Raise ValueError if a loss of the user meets mixed labels, which it does not know."""
        if self.loss is not None and augment is not None and augment.mixes:
            raise ValueError(
                f"augment must not mix labels with a loss of your own, got {','.join(augment.names)}; "
                "leave out mixup and cutmix"
            )

    def record(self) -> dict[str, str | None]:
        """The names of the functions, None for the defaults."""
        return {entry.name: _name(getattr(self, entry.name)) for entry in fields(self)}

    def check_same(self, recorded: Any) -> None:
        """Raise ValueError unless the functions have the names that a run has recorded."""
        known = recorded if isinstance(recorded, Mapping) else {}
        for name, given in self.record().items():
            if known.get(name) != given:
                raise ValueError(
                    f"{name} must be that of the run, {known.get(name) or 'none'}, got {given or 'none'}; "
                    f"pass {name}= as when the run began"
                )


def _name(value: Any) -> str | None:
    return None if value is None else getattr(value, "__qualname__", type(value).__qualname__)
