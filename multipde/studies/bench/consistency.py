"""The difference between a converted network and the original on smooth fields, for random weights."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.calibration import calibrate
from multipde.conversions.convert import convert
from multipde.evaluation.measured_conversion import AUTO_METHODS
from multipde.mesh.pyramid import restrict_images
from multipde.mesh.transfer import CALIBRATED

SIZE = 32
"""Image side in pixels after the conversion."""


def consistency(frequency: int, depth: int, num_seeds: int = 3) -> dict[str, Any]:
    """Convert networks of random stencils and tanh to twice the size, and measure the error on band-limited fields.

        error = |R f_fine(x) - f_coarse(R x)| / |f_coarse(R x)|,    R the 2x2 mean

    Args:
        frequency: highest number of waves across the image.
        depth: number of layers.
        num_seeds: number of random networks and fields, over which the results are averaged.
    """
    found = [_errors(frequency, depth, seed) for seed in range(num_seeds)]
    return {
        "exponent": statistics.mean(exponent for exponent, _ in found),
        "error": {m: statistics.mean(errors[m] for _, errors in found) for m in AUTO_METHODS},
    }


@torch.no_grad()
def _errors(frequency: int, depth: int, seed: int) -> tuple[float, dict[str, float]]:
    x = band_limited(40, 2, SIZE, frequency, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "bias": False}
        layers = [(nn.Conv2d(2 if k == 0 else 8, 8, **sizes), nn.Tanh()) for k in range(depth)]
    net = nn.Sequential(*(module for pair in layers for module in pair)).double()
    coarse = net(restrict_images(x, SIZE // 2))
    exponents = calibrate(net, 2.0, x).exponents().values()
    errors = {}
    for method in AUTO_METHODS:
        moved = convert(net, factor=2.0, method=method, calibration=x if method in CALIBRATED else None)
        errors[method] = ((restrict_images(moved(x), SIZE // 2) - coarse).norm() / coarse.norm()).item()
    return statistics.mean(exponents), errors


def band_limited(num: int, channels: int, size: int, frequency: int, seed: int = 0) -> Tensor:
    """Cell averages of random trigonometric polynomials of at most this frequency, with root mean square one."""
    edges = torch.arange(size + 1, dtype=torch.float64) / size
    waves = [torch.ones(size, dtype=torch.float64)]
    for k in range(1, frequency + 1):
        w = 2 * math.pi * k
        waves += [torch.diff(torch.sin(w * edges)) * size / w, -torch.diff(torch.cos(w * edges)) * size / w]
    basis = torch.stack(waves)
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(num, channels, len(basis), len(basis), dtype=torch.float64, generator=generator)
    x = torch.einsum("ncij,ix,jy->ncxy", c, basis, basis)
    return x / x.square().mean().sqrt()
