"""Functions that make networks, found by name: in torchvision, in timm, or by an import path."""

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from multipde.networks.model_spec import as_tuple


def parameters_of(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def parsed_arguments(text: str, arch: str, option: str = "arch") -> tuple[tuple[str, Any], ...]:
    """Pairs of name and value of keyword arguments that are written as constants in parentheses."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return tuple((str(k.arg), as_tuple(ast.literal_eval(k.value))) for k in call.keywords)
    except (ValueError, SyntaxError):
        raise ValueError(f"{option} must have arguments such as (width=2), got {arch!r}") from None


def torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or "resnet18, vgg11, ..."
        raise ValueError(f"arch must be a classifier of torchvision ({near}), got {name!r}")
    return lambda **arguments: models.get_model(name, weights=None, **arguments)


def timm_factory(name: str) -> Callable[..., nn.Module]:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"timm must be installed for --arch timm:{name}; type pip install timm") from None
    known = timm.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or "resnet50d, convnext_tiny, ..."
        raise ValueError(f"arch must be a network of timm ({near}), got {name!r}")
    return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)


@contextmanager
def working_directory_first() -> Iterator[None]:
    """Modules of the working directory are found first, as with ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def imported_object(path: str, option: str) -> Callable[..., Any]:
    """The function or class at an import path, for which the working directory is searched first.

    ValueError, which names the option, for anything else.
    """
    module, _, name = path.partition(":")
    try:
        with working_directory_first():
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
    except Exception as error:  # the imported module can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{option} must name a function that can be imported, got {path!r} ({reason})") from None
    if not callable(found):
        raise ValueError(f"{option} must name a function, got {path!r}, a {type(found).__name__}")
    return found
