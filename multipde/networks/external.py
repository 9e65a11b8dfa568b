"""Networks that multipde did not make: of torchvision and timm, from import paths, and modules given in Python."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from multipde.mesh.reparametrize import reparametrize, stencil_layers, stencil_parametrization
from multipde.mesh.separable import per_axis
from multipde.networks.architectures import (
    as_tuple,
    imported_factory,
    parameters_of,
    parsed_arguments,
    timm_factory,
    torchvision_factory,
)
from multipde.networks.cost import num_weights
from multipde.networks.model_spec import Model, check_data_fields, find_spec
from multipde.networks.weight_decay import WeightDecay

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation by which torchvision's classifiers normalise their images."""

FORBIDDEN = ("weights", "pretrained", "checkpoint", "cache", "path", "url", "hub")
"""Parts of names of arguments by which a library would read or fetch files."""

LIBRARIES = ("torchvision", "timm")
PYTHON = "python"


@dataclass(frozen=True)
class ExternalModel:
    """The description of any classifier as plain data, see `ModelSpec`; `external_model` and `describe` make it.

    Args:
        arch: ``"torchvision:NAME"``, ``"timm:NAME"``, ``"package.module:function"``, or ``"python:CLASS"`` for what was
            given in Python.
        arguments: of the function that makes the network, as pairs of name and value.
        size: image side in pixels, one number or one per axis.
        reference: size to whose mesh the stored stencils belong; None for plain convolutions.
        class_names: one per class, or empty.
        mean: of each input channel on [0, 1], subtracted from the images; empty for none.
        std: of each input channel, by which the images are divided; empty for none.
        standardize: every image by its own mean and standard deviation instead.
        factory: makes the network; no part of the record, since a record never imports anything.

    Raises:
        ValueError: any value outside its range, with the name of the argument.
    """

    arch: str
    arguments: tuple[tuple[str, Any], ...] = ()
    classes: int = 1000
    in_channels: int = 3
    size: int | tuple[int, ...] = 224
    dim: int = 2
    reference: int | tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    standardize: bool = False
    factory: Callable[..., nn.Module] | None = field(default=None, repr=False)

    def __post_init__(self):
        for entry in fields(self):  # lists come from JSON and from users
            object.__setattr__(self, entry.name, as_tuple(getattr(self, entry.name)))
        if self.dim not in (1, 2, 3):
            raise ValueError(f"dim must be one of 1, 2, 3, got {self.dim}")
        if min(*self.sizes, *self.references) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in self.arguments):
            raise ValueError(f"arguments must be pairs of name and value, got {self.arguments}")
        for name, _ in self.arguments if self.arch.partition(":")[0] in LIBRARIES else ():
            if any(part in name for part in FORBIDDEN):
                raise ValueError(f"arguments must not name files or weights, got {name}; type --weights FILE")
        check_data_fields(self)

    @property
    def label(self) -> str:
        """What the network is called in tables and directories."""
        return self.arch.rpartition(":")[2]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image size per axis."""
        return per_axis(self.size, self.dim, "size")

    @property
    def references(self) -> tuple[int, ...]:
        """Size per axis to whose mesh the stored stencils belong."""
        return self.sizes if self.reference is None else per_axis(self.reference, self.dim, "reference")

    @property
    def block_steps(self) -> tuple[int, ...]:
        """Empty: the network has no time steps."""
        return ()

    @property
    def size_multiple(self) -> int:
        """One: which sizes the network can take is only known when it is run."""
        return 1

    @property
    def has_step_bounds(self) -> bool:
        """False: without time steps there are no bounds on them."""
        return False

    @property
    def has_energy(self) -> bool:
        """False: there are no blocks to be followed along time."""
        return False

    def build(self) -> nn.Module:
        """The network with random weights from torch's generator; of a module given in Python, a copy of it.

        Raises:
            ValueError: a network that is not known to its library, or has to be given again.
        """
        net = self._made()
        self.put_on_mesh(net)
        net.multipde_spec = self  # pyright: ignore[reportArgumentType]
        return net

    def put_on_mesh(self, net: nn.Module) -> None:
        """Give plain stencils their mesh sizes, where they have a reference mesh."""
        if self.reference is not None:
            example = torch.zeros(2, self.in_channels, *self.sizes, device=next(net.parameters()).device)
            h, reference = [1 / s for s in self.sizes], [1 / s for s in self.references]
            reparametrize(net, h, reference=reference, example=example)

    def fits(self, num_tensors: int) -> bool:
        """Whether so many tensors can be its weights: any number."""
        return True

    def on_mesh(self, size: int | tuple[int, ...]) -> "ExternalModel":
        """The same network for another image size; an explicit reference moves by the same factor."""
        if self.reference is None:
            return replace(self, size=size)
        new = per_axis(size, self.dim, "size")
        moved = (r * n / s for r, n, s in zip(self.references, new, self.sizes, strict=True))
        return replace(self, size=size, reference=tuple(round(r) for r in moved))

    def with_steps(self, steps: int | tuple[int, ...]) -> "ExternalModel":
        """Itself for no steps.

        Raises:
            ValueError: any number of steps.
        """
        if steps == ():
            return self
        raise ValueError(f"steps must be left out for {self.label}, which has no time steps, got {steps}")

    def penalty(self, net: nn.Module, alpha1: float, alpha2: float) -> WeightDecay:
        """Weight decay; there is no time in which controls could vary."""
        return WeightDecay(alpha2, net)

    def box(self, net: nn.Module, bound: float) -> None:
        """None: there is no bound on the stencils of networks without time steps."""

    def parts(self, net: nn.Module) -> dict[str, nn.Module]:
        """Its children by name."""
        return dict(net.named_children())

    def summary(self, net: nn.Module) -> str:
        """The network in one line."""
        size, num_stencils = "x".join(str(s) for s in self.sizes), len(stencil_layers(net))
        return (
            f"{self.label}, {self.in_channels} channels of {size} pixels to {self.classes} classes, "
            f"{num_weights(net):,} weights, {num_stencils} layers with stencils"
        )

    def record(self) -> dict[str, Any]:
        """Plain data from which the same description can be made again, but for the factory."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "factory"}

    def _made(self) -> nn.Module:
        kind, _, name = self.arch.partition(":")
        arguments = dict(self.arguments)
        if self.factory is not None:
            accepted = parameters_of(self.factory)
            offered = {"num_classes": self.classes, "in_channels": self.in_channels, "in_chans": self.in_channels}
            arguments = {k: v for k, v in offered.items() if k in accepted} | arguments
            make = self.factory
        elif kind == "torchvision":
            make, arguments = torchvision_factory(name), {"num_classes": self.classes} | arguments
        elif kind == "timm":
            make = timm_factory(name)
            arguments = {"num_classes": self.classes, "in_chans": self.in_channels} | arguments
        else:
            how = "pass model= in Python" if kind == PYTHON else f"type --arch {self.arch}, or pass model= in Python"
            raise ValueError(f"network must be given again, got a record of one that was made by {self.arch}; {how}")
        try:
            net = make(**arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"arch must be made with arguments that it has, got {self.arch} ({reason})") from None
        if not isinstance(net, nn.Module):
            raise ValueError(f"arch must name a function that returns an nn.Module, got {type(net).__name__}")
        return net


