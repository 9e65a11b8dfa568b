"""What a network sees: images out of whatever a loader gives, normalised as the network was trained."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.mesh.pyramid import restrict_images
from multipde.networks.model_spec import find_spec

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
"""Names of the images in an item or a batch that is a dictionary."""

ImageBatch = Tensor | Sequence[Any] | Mapping[str, Any]
"""A batch of images (N, C, *size), a pair of them and their labels, or a dictionary with one entry of images."""


class Normalize:
    """The normalisation (x/255 - mean) / std of images x (N, C, *size) on 0..255, with one mean and std per channel.

    With ``per_image`` each image is standardised by its own mean and standard deviation instead. A standard deviation
    below one grey value then counts as one grey value, so that a uniform image becomes zero. With a ``detail`` above 1
    these are mean and deviation of the image averaged over cells of so many pixels per axis, see
    `multipde.with_detail`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], per_image: bool = False, detail: int = 1):
        self.per_image, self.detail = per_image, detail
        self.scale = [1 / (255 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]

    @classmethod
    def of(cls, spec: Any) -> "Normalize":
        """The normalisation of a network's description or of a data set, from its mean, std, standardize and detail."""
        return cls(spec.mean, spec.std, getattr(spec, "standardize", False), getattr(spec, "detail", 1))

    def at(self, detail: int) -> "Normalize":
        """The same for a network with another detail."""
        other = copy.copy(self)
        other.detail = detail
        return other

    def __call__(self, x: Tensor) -> Tensor:
        if self.per_image:
            seen = x if self.detail == 1 else restrict_images(x, [s // self.detail for s in x.shape[2:]])
            std, mean = torch.std_mean(seen, tuple(range(1, x.dim())), correction=0, keepdim=True)
            return (x - mean) / std.clamp_min(1.0)
        if not self.scale:
            return x / 255
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * x.new_tensor(self.scale).view(shape) + x.new_tensor(self.shift).view(shape)


def network_inputs(model: nn.Module, batch: ImageBatch, name: str) -> Tensor:
    """The images (N, C, *size) of a batch as the model sees them; labels are left out.

    Images in uint8 are normalised by the description of the model. ValueError with the name for a batch without images,
    of several images per item, or with other axes or channels than those of the model.
    """
    if isinstance(batch, Mapping):
        keys = [key for key in IMAGE_KEYS if key in batch]
        if len(keys) != 1:
            raise ValueError(f"{name} must have one entry {IMAGE_KEYS[0]!r}, got {', '.join(map(str, batch))}")
        batch = batch[keys[0]]
    elif isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2:
        images, *labels = batch
        if all(getattr(each, "ndim", 0) < getattr(images, "ndim", 0) for each in labels):  # otherwise two images
            batch = images
    if not isinstance(batch, Tensor):
        got = type(batch).__name__
        got = f"a {got} of {len(batch)} entries" if isinstance(batch, (tuple, list)) else got
        raise ValueError(f"{name} must be a tensor of images (N, C, *size), or a pair of it and labels, got {got}")
    spec, shape = find_spec(model), tuple(batch.shape)
    axes = {spec.dim} if spec else {m.weight.dim() - 2 for m in model.modules() if isinstance(m, _ConvNd)}
    if axes and (batch.dim() - 2 < min(axes) or (spec and batch.dim() - 2 > spec.dim)):
        raise ValueError(f"{name} must be images (N, C, *size) with {min(axes)} axes *size, got shape {shape}")
    if spec and shape[1] != spec.in_channels:
        raise ValueError(f"{name} must be images with {spec.in_channels} channels, got shape {shape}")
    if batch.is_floating_point():
        return in_precision_of(model, batch)
    if batch.is_complex():
        return batch
    if spec is None or batch.dtype != torch.uint8:
        remedy = "type images / 255 and normalise them" if batch.dtype == torch.uint8 else "give floats or uint8"
        raise ValueError(f"{name} must be images as the network sees them, got {batch.dtype}; {remedy}")
    return in_precision_of(model, Normalize.of(spec)(batch.float()))


def in_precision_of(model: nn.Module, images: Tensor) -> Tensor:
    """Floating point images in the precision of the weights of a model."""
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return images.to(dtypes[0]) if dtypes else images


@contextmanager
def one_batch(name: str) -> Iterator[None]:
    """Within the context, tell that a model does not take one batch of images, which Python tells by a TypeError."""
    try:
        yield
    except (TypeError, AttributeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} must be for a model of one batch of images (N, C, *size), got {reason}") from error
