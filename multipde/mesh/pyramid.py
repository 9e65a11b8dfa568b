"""Images on coarser and finer meshes by exact cell averages, and pyramids of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from multipde.mesh.modes import ordinary_tensors
from multipde.mesh.separable import apply_along_axes, per_axis


def cell_average_matrix(num_from: int, num_to: int) -> Tensor:
    """The matrix (num_to, num_from) that maps values on num_from equal cells of an interval to averages over num_to.

        M[i, j] = |cell_i ∩ cell_j| / |cell_i|

    Rows sum to one: constants are preserved, and the mean of every image. Restriction and prolongation are adjoint up
    to the ratio of the cell sizes: M(n → m)ᵀ = (m/n) M(m → n).

    >>> cell_average_matrix(4, 2)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    for name, num in (("num_from", num_from), ("num_to", num_to)):
        if num < 1:
            raise ValueError(f"{name} must be positive, got {num}")
    edges_from = torch.arange(num_from + 1, dtype=torch.float64) * num_to
    edges_to = torch.arange(num_to + 1, dtype=torch.float64) * num_from
    left = torch.maximum(edges_to[:-1, None], edges_from[None, :-1])
    right = torch.minimum(edges_to[1:, None], edges_from[None, 1:])
    return (right - left).clamp_min(0) / num_from


@ordinary_tensors()
def restrict_images(images: Tensor, size: int | Sequence[int]) -> Tensor:
    """Bring images to a coarser mesh by exact averages over its cells, at any ratio; at ratio 2 it is the 2x2 mean.

    Args:
        size: number of pixels of the result, one or one per axis, at most that of the images.

    Shape:
        - images: (N, C, *size), floating point
        - result: (N, C, *new size)

    Raises:
        ValueError: an axis would grow.
    """
    old, new = _sizes(images, size)
    if any(n > o for o, n in zip(old, new, strict=True)):
        raise ValueError(f"size must not exceed the image size {old} in a restriction, got {new}")
    return resize_images(images, size)


@ordinary_tensors()
def prolong_images(images: Tensor, size: int | Sequence[int], order: int = 0) -> Tensor:
    """Bring images to a finer mesh by interpolation.

    Args:
        size: number of pixels of the result, one or one per axis, at least that of the images.
        order: 0 takes cell averages of the piecewise constant image, which at integer ratios repeats every pixel and is
            the adjoint of `restrict_images` up to the ratio of the cell sizes. 1 interpolates linearly between the
            centres of the pixels and repeats the border; at ratio 2 the weights are 3/4 and 1/4.

    Shape:
        - images: (N, C, *size), floating point
        - result: (N, C, *new size)

    Raises:
        ValueError: an axis would shrink, or order is neither 0 nor 1.
    """
    old, new = _sizes(images, size)
    if any(n < o for o, n in zip(old, new, strict=True)):
        raise ValueError(f"size must not be below the image size {old} in a prolongation, got {new}")
    if order not in (0, 1):
        raise ValueError(f"order must be 0 (constant) or 1 (linear), got {order}")
    if order == 0 or old == new:
        return resize_images(images, size)
    mode = ("linear", "bilinear", "trilinear")[len(old) - 1]
    return functional.interpolate(images, new, mode=mode, align_corners=False)


@ordinary_tensors()
def resize_images(images: Tensor, size: int | Sequence[int]) -> Tensor:
    """Bring images to a mesh of any size by cell averages; each axis may become coarser or finer.

    Args:
        size: number of pixels of the result, one or one per axis.

    Shape:
        - images: (N, C, *size), floating point
        - result: (N, C, *new size)
    """
    old, new = _sizes(images, size)
    if old == new:
        return images
    if all(o % n == 0 for o, n in zip(old, new, strict=True)):
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(old) - 1]
        return pool(images, tuple(o // n for o, n in zip(old, new, strict=True)))
    return apply_along_axes([cell_average_matrix(o, n).to(images) for o, n in zip(old, new, strict=True)], images)


def image_pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The same images at several sizes by `restrict_images`, as a list in which the largest size comes first.

    Args:
        sizes: image sides in pixels in any order, each the same for all axes and at most that of the images.

    Shape:
        - images: (N, C, *size)
        - result: one tensor (N, C, s, s) in two dimensions for each s of the sizes
    """
    return [restrict_images(images, size) for size in sorted(sizes, reverse=True)]


def _sizes(images: Tensor, size: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    dim = images.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"images must have shape (N, C, *size) with 1 to 3 axes, got {tuple(images.shape)}")
    new, old = per_axis(size, dim, "size"), tuple(images.shape[2:])
    if new != old and not images.is_floating_point():
        raise ValueError(f"images must be in floating point to be averaged, got {images.dtype}; type images.float()")
    if min(new) < 1:
        raise ValueError(f"size must be positive, got {size}")
    return old, new
