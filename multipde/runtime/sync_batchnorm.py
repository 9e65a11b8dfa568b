"""BatchNorm on the batch of all processes together, on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.networks.kernels.batch_norm import remember
from multipde.networks.kernels.dispatch import wide
from multipde.runtime.processes import mean_over_processes, num_processes


@contextmanager
def synchronized(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers that train normalise by the statistics of all processes' images inside.

    The slices of the batch must be equally large. torch's own SyncBatchNorm is for GPUs only, and a module to exchange
    for the layer; this leaves the network as it is.
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
    """Mean and variance of the batch from those of its slices, in float64 so that nothing cancels.

    μ = mean of μ_r,    σ² = mean of (σ_r² + μ_r²) - μ²
    """
    if not m.training:
        return type(m).forward(m, x)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    y = wide(x)
    own_variance, own_mean = (
        v.double() for v in torch.var_mean(y, [d for d in range(x.dim()) if d != 1], correction=0)
    )
    mean, square = _Mean.apply(torch.stack([own_mean, own_variance + own_mean.square()]))
    variance = square - mean.square()
    if m.track_running_stats:
        remember(m, mean.detach(), variance.detach(), num_processes() * x.numel() // x.shape[1])
    scale = m.weight * (variance + m.eps).rsqrt()
    shift = m.bias - mean * scale
    return (y * scale.to(y).view(shape) + shift.to(y).view(shape)).to(x.dtype)


class _Mean(torch.autograd.Function):
    """The mean over the processes. What each of them makes of it comes back in the mean of all gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_over_processes(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return mean_over_processes(gradient)
