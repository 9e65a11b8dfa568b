"""Corruptions of pictures: noise, blur, loss of contrast, a shift. Pixels lie in [0, 1] throughout."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multipde.data.images import stream


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        unit: unit of the strength.
        strengths: the strengths at which accuracy is measured, from weak to strong.
        none: the strength at which images do not change.
        apply: function of (pixels, strength) to the corrupted pixels in [0, 1].
        drawn: whether ``apply`` takes standard normal random numbers of the pixels' shape as a third argument.
    """

    unit: str
    strengths: tuple[float, ...]
    none: float
    apply: Callable[..., Tensor]
    drawn: bool = False


def add_noise(x: Tensor, sigma: float, field: Tensor) -> Tensor:
    """Gaussian noise x + σ n, clamped to [0, 1]."""
    return (x + sigma * field).clamp(0, 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of standard deviation σ in pixels, cut off beyond 3σ; the border is reflected."""
    if sigma == 0:
        return x
    from kornia.filters import gaussian_blur2d

    room = min(math.ceil(3 * sigma), min(x.shape[2:]) - 1)  # the reflected border must fit into the image
    return gaussian_blur2d(x, 2 * room + 1, (sigma, sigma), border_type="reflect").clamp(0, 1)


def contrast(x: Tensor, factor: float) -> Tensor:
    """m + factor (x - m), m the mean of each image over its pixels and channels, clamped to [0, 1]."""
    if factor == 1:
        return x
    mean = x.mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def shift(x: Tensor, pixels: float) -> Tensor:
    """Images moved down and right by a number of pixels, with linear interpolation; the border is reflected.

    x'[i] = (1 - f) x[i - k] + f x[i - k - 1],   pixels = k + f
    """
    whole = math.floor(pixels)
    fraction = pixels - whole
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        at = torch.arange(size, device=x.device) - whole
        near = x.index_select(axis, _reflected(at, size))
        x = near if not fraction else torch.lerp(near, x.index_select(axis, _reflected(at - 1, size)), fraction)
    return x


CORRUPTIONS = {
    "noise": Corruption("σ / pixel range", (0.02, 0.05, 0.1), 0.0, add_noise, drawn=True),
    "blur": Corruption("σ in pixels", (0.5, 1.0, 1.5), 0.0, blur),
    "contrast": Corruption("factor", (0.75, 0.5, 0.25), 1.0, contrast),
    "shift": Corruption("pixels", (0.5, 1.0, 2.0), 0.0, shift),
}


def corrupt(x: Tensor, name: str, strength: float, *, indices: Tensor | None = None, seed: int = 0) -> Tensor:
    """Corrupt images in one of four ways.

        "noise"     x + s n, n standard normal, clamped to [0, 1]; s in units of the pixel range
        "blur"      convolution with a Gaussian of standard deviation s pixels
        "contrast"  m + s (x - m), m the mean of the image; s = 1 changes nothing, s = 0 gives a uniform image
        "shift"     moved down and right by s pixels, with a reflected border

    The noise depends on the seed and the index of each image only, so that it is the same for all batch sizes.

    Args:
        x: pixels in [0, 1], before any normalisation.
        name: ``"noise"``, ``"blur"``, ``"contrast"`` or ``"shift"``.
        strength: s, not negative.
        indices: indices of the images in their data set; 0, 1, ... if left out.

    Shape:
        - x, result: (N, C, height, width)
        - indices: (N,)

    Raises:
        ValueError: the name is unknown, the strength negative, or x has another shape or values outside [0, 1].
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength must not be negative, got {strength}")
    check_pixels(x)
    corruption = CORRUPTIONS[name]
    drawn = (standard_normal(x, indices, seed),) if corruption.drawn else ()
    return corruption.apply(x, strength, *drawn)


def standard_normal(x: Tensor, indices: Tensor | None, seed: int) -> Tensor:
    """Standard normal random numbers in the shape of x, which depend only on the seed and the index of each image."""
    numbers = range(len(x)) if indices is None else indices.tolist()
    drawn = [torch.randn(x.shape[1:], generator=stream(seed, "noise", i)) for i in numbers]
    return torch.stack(drawn).to(x)


def check_pixels(x: Tensor) -> None:
    """Raise ValueError unless x has the shape (N, C, height, width) and values in [0, 1]."""
    if x.dim() != 4:
        raise ValueError(f"images must have shape (N, C, height, width), got {tuple(x.shape)}")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"images must lie in [0, 1], got {x.min():g} to {x.max():g}; normalise them inside the model")


def _reflected(at: Tensor, size: int) -> Tensor:
    """Integer positions folded back into 0..size-1 by reflection at the centres of the first and the last pixel."""
    if size == 1:
        return torch.zeros_like(at)
    at = at.remainder(2 * (size - 1))
    return torch.minimum(at, 2 * (size - 1) - at)
