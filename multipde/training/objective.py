"""The functions of a training that its user gives: loss, metric, optimizer, augmentation."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from multipde.data.augmentation import Augmentation, ImageFunction
from multipde.evaluation.metrics import Score, called

TINY = 1e-30
"""Least sum of weights, so that a batch of images without weight has the loss zero."""
MAKE_OPTIMIZER = "type optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)"


@dataclass(frozen=True)
class Objective:
    """The functions of a training that its user gives: loss, metric, optimizer, augmentation.

    Args:
        loss, metric: as in `train`.
        optimizer: a function of the parameters to an optimizer; that of `TrainSettings` if None. The learning rate of a
            parameter group is that of the schedule times the group's ``rate_factor``, if it has one.
        augment: a function of a batch of images on [0, 1] to a batch of the same shape, see `Augmentation`.
        class_weights: weight of each class in the loss (classes,); None for equal weights.
    """

    loss: Score | None = None
    metric: Score | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None
    augment: ImageFunction | None = None
    class_weights: Tensor | None = None

    def __post_init__(self):
        if isinstance(self.loss, nn.Module) and any(p.requires_grad for p in self.loss.parameters()):
            raise ValueError("loss must have no parameters, which nothing would train; put them into the model")
        if self.optimizer is not None and not callable(self.optimizer):
            got = type(self.optimizer).__name__
            raise ValueError(f"optimizer must be a function of the parameters, got {got}; {MAKE_OPTIMIZER}")

    def optimizer_for(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The user's optimizer for these parameters; ValueError for something else, or for one of other parameters."""
        assert self.optimizer is not None
        made: Any = self.optimizer(parameters)
        if not all(hasattr(made, name) for name in ("param_groups", "state", "step", "zero_grad")):
            raise ValueError(f"optimizer must make an optimizer, got {type(made).__name__}; {MAKE_OPTIMIZER}")
        needed = inspect.signature(made.step).parameters.get("closure")
        if needed is not None and needed.default is inspect.Parameter.empty:
            raise ValueError(f"optimizer must step without a closure, got {type(made).__name__}; {MAKE_OPTIMIZER}")
        known = {id(p) for p in parameters}
        if not any(id(p) in known for group in made.param_groups for p in group["params"]):
            raise ValueError(f"optimizer must hold the parameters that it is given, got none of them; {MAKE_OPTIMIZER}")
        return made

    def training_loss(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The training loss of a batch; labels may be shares of the classes.

        By default it is the cross entropy with the labels (1-s) y + s/classes, where s is the label smoothing. With
        class weights it is Σ w ℓ / Σ w over the images, whose weight is w = Σ_c y_c w_c.

        Reference: Szegedy et al. (2016), Rethinking the Inception Architecture, section 7.
        """
        if self.loss is not None:
            loss = called("loss", self.loss, scores, labels)
            if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss must give one number, the mean over the images, got {got}")
            return loss
        if self.class_weights is not None:
            each = functional.cross_entropy(scores, labels, label_smoothing=label_smoothing, reduction="none")
            own = self.weights(labels).to(each)
            return (own * each).sum() / own.sum().clamp_min(TINY)
        return functional.cross_entropy(scores, labels, label_smoothing=label_smoothing)

    def weights(self, labels: Tensor) -> Tensor:
        """The weight of each image (N,) in the training loss, which has class weights."""
        assert self.class_weights is not None
        known = self.class_weights.to(labels.device)
        return known[labels] if labels.dim() == 1 else labels.to(known) @ known

    def check_labels(self, augment: Augmentation | None) -> None:
        """Raise ValueError if a loss of the user meets mixed labels, which it does not know."""
        if self.loss is not None and augment is not None and augment.mixes:
            raise ValueError(
                f"augment must not mix labels with a loss of your own, got {','.join(augment.names)}; "
                "leave out mixup and cutmix"
            )

    def record(self) -> dict[str, str | None]:
        """The names of the functions, None for the defaults."""
        names = [entry.name for entry in fields(self) if entry.name != "class_weights"]
        return {name: _name(getattr(self, name)) for name in names}

    def check_same(self, recorded: Any) -> None:
        """Raise ValueError unless the functions have the names that a run has recorded."""
        known = recorded if isinstance(recorded, Mapping) else {}
        for name, given in self.record().items():
            if known.get(name) != given:
                path = known.get(name) or "none"
                how = f"type --{name} {path}" if ":" in path else f"pass {name}= as when the run began"
                raise ValueError(f"{name} must be that of the run, {path}, got {given or 'none'}; {how}")


def _name(value: Any) -> str | None:
    if path := getattr(value, "import_path", None):
        return path
    return None if value is None else getattr(value, "__qualname__", type(value).__qualname__)
