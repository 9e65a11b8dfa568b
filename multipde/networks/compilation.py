"""Kernels for the norms, compiled by torch.compile while a network is trained."""

import torch
from torch import nn

from multipde.networks.kernels import compiled, over_pixels
from multipde.networks.layers import ControlledLayer, Opening


def compile_layers(net: nn.Module, on: bool = True) -> None:
    """Have the norms of a network compiled, with their activations and the 2x2 means behind them, or no longer.

    What is compiled is everything that a layer does to its features between two convolutions, forwards and backwards,
    in a pass over memory for every sum that has to be waited for. The convolutions stay those of the device's library,
    so that layers of one shape share a few kernels: a level costs their compilation, once, and none after its first
    step. Only training is compiled: measurements and evaluations, which come in other shapes, run as ever.

    Raises:
        ValueError: torch cannot compile for the device that the network is on.
    """
    if on:
        check_compiler(next(net.parameters()).device)
    for layer in net.modules():
        if isinstance(layer, (ControlledLayer, Opening)):
            layer.compiled = on


def check_compiler(device: torch.device) -> None:
    """Raise ValueError unless what torch.compile writes for the device can be compiled here: a small kernel is."""
    try:
        compiled(over_pixels)(torch.zeros(2, 3, 4, device=device), -1)
    except Exception as error:  # whatever is wrong with a compiler, torch does not know beforehand either
        what = "a C++ compiler and the headers of Python" if device.type == "cpu" else "Triton"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"compile needs {what}, got: {reason}; install them or leave --compile out") from None
