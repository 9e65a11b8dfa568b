"""The worst small change of the pixels: gradient attacks in the maximum norm. Pixels lie in [0, 1] throughout."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from multipde.data.images import stream
from multipde.evaluation.corruptions import check_pixels

Scores = Callable[[Tensor], Tensor]
"""From pixels in [0, 1] to the scores of the classes, normalisation included, in evaluation mode."""


def fgsm(scores: Scores, x: Tensor, labels: Tensor, eps: float, *, direction: Tensor | None = None) -> Tensor:
    """The fast gradient sign method, one step of size ε in every pixel.

        x' = x + ε sign(∂L/∂x),   L the cross entropy, clamped to [0, 1]

    For a linear classifier of two classes it is the exact worst case.

    Args:
        scores: from pixels in [0, 1] to the scores of the classes before the softmax.
        eps: ε, in units of the pixel range.
        direction: `ascent` at x, where it is known already.

    Shape:
        - x, direction, result: (N, C, height, width)
        - labels: (N,)

    Raises:
        ValueError: a negative ε, images outside [0, 1].

    Reference: Goodfellow, Shlens & Szegedy (2015).
    """
    low, high = _ball(x, eps)
    return torch.clamp(x + eps * (ascent(scores, x, labels) if direction is None else direction), low, high)


def ascent(scores: Scores, x: Tensor, labels: Tensor) -> Tensor:
    """Where the cross entropy L grows: sign(∂L/∂x)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
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
    """Projected gradient ascent of the cross entropy L in the ball |x' - x|∞ <= ε and in [0, 1].

        x' <- P(x' + α sign(∂L/∂x'))

    Args:
        scores: from pixels in [0, 1] to the scores of the classes before the softmax.
        eps: ε, in units of the pixel range.
        step_size: α; 2.5 ε / num_steps if left out.
        start: where to begin, (x' - x)/ε in [-1, 1], see `random_start`; at x itself if left out.

    Shape:
        - x, start, result: (N, C, height, width)
        - labels: (N,)

    Raises:
        ValueError: a negative ε, no steps, images outside [0, 1].

    Reference: Madry, Makelov, Schmidt, Tsipras & Vladu (2018).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")
    low, high = _ball(x, eps)
    alpha = 2.5 * eps / num_steps if step_size is None else step_size
    attacked = x if start is None else torch.clamp(x + eps * start, low, high)
    for _ in range(num_steps):
        attacked = torch.clamp(attacked + alpha * ascent(scores, attacked, labels), low, high)
    return attacked


def random_start(x: Tensor, indices: Tensor | None = None, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1] for every pixel, named by the seed and the index of the image.

    Args:
        indices: numbers of the images in their set; 0, 1, ... if left out.
    """
    numbers = range(len(x)) if indices is None else indices.tolist()
    drawn = [2 * torch.rand(x.shape[1:], generator=stream(seed, "attack", i)) - 1 for i in numbers]
    return torch.stack(drawn).to(x)


def _ball(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest pixels within ε of x and in [0, 1]."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must not be negative, got {eps}")
    check_pixels(x)
    return (x - eps).clamp_min(0), (x + eps).clamp_max(1)
