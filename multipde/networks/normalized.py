"""The normalisation of images as a module in front of a network, in a file that imports nothing but torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class Normalized(nn.Module):
    """A network behind the normalisation of its images: x / 255, then (x - mean) / std for every channel.

    With ``standardize``, mean and standard deviation are those of each image, averaged over cells of ``detail`` pixels.

    Shape:
        - x: (N, C, *size), grey values 0 to 255, uint8 or float
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], dim: int, standardize: bool, detail: int
    ):
        super().__init__()
        self.net, self.dim, self.standardize, self.detail = net, dim, standardize, detail
        shape = (-1, *(1,) * dim)
        scale, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale or [1 / 255]).view(shape))
        self.register_buffer("shift", torch.tensor(shift or [0.0]).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.scale.dtype)
        if not self.standardize:
            return self.net(x * self.scale + self.shift)
        seen = x if self.detail == 1 else POOL[self.dim](x, self.detail)
        axes = tuple(range(1, x.dim()))
        mean = seen.mean(axes, keepdim=True)
        std = (seen - mean).square().mean(axes, keepdim=True).sqrt()
        return self.net((x - mean) / std.clamp_min(1.0))
