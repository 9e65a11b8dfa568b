"""The penalty of an external model: weight decay on its stencils and matrices."""

import torch
from torch import nn


class WeightDecay:
    """R = α2/2 Σ |W|² over the parameters with more than one axis, which excludes biases and normalisation layers.

    Args:
        alpha2: weight of the sum of squares.
        net: network whose parameters are collected here; their values are read when the gradient is added.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, alpha2: float, net: nn.Module):
        if not alpha2 >= 0:
            raise ValueError(f"alpha2 must not be negative, got {alpha2}")
        self.alpha2 = alpha2
        self.parameters = [p for p in net.parameters() if p.dim() > 1 and p.requires_grad]

    @torch.no_grad()
    def add(self) -> None:
        """Add α2 W to the gradients; a missing gradient counts as zero."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.parameters and self.alpha2:
            grads = [p.grad for p in self.parameters]
            torch._foreach_add_(grads, self.parameters, alpha=self.alpha2)  # pyright: ignore
