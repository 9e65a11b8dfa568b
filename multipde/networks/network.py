"""The network of the paper: an opening, blocks on successively coarser meshes, and a classifier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from multipde.mesh.reparametrize import reparametrize
from multipde.networks.cost import num_weights
from multipde.networks.dynamics import Block
from multipde.networks.layers import Connector, Opening, mean_over_pixels, split_shifts

if TYPE_CHECKING:
    from multipde.networks.config import NetworkConfig


class PDENet(nn.Module):
    """A classifier whose blocks are discretised PDEs; every stencil belongs to the mesh of its block.

        opening → block → connector → 2x2 mean → block → ... → connector → mean over pixels → linear

    Block k = 0, 1, ... has the mesh size 2ᵏ h, where h = 1/size. ``print(net)`` shows the blocks as a table.

    >>> import torch
    >>> from multipde import NetworkConfig
    >>> net = PDENet(NetworkConfig("hamiltonian", channels=(8, 16), out_channels=16, size=16))
    >>> net(torch.zeros(5, 3, 16, 16)).shape
    torch.Size([5, 10])

    Args:
        config: everything that determines the network except its weights, which are random.

    Shape:
        - input: (N, in_channels, *(detail · size)), images normalised by the mean and std of the config
        - result: (N, classes), scores before the softmax

    Reference: Ruthotto & Haber (2018), section 5.
    """

    def __init__(self, config: "NetworkConfig"):
        super().__init__()
        self.multipde_spec = config
        opening = config.width, config.dim, config.detail, config.opening_width
        self.opening = Opening(config.in_channels, config.channels[0], *opening)
        self.blocks, self.connectors = nn.ModuleList(), nn.ModuleList()
        names = ("width", "dim", "norm", "activation", "eps", "interpolation", "memory")
        shared = {name: getattr(config, name) for name in names}
        for k, channels in enumerate(config.channels):
            times = (config.block_steps[k], config.block_dt[k], config.block_controls[k])
            self.blocks.append(Block(config.dynamics, channels, *times, **shared))
            following = (*config.channels[1:], config.out_channels)[k]
            self.connectors.append(Connector(channels, following, config.dim))
        self.classifier = nn.Linear(config.out_channels, config.classes)
        self.put_on_mesh()

    @property
    def config(self) -> "NetworkConfig":
        """The description of the network, which is ``multipde_spec``, as that of every network, see `ModelSpec`."""
        return self.multipde_spec

    def put_on_mesh(self) -> None:
        """Give plain stencils the mesh sizes of the config; a composed opening and stencils of width one have none."""
        c = self.config
        if c.width == 1:
            return
        mesh_size, reference = [1 / s for s in c.sizes], [1 / s for s in c.references]
        opening = [(self.opening, 1)] if c.detail == 1 and c.opening_width is None else []
        strides = [2**k * dilation for k, dilation in enumerate(c.block_dilation)]
        for part, stride in [*opening, *zip(self.blocks, strides, strict=True)]:
            own = {"coordinates": c.coordinates, "reaction": c.reaction, "stride": stride}
            reparametrize(part, mesh_size, reference=reference, **own)

    def features(self, x: Tensor) -> Tensor:
        """The input of the classifier: the features on the last mesh, averaged over its pixels.

        From the first dilated block on, the pixels are divided into the shifts of a coarser mesh, on which the rest of
        the network acts without dilation: that is the same, means included, and faster.

        Shape:
            - x: (N, in_channels, *size)
            - result: (N, out_channels)
        """
        if x.dim() != self.config.dim + 2 or x.shape[1] != self.config.in_channels:
            expected = f"(N, {self.config.in_channels}{', size' * self.config.dim})"
            raise ValueError(f"input must have shape {expected}, got {tuple(x.shape)}")
        if any(s % self.config.detail for s in x.shape[2:]):
            detail = self.config.detail
            raise ValueError(f"input must have a multiple of {detail} pixels per axis (detail), got {tuple(x.shape)}")
        mesh = [s // self.config.detail for s in x.shape[2:]]
        check_size(mesh, self.config.num_blocks, max(self.config.block_dilation))
        y, split = self.opening(x), 1
        for k, dilation in enumerate(self.config.block_dilation):
            if dilation > split:
                y, split = split_shifts(y, dilation), dilation
            y = self.connectors[k](self.blocks[k](y), pool=k + 1 < len(self.blocks))
        y = mean_over_pixels(y)
        return y if split == 1 else y.unflatten(0, (x.shape[0], -1)).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def __repr__(self) -> str:
        c = self.config
        size = "x".join(str(s) for s in c.image_sizes)
        lines = [
            f"PDENet {c.dynamics}, {c.in_channels} channels of {size} pixels to {c.classes} classes, "
            f"{num_weights(self):,} weights",
            f"{'block':>5} {'size':>9} {'h':>9} {'channels':>8} {'steps':>5} {'dt':>6} {'controls':>8} {'weights':>9}",
        ]
        for k, block in enumerate(self.blocks):
            sizes = "x".join(str(s // 2**k) for s in c.sizes)
            lines.append(
                f"{k:>5} {sizes:>9} {2**k / c.sizes[-1]:>9.5f} {c.channels[k]:>8} {c.block_steps[k]:>5} "
                f"{c.block_dt[k]:>6.3g} {c.block_controls[k]:>8} {num_weights(block):>9,}"
            )
        if max(c.block_dilation) > 1:
            lines.append(f"dilation of the blocks: {', '.join(map(str, c.block_dilation))}")
        return "\n".join(lines)


def check_size(sizes: Sequence[int], num_blocks: int, dilation: int = 1) -> None:
    """Raise ValueError unless the shifts of every axis can be halved between all blocks."""
    divisor = dilation * 2 ** (num_blocks - 1)
    if any(s < 1 or s % divisor for s in sizes):
        shown = sizes[0] if len(set(sizes)) == 1 else tuple(sizes)
        raise ValueError(
            f"size must be a positive multiple of {divisor} (halved between {num_blocks} blocks), got {shown}"
        )
