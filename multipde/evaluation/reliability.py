"""How far the confidence of a classifier can be trusted: reliability and calibration error."""

import torch
from torch import Tensor
from torch.nn import functional

NUM_BINS = 15


def reliability_bins(scores: Tensor, labels: Tensor) -> Tensor:
    """Sums over images by the confidence of their answer, the largest probability p after the softmax.

    Bin b holds the images with b/15 < p <= (b + 1)/15.

    Shape:
        - scores: (N, classes); labels: (N,)
        - result: (15, 3), float64: the number of images, the sum of p, the number of right answers
    """
    confidence, answers = functional.softmax(scores.double(), 1).max(1)
    bins = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, (answers == labels).double()], 1)
    return values.new_zeros(NUM_BINS, 3).index_add_(0, bins, values)


def calibration_error(bins: Tensor) -> float:
    """The expected calibration error Σ_b n_b/n |accuracy_b - mean confidence_b|, from the sums of `reliability_bins`.

    Reference: Guo et al. (2017), On calibration of modern neural networks, eq. (3).
    """
    return float((bins[:, 2] - bins[:, 1]).abs().sum() / bins[:, 0].sum())


def right_among(scores: Tensor, labels: Tensor, num: int) -> Tensor:
    """Number of images whose class is among the ``num`` highest scores; among equal scores it counts as the last.

    A score that is not a number is not among them.
    """
    own = scores.gather(1, labels[:, None])
    others = (~(scores < own)).sum(1) - 1
    return ((others < num) & ~own.isnan().squeeze(1)).sum()
