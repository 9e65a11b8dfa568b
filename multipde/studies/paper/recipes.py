"""The experiments of Ruthotto & Haber (2018), section 5, as plain data: recipes, reported results, budgets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from multipde.networks.config import NetworkConfig
from multipde.networks.presets import preset
from multipde.studies.bench.equal_work import levels_of_work
from multipde.studies.bench.transfer_arms import ARMS
from multipde.training.budget import parse_budget
from multipde.training.level import Level
from multipde.training.recipe import recipe_values
from multipde.training.schedule import level_flops
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


REPORTED = {
    ("stl10", "parabolic"): (77.0, 0.711),
    ("stl10", "hamiltonian"): (78.3, 0.789),
    ("stl10", "second_order"): (74.3, 0.810),
    ("cifar10", "parabolic"): (88.5, 0.333),
    ("cifar10", "hamiltonian"): (89.3, 0.349),
    ("cifar10", "second_order"): (89.2, 0.333),
    ("cifar100", "parabolic"): (64.8, 1.234),
    ("cifar100", "hamiltonian"): (64.9, 1.237),
    ("cifar100", "second_order"): (65.4, 1.232),
}
"""The results in Table 1 of the paper: test accuracy in per cent and cross entropy."""


FAST, FAST_SHARE = "fast", 0.2
"""The recipe that trains from coarse to fine, and the largest part of the paper's work that it may take."""

ARM = ARMS["gradual copy"]
"""The levels of the recipe ``fast``."""


@dataclass(frozen=True)
class PaperBudget:
    """Upper bounds on the cost of an experiment; None stands for the values of the paper.

    Args:
        each: work of each training.
        flops: work of all trainings on one data set, and again of all on parts of it, from which the epochs follow.
        epochs: largest number of epochs of a training.
        num_train: largest number of training images, including those held back.
        num_test: largest number of test images.
    """

    each: float | None = None
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


def paper_budget(text: str) -> PaperBudget:
    """The budget of a name in `BUDGETS`, or of a text such as ``30TFLOPs`` for each training; ValueError for others."""
    if text in BUDGETS:
        return BUDGETS[text]
    try:
        found = parse_budget(text)
    except ValueError:
        found = None
    if found is None or found.unit != "flops":
        raise ValueError(f"budget must be {', '.join(BUDGETS)}, or work such as 30TFLOPs, got {text!r}")
    return PaperBudget(each=found.amount)


@dataclass(frozen=True)
class Training:
    """One training of an experiment, on a share of the images without augmentation, or for None on 80 % with it.

    With the recipe ``paper`` the images have their full size throughout, and each is standardised by itself. With
    ``fast`` they go from a quarter of it to the full size, see `ARM`, and have the mean and deviation of the data.
    """

    data: str
    dynamics: str
    share: float | None = None
    recipe: str = "paper"

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{self.data}-{self.dynamics}" + ("" if self.share is None else f"-{self.share:.0%}".replace("%", ""))

    @property
    def network(self) -> NetworkConfig:
        """The network of the paper."""
        return replace(preset(f"{self.data}-{self.dynamics}"), standardize=self.recipe == "paper")

    def num_images(self, num: int) -> int:
        """The number of images that it needs of ``num`` training images, including those held back."""
        return num if self.share is None else round(self.share * num) + num_held_back(num)

    def settings(self, num: int, seed: int, device: str, amp: str, compile: bool = False) -> TrainSettings:
        """Settings for a data set of ``num`` training images, of which a fifth is held back in any case."""
        own: dict[str, Any] = {"transfer": "copy"}
        if self.recipe == "paper":
            own = {"alpha1": RECIPES[self.data].alpha1, "alpha2": RECIPES[self.data].alpha2}
        own |= {"validation": num_held_back(num) / self.num_images(num), "augment": self.share is None}
        return TrainSettings.of_recipe(self.recipe, seed=seed, device=device, amp=amp, compile=compile, **own)

    def level(self, epochs: int) -> Level:
        """The only level of the paper's recipe: the whole training is at the full size."""
        policy = RECIPES[self.data].policy
        return Level(self.network.sizes[0], epochs, batch=BATCH, learning_rate=LEARNING_RATE, policy=policy)

    def epoch_flops(self, num: int) -> float:
        """Work of one epoch of the paper's recipe on a data set of ``num`` training images."""
        return (self.num_images(num) - num_held_back(num)) * level_flops(self.level(1), self.network)

    def levels(self, budget: PaperBudget, num: int) -> list[Level]:
        """The levels of a training with as many epochs as the budget allows."""
        if self.recipe == "paper":
            return [self.level(epochs_within(self, budget, num))]
        work = f"{max(1.0, work_within(self, budget, num)) / 1e12:.12f}TFLOPs"
        num_train, network = self.num_images(num) - num_held_back(num), self.network
        side, unit = network.sizes[0], 2 ** (network.num_blocks - 1)  # sizes are halved between blocks
        parts = tuple(part._replace(size=unit * round(part.size * side / unit) / side) for part in ARM.parts)
        return levels_of_work(replace(ARM, parts=parts), network, network, work, num_train, recipe_values(FAST))


def num_held_back(num: int) -> int:
    """The number of validation images among ``num`` training images, whatever share of them is trained on."""
    return round(VALIDATION * num)


def trainings_of(
    data: Sequence[str],
    recipe: str = "paper",
    dynamics: Sequence[str] = DYNAMICS,
    shares: Sequence[float | None] = (None,),
) -> list[Training]:
    """The trainings of Table 1, Figures 1 and 4, and the lower half of Figure 2; with `SHARES` those of the upper half
    of Figure 2, and of Figure 3."""
    return [Training(name, each, share, recipe) for name in data for each in dynamics for share in shares]


def work_within(training: Training, budget: PaperBudget, num: int) -> float:
    """The largest work of a training on a data set of ``num`` training images.

    A budget for all trainings of a kind on a data set is shared in proportion to the cost of their epochs. The recipe
    ``fast`` takes at most `FAST_SHARE` of the paper's work, unless the budget names the work of each training.
    """
    own = training.epoch_flops(num)
    limits = [RECIPES[training.data].epochs * own * (FAST_SHARE if training.recipe == FAST else 1.0)]
    if budget.each is not None:
        limits = [budget.each] if training.recipe == FAST else [*limits, budget.each]
    if budget.epochs is not None:
        limits.append(budget.epochs * own)
    if budget.flops is not None:
        kind = trainings_of([training.data], shares=(None,) if training.share is None else SHARES)
        limits.append(budget.flops * own / sum(other.epoch_flops(num) for other in kind))
    return min(limits)


def epochs_within(training: Training, budget: PaperBudget, num: int) -> int:
    """The number of epochs of a training with the paper's recipe, at least 1.

    Of a budget for all trainings of a kind it is the largest number with   epochs Σ images · FLOPs per image <= budget.
    """
    return max(1, math.floor(work_within(training, budget, num) / training.epoch_flops(num) + 1e-9))
