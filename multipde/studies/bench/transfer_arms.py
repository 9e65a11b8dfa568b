"""The arms of ``multipde bench transfer``: ways to train from coarse to fine, rivals, and recipes for the optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multipde.networks.external import ExternalModel
from multipde.studies.bench import airbench
from multipde.studies.bench.plain_networks import resnet18_model, small_resnet18_model
from multipde.training.recipe import recipe_values


class Part(NamedTuple):
    """One level of an arm.

    Args:
        size: side of the mesh as a fraction of the full size.
        share: share of the work of all levels.
        detail: side of the images / side of the mesh.
        crop: side of the windows of the images on which the level trains as a fraction of the full size; 1 for whole
            images.
        a_trous: as in `Level`.
    """

    size: float
    share: float
    detail: int = 1
    crop: float = 1
    a_trous: int | None = None


@dataclass(frozen=True)
class Arm:
    """One way to train from coarse to fine.

    Args:
        parts: the levels.
        settings: the fields of `TrainSettings` that this arm changes.
        mixed: use batches of all sizes in random order, instead of one size after the other.
        level: the fields of `Level` that this arm changes in all levels.
        steps: number of time steps at each size; None for that of the network.
        network: function of size, number of classes and normalised training images, or None in their place, to the
            description of another network; None for the network of the study.
        own_recipe: whether the settings are the whole recipe, so that the arm is not combined with `RECIPES`.
    """

    parts: tuple[Part, ...] = (Part(1 / 4, 0.125), Part(1 / 2, 0.375), Part(1, 0.5))
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    level: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] | None = None
    network: Callable[..., ExternalModel] | None = None
    own_recipe: bool = False


COPY = {"transfer": "copy"}
FINE = (Part(1, 1.0),)

_SIZES = (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
GRADUAL = tuple(Part(*part) for part in zip(_SIZES, (0.06, 0.07, 0.19, 0.15, 0.14, 0.15, 0.24), strict=True))

THEN_FULL = (Part(1 / 4, 0.05), Part(1 / 2, 0.15), Part(1 / 2, 0.2, detail=2), Part(1, 0.6))

ARMS = {
    "fine only": Arm(FINE, COPY),
    "copy": Arm(settings=COPY),
    "rediscretize": Arm(settings={"transfer": "rediscretize"}),
    "galerkin": Arm(settings={"transfer": "galerkin"}),
    "calibrated": Arm(settings={"transfer": "calibrated"}),
    "mesh-invariant": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 1.0}),
    "mixed": Arm(settings=COPY, mixed=True),
    "gradual": Arm(GRADUAL, {"transfer": "calibrated"}),
    "gradual copy": Arm(GRADUAL, COPY),
    "crop": Arm((Part(1, 0.125, crop=1 / 4), Part(1, 0.375, crop=1 / 2), Part(1, 0.5)), COPY),
    "detail": Arm((Part(1 / 4, 0.1), Part(1 / 2, 0.3), Part(1 / 2, 0.6, detail=2)), COPY),
    "detail then full": Arm(THEN_FULL, COPY),
}
"""The arms of the study; the learning rate goes through one cycle across all levels, measured in work."""

IDEAS = {
    "detail then full, calibrated": Arm(THEN_FULL, {"transfer": "calibrated"}),
    "detail, a trous": Arm((*THEN_FULL[:3], Part(1, 0.6, a_trous=1)), COPY),
    "one cycle per level": Arm(settings=COPY, level={"policy": "one_cycle"}),
    "twice the steps": Arm(settings=COPY, steps=(3, 3, 6)),
    "momentum reset": Arm(settings={"transfer": "copy", "momentum_rule": "reset"}),
    "momentum dual": Arm(settings={"transfer": "calibrated", "momentum_rule": "dual"}),
    "calibrated full": Arm(settings={"transfer": "calibrated_full"}),
    "mesh-invariant, q = 0": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.0}),
    "mesh-invariant, q = 1/2": Arm(settings={"transfer": "copy", "coordinates": "finest", "conditioning": 0.5}),
    "rediscretize, steps auto": Arm(settings={"transfer": "rediscretize", "auto_steps": True}),
}
"""Further arms, trained on request only. The last one exceeds its budget where it takes more steps."""

AIRBENCH = {"batch": airbench.BATCH, "learning_rate": airbench.RATE}
SMALL_BATCHES = {"batch": airbench.BATCH // 4, "learning_rate": airbench.RATE / 4}

RIVALS = {
    "airbench": Arm(FINE, airbench.RECIPE, level=AIRBENCH, network=airbench.airbench_model, own_recipe=True),
    "airbench, batch 256": Arm(
        FINE, airbench.RECIPE, level=SMALL_BATCHES, network=airbench.airbench_model, own_recipe=True
    ),
    "airbench spectral": Arm(FINE, airbench.SPECTRAL, level=AIRBENCH, network=airbench.airbench_model, own_recipe=True),
    "resnet18": Arm(FINE, COPY, network=resnet18_model),
    "resnet18 coarse to fine": Arm(settings=COPY, network=resnet18_model),
    "resnet18 3x3": Arm(FINE, COPY, network=small_resnet18_model),
    "resnet18 3x3 coarse to fine": Arm(settings=COPY, network=small_resnet18_model),
}
"""Other networks with the work of the study's network, trained on request only."""

ALL = ARMS | IDEAS | RIVALS

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "sgd": {},
    "muon": {"optimizer": "muon"},
    "fast": recipe_values("fast") | {"recipe": "fast"},
}
"""Fields of `TrainSettings` and `Level` by which all arms without a recipe of their own may be trained."""
OWN = "own"
"""What rows have instead of a recipe for arms that have their own."""
