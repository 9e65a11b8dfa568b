"""Networks that multipde does not define: from torchvision, timm or an import path, or modules given in Python."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import nn

from multipde.mesh.modes import copied, unwrapped
from multipde.mesh.reparametrize import detail_of, stencil_layers, stored_stencils
from multipde.networks import architectures
from multipde.networks.cost import num_weights
from multipde.networks.detail import set_detail
from multipde.networks.input_size import set_input_size
from multipde.networks.model_spec import Model, ModelSpec, check_data_fields, find_spec, reparametrize_for
from multipde.networks.regularization import WeightDecay

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation by which torchvision's classifiers normalise their images."""

FORBIDDEN = ("weights", "pretrained", "checkpoint", "cache", "path", "url", "hub")
"""An argument whose name contains one of these could make a library read or download files."""

LIBRARIES = ("torchvision", "timm")
PYTHON = "python"


ARGUMENT_ERRORS = TypeError, ValueError, RuntimeError, AssertionError, ImportError, ArithmeticError, LookupError
"""What functions that make a network raise for arguments that they do not accept."""


@dataclass(frozen=True)
class ExternalModel(ModelSpec):
    """The description of any classifier as plain data, see `ModelSpec`; `external_model` and `describe` make it.

    Args:
        arch: ``"torchvision:NAME"``, ``"timm:NAME"``, ``"package.module:function"``, or ``"python:CLASS"`` for a module
            given in Python.
        arguments: keyword arguments of the function that makes the network, as pairs of name and value.
        classes: number of classes, the length of the output for one image.
        in_channels: number of channels of the images.
        size: side of the mesh in pixels, that of the images / detail; one number or one per axis.
        dim: number of axes of the images, 1 to 3.
        reference: size to whose mesh the stored stencils belong; None for plain convolutions.
        class_names, mean, std, standardize, detail: as in `NetworkConfig`.
        factory: function that makes the network; not in the record, because reading a record never imports anything.

    Raises:
        ValueError: a value is outside its range.
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
    detail: int = 1
    factory: Callable[..., nn.Module] | None = field(default=None, repr=False)
    block_steps = ()
    size_multiple = 1  # which sizes the network can take is known only when it is run
    has_step_bounds = has_energy = False

    def __post_init__(self):
        super().__post_init__()
        if self.dim not in (1, 2, 3):
            raise ValueError(f"dim must be one of 1, 2, 3, got {self.dim}")
        if min(*self.sizes, *self.references) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in self.arguments):
            raise ValueError(f"arguments must be pairs of name and value, got {self.arguments}")
        try:
            hash(self.arguments)
        except TypeError:
            raise ValueError(f"arguments must be constants such as 2 or (1, 2), got {self.arguments}") from None
        for name, _ in self.arguments if self.arch.partition(":")[0] in LIBRARIES else ():
            if any(part in name for part in FORBIDDEN):
                raise ValueError(f"arguments must not name files or weights, got {name}; type --weights FILE")
        check_data_fields(self)

    @property
    def label(self) -> str:
        return self.arch.rpartition(":")[2]

    def build(self) -> nn.Module:
        """Make the network; a module that was given in Python is copied with its weights.

        Layers that depend on the image size are resized by timm's ``set_input_size``, where the network has it.
        """
        net = self._made()
        set_input_size(net, self.image_sizes, self.label)
        self.put_on_mesh(net)
        net.multipde_spec = self  # pyright: ignore[reportArgumentType]
        set_detail(net, self.detail)
        return net

    def put_on_mesh(self, net: nn.Module) -> None:
        """Give the stencils their mesh sizes; without a reference the convolutions stay as they are."""
        if self.reference is None:
            return
        for p in stored_stencils(net).values():  # of a module that was given in Python
            p.move([1 / s for s in self.sizes], [1 / r for r in self.references])
        if not stored_stencils(net):
            reparametrize_for(net, self, self.references)

    def with_steps(self, steps: int | tuple[int, ...]) -> Self:
        """Raise ValueError for any number of steps, since the network has no time steps."""
        if steps == ():
            return self
        raise ValueError(f"steps must be left out for {self.label}, which has no time steps, got {steps}")

    def penalty(self, net: nn.Module, alpha1: float, alpha2: float) -> WeightDecay:
        """Weight decay; alpha1 has no effect, since there are no controls that vary in time."""
        return WeightDecay(alpha2, net)

    def parts(self, net: nn.Module) -> dict[str, nn.Module]:
        return dict(net.named_children())

    def summary(self, net: nn.Module) -> str:
        size, num_stencils = "x".join(str(s) for s in self.image_sizes), len(stencil_layers(net))
        return (
            f"{self.label}, {self.in_channels} channels of {size} pixels to {self.classes} classes, "
            f"{num_weights(net):,} weights, {num_stencils} layers with stencils"
        )

    @property
    def import_path(self) -> str:
        """What was typed after ``--arch`` for a network from an import path; empty for any other."""
        if self.arch.partition(":")[0] in (*LIBRARIES, PYTHON):
            return ""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"{self.arch}({arguments})" if arguments else self.arch

    def record(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "factory"}

    def call(self) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
        """The function that makes the network, and its keyword arguments."""
        kind, _, name = self.arch.partition(":")
        arguments = dict(self.arguments)
        if self.factory is not None:
            accepted = architectures.parameters_of(self.factory)
            offered = {"num_classes": self.classes, "in_channels": self.in_channels, "in_chans": self.in_channels}
            return self.factory, {k: v for k, v in offered.items() if k in accepted} | arguments
        if kind == "torchvision":
            return architectures.torchvision_factory(name), {"num_classes": self.classes} | arguments
        if kind == "timm":
            arguments = {"num_classes": self.classes, "in_chans": self.in_channels} | arguments
            return architectures.timm_factory(name), arguments
        how = "pass model= in Python" if kind == PYTHON else f"type --arch {self.arch}, or pass model= in Python"
        raise ValueError(f"network must be given again, got a record of one that was made by {self.arch}; {how}")

    def _made(self) -> nn.Module:
        kind = self.arch.partition(":")[0]
        make, arguments = self.call()
        try:
            # a function of the working directory may import what is beside it when it is called
            with nullcontext() if kind in ("torchvision", "timm", PYTHON) else architectures.working_directory_first():
                net = make(**arguments)
        except ARGUMENT_ERRORS as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"arch must have arguments that it accepts, got {self.arch} ({reason})") from None
        if not isinstance(net, nn.Module):
            raise ValueError(f"arch must name a function that returns an nn.Module, got {type(net).__name__}")
        return net


def external_model(arch: str, **described: Any) -> ExternalModel:
    """Describe a classifier by its name; ``build()`` of the result makes it with random weights.

    Args:
        arch: a classifier of torchvision (``resnet18``, ``torchvision:resnet18``), one of timm (``timm:resnet50d``), or
            an import path ``package.module:function``, which is looked up in the working directory first. Keyword
            arguments may follow in parentheses: ``"resnet18(zero_init_residual=True)"``.
        described: other fields of `ExternalModel`.

    Raises:
        ValueError: the library has no such name, or the module or function cannot be imported.
    """
    found = re.fullmatch(r"\s*([\w.\-:]+)\s*(\(.*\))?\s*", arch, re.DOTALL)
    if not found:
        raise ValueError(f"arch must be NAME, timm:NAME or package.module:function, got {arch!r}")
    name, arguments = found[1], architectures.parsed_arguments(found[2] or "()", arch)
    if ":" not in name:
        name = f"torchvision:{name}"
    kind, _, rest = name.partition(":")
    if kind in LIBRARIES:
        (architectures.torchvision_factory if kind == "torchvision" else architectures.timm_factory)(rest)
        return ExternalModel(name, arguments, **described)
    return ExternalModel(name, arguments, factory=architectures.imported_object(name, "arch"), **described)


def describe(model: Model, *, size: int | tuple[int, ...], classes: int, **described: Any) -> Model:
    """Copy a classifier and attach its description, an `ExternalModel`, so that `save` and `convert` can be used on it.

    Args:
        model: any classifier; of a compiled one, or one on several devices, the network inside is copied. If it carries
            a description already, the copy keeps that one.
        size: side in pixels of the mesh for which the classifier was trained, that of the images at detail 1.
        classes: number of classes.
        described: other fields of `ExternalModel`: in_channels, class_names, mean, std, ...
    """
    net: Any = copied(unwrapped(model))
    if find_spec(net) is None:
        net.multipde_spec = given_model(net, size=size, classes=classes, **described)  # pyright: ignore
    return net


class _Copies:
    """A function that returns copies of a module, and can be pickled; the descriptions of all copies share it."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self) -> nn.Module:
        return copied(self.module)

    def __deepcopy__(self, memo: Any) -> "_Copies":
        return self


def given_model(model: nn.Module | Callable[..., nn.Module], **described: Any) -> ExternalModel:
    """The description of a module, of which `ExternalModel.build` returns copies, or of a function that makes one."""
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        found = list(stored_stencils(model).values())
        own: dict[str, Any] = {"detail": detail_of(model)} | ({"dim": len(found[0].width)} if found else {})
        spec = ExternalModel(f"{PYTHON}:{type(model).__name__}", factory=_Copies(model), **own | described)
        is_own = all(p.reference == p.mesh_size for p in found)
        return spec if is_own or spec.reference is not None else spec.with_reference(found[0].reference)
    return ExternalModel(f"{PYTHON}:{getattr(model, '__name__', type(model).__name__)}", factory=model, **described)
