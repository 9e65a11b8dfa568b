"""The worst small change of the pixels: gradient attacks in the maximum norm. Pixels lie in [0, 1] throughout."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from multipde.data.images import stream
from multipde.evaluation.corruptions import check_pixels

Scores = Callable[[Tensor], Tensor]
"""A function from pixels in [0, 1] to the scores of the classes, which includes the normalisation."""


def fgsm(scores: Scores, x: Tensor, labels: Tensor, eps: float, *, direction: Tensor | None = None) -> Tensor:
    """Attack images with the fast gradient sign method: one step of size ε in every pixel, which increases the loss.

        x' = x + ε sign(∂L/∂x),   clamped to [0, 1]; L is the cross entropy

    For a linear classifier of two classes no other change of at most ε per pixel increases the loss more.

    Args:
        scores: function from pixels (N, C, height, width) in [0, 1] to scores before the softmax (N, classes), such as
            a network behind its normalisation of the images.
        x: pixels in [0, 1].
        eps: ε, in units of the pixel range: 1/255 is one step of an 8-bit image.
        direction: sign(∂L/∂x) at x, if it is known already; it is computed if left out.

    Shape:
        - x, direction, result: (N, C, height, width)
        - labels: (N,)

    Raises:
        ValueError: ε is negative, or x is outside [0, 1].

    Reference: Goodfellow, Shlens & Szegedy (2015).
    """
    low, high = _ball(x, eps)
    return torch.clamp(x + eps * (ascent(scores, x, labels) if direction is None else direction), low, high)


def ascent(scores: Scores, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the gradient of the cross entropy with respect to the pixels, sign(∂L/∂x)."""
    with torch.inference_mode(False), torch.enable_grad():
        x, labels = x.detach().clone().requires_grad_(), labels.clone()
        loss = functional.cross_entropy(scores(x), labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0].sign()


def pgd(
    scores: Scores,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    num_steps: int = 10,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Attack images by projected gradient ascent of the cross entropy L, in steps along the sign of the gradient.

        x' <- P(x' + α sign(∂L/∂x')),   P the projection onto |x' - x|∞ <= ε and [0, 1]

    Args:
        scores, x, eps: as in `fgsm`.
        num_steps: number of steps, at least 1.
        step_size: α, in units of the pixel range; 2.5 ε / num_steps if left out.
        start: first change of the pixels as (x' - x)/ε in [-1, 1], see `random_start`; none if left out.

    Shape:
        - x, start, result: (N, C, height, width)
        - labels: (N,)

    Raises:
        ValueError: ε is negative, num_steps is below 1, step_size or start is not finite, or x is outside [0, 1].

    Reference: Madry, Makelov, Schmidt, Tsipras & Vladu (2018).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")
    if step_size is not None and not math.isfinite(step_size):
        raise ValueError(f"step_size must be finite, got {step_size}")
    if start is not None and not bool(start.isfinite().all()):
        raise ValueError("start must be finite, got others")
    low, high = _ball(x, eps)
    alpha = 2.5 * eps / num_steps if step_size is None else step_size
    attacked = x if start is None else torch.clamp(x + eps * start, low, high)
    for _ in range(num_steps):
        attacked = torch.clamp(attacked + alpha * ascent(scores, attacked, labels), low, high)
    return attacked


def random_start(x: Tensor, indices: Tensor | None = None, seed: int = 0) -> Tensor:
    """A uniform random number in [-1, 1] for every pixel, which depends only on the seed and the index of the image."""
    numbers = range(len(x)) if indices is None else indices.tolist()
    drawn = [2 * torch.rand(x.shape[1:], generator=stream(seed, "attack", i)) - 1 for i in numbers]
    return torch.stack(drawn).to(x)


def _ball(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value that every pixel may have within ε of x and within [0, 1]."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must not be negative, got {eps}")
    check_pixels(x)
    return (x - eps).clamp_min(0), (x + eps).clamp_max(1)
