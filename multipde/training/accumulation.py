"""Accumulation: the gradient of a large batch as the sum of those of its parts, which need less memory."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from multipde.runtime.processes import mean_over_processes
from multipde.training.objective import TINY, Objective


@dataclass(frozen=True)
class Part:
    """A part of a batch, and its share of the weight of the batch, by which its mean loss is multiplied."""

    x: Tensor
    labels: Tensor
    share: Tensor | float


def divided(x: Tensor, labels: Tensor, num: int, objective: Objective) -> list[Part]:
    """A batch in parts whose lengths differ by at most one, with shares so that the losses sum to that of the batch.

        L = Σ_i w_i ℓ_i / Σ_i w_i = Σ_k s_k L_k,   s_k = Σ_{i in k} w_i / Σ_i w_i

    L_k is the loss of part k, a mean with the weights w_i of its images, which are 1 without class weights. So the
    gradients sum to that of the batch, too, except that BatchNorm normalises each part by itself. With several
    processes Σ w_i is the mean over their slices of the batch, so that the mean of the gradients has the right weights.
    A loss of the user must be a mean over images with equal weights for this to hold.

    Args:
        num: number of parts; fewer for a batch of fewer images.
    """
    if num == 1 and objective.class_weights is None:
        return [Part(x, labels, 1.0)]  # a finish at several sizes has a list of batches, one per size
    num = min(num, len(x))
    images = x.tensor_split(num)
    if objective.class_weights is None:
        shares: list[Tensor | float] = [len(part) / len(x) for part in images]
    else:
        own = objective.weights(labels)
        total = mean_over_processes(own.sum()).clamp_min(TINY)
        shares = [part.sum() / total for part in own.tensor_split(num)]
    return [Part(*each) for each in zip(images, labels.tensor_split(num), shares, strict=True)]


def communicating(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Within the context the backward pass takes the mean of the gradients over the processes, or only adds them up."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
