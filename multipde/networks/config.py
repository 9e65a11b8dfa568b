"""The description of a PDE network as plain data."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from multipde.mesh.parametrization import COORDINATES
from multipde.mesh.stencil import REACTIONS
from multipde.networks.controls import INTERPOLATIONS
from multipde.networks.dynamics import check_dynamics, check_memory
from multipde.networks.flops import pde_flops
from multipde.networks.layers import ACTIVATIONS, NORMS
from multipde.networks.limits import BLOCKS, CHANNELS, STEPS, TAPS
from multipde.networks.model_spec import ModelSpec, check_data_fields
from multipde.networks.network import PDENet, check_size
from multipde.networks.regularization import Box, Regularizer


@dataclass(frozen=True)
class NetworkConfig(ModelSpec):
    """Everything that determines a `PDENet` except its weights, as plain data; derived values are properties.

    Args:
        dynamics: ``"parabolic"``, ``"hamiltonian"``, ``"second_order"`` or ``"resnet"``.
        channels: one number per block; the mesh size doubles from block to block.
        out_channels: channels of the last connector, in front of the classifier.
        steps: number of time steps, one number or one per block.
        dt: time step, one number or one per block.
        size: side of the mesh in pixels, one number or one per axis; divisible by 2^(blocks-1).
        dim: number of axes of the images, 1 to 3.
        width: taps per axis of the stencils, odd.
        controls: number of nodes in time at which the weights θ of the layers are stored, one number or one per block;
            None for one node per step, see `Block`.
        interpolation: how θ varies between the nodes, ``"linear"`` or ``"constant"``.
        norm: norm of the layers, ``"tv"`` for `TVNorm`, eq. (9), or ``"none"``.
        activation: ``"relu"``, ``"tanh"`` or ``"identity"``.
        eps: ε of eq. (9).
        coordinates: whether the taps of the stencils are stored, ``"stencil"``, or their coefficients, ``"beta"``, see
            `StencilParametrization`. `TrainSettings.coordinates` means another thing: the mesh they belong to.
        reference: image side to whose mesh the stored stencils belong; None for ``size``.
        reaction: averaging taps of the term of order zero in the basis, ``"121"`` or ``"141"``, see `StencilBasis`.
        memory: how backpropagation gets the states: ``"store"``, ``"reversible"`` or ``"checkpoint"``, see `Block`.
        class_names: one name per class, or empty.
        mean: mean of each input channel on [0, 1], subtracted from the images; empty for no normalisation.
        std: standard deviation of each input channel, by which the images are divided; empty for no normalisation.
        standardize: normalise every image by its own mean and standard deviation instead.
        detail: side of the images / side of the mesh: above 1 the opening is composed with a mean, see `with_detail`.
        opening_width: taps per axis of the opening, even or odd, at detail 1; None for ``width``.
        dilation: distance of the taps of each block in pixels, one number or one per block; 1 up to some block and one
            number after it, see `a_trous`.

    Raises:
        ValueError: a value is outside its range.
    """

    dynamics: str
    channels: tuple[int, ...]
    out_channels: int
    steps: int | tuple[int, ...] = 3
    dt: float | tuple[float, ...] = 1.0
    classes: int = 10
    in_channels: int = 3
    size: int | tuple[int, ...] = 32
    dim: int = 2
    width: int = 3
    controls: int | tuple[int, ...] | None = None
    interpolation: str = "linear"
    norm: str = "tv"
    activation: str = "relu"
    eps: float = 1e-3
    coordinates: str = "stencil"
    reference: int | tuple[int, ...] | None = None
    reaction: str = "121"
    memory: str = "store"
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    standardize: bool = False
    detail: int = 1
    opening_width: int | None = None
    dilation: int | tuple[int, ...] = 1
    has_energy = True

    def __post_init__(self):
        super().__post_init__()
        counts = "channels", "out_channels", "steps", "classes", "in_channels", "size", "width", "controls"
        for name in (*counts, "opening_width", "dilation"):
            value = getattr(self, name)
            if not all(v is None or type(v) is int for v in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name} must be whole numbers, got {value!r}")
        if not isinstance(self.channels, tuple) or not 1 <= self.num_blocks <= BLOCKS:
            raise ValueError(f"channels must name 1 to {BLOCKS} blocks, got {str(self.channels)[:80]}")
        if max(*self.channels, self.out_channels) > CHANNELS:
            raise ValueError(f"channels must be at most {CHANNELS:,}, got {max(*self.channels, self.out_channels):,}")
        for channels in self.channels:
            check_dynamics(self.dynamics, channels)
        check_memory(self.memory, self.dynamics)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.out_channels < 1:
            raise ValueError(f"out_channels must be positive, got {self.out_channels}")
        if self.width < 1 or self.width % 2 == 0:
            raise ValueError(f"width must be odd and positive, got {self.width}")
        if self.width**self.dim > TAPS:
            raise ValueError(f"width must give stencils of at most {TAPS} taps, got {self.width}^{self.dim}")
        self._check_times()
        self._check_dilation()
        check_size(self.sizes, self.num_blocks, max(self.block_dilation))
        if min(self.references) < 1:
            raise ValueError(f"reference must be positive, got {self.reference}")
        check_data_fields(self)

    def _check_dilation(self) -> None:
        if self.opening_width is not None and not (self.opening_width >= 1 and self.opening_width**self.dim <= TAPS):
            raise ValueError(f"opening_width must give 1 to {TAPS} taps, got {self.opening_width}^{self.dim}")
        if self.detail > 1 and (self.opening_width is not None or max(self.block_dilation) > 1):
            raise ValueError(f"detail must be 1 with a dilation or an opening_width, got {self.detail}")
        found = self.block_dilation
        if len(found) != self.num_blocks or list(found) != sorted(found) or len({*found, 1}) > 2 or min(found) < 1:
            raise ValueError(
                f"dilation must be one number, or per block ({self.num_blocks}) 1 and then one number, "
                f"got {self.dilation}"
            )

    def _check_times(self) -> None:
        for name in ("steps", "dt", "controls"):
            values = self._per_block(name)
            if len(values) != self.num_blocks:
                raise ValueError(f"{name} must be one number or one per block ({self.num_blocks}), got {values}")
            if not all(v is None or (math.isfinite(v) and v > 0) for v in values):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if sum(self.block_steps) > STEPS:
            raise ValueError(f"steps must be at most {STEPS:,} in all blocks, got {sum(self.block_steps):,}")
        for steps, controls in zip(self.block_steps, self.block_controls, strict=True):
            if controls > steps:
                raise ValueError(f"controls must not exceed steps = {steps}, got {controls}")

    def _per_block(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return tuple(value) if isinstance(value, Sequence) else (value,) * self.num_blocks

    @property
    def label(self) -> str:
        return self.dynamics

    @property
    def num_blocks(self) -> int:
        return len(self.channels)

    @property
    def size_multiple(self) -> int:
        """2^(blocks-1), because the size is halved between the blocks; for each of the shifts of dilated blocks."""
        return max(self.block_dilation) * 2 ** (self.num_blocks - 1)

    @property
    def has_step_bounds(self) -> bool:
        return self.dynamics != "resnet"

    @property
    def block_steps(self) -> tuple[int, ...]:
        return self._per_block("steps")

    @property
    def block_dt(self) -> tuple[float, ...]:
        return self._per_block("dt")

    @property
    def block_controls(self) -> tuple[int, ...]:
        controls = self._per_block("controls")
        return tuple(s if c is None else c for c, s in zip(controls, self.block_steps, strict=True))

    @property
    def block_dilation(self) -> tuple[int, ...]:
        return self._per_block("dilation")

    @property
    def final_times(self) -> tuple[float, ...]:
        """T = dt · steps of each block."""
        return tuple(dt * n for dt, n in zip(self.block_dt, self.block_steps, strict=True))

    def with_steps(self, steps: int | tuple[int, ...]) -> "NetworkConfig":
        """The description with other numbers of time steps; the time step becomes dt = T/steps."""
        blocks = steps if isinstance(steps, Sequence) else (steps,) * self.num_blocks
        if len(blocks) != self.num_blocks or min(blocks) < 1:
            raise ValueError(f"steps must be positive, one number or one per block ({self.num_blocks}), got {steps}")
        if tuple(blocks) == self.block_steps:
            return self
        dt = tuple(t / n for t, n in zip(self.final_times, blocks, strict=True))
        return replace(self, steps=steps, dt=dt[0] if len(set(dt)) == 1 else dt)

    def a_trous(self) -> "NetworkConfig":
        size = self.image_sizes[0] if len(set(self.image_sizes)) == 1 else self.image_sizes
        moved = self.on_mesh(size, 1)
        return replace(moved, opening_width=self.width * self.detail, dilation=self.detail)

    def plain(self, num: int) -> "NetworkConfig":
        if not 0 <= num <= self.num_blocks:
            raise ValueError(f"a_trous must lie between 0 and the number of blocks ({self.num_blocks}), got {num}")
        dilation = (1,) * num + self.block_dilation[num:]
        return replace(self, dilation=dilation if len(set(dilation)) > 1 else dilation[0])

    def build(self) -> PDENet:
        return PDENet(self)

    def flops(self, training: bool) -> int | None:
        return pde_flops(self, training)

    def put_on_mesh(self, net: Any) -> None:
        net.put_on_mesh()

    def fits(self, num_tensors: int) -> bool:
        return sum(self.block_controls) <= num_tensors

    def penalty(self, net: Any, alpha1: float, alpha2: float) -> Regularizer:
        """The regulariser, eq. (13)."""
        return Regularizer(net, alpha1, alpha2)

    def box(self, net: Any, bound: float) -> Box:
        """The bound on the taps of the symmetric layers."""
        return Box(net, bound)

    def parts(self, net: nn.Module) -> dict[str, nn.Module]:
        """Opening, blocks, connectors and classifier by name, in the order of execution."""
        names = [f"{part}.{k}" for k in range(self.num_blocks) for part in ("blocks", "connectors")]
        return {name: net.get_submodule(name) for name in ("opening", *names, "classifier")}

    def summary(self, net: nn.Module) -> str:
        return str(net)

    def record(self) -> dict[str, Any]:
        return asdict(self)


_CHOICES = {
    "dim": (1, 2, 3),
    "interpolation": INTERPOLATIONS,
    "norm": NORMS,
    "activation": tuple(ACTIVATIONS),
    "coordinates": COORDINATES,
    "reaction": tuple(REACTIONS),
}
