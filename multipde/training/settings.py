"""How a run is trained, apart from the network and its schedule: plain data, recorded with the run."""

import math
from dataclasses import dataclass

from multipde.mesh.transfer import check_method


@dataclass(frozen=True)
class TrainSettings:
    """Everything about a training that neither the network nor the schedule says.

    Args:
        seed: of the weights, the split, the order of the images and their augmentation.
        transfer: method by which stencils move to the next level, see `multipde.convert`.
        momentum: of the stochastic gradient descent.
        alpha1: weight of the total variation in time, eq. (13).
        alpha2: weight of the squares, eq. (13).
        box: bound on the stencils of the symmetric layers; 0 for none.
        augment: flip, pad by 1/16 and crop the training images.
        validation: share of the training images set aside for validation.
        calibration_images: how many training images measure BatchNorm anew after a move.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        amp: ``"off"`` or ``"bf16"``.

    Raises:
        ValueError: a value outside its range.
    """

    seed: int = 0
    transfer: str = "copy"
    momentum: float = 0.9
    alpha1: float = 2e-4
    alpha2: float = 2e-4
    box: float = 1.0
    augment: bool = True
    validation: float = 0.2
    calibration_images: int = 2000
    device: str = "auto"
    amp: str = "off"

    def __post_init__(self):
        check_method(self.transfer, "transfer")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not (math.isfinite(self.box) and self.box >= 0):
            raise ValueError(f"box must not be negative, got {self.box}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must lie in (0, 1), got {self.validation}")
        if self.calibration_images < 2:
            raise ValueError(f"calibration_images must be at least 2, got {self.calibration_images}")
