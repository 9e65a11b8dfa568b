"""Networks for several image sizes in one training step: every batch is seen by all of them, each at its own size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multipde.data.feed import laid_out
from multipde.mesh.pyramid import resize_images
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.training.monitor import locate_nonfinite
from multipde.training.step import TrainStep


class EverySize(nn.Module):
    """The scores of several networks for the same images; its description is that of the last one.

    Shape:
        - images: one tensor (N, in_channels, *size) per network, at its size
        - result: (num_networks · N, classes), network after network
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @property
    def multipde_spec(self) -> ModelSpec:
        return spec_of(self.networks[-1])

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return torch.cat([net(x) for net, x in zip(self.networks, images, strict=True)])


class EverySizeStep(TrainStep):
    """A training step of all networks of an `EverySize` together."""

    def locate(self, x: Sequence[Tensor]) -> str:
        networks: Sequence[nn.Module] = self.net.networks  # pyright: ignore[reportAssignmentType]
        found = zip(networks, x, strict=True)
        return "; ".join(f"size {spec_of(net).image_sizes[0]}: {locate_nonfinite(net, own)}" for net, own in found)


def seen(net: nn.Module, x: Tensor) -> Tensor:
    """Images on 0..255 as a network sees them: at its size, normalised."""
    spec = spec_of(net)
    return laid_out(Normalize.of(spec)(resize_images(x, spec.image_sizes[0])))
