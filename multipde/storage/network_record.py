"""The description of a network out of its record, which never imports anything."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from multipde.networks.config import NetworkConfig
from multipde.networks.external import PYTHON, ExternalModel, external_model, given_model
from multipde.networks.model_spec import ModelSpec
from multipde.storage.records import from_record

Given = nn.Module | Callable[..., nn.Module] | str | ModelSpec | None
"""A network that must be given again, because its record imports nothing: a module, a function that makes one, what
was typed after ``--arch``, or its description."""


def spec_from_record(record: Any, file: Path) -> Any:
    """The description of a network from its record, without any import; ValueError for a record that is invalid."""
    kind = ExternalModel if isinstance(record, dict) and "arch" in record else NetworkConfig
    return from_record(kind, record, file, "a network")


def given_again(spec: Any, model: Given) -> Any:
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
