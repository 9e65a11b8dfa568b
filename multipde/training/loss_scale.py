"""The scale of the loss in float16, whose gradients would be rounded to zero without it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from multipde.runtime.device import Compute

SCALE, GROWTH = "loss_scale", "loss_scale_growth"
"""Names under which a checkpoint has the scale, and the number of steps in a row without overflow."""


class LossScale:
    """Multiplies the loss by a scale s, and divides the gradients by it before they are used; s = 1 except in fp16.

    A step whose gradients are not finite is left out, and s is halved; after 2,000 steps in a row without one it is
    doubled. It starts with 65,536 on each level.

    Reference: Micikevicius et al. (2018), Mixed precision training, section 3.2.
    """

    def __init__(self, compute: Compute):
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.amp == "fp16")  # pyright: ignore

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, before penalties are added or the norm is measured."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The step of the optimizer, unless gradients are not finite."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state(self, name: str) -> dict[str, Tensor]:
        """The state as tensors, under the name of a parameter."""
        if not self.scaler.is_enabled():
            return {}
        found = self.scaler.state_dict()
        values = {SCALE: found["scale"], GROWTH: found["_growth_tracker"]}
        return {f"{name}:{key}": torch.tensor(value, dtype=torch.float64) for key, value in values.items()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        values = {key: t.item() for name, t in state.items() if (key := name.rpartition(":")[2]) in (SCALE, GROWTH)}
        if self.scaler.is_enabled() and values:
            known = {"scale": values[SCALE], "_growth_tracker": int(values[GROWTH])}
            self.scaler.load_state_dict(self.scaler.state_dict() | known)
