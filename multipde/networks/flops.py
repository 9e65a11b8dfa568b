"""The floating point operations of a PDE network in closed form."""

import math
from typing import TYPE_CHECKING

from multipde.networks.dynamics import DYNAMICS

if TYPE_CHECKING:
    from multipde.networks.config import NetworkConfig


def pde_flops(config: "NetworkConfig", training: bool) -> int | None:
    """Floating point operations of a `PDENet` for one image; None where states are computed again for the gradients.

    A convolution from C to C' channels with w taps costs 2 w C C' operations per pixel of its result, and so do its
    gradients with respect to the input and to the stencil each. There is none with respect to the image. A layer has
    two convolutions, K and Kᵀ or K₁ and K₂; dilation changes none of this. Stencils that are stored as coefficients are
    computed once for all images of a batch, which is left out.
    """
    if training and config.memory != "store":
        return None
    scheme, taps = DYNAMICS[config.dynamics], config.width**config.dim
    own_width = config.width * config.detail if config.opening_width is None else config.opening_width
    pixels = [math.prod(side // 2**k for side in config.sizes) for k in range(config.num_blocks)]
    opening = pixels[0] * own_width**config.dim * config.in_channels * config.channels[0]
    others = config.out_channels * config.classes
    for k, (channels, following) in enumerate(
        zip(config.channels, (*config.channels[1:], config.out_channels), strict=True)
    ):
        stencils = 2 * config.block_steps[k] * scheme.num_layers * (channels // scheme.num_parts) ** 2
        others += pixels[k] * (taps * stencils + channels * following)
    return 2 * (2 * opening + 3 * others if training else opening + others)
