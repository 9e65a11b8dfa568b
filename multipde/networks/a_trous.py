"""The à-trous way from a network that sees finer images than its mesh to the same network on the mesh of the images."""

from typing import Any

import torch
from torch import nn

from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.reparametrize import stored_stencils
from multipde.networks.model_spec import Model, spec_of


@torch.no_grad()
def a_trous(model: Model) -> Model:
    """Put a network with a detail on the mesh of its images, where it computes the same function at all shifts.

    The composed opening gets the stride 1 and the stencils of all blocks the dilation ``detail``, with the same taps.
    The means between the blocks keep the detail^dim shifts of the coarse mesh apart, and the last one averages them:

        features(x) = mean over shifts -⌊(detail - 1)/2⌋ <= s_i <= ⌊detail/2⌋ of old features(x moved by s)

    Pixels beyond the border are zero for all shifts. BatchNorm keeps its statistics. `end_dilation` then makes the
    blocks plain ones, one after the other.

    Args:
        model: a `PDENet` with a detail above 1, which is not changed.

    Reference: Holschneider et al. (1989); Shensa (1992), The discrete wavelet transform: à trous and Mallat algorithms.
    """
    with OwnRandomness():
        new: Any = spec_of(model).a_trous().build()
    like = next(model.parameters())
    new.to(like.device, like.dtype).train(model.training)
    for old, copied in zip(model.parameters(), new.parameters(), strict=True):
        copied.copy_(old).requires_grad_(old.requires_grad)
    statistics = dict(model.named_buffers())
    for name, copied in new.named_buffers():
        copied.copy_(statistics.get(name, copied))
    return new


def end_dilation(net: nn.Module, fraction: float, most: int) -> bool:
    """Give the blocks the dilation 1, with the same taps, that have it after this fraction of an à-trous level.

    Of K blocks, block k = 0, 1, ... gets it at (k + 1) / 2K, so that the second half trains the final network.

    Args:
        most: number of blocks that lose their dilation.

    Returns:
        whether the network has changed.
    """
    spec: Any = spec_of(net)
    new = spec.plain(min(most, int(2 * spec.num_blocks * fraction + 1e-9)))
    if new == spec:
        return False
    net.multipde_spec = new
    for k, block in enumerate(net.blocks):  # pyright: ignore
        for p in stored_stencils(block).values():
            p.stride = (2.0**k * new.block_dilation[k],) * spec.dim
    return True
