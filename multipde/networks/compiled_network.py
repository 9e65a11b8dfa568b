"""A network for use alone whose layers are compiled: each is one pass over the images, without a step in between."""

import math

import torch
from torch import Tensor, nn

from multipde.networks.folding import folded, is_as_made
from multipde.networks.kernels.native import build, handles
from multipde.networks.kernels.native import convolutions as native
from multipde.networks.plain import PlainBlock, PlainLayer, PlainNet, shifts

CPU = torch.device("cpu")
AT_ONCE = 2 * 2**20
"""Bytes per thread of the features that go through all layers together."""
WORTH_COMPILING = 512
"""Number of images from which on it is faster to compile the kernels first, which takes a few seconds once."""


def for_use(model: nn.Module, num_images: int, device: torch.device = CPU) -> nn.Module:
    """The `folded` copy of a network, with compiled layers where that is possible and worth it for so many images.

    It computes the same as the network in eval mode, up to rounding.
    """
    net = folded(model)
    if device.type != "cpu" or not isinstance(net, PlainNet) or not _is_known(net):
        return net
    worth = num_images >= WORTH_COMPILING or build.is_kept("convolutions")
    return CompiledNet(net) if worth and build.is_available("convolutions") else net


def for_evaluation(model: nn.Module, num_images: int) -> nn.Module:
    """The compiled network of `for_use` where there is one for a model as it was made; otherwise the model itself."""
    net = for_use(model, num_images) if is_as_made(model) else model
    return net if isinstance(net, CompiledNet) else model


def _is_known(net: PlainNet) -> bool:
    """Whether there are kernels for the parts of a network."""
    layers = [module for module in net.modules() if isinstance(module, PlainLayer)]
    in_single = all(p.dtype == torch.float32 for p in net.parameters())
    return net.dim == 2 and in_single and all(layer.activation in ("relu", "identity") for layer in layers)


def _is_centred(conv: nn.Module) -> bool:
    """Whether a convolution has stride 1 and gives images of the size that it gets."""
    return conv.stride == (1, 1) and all(2 * p + 1 == k for p, k in zip(conv.padding, conv.kernel_size, strict=True))  # pyright: ignore


class CompiledNet(nn.Module):
    """A `PlainNet` for images whose layers are computed by the kernels of ``convolutions.cpp``.

    A layer with what follows it,

        y' = α a + β b + K2 σ(N(K1 x)),

    is one call, in which an image stays in the processor's cache. On other devices, in other precisions and where
    gradients are wanted, the plain network computes instead.

    Args:
        net: the network, two-dimensional, with ReLU or no activation.

    Shape:
        - x: (N, in_channels, H, W)
        - result: (N, classes), scores before the softmax
    """

    def __init__(self, net: PlainNet):
        super().__init__()
        self.plain = net.eval().requires_grad_(False)
        self.opening = CompiledConvolution(net.opening) if _is_centred(net.opening) and not net.pads else None
        widths = [conv.in_channels for conv in net.connectors]
        self.blocks = nn.ModuleList(map(CompiledBlock, net.blocks, widths))  # pyright: ignore
        cells = [2] * (len(net.connectors) - 1) + [1]  # every block but the last is followed by a mean
        self.connectors = nn.ModuleList(map(CompiledConvolution, net.connectors, cells))  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        if wants_gradient or torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32 or not handles(x, 1):
            return self.plain(x)
        with torch.no_grad():
            return torch.cat([self._scores(part) for part in x.split(self._num_at_once(x))])

    def _num_at_once(self, x: Tensor) -> int:
        """The number of images whose features stay in the processor's caches while they go through all layers."""
        pixels = x.shape[2] * x.shape[3] // math.prod(self.plain.opening.stride)
        return max(1, torch.get_num_threads() * AT_ONCE // (4 * pixels * self.plain.opening.out_channels))

    def _scores(self, x: Tensor) -> Tensor:
        net = self.plain
        y = self.opening(x) if self.opening is not None else net.opened(x)
        split = 1
        for k, (block, connector) in enumerate(zip(self.blocks, self.connectors, strict=True)):
            if net.dilation[k] > split:
                split = net.dilation[k]
                y = shifts(y, split)
            y = connector(block(y.contiguous(memory_format=torch.channels_last)))
        return net.classified(y, split, len(x))


class CompiledConvolution(nn.Module):
    """The mean of max(0, K x + b) over cells of cell x cell pixels, for a convolution with stride 1."""

    def __init__(self, conv: nn.Module, cell: int = 1):
        super().__init__()
        self.channels, self.side, self.cell = conv.out_channels, conv.kernel_size[0], cell  # pyright: ignore
        self.register_buffer("taps", native.packed(conv.weight.detach()))  # pyright: ignore
        self.register_buffer("bias", native.per_panel(conv.bias.detach()))  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        return native.convolution_relu(x, self.taps, self.bias, self.channels, self.side, self.cell)  # pyright: ignore


class CompiledLayer(nn.Module):
    """The layer F, with the sum to which it is added, on some or all of ``distance`` channels."""

    def __init__(self, layer: PlainLayer, distance: int):
        super().__init__()
        self.given = {"eps": layer.eps, "norm": layer.has_norm, "relu": layer.activation == "relu"}
        first, second = (conv.weight.detach() for conv in (layer.first, layer.second))
        one, zero = first.new_ones(len(first)), first.new_zeros(len(first))
        self.given |= {"side": first.shape[-1], "distance": distance}
        self.register_buffer("first", native.packed(first))
        self.register_buffer("second", native.packed(second))
        self.register_buffer("scale", native.per_panel(layer.scale.detach() if layer.has_norm else one))
        self.register_buffer("bias", native.per_panel(layer.bias.detach() if layer.has_norm else zero))

    def add(self, x: Tensor, a: Tensor, out: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
        """out = α a + β out + F(x)."""
        controls = self.first, self.scale, self.bias, self.second
        return native.layer(x, ((alpha, a), (beta, out)), *controls, out, **self.given)  # pyright: ignore


class CompiledBlock(nn.Module):
    """The time steps of a `PlainBlock`, computed in the memory of its argument, whose channels are innermost."""

    def __init__(self, block: PlainBlock, channels: int):
        super().__init__()
        self.dynamics = block.dynamics
        self.steps = nn.ModuleList(
            nn.ModuleList(CompiledLayer(f, channels) for f in step)  # pyright: ignore
            for step in block.steps
        )

    def forward(self, states: Tensor) -> Tensor:
        if self.dynamics == "hamiltonian":
            y, z = states.chunk(2, 1)
            for f1, f2 in self.steps:  # pyright: ignore[reportGeneralTypeIssues]
                f1.add(z, y, out=y)
                f2.add(y, z, out=z)
            return states
        y = states
        before = y.clone(memory_format=torch.preserve_format) if self.dynamics == "second_order" else y
        for (f,) in self.steps:  # pyright: ignore[reportGeneralTypeIssues]
            if self.dynamics == "second_order":
                y, before = f.add(y, y, out=before, alpha=2.0, beta=-1.0), y
            else:
                f.add(y, y, out=y)
        return y
