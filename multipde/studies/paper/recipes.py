"""The experiments of Ruthotto & Haber (2018), section 5, as plain data: recipes, reported results, budgets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from multipde.networks.config import NetworkConfig
from multipde.networks.presets import preset
from multipde.training.level import Level, level_flops
from multipde.training.settings import TrainSettings

DYNAMICS = ("parabolic", "hamiltonian", "second_order")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the training images in Figures 2 and 3."""

VALIDATION = 0.2
BATCH, LEARNING_RATE = 125, 0.1


@dataclass(frozen=True)
class Recipe:
    """The training of the networks for one data set: policy as in `Level`, alpha1 and alpha2 as in `TrainSettings`."""

    epochs: int
    policy: str
    alpha1: float
    alpha2: float


RECIPES = {
    "stl10": Recipe(100, "piecewise", 4e-4, 1e-4),
    "cifar10": Recipe(100, "piecewise", 2e-4, 2e-4),
    "cifar100": Recipe(200, "piecewise_long", 2e-4, 2e-4),
}


@dataclass(frozen=True)
class Reported:
    """A cell of Table 1: test accuracy in per cent and cross entropy."""

    accuracy: float
    loss: float


REPORTED = {
    ("stl10", "parabolic"): Reported(77.0, 0.711),
    ("stl10", "hamiltonian"): Reported(78.3, 0.789),
    ("stl10", "second_order"): Reported(74.3, 0.810),
    ("cifar10", "parabolic"): Reported(88.5, 0.333),
    ("cifar10", "hamiltonian"): Reported(89.3, 0.349),
    ("cifar10", "second_order"): Reported(89.2, 0.333),
    ("cifar100", "parabolic"): Reported(64.8, 1.234),
    ("cifar100", "hamiltonian"): Reported(64.9, 1.237),
    ("cifar100", "second_order"): Reported(65.4, 1.232),
}
"""The results in Table 1 of the paper."""


@dataclass(frozen=True)
class PaperBudget:
    """Upper bounds on the cost of an experiment; None stands for the values of the paper.

    Args:
        flops: work of all trainings on one data set, and again of all on parts of it, from which the epochs follow.
        epochs: largest number of epochs of a training.
        num_train: largest number of training images, including those held back.
        num_test: largest number of test images.
    """

    flops: float | None = None
    epochs: int | None = None
    num_train: int | None = None
    num_test: int | None = None


BUDGETS = {
    "full": PaperBudget(),
    "hour": PaperBudget(flops=8e14),
    "smoke": PaperBudget(flops=1e13, num_train=200, num_test=100),
}
"""``hour`` is what two processor cores with bfloat16 arithmetic do in about an hour, ``smoke`` in a minute or two."""


@dataclass(frozen=True)
class Training:
    """One training of an experiment, on a share of the images without augmentation, or for None on 80 % with it."""

    data: str
    dynamics: str
    share: float | None = None

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{self.data}-{self.dynamics}" + ("" if self.share is None else f"-{self.share:.0%}".replace("%", ""))

    @property
    def network(self) -> NetworkConfig:
        """The network of the paper, for images that are standardised one by one."""
        return replace(preset(f"{self.data}-{self.dynamics}"), standardize=True)

    def num_images(self, num: int) -> int:
        """The number of images that it needs of ``num`` training images, including those held back."""
        return num if self.share is None else round(self.share * num) + num_held_back(num)

    def settings(self, num: int, seed: int, device: str, amp: str, compile: bool = False) -> TrainSettings:
        """Settings for a data set of ``num`` training images, of which a fifth is held back in any case."""
        settings = TrainSettings.of_recipe(
            "paper", seed=seed, device=device, amp=amp, compile=compile, augment=self.share is None
        )
        alpha1, alpha2 = RECIPES[self.data].alpha1, RECIPES[self.data].alpha2
        return replace(settings, alpha1=alpha1, alpha2=alpha2, validation=num_held_back(num) / self.num_images(num))

    def level(self, epochs: int) -> Level:
        """The only level: the whole training is at the full size."""
        policy = RECIPES[self.data].policy
        return Level(self.network.sizes[0], epochs, batch=BATCH, learning_rate=LEARNING_RATE, policy=policy)


def num_held_back(num: int) -> int:
    """The number of validation images among ``num`` training images, whatever share of them is trained on."""
    return round(VALIDATION * num)


def full_trainings(data: Sequence[str]) -> list[Training]:
    """The trainings of Table 1, Figures 1 and 4, and the lower half of Figure 2."""
    return [Training(name, dynamics) for name in data for dynamics in DYNAMICS]


def partial_trainings(data: Sequence[str]) -> list[Training]:
    """The trainings of the upper half of Figure 2, and of Figure 3."""
    return [Training(name, dynamics, share) for name in data for dynamics in DYNAMICS for share in SHARES]


def epochs_within(training: Training, budget: PaperBudget, num: int) -> int:
    """The number of epochs of a training, and of all others of its kind on the same ``num`` training images.

    It is the largest number with   epochs Σ images · FLOPs per image <= budget,   at least 1, at most the paper's.
    """
    longest = min(epochs for epochs in (RECIPES[training.data].epochs, budget.epochs) if epochs is not None)
    if budget.flops is None:
        return longest
    kind = full_trainings if training.share is None else partial_trainings
    per_epoch = sum(
        (other.num_images(num) - num_held_back(num)) * level_flops(other.level(1), other.network)
        for other in kind([training.data])
    )
    return min(longest, max(1, math.floor(budget.flops / per_epoch)))
