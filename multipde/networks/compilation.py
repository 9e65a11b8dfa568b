"""Layers compiled by torch.compile while a network is trained."""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from multipde.networks.layers import ControlledLayer

GRAPHS = 64
"""Shapes and layouts for which the layers of a process may be compiled; torch's own 8 last for one level."""


def compile_layers(net: nn.Module, on: bool = True) -> None:
    """Have the layers F of a network compiled, or no longer.

    Layers of one shape share what is compiled, so a level costs one compilation per block and none after its first
    step. Only training steps are compiled: measurements and evaluations, which come in other shapes, run as ever.

    Raises:
        ValueError: torch finds no compiler for the device that the network is on.
    """
    if on:
        check_compiler(next(net.parameters()).device)
    for layer in net.modules():
        if isinstance(layer, ControlledLayer):
            layer.compiled = _compiled(type(layer)) if on else None


def check_compiler(device: torch.device) -> None:
    """Raise ValueError unless what torch.compile writes for the device can be compiled here."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ValueError("compile needs a C++ compiler, got none; install g++ or leave --compile out") from None
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(f"compile needs Triton on {device}, got none; install triton or leave --compile out")


@cache
def _compiled(layer: type[ControlledLayer]) -> Callable[..., Tensor]:
    """F of that kind of layer, compiled for every shape by itself."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA where there is none
    return torch.compile(layer.evaluate, dynamic=False)