def external_model(arch: str, **described: Any) -> ExternalModel:
    """The description of a network by name.

    Args:
        arch: a classifier of torchvision (``resnet18``, ``torchvision:resnet18``), one of timm (``timm:resnet50d``), or
            an import path ``package.module:function``, looked up in the working directory first. Arguments follow in
            brackets: ``"resnet18(zero_init_residual=True)"``.
        described: other fields of `ExternalModel`.

    Raises:
        ValueError: a name that its library does not have, a module or function that cannot be imported.
    """
    found = re.fullmatch(r"\s*([\w.\-:]+)\s*(\(.*\))?\s*", arch, re.DOTALL)
    if not found:
        raise ValueError(f"arch must be NAME, timm:NAME or package.module:function, got {arch!r}")
    name, arguments = found[1], parsed_arguments(found[2] or "()", arch)
    if ":" not in name:
        name = f"torchvision:{name}"
    kind, _, rest = name.partition(":")
    if kind in LIBRARIES:
        (torchvision_factory if kind == "torchvision" else timm_factory)(rest)
        return ExternalModel(name, arguments, **described)
    return ExternalModel(name, arguments, factory=imported_factory(name), **described)


def describe(model: Model, *, size: int | tuple[int, ...], classes: int, **described: Any) -> Model:
    """A copy of a module that carries its description, so that it can be saved, converted and evaluated like any other.

    Args:
        model: any classifier; one that carries a description already is copied as it is.
        size: image side for which it is meant.
        described: other fields of `ExternalModel`: in_channels, class_names, mean, std, ...
    """
    net = copy.deepcopy(model)
    if find_spec(net) is None:
        net.multipde_spec = given_model(net, size=size, classes=classes, **described)  # pyright: ignore
    return net


def given_model(model: nn.Module | Callable[..., nn.Module], **described: Any) -> ExternalModel:
    """The description of a module, or of a function that makes one, given in Python.

    A module is kept as it is: every build is a copy of it, weights included.
    """
    if isinstance(model, nn.Module):
        found = [p for layer in stencil_layers(model).values() if (p := stencil_parametrization(layer))]
        described = {"dim": len(found[0].width)} | described if found else described
        return ExternalModel(f"{PYTHON}:{type(model).__name__}", factory=lambda: copy.deepcopy(model), **described)
    name = getattr(model, "__name__", type(model).__name__)
    return ExternalModel(f"{PYTHON}:{name}", factory=model, **described)
