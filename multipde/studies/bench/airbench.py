"""airbench94, a strong plain convnet for CIFAR-10 of 2024, as a rival: its architecture and its own recipe.

The code is ours, after the paper and the published hyperparameters. What `TrainSettings` and `Level` cannot express is
left out: the flip that alternates between epochs, Lookahead, the freezing of the whitening bias after three epochs,
half precision. The rate follows our cycle instead of a triangle from 0.2 over 1 to 0.07; biases have no decay. Muon
keeps no norm of the stencils. The accuracy is that of a single view.

Reference: Jordan (2024), 94% on CIFAR-10 in 3.29 Seconds on a Single GPU; https://github.com/KellerJordan/cifar10-airbench
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multipde.networks.external import PYTHON, ExternalModel

WIDTHS = (64, 256, 256)
HEAD_SCALE = 1 / 9
LEAST_VARIANCE = 5e-4

PUBLISHED = (("airbench94", 360.0, 94.01), ("airbench94_spectral", 290.0, 94.05))
"""Name, TFLOPs and test accuracy in per cent as published, with six views of every test image and 50,000 training
images. Source: the README of https://github.com/KellerJordan/cifar10-airbench."""

BATCH = 1024
RATE = 11.5 / (1 + 1 / (1 - 0.85))
"""The published learning rate of 11.5 per 1024 images is that of a step without Nesterov momentum 0.85."""

RECIPE: Mapping[str, Any] = {
    "transfer": "copy",
    "optimizer": "sgd",
    "momentum": 0.85,
    "nesterov": True,
    "bias_rate": 64.0,
    "alpha2": 0.0153 / 11.5,
    "weight_decay": 0.0,
    "label_smoothing": 0.2,
    "augment": "flip,crop",
}
"""The settings; the crop pads images of 32 pixels by two. The decay, a multiple of the rate, is alpha2."""

SPECTRAL: Mapping[str, Any] = {**RECIPE, "optimizer": "muon", "stencil_rate": 0.24 / RATE, "stencil_momentum": 0.6}
"""The settings of its version with orthogonalised momentum, whose stencils have a rate of 0.24."""


class _Opening(nn.Module):
    """A fixed 2x2 convolution whose outputs have covariance one on the training images, with both signs, and a bias."""

    def __init__(self, filters: Tensor):
        super().__init__()
        self.filters = nn.Buffer(filters)
        self.bias = nn.Parameter(torch.zeros(len(filters)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.filters, self.bias)


class _Scaled(nn.Linear):
    """A linear layer without bias whose output is multiplied by 1/9."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * HEAD_SCALE


def airbench(num_classes: int, filters: Tensor) -> nn.Module:
    """The network: a whitened opening, three groups of two convolutions, a linear head.

    Args:
        filters: the opening, see `whitening_filters`.
    """
    layers, old = [_Opening(filters), nn.GELU()], len(filters)
    for width in WIDTHS:
        layers += [_convolution(old, width), nn.MaxPool2d(2), _norm(width), nn.GELU()]
        layers += [_convolution(width, width), _norm(width), nn.GELU()]
        old = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), _Scaled(old, num_classes, bias=False))


def _convolution(old: int, new: int) -> nn.Conv2d:
    """A 3x3 convolution whose first channels pass on the input; the others are random."""
    layer = nn.Conv2d(old, new, 3, padding="same", bias=False)
    nn.init.dirac_(layer.weight.data[:old])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    """BatchNorm that trains only its bias."""
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images: Tensor) -> Tensor:
    """The eigenvectors of the covariance of all 2x2 patches, each divided by its standard deviation, with both signs.

    Shape:
        - images: (N, C, H, W), normalised
        - result: (8 C, C, 2, 2)
    """
    patches = nn.functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (variances + LEAST_VARIANCE).sqrt()).T.flip(0).reshape(-1, images.shape[1], 2, 2)
    return torch.cat([filters, -filters])


def airbench_model(size: int, classes: int, images: Tensor | None = None) -> ExternalModel:
    """The description of the network; without normalised training images its opening is zero, which costs the same."""
    filters = torch.zeros(24, 3, 2, 2) if images is None else whitening_filters(images)
    factory = partial(airbench, filters=filters)
    return ExternalModel(f"{PYTHON}:airbench", classes=classes, size=size, factory=factory)
