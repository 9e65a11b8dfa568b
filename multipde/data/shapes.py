"""The built-in data set: ten shapes, defined on the unit square and rendered by cell averages on any mesh."""

import math

import torch
from torch import Tensor

from multipde.data.images import stream
from multipde.mesh.modes import ordinary_tensors
from multipde.mesh.pyramid import resize_images

CLASS_NAMES = ("disc", "ring", "square", "frame", "triangle", "hexagon", "star", "cross", "stripes", "checker")
FINE_SIZE = 64
"""Cells per side of the mesh on which every picture is drawn first; it is then averaged to the wanted size."""


@ordinary_tensors()
def render_shapes(num: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Render random pictures of ten classes of shapes with their labels; a seed gives the same pictures at every size.

    Each picture shows one shape of random place, size, rotation and colour. The background is a gradient between two
    colours with a faint patch, and noise is added everywhere. Classes differ in details (a hole, a corner, a stripe)
    that a coarse mesh blurs.

    >>> fine, labels = render_shapes(4, 32, seed=1)
    >>> coarse, _ = render_shapes(4, 16, seed=1)
    >>> from multipde import restrict_images
    >>> bool((restrict_images(fine.float(), 16) - coarse).abs().max() <= 1)
    True

    Args:
        num: number of pictures.
        size: image side in pixels; above `FINE_SIZE` the pictures show no more detail.
        seed: seed of labels and pictures.

    Shape:
        - result: images (num, 3, size, size) uint8, labels (num,) int64

    Raises:
        ValueError: num or size is not positive.
    """
    if num < 1:
        raise ValueError(f"num must be positive, got {num}")
    labels = torch.randint(len(CLASS_NAMES), (num,), generator=stream(seed, "labels"))
    parts = [_render(chunk, size, stream(seed, "shapes", i)) for i, chunk in enumerate(labels.split(500))]
    return torch.cat(parts), labels


def _render(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    num = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=generator)

    radius = 0.16 * 2.5 ** uniform(0, 1)  # 0.16 to 0.4, evenly on a logarithmic scale
    centre, angle = 0.5 + (0.5 - radius[:, None]) * uniform(-0.7, 0.7, 2), uniform(0, 2 * math.pi)
    colours = uniform(0, 0.6, 3, 3)  # of the shape and of both ends of the ramp
    contrast = uniform(0.4, 0.9, 1)
    direction = torch.nn.functional.normalize(uniform(0, 1, 3), dim=1)
    mean = colours[:, 1:].mean(1)
    colours[:, 0] = (mean + contrast * direction).clamp(0, 1)
    colours[:, 1:] = mean[:, None] + 0.3 * (colours[:, 1:] - mean[:, None])
    patch, ramp, noise = uniform(0.1, 0.9, 2), uniform(0, 2 * math.pi), uniform(0.02, 0.06)

    points = (torch.arange(FINE_SIZE) + 0.5) / FINE_SIZE
    y, x = torch.meshgrid(points, points, indexing="ij")

    def column(v: Tensor) -> Tensor:
        return v[:, None, None]

    u, v = (x - column(centre[:, 0])) / column(radius), (y - column(centre[:, 1])) / column(radius)
    c, s = column(angle.cos()), column(angle.sin())
    u, v = c * u + s * v, c * v - s * u
    distance = torch.empty(num, FINE_SIZE, FINE_SIZE)
    for k, name in enumerate(CLASS_NAMES):
        chosen = labels == k
        distance[chosen] = _DISTANCES[name](u[chosen], v[chosen])
    inside = (0.5 - distance * column(radius) * FINE_SIZE).clamp(0, 1)[:, None]

    along = ((x - 0.5) * column(ramp.cos()) + (y - 0.5) * column(ramp.sin()) + 0.7) / 1.4
    background = colours[:, 1, :, None, None] + (colours[:, 2] - colours[:, 1])[:, :, None, None] * along[:, None]
    blob = torch.exp(-((x - column(patch[:, 0])) ** 2 + (y - column(patch[:, 1])) ** 2) / 0.02)[:, None]
    background = background + 0.25 * blob * (colours[:, 0, :, None, None] - background)
    picture = background + inside * (colours[:, 0, :, None, None] - background)
    picture = picture + noise[:, None, None, None] * 3 * torch.randn(picture.shape, generator=generator)
    return (resize_images(picture.clamp(0, 1), size) * 255).round().to(torch.uint8)


def _box(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(u.abs() - a, v.abs() - b)


def _polygon(u: Tensor, v: Tensor, sides: int, inradius: float) -> Tensor:
    sector = 2 * math.pi / sides
    angle = torch.remainder(torch.atan2(v, u) + sector / 2, sector) - sector / 2
    return torch.hypot(u, v) * angle.cos() - inradius


def _star(u: Tensor, v: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(v, u), sector) - sector / 2).abs()
    return torch.hypot(u, v) * torch.cos(angle - sector / 2 + 0.95) - 0.58


_DISTANCES = {
    "disc": lambda u, v: torch.hypot(u, v) - 0.9,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.7).abs() - 0.25,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "frame": lambda u, v: (_box(u, v, 0.62, 0.62)).abs() - 0.22,
    "triangle": lambda u, v: _polygon(u, v, 3, 0.58),
    "hexagon": lambda u, v: _polygon(u, v, 6, 0.86),
    "star": _star,
    "cross": lambda u, v: torch.minimum(_box(u, v, 1.0, 0.34), _box(u, v, 0.34, 1.0)),
    "stripes": lambda u, v: torch.maximum(torch.hypot(u, v) - 0.95, -torch.cos(u * 2 * math.pi / 0.62) * 0.1),
    "checker": lambda u, v: torch.maximum(_box(u, v, 0.84, 0.84), torch.sin(u * 3.74) * torch.sin(v * 3.74) * 0.25),
}
"""For every class about the signed distance to its boundary, negative inside; the centre is 0, the radius 1."""
