"""Compiled kernels for the normalisation layers of a network, which make its training faster."""

import torch
from torch import nn

from multipde.networks.kernels import native
from multipde.networks.kernels.dispatch import channels_innermost, compiled, sum_over_pixels
from multipde.networks.layers import ControlledLayer, Opening


def compile_layers(net: nn.Module, on: bool = True) -> None:
    """Use compiled kernels for the normalisation layers of a network, with the activations and 2x2 means after them.

    A kernel does what a layer does between two convolutions, forward and backward, with one pass over memory for each
    reduction. There is one for the TV norm with its ReLU, and one for BatchNorm with its ReLU; the latter is used for
    images in channels_last layout and batches of one process, and it has no second derivatives. On the CPU, for
    channels_last images in float32 or bfloat16, the kernels are in C++, and this call compiles them for all shapes.
    Otherwise torch.compile generates them in the first step of a level, once for every shape. On the CPU all layers of
    3x3 stencils with a TV norm are one kernel, which the first step compiles, with its own convolutions: in float32,
    and in bfloat16 on processors with AMX or the bfloat16 vectors of AVX-512, see `kernels.fused_layer`. Where less
    than three quarters of the channels that it computes are used, layers keep their parts. Other convolutions stay
    those of torch, except for features of at most two pixels per axis and at least 32 images, where each is a product
    with one matrix. Only training uses all this; measurements and evaluations, which have other shapes, run without.

    Args:
        net: the network, which is changed in place. Layers other than those of `PDENet` are left as they are.
        on: False switches the kernels off.

    Raises:
        ValueError: nothing can be compiled for the device that the network is on.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, (ControlledLayer, Opening))]
    if on:
        device, dim = next(net.parameters()).device, {layer.dim for layer in layers}
        images = dim == {2} and all(channels_innermost(p) for p in net.parameters() if p.dim() == 4)
        known = all(p.dtype in native.DTYPES for p in net.parameters())
        check_compiler(device, by_torch=device.type != "cpu" or not images or not known)
    for layer in layers:
        layer.compiled = on


def check_compiler(device: torch.device, by_torch: bool = False) -> None:
    """Raise ValueError unless the kernels for the processor can be compiled here, or a small one by torch.compile."""
    try:
        if by_torch:
            compiled(sum_over_pixels)(torch.zeros(2, 3, 4, device=device), -1)
        else:
            native.library()
    except Exception as error:  # a compiler can fail in any way
        headers = " and the headers of Python" if by_torch else ""
        what = f"a C++ compiler{headers}" if device.type == "cpu" else "Triton"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"compile needs {what}, got {reason}; install it or leave --compile out") from None
