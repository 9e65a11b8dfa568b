"""The running statistics of BatchNorm: measured again at another size, or kept unchanged within a context."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.mesh.modes import eval_mode, first_input, ordinary_tensors
from multipde.networks.inputs import ImageBatch, network_inputs, one_batch
from multipde.runtime.processes import num_processes

KEPT = "keeps_statistics"
"""The attribute of a layer whose running statistics stay as they are."""


def keep_statistics(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Note at these layers of a model, and at no others, that their running statistics stay as they are.

    `recalibrate` passes over them, also in copies and conversions of the model.
    """
    for m in model.modules():
        vars(m).pop(KEPT, None)
    for m in layers:
        vars(m)[KEPT] = True


def _measured(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers whose running statistics are measured."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return [m for m in norms if KEPT not in vars(m)]


class _Pooled:
    """Mean and variance of the inputs of a BatchNorm layer, pooled over all its calls.

    With n values of mean μ and m values of mean ν,

        mean = μ + m/(n + m) (ν - μ),    squares += those of the m values around ν + n m/(n + m) (ν - μ)²

    Reference: Chan, Golub & LeVeque (1983), eq. (2.1).
    """

    def __init__(self) -> None:
        self.num, self.calls, self.mean, self.squares = 0, 0, torch.zeros(()), torch.zeros(())

    def add(self, m: _BatchNorm, inputs: tuple[Any, ...], named: dict[str, Any], _: Tensor) -> None:
        """A forward hook of a layer in training mode with momentum 1: its running statistics are those of this call.

        A layer that does not update them in its forward, as one that is frozen by a class of its own, is not measured.
        """
        assert m.running_mean is not None
        assert m.running_var is not None
        if m.num_batches_tracked == self.calls and not m.running_mean.any() and (m.running_var == 1).all():
            return
        is_shared = "forward" in vars(m) or isinstance(m, nn.SyncBatchNorm)  # each process has a slice of the batch
        x = first_input(inputs, named)
        num = x.numel() // x.shape[1] * (num_processes() if is_shared else 1)
        dtype = torch.float32 if m.running_mean.device.type == "mps" else torch.float64
        mean, variance = m.running_mean.to(dtype), m.running_var.to(dtype)
        total, shift = self.num + num, mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + variance * (num - 1) + shift.square() * (self.num * num / total)
        self.mean, self.num = mean - shift * (self.num / total), total
        m.running_mean.zero_()
        m.running_var.fill_(1)
        self.calls += 1

    def store(self, m: _BatchNorm) -> None:
        """Make them the running statistics of the layer; the variance is unbiased, as that of torch is."""
        assert m.running_mean is not None
        assert m.running_var is not None
        m.running_mean.copy_(self.mean)
        m.running_var.copy_(self.squares / (self.num - 1))


@ordinary_tensors()
@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[ImageBatch]) -> int:
    """Measure the running statistics of every BatchNorm layer again, mean and variance of its inputs, in place.

    Every image has the same weight, however the images are divided into batches. A layer whose inputs depend on an
    earlier BatchNorm sees them as in training, normalised by the statistics of each batch. Only the running statistics
    change; the weights and the training flags stay, and so do layers that keep theirs, see `keep_statistics`.

    Args:
        model: the network, usually after `convert`.
        batches: batches of normalised images of the network's size, a few hundred images in all; within `synchronized`
            the slices of this process. Batches of a loader may have labels, which are left out, and images in uint8
            are normalised by the description of the model.

    Returns:
        The number of BatchNorm layers that were measured.

    Raises:
        ValueError: there is no batch, or one is not of images that the model takes.
    """
    if isinstance(batches, Tensor | Mapping):
        raise ValueError("batches must be a list or a loader of batches, got one batch; type [images]")
    norms = _measured(model)
    momentum = [m.momentum for m in norms]
    saved = [copy.deepcopy(m.state_dict()) for m in norms]
    pooled = [_Pooled() for _ in norms]
    hooks = [m.register_forward_hook(p.add, with_kwargs=True) for m, p in zip(norms, pooled, strict=True)]
    num_batches = 0
    try:
        with eval_mode(model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = 1.0
                m.train()
            for images in batches if norms else ():
                inputs = network_inputs(model, images, "batches")
                with one_batch("batches"):
                    _forward(model, inputs)
                num_batches += 1
        for m, state, found in zip(norms, saved, pooled, strict=True):
            if found.num:
                found.store(m)
            else:
                m.load_state_dict(state)  # the layer is not used for these images, or keeps its statistics
        if norms and not num_batches:
            raise ValueError("batches must hold at least one batch of images, got none")
    except BaseException:
        for m, state in zip(norms, saved, strict=True):
            m.load_state_dict(state)
        raise
    finally:
        for m, value, hook in zip(norms, momentum, hooks, strict=True):
            m.momentum = value
            hook.remove()
    return sum(found.num > 0 for found in pooled)


@contextmanager
def frozen_running_statistics(module: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Inside the context BatchNorm uses batch statistics and does not update its running statistics."""
    norms = _measured(module) if frozen else []
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


def _forward(model: nn.Module, images: Tensor) -> None:
    try:
        model(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        got = f"{len(images)} of shape {tuple(images.shape[1:])}"
        raise ValueError(f"batches must hold several images each where a layer leaves one pixel, got {got}") from None
