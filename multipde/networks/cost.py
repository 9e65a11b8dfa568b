"""The cost of a network: its number of weights and its floating point operations."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from multipde.mesh.modes import eval_mode
from multipde.mesh.randomness import OwnRandomness
from multipde.networks.input_size import refused
from multipde.networks.inputs import in_precision_of
from multipde.networks.model_spec import ModelSpec


def num_weights(module: nn.Module) -> int:
    """Number of trainable weights of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def model_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Floating point operations of one forward pass for an input of this shape, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(*shape, device=next(model.parameters()).device))
    return counter.get_total_flops()


@lru_cache(maxsize=1024)
def count_flops(config: ModelSpec, training: bool = False) -> int:
    """Number of floating point operations of a network for one image of its size.

    These are the operations of convolutions and matrix products, where a multiplication and an addition are two. A
    `NetworkConfig` has a formula for them. Other networks are run once, so that torch can count: on the meta device,
    which computes only shapes, or on the CPU if that fails.

    Args:
        config: description of the network, see `ModelSpec`.
        training: count forward and backward pass together; otherwise the forward pass alone.

    Raises:
        ValueError: the network cannot take images of its size, or does not return one score per class.
    """
    if (known := config.flops(training)) is not None:
        return known
    with OwnRandomness():
        try:
            with torch.device("meta"):
                net = config.build()
            return counted_flops(config, net.to("meta"), training)
        except (RuntimeError, TypeError, AssertionError, IndexError):
            net = config.build()
            try:
                return counted_flops(config, net, training, "cpu")
            except (RuntimeError, TypeError, AssertionError, IndexError) as error:
                what = f"{config.label} can take with {config.in_channels} channels"
                raise ValueError(refused(what, config.sizes, error)) from None


def counted_flops(config: ModelSpec, net: nn.Module, training: bool, device: str = "meta") -> int:
    """The operations of a network for one image as torch counts them, on the device where the network is."""
    from torch.utils.flop_counter import FlopCounterMode

    images = in_precision_of(net, torch.zeros(2, config.in_channels, *config.image_sizes, device=device))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        scores = net.train(training)(images)
        if not isinstance(scores, Tensor) or scores.shape != (2, config.classes):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            wanted = (2, config.classes)
            raise ValueError(f"{config.label} must give a score per class, {wanted} for two images, got {got}")
        if training and not scores.requires_grad:
            raise ValueError(f"{config.label} must have weights that require a gradient, got none; thaw some")
        if training:
            scores.sum().backward()
    return counter.get_total_flops() // 2
