"""BatchNorm with its ReLU and an optional 2x2 mean, in two passes over the features forward and two backward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.networks.kernels.dispatch import channels_innermost, kernel_for, sum_over_pixels, wide


def pooled_batch_norm(x: Tensor, norm: _BatchNorm, side: int = 2) -> Tensor:
    """The mean over cells of side x side pixels, 2 or 1, of max(0, w (x - μ)/sqrt(σ² + ε) + b), compiled.

    Mean and variance are those of the batch, and they update the layer's running statistics as usual. Only x is stored
    for the backward pass, and besides it only the result is as large as the features. There are no second derivatives.

    Shape:
        - x: (N, C, height, width), for which `is_fused` holds
        - result: (N, C, height / side, width / side)
    """
    y, mean, variance = _PooledBatchNorm.apply(x, norm.weight, norm.bias, norm.eps, side)  # pyright: ignore
    if norm.track_running_stats:
        update_running_statistics(norm, mean, variance, x.numel() // x.shape[1])
    return y


def is_fused(norm: _BatchNorm, x: Tensor, side: int = 2) -> bool:
    """Whether `pooled_batch_norm` computes what the layer would: it trains on a batch of one process, of more than one
    pixel, with the channels innermost in memory and a whole number of cells, and has no hooks."""
    is_other = type(norm) is not nn.BatchNorm2d or "forward" in vars(norm)  # replaced by `synchronized`
    is_hooked = norm._forward_hooks or norm._forward_pre_hooks or torch.compiler.is_compiling()
    whole = not any(s % side for s in x.shape[2:]) and x.numel() > x.shape[1]
    return norm.training and norm.affine and whole and channels_innermost(x) and not is_other and not is_hooked


@torch.no_grad()
def update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, num: int) -> None:
    """Update the running statistics as torch does, with the unbiased variance, from statistics of ``num`` pixels."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    weight = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), weight)
    norm.running_var.lerp_((variance * (num / (num - 1))).to(norm.running_var), weight)


class _PooledBatchNorm(torch.autograd.Function):
    """With s = w/sqrt(σ² + ε), n = (x - μ)/sqrt(σ² + ε), and g the gradient at the input of the ReLU:

    ∂x = s (g - mean of g - n · mean of g n),   ∂w = Σ g n,   ∂b = Σ g
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, side: int) -> tuple[Tensor, ...]:
        cells = _cells(x, side)
        mean, variance = kernel_for(moments, cells)(cells)
        inverse = (variance + eps).rsqrt()
        y = kernel_for(pooled_affine_relu, cells)(cells, mean, weight * inverse, bias)
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        ctx.side = side
        ctx.mark_non_differentiable(mean, variance)
        return y.view(len(x), -1, *y.shape[1:]).movedim(-1, 1), mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if torch.is_grad_enabled():  # a graph of the derivatives is asked for
            raise RuntimeError("second derivatives need layers that are not compiled, got compiled ones")
        x, mean, inverse, weight, bias = ctx.saved_tensors
        lines = g.contiguous(memory_format=torch.channels_last).movedim(1, -1).flatten(0, 1)
        cells = _cells(x, ctx.side)
        known = (lines, cells, mean, weight * inverse, bias)
        sum_g, sum_gd = kernel_for(gradient_sums, cells)(*known)
        dw, num = sum_gd * inverse, x.numel() // x.shape[1]
        dx = kernel_for(pooled_affine_relu_backward, cells)(*known, sum_g / num, dw * inverse / num)
        return dx.view(len(x), *x.shape[2:], -1).movedim(-1, 1), dw, sum_g, None, None


def _cells(x: Tensor, side: int) -> Tensor:
    """(N height / side, side, width / side, side, C)"""
    num, channels, height, width = x.shape
    return x.movedim(1, -1).view(num * height // side, side, width // side, side, channels)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel.

    The sums are over differences from the first pixel, against cancellation where the mean exceeds the deviation.
    """
    f = wide(x)
    first = f.flatten(0, -2)[0]
    d, num = f - first, x.numel() // x.shape[-1]
    shift, square = sum_over_pixels(d, -1) / num, sum_over_pixels(d.square(), -1) / num
    return first + shift, (square - shift.square()).clamp_min(0)


def pooled_affine_relu(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """max(0, s (x - μ) + b), averaged over the cells."""
    return torch.relu((wide(x) - mean) * scale + bias).mean((1, 3)).to(x.dtype)


def gradient_sums(g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Σ g and Σ g (x - μ), with g the gradient at the input of the ReLU."""
    g, d = _relu_backward(g, x, mean, scale, bias)
    return sum_over_pixels(g, -1), sum_over_pixels(g * d, -1)


def pooled_affine_relu_backward(
    g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, mean_g: Tensor, slope: Tensor
) -> Tensor:
    """s (g - mean of g - slope (x - μ)), with g the gradient at the input of the ReLU."""
    g, d = _relu_backward(g, x, mean, scale, bias)
    return ((g - mean_g - d * slope) * scale).to(x.dtype)


def _relu_backward(g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient at the input of the ReLU from that at the cells, and x - μ."""
    d = wide(x) - mean
    return torch.where(d * scale + bias <= 0, 0.0, wide(g)[:, None, :, None] / x.shape[1] ** 2), d
