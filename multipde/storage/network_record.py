"""Networks out of their records, which never import anything, and the weights beside them."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multipde.mesh.randomness import OwnRandomness
from multipde.networks.config import NetworkConfig
from multipde.networks.external import PYTHON, ExternalModel, external_model, given_model
from multipde.networks.model_spec import ModelSpec
from multipde.storage.records import brief, from_record
from multipde.storage.tensors import constants, read_tensors, stored_shapes

Given = nn.Module | Callable[..., nn.Module] | str | ModelSpec | None
"""A network that must be given again, because its record imports nothing: a module, a function that makes one, what
was typed after ``--arch``, or its description."""


def spec_from_record(record: Any, file: Path, model: Given = None) -> Any:
    """The description of a network from its record, without any import; it builds the network that is given, if any.

    ValueError for a record that is invalid, and for a network that is not the recorded one.
    """
    kind = ExternalModel if isinstance(record, dict) and "arch" in record else NetworkConfig
    return _given_again(from_record(kind, record, file, "a network"), model)


def filled(
    make: Callable[[], nn.Module],
    spec: Any,
    file: Path,
    record: Path,
    names: Callable[[Any], Mapping[str, str]] | None = None,
) -> Any:
    """The network that ``make`` builds, with the weights of a file; errors as in `load`.

    Args:
        spec: its description.
        record: the file with the description.
        names: for a network the names in the file by those in its state dict, if they differ.
    """
    wanted = f"{file} must hold the weights that {record.name} describes"
    if not spec.fits(num := len(stored_shapes(file))):
        raise ValueError(f"{wanted}, got {num} tensors")
    try:
        with OwnRandomness(), torch.device("meta"):  # shapes only
            outline = make()
            state = outline.state_dict()
            known = dict(zip(state, state, strict=True)) if names is None else names(outline)
    except (RuntimeError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{record} must describe a network that can be built, got {brief(error)}") from None
    free = {known[key] for key in constants(outline) & set(known)}
    tensors = read_tensors(file, {name: state[key].shape for key, name in known.items()}, any_value=free)
    with OwnRandomness():  # reading must not move the caller's random stream
        net = make()
    present = OrderedDict((key, tensors[name]) for key, name in known.items())
    present._metadata = net.state_dict()._metadata  # pyright: ignore  # versions of modules, which safetensors lacks
    try:
        net.load_state_dict(present)
    except RuntimeError as error:
        raise ValueError(f"{wanted}, got {brief(error)}") from None
    return net


def _given_again(spec: Any, model: Given) -> Any:
    """A recorded description that builds the network that was given; ValueError if it is not the recorded one."""
    is_description = hasattr(model, "record")
    if model is None or (is_description and not hasattr(spec, "factory")):
        return spec
    if not hasattr(spec, "factory"):
        raise ValueError(f"model must be left out for {spec.label}, which its record describes, got {type(model)}")
    given: Any = model if is_description else external_model(model) if isinstance(model, str) else given_model(model)  # pyright: ignore
    both_python = all(each.arch.startswith(f"{PYTHON}:") for each in (spec, given))  # only weights can be compared
    if not both_python and (spec.arch != given.arch or (given.arguments and spec.arguments != given.arguments)):
        wanted, got = (each.arch + (str(dict(each.arguments)) if each.arguments else "") for each in (spec, given))
        raise ValueError(f"model must be the one of the record, {wanted}, got {got}")
    return replace(spec, factory=given.factory)
