"""The convolutions that a conversion leaves alone: named by the user, or no stencils in space."""

import difflib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import Tensor, nn

from multipde.conversions.new_size import size_after
from multipde.mesh.reparametrize import (
    check_movable,
    composed_layers,
    skipped_layers,
    stencil_layers,
    stencil_parametrization,
)
from multipde.mesh.tracing import tell_unmoved, trace_meshes
from multipde.networks.input_size import can_resize, check_input_size
from multipde.networks.model_spec import example_images, find_spec

ASKED = "left out by skip"


def layers_to_leave(model: nn.Module, skip: str | Sequence[str], example: Tensor | None) -> tuple[tuple[str, str], ...]:
    """Pairs of name and reason for the stencils that a conversion of a model must leave alone.

    Plain layers are traced, see `trace_meshes`, through the example, or through an image of the model's description.
    Layers with a mesh size have been traced already.

    Args:
        skip: names of layers, of modules that contain them, or patterns such as ``"*.se.*"``.

    Raises:
        ValueError: a name of ``skip`` is that of no stencil.
    """
    layers, spec, reasons = stencil_layers(model), find_spec(model), {}
    if example is None and spec is not None and not spec.block_steps:  # PDE networks have nothing but stencils
        example = example_images(model, spec.in_channels, spec.image_sizes)
    is_known = all(stencil_parametrization(layer) or "left_alone" in vars(layer) for layer in layers.values())
    if layers and example is not None and not is_known:
        reasons = {n: found for n, found in trace_meshes(model, example).items() if isinstance(found, str)}
        tell_unmoved(reasons)
    reasons = {name: reason for name, reason in reasons.items() if name in layers}
    reasons |= dict.fromkeys(matching(skip, {**composed_layers(model), **layers}), ASKED)
    return tuple(reasons.items())


def matching(patterns: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that are asked for, themselves, by a part in front of a dot, or by a pattern; ValueError for none."""
    known, found = list(names), []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        chosen = [n for n in known if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not chosen:
            near = ", ".join(difflib.get_close_matches(pattern, known, 3, 0.3) or known[:3])
            raise ValueError(f"skip must name layers with stencils ({near}), got {pattern!r}")
        found += chosen
    return found


def mark(model: nn.Module, reasons: Iterable[tuple[str, str]]) -> None:
    """Note at the layers of a model that they are left alone, so that they no longer count as stencils."""
    for name, reason in reasons:
        model.get_submodule(name).left_alone = reason  # pyright: ignore[reportArgumentType]


@contextmanager
def marked(model: nn.Module, reasons: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Within the context these layers of a model do not count as stencils."""
    mark(model, reasons)
    try:
        yield
    finally:
        for name, _ in reasons:
            vars(model.get_submodule(name)).pop("left_alone", None)


def tell_left_alone(
    model: nn.Module, reasons: Iterable[tuple[str, str]], factor: float | Sequence[float], detail: int | None
) -> None:
    """Warn of the convolutions wider than one that a conversion does not move and that the user has not named.

    Raises:
        ValueError: nothing can be moved, or the network cannot take images of its new size.
    """
    spec = find_spec(model)
    if spec is not None and not spec.block_steps:  # a PDE network takes any multiple of its coarsening
        check_input_size(model, spec.on_mesh(size_after(spec, factor), detail))
    with marked(model, reasons):
        moved, left = {**composed_layers(model), **stencil_layers(model)}, skipped_layers(model)
        if not moved and can_resize(model):
            warnings.warn("no stencil moves; the network is resized by its own set_input_size", stacklevel=4)
            return
        check_movable(model, moved)
    left = {name: reason for name, reason in left.items() if reason not in ("1x1", ASKED)}
    if left:
        named = [f"{name} ({reason})" for name, reason in list(left.items())[:3]] + ["..."] * (len(left) > 3)
        warnings.warn(f"{len(moved)} convolutions move, {len(left)} stay as they are: {', '.join(named)}", stacklevel=4)
