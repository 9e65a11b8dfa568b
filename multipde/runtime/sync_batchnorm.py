"""BatchNorm on the batch of all processes together, on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.networks.kernels.batch_norm import update_running_statistics
from multipde.networks.kernels.dispatch import wide
from multipde.runtime.processes import mean_over_processes, num_processes


@contextmanager
def synchronized(module: nn.Module) -> Iterator[None]:
    """Within the context BatchNorm layers in training mode use the statistics of the batch of all processes together.

    The slices of the batch must be equally large. Unlike torch's SyncBatchNorm, which works on GPUs only and replaces
    the layers, this works on any device and does not change the network.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if num_processes() > 1 else []
    for m in norms:
        m.forward = partial(_forward, m)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for m in norms:
            del m.forward


def _forward(m: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm with mean and variance of the batch computed from those of its slices, in float64 against cancellation.

    μ = mean of μ_r,    σ² = mean of (σ_r² + μ_r²) - μ²
    """
    if not m.training:
        return type(m).forward(m, x)
    shape, axes = (1, -1, *(1,) * (x.dim() - 2)), [d for d in range(x.dim()) if d != 1]
    y = wide(x)
    own_variance, own_mean = (v.double() for v in torch.var_mean(y, axes, correction=0))
    mean, square = _Mean.apply(torch.stack([own_mean, own_variance + own_mean.square()]))
    variance = square - mean.square()
    if m.track_running_stats:
        update_running_statistics(m, mean.detach(), variance.detach(), num_processes() * x.numel() // x.shape[1])
    scale = (variance + m.eps).rsqrt() * (1 if m.weight is None else m.weight)
    shift = (0 if m.bias is None else m.bias) - mean * scale
    return (y * scale.to(y).view(shape) + shift.to(y).view(shape)).to(x.dtype)


class _Mean(torch.autograd.Function):
    """The mean over the processes; its gradient is the mean of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_over_processes(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return mean_over_processes(gradient)
