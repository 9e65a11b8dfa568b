"""The network of `multipde.PDENet` for use alone: plain convolutions, in a file that imports nothing but torch.

Time steps, signs, BatchNorm and mesh sizes are contained in the taps. See Ruthotto & Haber (2018), Deep neural networks
motivated by partial differential equations, for the equations (7) to (11).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda x: x}


class PlainLayer(nn.Module):
    """F(y) = K2 σ(N(K1 y)) with the norm N(z) = a z / sqrt(Σ_c z_c² + ε) + b, or without it."""

    def __init__(self, channels: int, width: int, dim: int, norm: str, activation: str, eps: float):
        super().__init__()
        self.eps, self.activation, self.has_norm = eps, activation, norm == "tv"
        self.first = CONV[dim](channels, channels, width, padding=width // 2, bias=False)
        self.second = CONV[dim](channels, channels, width, padding=width // 2, bias=False)
        if self.has_norm:
            self.scale = nn.Parameter(torch.ones(channels, *(1,) * dim))
            self.bias = nn.Parameter(torch.zeros(channels, *(1,) * dim))

    def forward(self, y: Tensor) -> Tensor:
        z = self.first(y)
        if self.has_norm:
            z = z * torch.rsqrt(z.square().sum(1, keepdim=True) + self.eps) * self.scale + self.bias
        return self.second(ACTIVATIONS[self.activation](z))


class PlainBlock(nn.Module):
    """The time steps of one dynamics; the factor dt, or dt², and the sign of every F are contained in its K2.

    parabolic, resnet  y' = y + F(y)
    hamiltonian        y' = y + F1(z),  z' = z + F2(y'),  where y and z are halves of the channels
    second_order       y_next = 2y - y_prev + F(y)
    """

    def __init__(self, dynamics: str, channels: int, steps: int, *layer: int | str | float):
        super().__init__()
        self.dynamics = dynamics
        num, part = (2, channels // 2) if dynamics == "hamiltonian" else (1, channels)
        self.steps = nn.ModuleList(
            nn.ModuleList(PlainLayer(part, *layer) for _ in range(num))  # pyright: ignore[reportArgumentType]
            for _ in range(steps)
        )

    def forward(self, y: Tensor) -> Tensor:
        if self.dynamics == "hamiltonian":
            y, z = y.chunk(2, 1)
            for f1, f2 in self.steps:  # pyright: ignore[reportGeneralTypeIssues]
                y = y + f1(z)
                z = z + f2(y)
            return torch.cat((y, z), 1)
        before = y
        for (f,) in self.steps:  # pyright: ignore[reportGeneralTypeIssues]
            y, before = (2 * y - before if self.dynamics == "second_order" else y) + f(y), y
        return y


class PlainNet(nn.Module):
    """An opening, blocks on successively coarser meshes with 1x1 convolutions after them, and a linear classifier.

    Args:
        channels, steps, dilation: one number per block.
        out_channels: channels of the last 1x1 convolution.
        width: taps per axis of the layers F; opening_width: those of the opening, which has the stride ``detail``.
        opening_pads: numbers of pixels with which the images are padded on the left and on the right.

    Shape:
        - x: (N, in_channels, *size)
        - result: (N, classes), scores before the softmax
    """

    def __init__(
        self,
        dynamics: str,
        channels: Sequence[int],
        out_channels: int,
        steps: Sequence[int],
        dilation: Sequence[int],
        in_channels: int,
        classes: int,
        dim: int,
        width: int,
        opening_width: int,
        opening_pads: Sequence[int],
        detail: int,
        norm: str,
        activation: str,
        eps: float,
    ):
        super().__init__()
        self.dim, self.dilation = dim, tuple(dilation)
        left, right = opening_pads
        self.pads = () if left == right else (left, right) * dim
        self.opening = CONV[dim](in_channels, channels[0], opening_width, detail, 0 if self.pads else left)
        layer = width, dim, norm, activation, eps
        self.blocks = nn.ModuleList(PlainBlock(dynamics, c, n, *layer) for c, n in zip(channels, steps, strict=True))
        pairs = zip(channels, (*channels[1:], out_channels), strict=True)
        self.connectors = nn.ModuleList(CONV[dim](before, after, 1) for before, after in pairs)
        self.classifier = nn.Linear(out_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.opened(x)
        split = 1
        for k, (block, connector) in enumerate(zip(self.blocks, self.connectors, strict=True)):
            if self.dilation[k] > split:
                split = self.dilation[k]
                y = shifts(y, split)
            y = torch.relu(connector(block(y)))
            if k + 1 < len(self.blocks):
                y = POOL[self.dim](y, 2)
        return self.classified(y, split, x.shape[0])

    def opened(self, x: Tensor) -> Tensor:
        """The features before the first block."""
        return torch.relu(self.opening(functional.pad(x, self.pads) if self.pads else x))

    def classified(self, y: Tensor, split: int, num: int) -> Tensor:
        """The scores of num images, by the mean of their features over pixels, and over shifts where they are split."""
        y = y.mean(tuple(range(2, y.dim())))
        return self.classifier(y if split == 1 else y.unflatten(0, (num, -1)).mean(1))


def shifts(y: Tensor, dilation: int) -> Tensor:
    """The features at every ``dilation``-th pixel, one image for each of the dilation^dim shifts."""
    dim, cells = y.dim() - 2, y
    for axis in range(dim + 1, 1, -1):
        cells = cells.unflatten(axis, (-1, dilation))
    pixels, moves = range(2, 2 * dim + 2, 2), range(3, 2 * dim + 2, 2)
    return cells.permute(0, *moves, 1, *pixels).flatten(0, dim)
