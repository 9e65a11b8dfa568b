"""Layers that depend on the size of the images, such as fixed grids of positions and windows: resized, or refused."""

import inspect
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from multipde.mesh.modes import copied
from multipde.networks.model_spec import ModelSpec, example_images, find_spec

ERRORS = RuntimeError, TypeError, ValueError, AssertionError, IndexError, ArithmeticError
"""What networks raise for images of a size that they cannot take."""


def can_resize(model: nn.Module) -> bool:
    """Whether a network resizes layers that depend on the image size itself, by timm's ``set_input_size(img_size)``."""
    resize = getattr(model, "set_input_size", None)
    return callable(resize) and "img_size" in inspect.signature(resize).parameters


def set_input_size(model: nn.Module, sizes: Sequence[int], label: str) -> None:
    """Resize a network's position grids and windows in place for images of this size, where it can do so itself.

    Raises:
        ValueError: the network cannot have this size.
    """
    if can_resize(model):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about timm's own use of torch
                model.set_input_size(img_size=tuple(sizes))  # pyright: ignore[reportCallIssue]
        except ERRORS as error:
            raise ValueError(refused(f"{label} can take", sizes, error)) from None


def fit_input_size(model: nn.Module) -> None:
    """Do what `set_input_size` does for the images that the network's description names; without one nothing."""
    if (spec := find_spec(model)) is not None:
        set_input_size(model, spec.image_sizes, spec.label)


def check_input_size(model: nn.Module, spec: ModelSpec) -> None:
    """Raise ValueError unless a copy of the network, resized where it can be, takes images of the described size.

    It is run on the meta device, which computes only shapes, or where it is if that fails.
    """
    try:
        _run(copied(model, hooks=False, shapes_only=True), spec, torch.device("meta"))
    except ERRORS:
        parameter = next(model.parameters(), None)
        try:
            _run(copied(model, hooks=False), spec, torch.device("cpu") if parameter is None else parameter.device)
        except ERRORS as error:
            raise ValueError(refused(f"{spec.label} can take", spec.image_sizes, error)) from None


def _run(model: nn.Module, spec: ModelSpec, device: torch.device) -> None:
    set_input_size(model, spec.image_sizes, spec.label)
    with torch.no_grad():
        model.eval()(example_images(model, spec.in_channels, spec.image_sizes, device))


def refused(what: str, sizes: Sequence[int], error: Exception) -> str:
    """The line for a size that is refused, with what a size must be one of, and the reason."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    size = sizes[0] if len(set(sizes)) == 1 else tuple(sizes)
    return reason if reason.startswith("size must") else f"size must be one that {what}, got {size} ({reason})"
