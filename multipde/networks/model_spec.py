"""What the library asks of any network: a description as plain data that answers a few questions."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from multipde.mesh.modes import check_unwrapped, copied
from multipde.mesh.reparametrize import detail_of, reparametrize, stencil_layers, stored_stencils
from multipde.mesh.separable import per_axis
from multipde.networks.limits import CHANNELS, CLASSES, SIDE

if TYPE_CHECKING:
    from multipde.networks.regularization import Box, Regularizer, WeightDecay

Model = TypeVar("Model", bound=nn.Module)


class ModelSpec(ABC):
    """A base class, not built directly: the description of a network as a frozen dataclass of plain data.

    Two classes inherit from it: `NetworkConfig` describes a `PDENet`, `ExternalModel` any other module. Training,
    conversion, storage, evaluation and reports ask a network only through its description, which a module carries as
    ``model.multipde_spec``.

    Attributes:
        size: size of the mesh in pixels, one number or one per axis.
        sizes: size of the mesh per axis.
        detail: image pixels per pixel of the mesh along every axis, see `with_detail`.
        image_sizes: size of the images per axis, sizes · detail.
        references: size per axis to whose mesh the stored stencils belong.
        size_multiple: every size must be a multiple of this number of pixels.
        dim, in_channels, classes, class_names, mean, std, standardize: as in `NetworkConfig`.
        label: name of the network in tables and directories.
        block_steps: number of time steps of each block; empty for a network without time steps.
        has_step_bounds: whether `stability_report` gives bounds on dt for this network.
        has_energy: whether `state_energies` and `growth_report` can be computed for its blocks.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    size: int | tuple[int, ...]
    reference: int | tuple[int, ...] | None
    dim: int
    detail: int
    in_channels: int
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    standardize: bool
    label: Any
    size_multiple: Any
    block_steps: Any
    has_step_bounds: Any
    has_energy: Any

    def __post_init__(self):
        for entry in fields(self):  # JSON and users give lists
            object.__setattr__(self, entry.name, as_tuple(getattr(self, entry.name)))

    @property
    def sizes(self) -> tuple[int, ...]:
        return per_axis(self.size, self.dim, "size")

    @property
    def image_sizes(self) -> tuple[int, ...]:
        return tuple(self.detail * s for s in self.sizes)

    @property
    def references(self) -> tuple[int, ...]:
        return self.sizes if self.reference is None else per_axis(self.reference, self.dim, "reference")

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights from torch's generator, carrying this description."""

    @abstractmethod
    def put_on_mesh(self, net: nn.Module) -> None:
        """Give the plain stencils of a baked network their mesh sizes."""

    def flops(self, training: bool) -> int | None:
        """Floating point operations for one image, where a formula gives them; None where they must be counted."""
        return None

    def fits(self, num_tensors: int) -> bool:
        """Whether a file with this number of tensors can hold its weights; checked before an untrusted build."""
        return True

    def on_mesh(self, size: int | tuple[int, ...], detail: int | None = None) -> Self:
        """The description on another mesh, with its detail or another one; an explicit reference is scaled too."""
        new, detail = per_axis(size, self.dim, "size"), self.detail if detail is None else detail
        if self.reference is None:
            return replace(self, size=size, detail=detail)
        moved = [r * n / s for r, n, s in zip(self.references, new, self.sizes, strict=True)]
        if any(r != round(r) for r in moved):
            raise ValueError(f"reference must stay a whole number of pixels, got {moved} at size {size}")
        return replace(self, size=size, detail=detail, reference=tuple(round(r) for r in moved))

    def with_reference(self, reference: Sequence[float]) -> Self:
        """The description with another reference mesh, given by its mesh sizes per axis."""
        sides = [1 / h for h in reference]
        if any(abs(s - round(s)) > 1e-6 * s for s in sides):
            raise ValueError(f"reference must be 1 / a whole number of pixels for a described network, got {reference}")
        return replace(self, reference=tuple(round(s) for s in sides))

    def for_images(self, size: int | tuple[int, ...]) -> Self:
        """The description for images of another size, with the same detail."""
        sides = per_axis(size, self.dim, "size")
        if any(s % self.detail for s in sides):
            raise ValueError(f"size of the images must be a multiple of the detail {self.detail}, got {size}")
        mesh = tuple(s // self.detail for s in sides)
        return self.on_mesh(mesh[0] if len(set(mesh)) == 1 else mesh)

    def a_trous(self) -> Self:
        """The description on the mesh of its images, with all blocks dilated; ValueError for external networks."""
        raise ValueError(f"a_trous must be left out for networks other than those of PDEs, got {self.label}")

    def plain(self, num: int) -> Self:
        """The description in which so many blocks, from the finest on, are not dilated."""
        return self

    @abstractmethod
    def with_steps(self, steps: int | tuple[int, ...]) -> Self:
        """The same network with other numbers of time steps over the same final times."""

    @abstractmethod
    def penalty(self, net: nn.Module, alpha1: float, alpha2: float) -> "Regularizer | WeightDecay":
        """The regulariser of the network, whose ``add`` adds its gradient to those of the parameters."""

    def box(self, net: nn.Module, bound: float) -> "Box | None":
        """The bound on its stencils, which is restored after every optimizer step; None for a network without one."""
        return None

    @abstractmethod
    def parts(self, net: nn.Module) -> Mapping[str, nn.Module]:
        """Its parts by name, in the order of execution."""

    @abstractmethod
    def summary(self, net: nn.Module) -> str:
        """A text of one line, or a table, that describes the network."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Plain data from which the same description can be made again."""


def as_tuple(value: Any) -> Any:
    """The value with every list in it made a tuple, and every number of numpy one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def find_spec(model: nn.Module) -> ModelSpec | None:
    """The description that a module carries; None where it carries none."""
    return getattr(model, "multipde_spec", None)


def spec_of(model: nn.Module) -> ModelSpec:
    """The description that a module carries; ValueError where it carries none."""
    found = find_spec(model)
    if found is None:
        raise ValueError(
            f"model must carry its description, got a {type(model).__name__} without one; "
            "type multipde.describe(model, size=..., classes=...) first"
        )
    return found


def reparametrize_for(net: nn.Module, spec: ModelSpec, references: tuple[int, ...] | None = None) -> None:
    """Give the plain stencils of any network the mesh of a description, in place.

    An example image is sent through the network to find out how far its strides have coarsened the mesh at each layer.
    """
    detail, device = detail_of(net), next(net.parameters()).device
    example = example_images(net, spec.in_channels, [detail * s for s in spec.sizes], device)
    h, reference = [1 / s for s in spec.sizes], references and [1 / r for r in references]
    reparametrize(net, h, reference=reference, stride=1 / detail, example=example)


def example_images(
    net: nn.Module, in_channels: int, sizes: Sequence[int], device: torch.device | str = "meta"
) -> Tensor:
    """Two images of zeros in the precision of a network's weights, to trace it with."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point() or p.is_complex()), None)
    return torch.zeros(2, in_channels, *sizes, device=device, dtype=dtype)


def with_meshes(model: Model) -> Model:
    """The model, or a copy of it in which plain stencils have the mesh sizes of its description."""
    spec = spec_of(model)
    if not stencil_layers(model) or stored_stencils(model):
        return model
    model = copied(model)
    reparametrize_for(model, spec)
    return model


def check_mesh(model: nn.Module) -> None:
    """Raise ValueError if the stencils are on another mesh, or have another reference, than the description says."""
    spec = spec_of(model)
    for p in stored_stencils(model).values():
        if any(abs(h * s - 1) > 1e-9 for h, s in zip(p.mesh_size, spec.sizes, strict=True)):
            raise ValueError(
                f"network must be on the mesh of its size {spec.sizes}, got mesh size {p.mesh_size}; "
                "set_mesh_size moves it back, convert moves both"
            )
        if any(abs(h * s - 1) > 1e-9 for h, s in zip(p.reference, spec.references, strict=True)):
            raise ValueError(
                f"network must have the reference of its description {spec.references}, got mesh size {p.reference}; "
                "use set_reference on the whole network"
            )


def check_whole(model: nn.Module) -> None:
    """Raise ValueError for a wrapper of torch, and for a module around a network that carries its description."""
    check_unwrapped(model)
    check_outermost(model, "convert its .{inner} and put it in its place")


def check_outermost(model: nn.Module, remedy: str) -> None:
    """Raise ValueError for a module around a network that carries its description; ``{inner}`` is its name there."""
    if find_spec(model) is None:
        inner = next((name for name, m in model.named_modules() if find_spec(m) is not None), None)
        if inner is not None:
            got = f"a {type(model).__name__} around it; {remedy.format(inner=inner)}"
            raise ValueError(f"model must be the network that carries its description, got {got}")


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names of classes; behind a name that several classes have stands the number of the class."""
    counts = Counter(names := tuple(names))
    found = tuple(f"{name} ({k})" if counts[name] > 1 else name for k, name in enumerate(names))
    return found if len({*found}) == len(found) else tuple(f"{name} ({k})" for k, name in enumerate(names))


def check_detail(detail: int) -> None:
    """Raise ValueError unless the detail is a positive whole number."""
    if type(detail) is not int or detail < 1:
        raise ValueError(f"detail must be a positive whole number, got {detail!r}")


def check_data_fields(spec: Any) -> None:
    """Raise ValueError for classes, channels or a normalisation that contradict each other; make names distinct."""
    check_detail(spec.detail)
    if bool(spec.mean) != bool(spec.std):
        raise ValueError(f"mean and std must be given together, got {spec.mean} and {spec.std}")
    if spec.standardize and spec.mean:
        raise ValueError(f"mean and std must be left out with standardize, got {spec.mean} and {spec.std}")
    for name, most in (("classes", CLASSES), ("in_channels", CHANNELS)):
        if getattr(spec, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(spec, name)}")
        if getattr(spec, name) > most:
            raise ValueError(f"{name} must be at most {most:,}, got {getattr(spec, name):,}")
    if max(*spec.image_sizes, *spec.references) > SIDE:
        raise ValueError(f"size must be at most {SIDE:,}, got {max(*spec.image_sizes, *spec.references):,}")
    for name, num in (("class_names", spec.classes), ("mean", spec.in_channels), ("std", spec.in_channels)):
        values = getattr(spec, name)
        if values and len(values) != num:
            raise ValueError(f"{name} must have {num} entries, got {len(values)}")
    if not all(0 < s < float("inf") for s in spec.std):
        raise ValueError(f"std must be positive, got {spec.std}")
    if not all(abs(m) < float("inf") for m in spec.mean):
        raise ValueError(f"mean must be finite, got {spec.mean}")
    if not all(isinstance(name, str) and name.isprintable() for name in spec.class_names):
        raise ValueError("class_names must be words without control characters, got others")
    object.__setattr__(spec, "class_names", distinct(spec.class_names))
