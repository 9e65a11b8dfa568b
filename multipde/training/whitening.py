"""Whitening: the first convolution starts with stencils whose outputs are uncorrelated along the training images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from multipde.mesh.reparametrize import stencil_parametrization

WHITENING_IMAGES = 1000
"""Number of training images from which the covariance is measured."""
EPS = 5e-4
"""ε of `whitening_stencils`, for images of unit variance."""


@torch.no_grad()
def whiten_opening(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the stencils of a network's first convolution to whitening ones, each with both signs, in place.

    With C channels and stencils of n taps in all, the min(n, C/2) directions of the largest variance are taken: first
    all stencils with one sign, then with the other. Channels that are left over keep their random stencils.

    Args:
        images: batches of normalised training images, at least as large as the stencils.

    Raises:
        ValueError: the first convolution does not read the images, or has a single tap or a single channel, or groups,
            dilation or stencils that are computed from other parameters.
    """
    layer = _first_convolution(net)
    weight = layer.weight.detach()
    found = whitening_stencils(images, weight.shape[2:], weight.shape[1]).to(weight.dtype)
    num = min(len(found), len(weight) // 2)
    stencils = torch.cat([found[:num], -found[:num], weight.cpu()[2 * num :]]).to(weight.device)
    if stencil_parametrization(layer) is None:
        layer.weight.copy_(stencils)
    else:
        layer.weight = stencils  # pyright: ignore[reportAttributeAccessIssue]


def whitening_stencils(images: Iterable[Tensor], width: Iterable[int], channels: int, eps: float = EPS) -> Tensor:
    """Stencils whose outputs for the images are uncorrelated and have the variance λ/(λ+ε), about one.

        Σ = covariance of all patches,   Σ v = λ v,   stencil = v / sqrt(λ + ε)

    They are sorted by λ, the largest first, and the largest entry of v is positive.

    Args:
        images: batches of images.
        width: taps of a patch along each axis.
        channels: channels of the images.

    Shape:
        - each batch: (N, channels, *size)
        - result: (channels · product of width, channels, *width), float64

    Raises:
        ValueError: the images are smaller than a patch.

    References:
        - Page (2019), How to train your ResNet.
        - Jordan (2024), 94% on CIFAR-10 in 3.29 seconds on a single GPU, section 3.1.
    """
    width = tuple(width)
    num_taps, count = channels * torch.Size(width).numel(), 0
    total, products = torch.zeros(num_taps, dtype=torch.float64), torch.zeros(num_taps, num_taps, dtype=torch.float64)
    for batch in images:
        for x in batch.cpu().double().split(50):
            if any(side < w for side, w in zip(x.shape[2:], width, strict=True)):
                raise ValueError(f"whiten must be off for images smaller than the stencils, got {tuple(x.shape[2:])}")
            for axis, w in enumerate(width, 2):
                x = x.unfold(axis, w, max(1, x.shape[axis] // 32))
            patches = x.movedim(1, len(width) + 1).flatten(0, len(width)).flatten(1)
            total, products, count = total + patches.sum(0), products + patches.mT @ patches, count + len(patches)
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    vectors = vectors.mT.flip(0)
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    scaled = signs * vectors / (values.flip(0).clamp_min(0) + eps).sqrt()[:, None]
    return scaled.unflatten(1, (channels, *width))


def _first_convolution(net: nn.Module) -> _ConvNd:
    """The convolution that comes first in a network; ValueError for one whose stencils cannot whiten the images."""
    name, layer = next(((n, m) for n, m in net.named_modules() if isinstance(m, _ConvNd)), ("", None))
    why = ""
    if layer is None:
        why = "no convolution"
    elif isinstance(layer, _ConvTransposeNd) or layer.groups > 1 or any(d > 1 for d in layer.dilation):
        why = f"a transposed, grouped or dilated convolution in {name!r}"
    elif parametrize.is_parametrized(layer, "weight") and stencil_parametrization(layer) is None:
        why = f"a parametrised convolution in {name!r}"
    elif layer.out_channels < 2 or max(layer.weight.shape[2:]) == 1:
        why = f"{layer.out_channels} channels of {layer.weight[0, 0].numel()} taps in {name!r}"
    if layer is None or why:
        raise ValueError(f"whiten must be off for a network whose opening cannot whiten, got {why}; type --no-whiten")
    return layer
