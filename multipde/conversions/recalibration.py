"""The running statistics of BatchNorm: measured again at another size, or kept unchanged within a context."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.mesh.modes import eval_mode


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the running statistics of every BatchNorm layer again, as means over the batches, in place.

    Only these statistics change; the weights and the training flags stay.

    Args:
        model: the network, usually after `convert`.
        batches: batches of normalised images of the network's size, a few hundred images in all.

    Returns:
        The number of BatchNorm layers that were measured.

    Raises:
        ValueError: there is no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momentum = [m.momentum for m in norms]
    saved = [copy.deepcopy(m.state_dict()) for m in norms]
    num_batches = 0
    try:
        with eval_mode(model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = None
                m.train()
            for images in batches if norms else ():
                model(images)
                num_batches += 1
        for m, state in zip(norms, saved, strict=True):
            if not m.num_batches_tracked:
                m.load_state_dict(state)  # the layer is not used for these images
        if norms and not num_batches:
            raise ValueError("batches must hold at least one batch of images, got none")
    except BaseException:
        for m, state in zip(norms, saved, strict=True):
            m.load_state_dict(state)
        raise
    finally:
        for m, value in zip(norms, momentum, strict=True):
            m.momentum = value
    return len(norms)


@contextmanager
def frozen_running_statistics(module: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Inside the context BatchNorm uses batch statistics and does not update its running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if frozen else []
    for m in norms:
        m.track_running_stats = False
    saved = [(m.running_mean, m.running_var) for m in norms]
    for m in norms:
        m.running_mean = m.running_var = None
    try:
        yield
    finally:
        for m, (mean, var) in zip(norms, saved, strict=True):
            m.track_running_stats, m.running_mean, m.running_var = True, mean, var
