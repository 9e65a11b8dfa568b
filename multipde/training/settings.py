"""The settings of a training apart from network and schedule: plain data, recorded with the run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from multipde.conversions.sample_sizes import RECALIBRATION_IMAGES
from multipde.training.budget import parse_budget
from multipde.training.rates import rate_texts
from multipde.training.recipe import level_values, recipe_values

COORDINATES = ("level", "finest")
ON_DIVERGENCE = ("stop", "rollback")
TRACKERS = ("csv", "tensorboard", "mlflow", "wandb")


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training; the network and the schedule are described elsewhere.

    Args:
        seed: seed of the weights, the validation split, the order of the images and their augmentation.
        transfer: method by which stencils are converted to the next level, see `multipde.convert`.
        coordinates: the mesh to which the trained parameters belong, which is not `NetworkConfig.coordinates`.
            ``"level"``: the mesh of each level, to which they are converted; ``"finest"``: always the finest mesh, from
            which each level computes its stencils, so that penalty and box belong to the finest mesh.
        conditioning: with ``"finest"``, the exponent q in [0, 1] of the preconditioner (GᵀG)⁻q, see `Preconditioner`;
            with the optimizer ``"muon"`` it has no effect.
        optimizer: ``"sgd"``, ``"muon"`` or ``"adamw"``, see `make_optimizer`.
        momentum: momentum of the stochastic gradient descent, in [0, 1); with ``"adamw"`` β₁.
        nesterov: use Nesterov's momentum; None for yes with ``"muon"`` and no with ``"sgd"``.
        stencil_rate: with ``"muon"``, learning rate of the stencils as a multiple of that of the schedule, positive.
        stencil_momentum: with ``"muon"``, momentum of the stencils, in [0, 1).
        weight_decay: weight decay of the stencils, multiplied by their learning rate; None for 0.06 with ``"muon"``,
            0.02 with ``"adamw"`` and 0 with ``"sgd"``.
        bias_rate: factor of the learning rate of the biases of norms, positive.
        momentum_rule: how momentum moves to the next level: ``"map"``, ``"dual"`` or ``"reset"``, see
            `carry_optimizer_state`.
        alpha1, alpha2: weights in the penalty of the total variation in time and of the squares, eq. (13); 0, with
            which the decay of the optimizer is all that keeps weights small, or 2e-4 with the recipe ``"paper"``.
        box: bound on the absolute values of the taps of the symmetric layers' stencils, which are dimensionless
            weights of the convolution; 0 for no bound.
        auto_steps: use more time steps on a level where the converted network would be less stable.
        budget: time or work for a schedule whose levels have epochs None, e.g. ``"10min"`` or ``"40TFLOPs"``.
        min_epochs, max_epochs: bounds on the epochs of each level of such a schedule; the last has no upper bound.
        whiten: start from random weights with a first convolution that whitens the training images, see
            `whiten_opening`; weights that are given stay as they are, and so does a convolution that cannot whiten.
        label_smoothing: share s in [0, 1) of every label that is spread evenly over the classes, in the training loss;
            without effect on a loss that the user gives.
        augment: random changes of the training images, see `Augmentation`: names joined by commas such as
            ``"flip,crop,cutout"``, a list of them, or ``"off"``; True for flip and crop, False for none; None for True,
            unless `ImageData.transforms_itself`. In Python also a function of a batch of images on [0, 1] to such a
            batch, which is recorded by its name and must be given again to `resume`.
        validation: share of the training images that is held back for validation, in (0, 1).
        calibration_images: number of training images, at least 2, on which BatchNorm is recalibrated after a move, and
            of which the first 256 calibrate the derivative terms.
        precise_images: number of training images on which BatchNorm is measured before the validation of an epoch, see
            `precise_statistics`; 0 for its running averages. On small data sets it is less, so that the work is at most
            3 % of the epoch, but at least a batch of 250.
        average: decay per step of the average of the weights that is validated in their place, in [0, 1), e.g. 0.99; 0
            for the weights themselves; see `Average`.
        checkpoint_every: minutes between checkpoints within an epoch; every epoch ends with one, too.
        keep: number of checkpoints that are kept, the newest ones; at least 1.
        on_divergence: what to do when loss, activations or stencils are out of bounds: ``"stop"``, or ``"rollback"`` to
            the last checkpoint with half the learning rate, at most three times.
        deterministic: use only algorithms that give the same bits again on the same machine.
        compile: use compiled kernels for training, see `compile_layers`.
        tensorboard: write event files for TensorBoard into the run directory.
        track: what else the metrics are written for, names of `TRACKERS`: ``"csv"`` for the file metrics.csv, MLflow
            and Weights & Biases, which write into the run directory unless their environment variables name a server.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"``, ...
        amp: ``"off"`` for float32, ``"bf16"`` for bfloat16 convolutions and matrix products, ``"auto"`` for bf16 where
            the device is faster with it, or ``"fp16"`` for float16 on a CUDA GPU, where the loss is scaled.
        freeze: parameters that are not trained: ``"head"``, the last layer, which gives the scores; ``"body"``, all
            others; or names of modules and parameters and patterns of them such as ``"layer?.*.conv1"``. A BatchNorm
            layer in them keeps its statistics, too. Work is counted as if all were trained.
        thaw: number of the level, the first being 1, from which all parameters are trained; None for never.
        rate: peak learning rates of groups, which are named as for ``freeze``, on the last level; on other levels they
            are in proportion to the learning rate. A mapping, or texts such as ``"head=0.01"``.
        accumulate: number of parts into which a batch is divided, whose gradients are added before a step; BatchNorm
            sees one part at a time.
        clip_norm: largest norm of the gradient of all parameters, penalty included; a larger gradient is scaled down
            to it. None for no bound.
        class_weights: weight of the images of each class in the training loss, Σ w ℓ / Σ w, or ``"balanced"`` for
            weights in inverse proportion to the number of training images of the class; None for equal weights.
        balance: draw the training images so that all classes are equally frequent in an epoch: images of rare classes
            several times, some of frequent classes not at all. This is not the argument ``balance`` of `train`.
        recipe: name of the recipe from which the settings come, for the record; it changes nothing, see `of_recipe`.

    Raises:
        ValueError: a value is outside its range.
    """

    seed: int = 0
    transfer: str = "calibrated"
    coordinates: str = "level"
    conditioning: float = 1.0
    optimizer: str = "muon"
    momentum: float = 0.9
    nesterov: bool | None = None
    stencil_rate: float = 0.5
    stencil_momentum: float = 0.6
    weight_decay: float | None = None
    bias_rate: float = 1.0
    momentum_rule: str = "map"
    alpha1: float = 0.0
    alpha2: float = 0.0
    box: float = 1.0
    auto_steps: bool = False
    budget: str | None = None
    min_epochs: int = 1
    max_epochs: int = 100
    whiten: bool = True
    label_smoothing: float = 0.1
    augment: str | bool | Sequence[str] | Callable[[Any], Any] | None = None
    validation: float = 0.2
    calibration_images: int = RECALIBRATION_IMAGES
    precise_images: int = 1000
    average: float = 0.0
    checkpoint_every: float = 10.0
    keep: int = 2
    on_divergence: str = "stop"
    deterministic: bool = False
    compile: bool = False
    tensorboard: bool = False
    track: tuple[str, ...] = ()
    device: str = "auto"
    amp: str = "off"
    freeze: tuple[str, ...] = ()
    thaw: int | None = None
    rate: tuple[str, ...] | Mapping[str, float] = ()
    accumulate: int = 1
    clip_norm: float | None = None
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    balance: bool = False
    recipe: str | None = "fast"

    @classmethod
    def of_recipe(cls, name: str = "fast", **values: Any) -> "TrainSettings":
        """The settings of a recipe, see `RECIPES`, with other values in place of some of its own.

        The learning rates and batches of a recipe belong to the levels, see `level_values`.
        """
        own = {key: value for key, value in recipe_values(name).items() if key not in level_values(name)}
        return cls(**own | values, recipe=name)

    def __post_init__(self):
        from multipde.conversions.optimizer_state import check_rule  # imported here, because help texts
        from multipde.data.augmentation import augmentation_names  # must not import torch
        from multipde.mesh.transfer import check_method
        from multipde.training.optimizers import check_optimizer

        object.__setattr__(self, "freeze", (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze))
        object.__setattr__(self, "rate", rate_texts(self.rate))
        object.__setattr__(self, "class_weights", _class_weights(self.class_weights))
        if isinstance(self.augment, (list, tuple)):
            object.__setattr__(self, "augment", ",".join(map(str, self.augment)) or "off")
        recipe_values(self.recipe)
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be one of the whole numbers below 2^63, got {self.seed}")
        check_method(self.transfer, "transfer")
        check_rule(self.momentum_rule, "momentum_rule")
        if self.coordinates not in COORDINATES:
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {self.coordinates!r}")
        if not 0 <= self.conditioning <= 1:
            raise ValueError(f"conditioning must lie in [0, 1], got {self.conditioning}")
        check_optimizer(self.optimizer)
        for name in ("momentum", "stencil_momentum", "label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.nesterov and not self.momentum:
            raise ValueError(f"momentum must be positive with nesterov, got {self.momentum}")
        for name in ("stencil_rate", "bias_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not (math.isfinite(self.box) and self.box >= 0):
            raise ValueError(f"box must not be negative, got {self.box}")
        if self.budget is not None:
            parse_budget(self.budget)
        if not 1 <= self.min_epochs <= self.max_epochs:
            raise ValueError(
                f"min_epochs must lie between 1 and max_epochs, got {self.min_epochs} and {self.max_epochs}"
            )
        if not callable(self.augment):
            augmentation_names(self.augment)
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must lie in (0, 1), got {self.validation}")
        if self.calibration_images < 2:
            raise ValueError(f"calibration_images must be at least 2, got {self.calibration_images}")
        if self.precise_images < 0 or self.precise_images == 1:
            raise ValueError(f"precise_images must be 0 or at least 2, got {self.precise_images}")
        if self.average and not self.precise_images:
            raise ValueError("precise_images must be positive with average, whose BatchNorm is measured, got 0")
        if not self.checkpoint_every > 0:
            raise ValueError(f"checkpoint_every must be positive, got {self.checkpoint_every}")
        for name in ("keep", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.thaw is not None and (self.thaw < 2 or not self.freeze):
            rule = "come with freeze" if not self.freeze else "be the number of a level after the first"
            raise ValueError(f"thaw must {rule}, got {self.thaw}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        object.__setattr__(self, "track", (self.track,) if isinstance(self.track, str) else tuple(self.track))
        if unknown := [name for name in self.track if name not in TRACKERS]:
            raise ValueError(f"track must name {', '.join(TRACKERS)}, got {unknown[0]!r}")
        if self.on_divergence not in ON_DIVERGENCE:
            raise ValueError(f"on_divergence must be one of {', '.join(ON_DIVERGENCE)}, got {self.on_divergence!r}")


def _class_weights(weights: Any) -> Any:
    """Class weights as a tuple; None and ``"balanced"`` as they are. A dictionary is refused, which has no order.

    Raises:
        ValueError: they are neither of these nor numbers that are not negative and not all zero.
    """
    if isinstance(weights, Mapping):
        raise ValueError("class_weights must be numbers in the order of the classes, got a dictionary; type a list")
    if hasattr(weights, "tolist"):
        weights = weights.tolist()
    if isinstance(weights, list):
        weights = tuple(weights)
    if weights is None or weights == "balanced":
        return weights
    if isinstance(weights, str) or not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0:
        shown = weights if isinstance(weights, str) else " ".join(map(str, weights))
        raise ValueError(
            f"class_weights must be balanced, or numbers of at least zero, one above it, got {shown or 'none'}"
        )
    return weights
