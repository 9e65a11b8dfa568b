"""What a finish is asked to do, and what it has done, as plain data."""

import math
from dataclasses import dataclass, field

from torch import nn

from multipde.training.budget import IMAGE_UNITS, Budget, parse_budget

SEVERAL_RATE = 0.01
"""Learning rate for a network for several sizes; with that for one size the largest one loses accuracy."""


@dataclass(frozen=True)
class FinishSettings:
    """How the converted network learns from the old one.

    The loss of an image is T² times the cross entropy between softmax(z/T) of the converted network's scores z and
    the target q = (1-s) softmax(t/T) + s y, where t are the scores of the old network and y is the label. A network for
    several sizes k has scores z_k at each, and the loss is the mean over the sizes. The largest size has the target q,
    and every other one the target

        (1-e) q + e mean_k softmax(z_k/T),   which is constant in the gradient

    Args:
        budget: time, or a number of training images; None ends by itself, as ``"auto"`` does in `finish`.
        longest: seconds after which it ends in any case.
        temperature: T, positive; labels alone are learned at temperature 1.
        label_share: s in [0, 1], positive only for images with labels.
        ensemble: e in [0, 1), without effect on a network for one size.
        learning_rate: of the first step; it falls linearly to zero, in every round.
        batch: images per step.
        seed: seed of the order of the images and of their augmentation.
        compile: use compiled kernels, see `compile_layers`.

    References:
        - Hinton, Vinyals & Dean (2015), Distilling the Knowledge in a Neural Network.
        - Wang et al. (2020), Resolution Switchable Networks for Runtime Efficient Image Recognition, for the ensemble.
    """

    budget: Budget | None = None
    longest: float = math.inf
    temperature: float = 2.0
    label_share: float = 0.0
    ensemble: float = 0.5
    learning_rate: float = 0.05
    batch: int = 125
    seed: int = 0
    compile: bool = False

    def __post_init__(self):
        if self.budget is not None and self.budget.unit not in ("seconds", "images"):
            raise ValueError(f"finish must be a time or a number of images, got {self.budget.unit}; type --finish 2min")
        if self.batch < 1:
            raise ValueError(f"batch must be positive, got {self.batch}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.label_share <= 1:
            raise ValueError(f"label_share must lie in [0, 1], got {self.label_share}")
        if not 0 <= self.ensemble < 1:
            raise ValueError(f"ensemble must lie in [0, 1), got {self.ensemble}")


@dataclass(frozen=True)
class Finished:
    """The result of a finish.

    Args:
        net: the network for which most held-back images were right; the converted one where nothing was gained.
        num_images: number of images that were learned from, repetitions included.
        seconds: wall time.
        before, after: share of the held-back images that are right: the network names their label, or without labels
            the class that the old network names. For a network for several sizes it is the mean over the sizes, without
            labels over those that the old network does not have.
        old: the same share of the old network, which is 1 without labels.
        rounds: images, seconds and that share at the end of every round.
        stopped: the signal that ended it early, 0 for none.
        num_held_back: number of held-back images.
        labelled: whether these have labels.
    """

    net: nn.Module
    num_images: int
    seconds: float
    before: float
    after: float
    old: float = 1.0
    rounds: list[tuple[int, float, float]] = field(default_factory=list)
    stopped: int = 0
    num_held_back: int = 0
    labelled: bool = False


def finish_budget(text: str) -> Budget | None:
    """The budget in a text such as ``2min`` or ``20000images``, None for ``auto``; ValueError for any other text."""
    return None if text == "auto" else parse_budget(text, IMAGE_UNITS, "s, min or images, or auto, such as 2min")
