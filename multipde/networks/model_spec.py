"""What the library asks of a network: its description as plain data, and a few questions about what it can do."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import nn

from multipde.mesh.reparametrize import reparametrize, stencil_layers, stencil_parametrization

Model = TypeVar("Model", bound=nn.Module)


class Penalty(Protocol):
    """A term of the loss whose gradient is known in closed form."""

    def add(self) -> None:
        """Add its gradient to the gradients of the parameters."""
        ...


class Box(Protocol):
    """A bound on stencils, restored after every optimizer step."""

    bound: float
    stencils: list[nn.Parameter]

    def project(self) -> None:
        """Project the stencils onto the bound, in place."""
        ...


class ModelSpec(Protocol):
    """A network as frozen plain data: what it is, how it is built, and what it can do.

    `NetworkConfig` describes a `PDENet`, `ExternalModel` any other module. Training, conversion, storage, evaluation
    and reports use this protocol alone. A module carries its description as ``model.multipde_spec``.
    """

    @property
    def size(self) -> Any:
        """Image size in pixels: one number, or one per axis."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class, or empty."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each input channel on [0, 1], or empty."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Of each input channel, or empty."""
        ...

    @property
    def standardize(self) -> bool:
        """Whether every image is normalised by itself."""
        ...

    @property
    def dim(self) -> int:
        """Number of axes of the images."""
        ...

    @property
    def label(self) -> str:
        """What the network is called in tables and directories."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image size per axis."""
        ...

    @property
    def references(self) -> tuple[int, ...]:
        """Size per axis to whose mesh the stored stencils belong."""
        ...

    @property
    def block_steps(self) -> tuple[int, ...]:
        """Time steps of each block; empty for a network without time steps."""
        ...

    @property
    def size_multiple(self) -> int:
        """Of what number of pixels every size must be a multiple."""
        ...

    @property
    def has_step_bounds(self) -> bool:
        """Whether `stability_report` has bounds on dt for it."""
        ...

    @property
    def has_energy(self) -> bool:
        """Whether `state_energies` and `growth_report` can follow its blocks."""
        ...

    def build(self) -> nn.Module:
        """The network with random weights from torch's generator, carrying this description."""
        ...

    def put_on_mesh(self, net: nn.Module) -> None:
        """Give the plain stencils of a baked network their mesh sizes."""
        ...

    def fits(self, num_tensors: int) -> bool:
        """Whether so many tensors can be its weights, which is asked before a stranger's description is built."""
        ...

    def on_mesh(self, size: int | tuple[int, ...]) -> Self:
        """The same network for another image size."""
        ...

    def with_steps(self, steps: int | tuple[int, ...]) -> Self:
        """The same network with other numbers of time steps over the same final times."""
        ...

    def penalty(self, net: nn.Module, alpha1: float, alpha2: float) -> Penalty:
        """The regulariser of the network."""
        ...

    def box(self, net: nn.Module, bound: float) -> Box | None:
        """The bound on its stencils; None where it has none."""
        ...

    def parts(self, net: nn.Module) -> Mapping[str, nn.Module]:
        """Its parts by name, in the order of execution."""
        ...

    def summary(self, net: nn.Module) -> str:
        """What the network is, in words or as a table."""
        ...

    def record(self) -> dict[str, Any]:
        """Plain data from which the same description can be made again."""
        ...


def find_spec(model: nn.Module) -> ModelSpec | None:
    """The description that a module carries, None for a module that multipde has not seen."""
    return getattr(model, "multipde_spec", None)


def spec_of(model: nn.Module) -> ModelSpec:
    """The description that a module carries.

    Raises:
        ValueError: it carries none.
    """
    found = find_spec(model)
    if found is None:
        raise ValueError(
            f"model must carry its description, got a {type(model).__name__} without; "
            "type multipde.describe(model, size=..., classes=...) first"
        )
    return found


def with_meshes(model: Model) -> Model:
    """The model, or a copy of it whose plain stencils have the mesh sizes of its description."""
    layers, spec = stencil_layers(model).values(), spec_of(model)
    if not layers or any(stencil_parametrization(layer) for layer in layers):
        return model
    model = copy.deepcopy(model)
    example = torch.zeros(2, spec.in_channels, *spec.sizes, device=next(model.parameters()).device)
    reparametrize(model, [1 / s for s in spec.sizes], example=example)
    return model


def check_mesh(model: nn.Module) -> None:
    """Raise ValueError if `set_mesh_size` has taken the stencils off the mesh of the description."""
    spec = spec_of(model)
    for layer in stencil_layers(model).values():
        p = stencil_parametrization(layer)
        if p and any(abs(h * s - 1) > 1e-9 for h, s in zip(p.mesh_size, spec.sizes, strict=True)):
            raise ValueError(
                f"network must be on the mesh of its size {spec.sizes}, got mesh size {p.mesh_size}; "
                "set_mesh_size moves it back, convert moves both"
            )


def check_data_fields(spec: Any) -> None:
    """Raise ValueError for numbers of classes and channels, class names or normalisation that contradict each other."""
    if bool(spec.mean) != bool(spec.std):
        raise ValueError(f"mean and std must be given together, got {spec.mean} and {spec.std}")
    if spec.standardize and spec.mean:
        raise ValueError(f"mean and std must be left out with standardize, got {spec.mean} and {spec.std}")
    for name in ("classes", "in_channels"):
        if getattr(spec, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(spec, name)}")
    expected: Sequence[tuple[str, int]] = (
        ("class_names", spec.classes),
        ("mean", spec.in_channels),
        ("std", spec.in_channels),
    )
    for name, num in expected:
        values = getattr(spec, name)
        if values and len(values) != num:
            raise ValueError(f"{name} must have {num} entries, got {len(values)}")
    if not all(0 < s < float("inf") for s in spec.std):
        raise ValueError(f"std must be positive, got {spec.std}")
    if not all(abs(m) < float("inf") for m in spec.mean):
        raise ValueError(f"mean must be finite, got {spec.mean}")
    if not all(isinstance(name, str) and name.isprintable() for name in spec.class_names):
        raise ValueError("class_names must be words without control characters, got others")
