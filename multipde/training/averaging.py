"""Averaged weights: the exponential moving average of the weights of a level, which is validated in their place."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from multipde.training.level import Level

KEY, TOTAL = "average", "average_total"
"""Names under which a checkpoint has the average of a parameter, and the sum of all its weights."""


class Average:
    """The mean of the parameters θ_s after the steps s = 1..t of a level, with weights that decay by d per step:

        mean = Σ d^(t-s) θ_s / Σ d^(t-s)

    The decay holds for a step of 125 images; a step of n images decays by d^(n/125), so that the average reaches back
    over the same number of images. It starts anew on each level, from the converted network, which itself is converted
    from the weights and not from their average.

    Args:
        net: the network that is trained.
        decay: d in (0, 1).

    Reference: Polyak & Juditsky (1992); Izmailov et al. (2018), whose mean has equal weights.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net, self.decay, self.total = net, decay, 0.0
        self.means = [p.detach().clone() for p in net.parameters()]

    @torch.no_grad()
    def update(self, num_images: int) -> None:
        """Include the weights after a step of so many images."""
        self.total = 1 + self.decay ** (num_images / Level.batch) * self.total
        weights = [p.detach() for p in self.net.parameters()]
        torch._foreach_lerp_(self.means, weights, 1 / self.total)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def network(self) -> nn.Module:
        """A copy of the network with the average; its BatchNorm has to be measured."""
        net = copy.deepcopy(self.net)
        for p, mean in zip(net.parameters(), self.means, strict=True):
            p.copy_(mean)
        return net

    def state(self) -> dict[str, Tensor]:
        """The average as ``NAME:average``, and the sum of its weights with the first of them."""
        names = [name for name, _ in self.net.named_parameters()]
        found = {f"{name}:{KEY}": mean.cpu() for name, mean in zip(names, self.means, strict=True)}
        return found | {f"{names[0]}:{TOTAL}": torch.tensor(self.total, dtype=torch.float64)}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for (name, _), mean in zip(self.net.named_parameters(), self.means, strict=True):
            mean.copy_(state[f"{name}:{KEY}"])
        self.total = next(t.item() for name, t in state.items() if name.endswith(f":{TOTAL}"))
