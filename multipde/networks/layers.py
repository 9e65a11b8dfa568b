"""The parts of a PDE network: TV norm (9), symmetric layer (7), residual layer (1), opening and connector."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from multipde.networks.kernels import tiny_mesh
from multipde.networks.kernels.batch_norm import is_fused, pooled_batch_norm
from multipde.networks.kernels.dispatch import with_layout_of
from multipde.networks.kernels.fused_layer import is_worthwhile
from multipde.networks.kernels.native.blocks import transposed_stencil
from multipde.networks.kernels.tv_norm import tv_norm
from multipde.networks.plain import ACTIVATIONS, CONV, POOL

BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONVOLVE_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
NORMS = ("tv", "none")


class TVNorm(nn.Module):
    """Divide the features of every pixel by their norm over the channels c, eq. (9), with trainable scale a and bias b.

        N(y) = a · y / sqrt(Σ_c y_c² + ε) + b

    It has no running statistics.

    Args:
        channels: number of channels C, the length of a and b.
        eps: ε, a positive number that keeps the denominator from vanishing where y is zero.

    Shape:
        - y, result: (batch, C, *size)

    Reference: Ruthotto & Haber (2018), eq. (9).
    """

    def __init__(self, channels: int, eps: float = 1e-3):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        return tv_norm(y, self.scale, self.bias, self.eps)


class ControlledLayer(nn.Module):
    """A layer F(θ, y) whose controls θ can be arguments, because they may be interpolated from another time grid.

    ``watch`` is called before every convolution of the layer, with the convolution and its input. While training, a
    layer that is ``compiled`` uses compiled kernels for its norm, see `compile_layers`.
    """

    conv: nn.Module
    compiled = False
    watch: Callable[[nn.Module, Tensor], None] | None = None

    def __init__(
        self, channels: int, width: int = 3, dim: int = 2, norm: str = "tv", activation: str = "relu", eps: float = 1e-3
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.dim, self.padding, self.eps, self.activation = dim, width // 2, eps, activation
        self.conv = CONV[dim](channels, channels, width, padding=self.padding, bias=False)
        self.norm = TVNorm(channels, eps) if norm == "tv" else None

    def controls(self) -> tuple[Tensor, ...]:
        """θ: the stencils of K, then scale and bias of the norm if there is one."""
        norm = () if self.norm is None else (self.norm.scale, self.norm.bias)
        return (self.conv.weight, *norm)  # pyright: ignore[reportReturnType]

    def matrix_of(self, stencil: Tensor, y: Tensor) -> Tensor | None:
        """The matrix of a convolution of y where a compiled layer is faster with it, otherwise None."""
        is_used = self.compiled and self.training and tiny_mesh.is_worthwhile(y, stencil)
        return tiny_mesh.matrix_of(stencil, tuple(y.shape[2:])) if is_used else None

    def convolved(self, y: Tensor, stencil: Tensor, matrix: Tensor | None) -> Tensor:
        """The stencil applied to y, by its matrix if that is given."""
        if matrix is not None:
            return tiny_mesh.product(y, matrix)
        return CONVOLVE[self.dim](y, stencil, padding=self.padding)

    def hidden(self, y: Tensor, controls: tuple[Tensor, ...], matrix: Tensor | None = None) -> Tensor:
        """The features σ(N(K y)) between the two convolutions, with the matrix of K if it is given."""
        if self.watch is not None:
            self.watch(self.conv, y)
        z = self.convolved(y, controls[0], matrix)
        if self.norm is None:
            return ACTIVATIONS[self.activation](z)
        relu = self.activation == "relu"
        n = tv_norm(z, controls[1], controls[2], self.eps, relu, self.compiled and self.training)
        return n if relu else ACTIVATIONS[self.activation](n)

    def force(self, y: Tensor, controls: tuple[Tensor, ...], factor: float = 1.0) -> Tensor:
        """factor · F(θ, y) for given controls; the factor multiplies the stencils, not the larger features."""
        raise NotImplementedError

    def second(self, controls: tuple[Tensor, ...], factor: float) -> Tensor:
        """The stencils of K₂ in F(y) = K₂ σ(N(K₁ y)), times a factor."""
        raise NotImplementedError

    def is_fused(self, y: Tensor, stencil: Tensor) -> bool:
        """Whether the layer is one pass over the images y with what it is added to, see `kernels.fused_layer`."""
        if not (self.compiled and self.training) or self.watch is not None or self.norm is None or self.dim != 2:
            return False
        known = self.activation in ("relu", "identity") and not tiny_mesh.is_worthwhile(y, stencil)
        return known and is_worthwhile(y, stencil)

    def forward(self, y: Tensor) -> Tensor:
        return self.force(y, self.controls())


class SymmetricLayer(ControlledLayer):
    """The symmetric layer, eq. (7): K is a convolution, Kᵀ its transpose, N a norm, σ an activation.

        F(y) = -Kᵀ σ(N(K y))

    Without norm (N = identity) and with a nondecreasing σ its Jacobian is negative semidefinite.

    Args:
        channels: number of channels C, of input and result.
        width: number of taps of K per axis, odd.
        dim: number of axes of the images, 1 to 3.
        norm: N: ``"tv"`` for `TVNorm`, ``"none"`` for the identity.
        activation: σ: ``"relu"``, ``"tanh"`` or ``"identity"``.
        eps: ε of `TVNorm`.

    Shape:
        - y, result: (batch, C, *size)

    Reference: Ruthotto & Haber (2018), eq. (7).
    """

    def force(self, y: Tensor, controls: tuple[Tensor, ...], factor: float = 1.0) -> Tensor:
        matrix = self.matrix_of(controls[0], y)
        z = self.hidden(y, controls, matrix)
        if matrix is not None:
            return tiny_mesh.product(z, matrix.t()) * -factor
        return CONVOLVE_TRANSPOSED[self.dim](z, -factor * controls[0], padding=self.padding)

    def second(self, controls: tuple[Tensor, ...], factor: float) -> Tensor:
        return -factor * transposed_stencil(controls[0])


class ResidualLayer(ControlledLayer):
    """The layer of a plain ResNet, eq. (1), with two independent convolutions: F(y) = K₂ σ(N(K₁ y)).

    The arguments channels, width, dim, norm, activation and eps, and the shapes, are those of `SymmetricLayer`.

    Reference: Ruthotto & Haber (2018), eq. (1).
    """

    def __init__(
        self, channels: int, width: int = 3, dim: int = 2, norm: str = "tv", activation: str = "relu", eps: float = 1e-3
    ):
        super().__init__(channels, width, dim, norm, activation, eps)
        self.conv2 = CONV[dim](channels, channels, width, padding=self.padding, bias=False)

    def controls(self) -> tuple[Tensor, ...]:
        return (*super().controls(), self.conv2.weight)

    def force(self, y: Tensor, controls: tuple[Tensor, ...], factor: float = 1.0) -> Tensor:
        z = self.hidden(y, controls, self.matrix_of(controls[0], y))
        if self.watch is not None:
            self.watch(self.conv2, z)
        second = self.second(controls, factor)
        return self.convolved(z, second, self.matrix_of(second, z))

    def second(self, controls: tuple[Tensor, ...], factor: float) -> Tensor:
        return factor * controls[-1]


class Opening(nn.Sequential):
    """The first layer, from images to features: convolution without bias, batch normalisation, ReLU.

    While training, an opening that is ``compiled`` uses compiled kernels after its convolution, see `compile_layers`.

    Args:
        in_channels, channels: numbers of channels of the images and of the features.
        width: number of taps per axis on the mesh of the features, odd.
        dim: number of axes of the images, 1 to 3.
        detail: image pixels per pixel of that mesh along every axis; the convolution then has width · detail taps and
            the stride ``detail``, see `with_detail`.
        own_width: number of taps per axis instead of the width, even or odd, at detail 1; an even one reads one pixel
            more on the right of its own than on the left. None for the width.

    Shape:
        - input: (N, in_channels, *(detail · size))
        - result: (N, channels, *size), halved by ``forward(x, pool=True)``, the mean over cells of two pixels per axis
    """

    compiled = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        width: int = 3,
        dim: int = 2,
        detail: int = 1,
        own_width: int | None = None,
    ):
        taps = {"kernel_size": width * detail, "stride": detail, "padding": width // 2 * detail}
        if own_width is not None:
            taps = {"kernel_size": own_width}
        conv = CONV[dim](in_channels, channels, **taps, bias=False)
        if detail > 1:
            conv.detail = detail  # pyright: ignore[reportArgumentType]
        super().__init__(conv, BATCH_NORM[dim](channels), nn.ReLU(inplace=True))
        self.dim = dim
        self.pads = () if own_width is None else ((own_width - 1) // 2, own_width // 2) * dim

    def forward(self, x: Tensor, pool: bool = False) -> Tensor:
        conv, norm, relu = self
        x = functional.pad(x, self.pads) if self.pads else x
        y, side = conv(x), 2 if pool else 1
        if self.compiled and self.training and is_fused(norm, y, side):  # pyright: ignore[reportArgumentType]
            return pooled_batch_norm(y, norm, side)  # pyright: ignore[reportArgumentType]
        y = relu(norm(y))
        return POOL[self.dim](y, 2) if pool else y


class Connector(Opening):
    """The layer between two blocks, which changes the number of channels: 1x1 convolution, batch normalisation, ReLU.

    With ``forward(x, pool=True)`` the mean over cells of two pixels per axis follows, which halves the size.

    Shape:
        - input: (N, channels_from, *size)
        - result: (N, channels_to, *size), or half the size; the size has ``dim`` axes
    """

    def __init__(self, channels_from: int, channels_to: int, dim: int = 2):
        super().__init__(channels_from, channels_to, 1, dim)


def mean_over_pixels(y: Tensor) -> Tensor:
    """The mean of every channel: features (N, C, *size) to (N, C)."""
    if torch.compiler.is_compiling():
        return y.mean(tuple(range(2, y.dim())))  # for any size, also one that is not known
    return POOL[y.dim() - 2](y, y.shape[2:]).flatten(1)  # its gradient has the memory format of y


def split_shifts(y: Tensor, dilation: int) -> Tensor:
    """The features at every ``dilation``-th pixel, one image for each of the dilation^dim shifts.

    A layer that acts on them is the layer at this dilation on y, zero padding included.

    Shape:
        - y: (N, C, *size)
        - result: (N · dilation^dim, C, *(size / dilation)), the shifts of an image one after the other
    """
    dim, cells = y.dim() - 2, y.movedim(1, -1)
    for axis in range(dim, 0, -1):
        cells = cells.unflatten(axis, (-1, dilation))
    pixels, shifts = range(1, 2 * dim, 2), range(2, 2 * dim + 1, 2)
    parts = cells.permute(0, *shifts, *pixels, 2 * dim + 1).flatten(0, dim)
    return with_layout_of(parts.movedim(-1, 1), y)
