"""The parameters of a network by name, pattern or group: its head, its body, or whatever a pattern matches."""

import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from multipde.conversions.optimizer_state import plain_parameters
from multipde.mesh.modes import copied
from multipde.mesh.randomness import OwnRandomness
from multipde.networks.model_spec import spec_of

HEAD, BODY = "head", "body"
"""The groups that every classifier has: the last layer, which gives the scores, and everything before it."""


def head_name(net: nn.Module) -> str:
    """The name of the last linear or convolutional layer that a network runs and that has one output per class.

    The network is run on the meta device, where nothing is computed. Of a network that cannot be run there, it is the
    last such layer in the order in which they were made. ValueError if there is none.
    """
    spec, probe, seen = spec_of(net), copied(net, hooks=False, shapes_only=True).eval(), []
    layers = {name: m for name, m in probe.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, own=name: seen.append(own))
    try:
        with torch.no_grad(), OwnRandomness():
            probe(torch.empty(2, spec.in_channels, *spec.image_sizes, device="meta"))
    except Exception:  # what a network of a user computes with may need numbers
        seen = list(layers)
    found = [name for name in seen if _num_outputs(layers[name]) == spec.classes]
    if not found:
        raise ValueError(f"{HEAD} must be a last layer with {spec.classes} outputs, got none in {spec.label}")
    return found[-1]


def _num_outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # pyright: ignore


def is_matched(name: str, pattern: str) -> bool:
    """Whether a pattern matches the name of a module or parameter, or that of a module around it.

    >>> [is_matched("layer1.0.conv.weight", pattern) for pattern in ("layer1", "layer?", "*.conv", "conv*")]
    [True, True, True, False]
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:k]), pattern) for k in range(1, len(parts) + 1))


def names_in(net: nn.Module, groups: Collection[str], option: str) -> dict[str, set[str]]:
    """The plain names of the parameters in each group: ``head``, ``body``, or a name or pattern.

    Raises:
        ValueError: a pattern matches nothing, which is told as one of the option; the line has the nearest names.
    """
    names, found = list(plain_parameters(net)), {}
    head = head_name(net) if {HEAD, BODY}.intersection(groups) else ""
    for group in groups:
        if group in (HEAD, BODY):
            own = {name for name in names if is_matched(name, head)}
            found[group] = own if group == HEAD else set(names) - own
            continue
        found[group] = {name for name in names if is_matched(name, group)}
        if not found[group]:
            known = dict.fromkeys(".".join(n.split(".")[:k]) for n in names for k in range(1, 1 + len(n.split("."))))
            near = ", ".join(difflib.get_close_matches(group, known, 3, 0.3) or list(known)[:3])
            raise ValueError(
                f"{option} must match parameters of {spec_of(net).label}, got {group!r}; "
                f"type {HEAD}, {BODY}, or a name or pattern such as {near}"
            )
    return found


def rate_factors(net: nn.Module, factors: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """The factor of the learning rate of every parameter that is in one of the groups with a factor.

    A pattern counts more than ``head`` and ``body``; of several patterns the last one counts.
    """
    known, found = names_in(net, factors, "rate"), {}
    parameters = plain_parameters(net)
    for group in sorted(factors, key=lambda each: each not in (HEAD, BODY)):  # sorting keeps the order of patterns
        found |= {parameters[name]: factors[group] for name in sorted(known[group])}
    return found


def split_groups(groups: list[dict[str, Any]], factors: Mapping[nn.Parameter, float]) -> list[dict[str, Any]]:
    """Groups of an optimizer, divided by the factor of their parameters, by which ``rate_factor`` is multiplied.

    Parameters that are not to be trained are left out.
    """
    found = []
    for group in groups:
        trained = [p for p in group["params"] if p.requires_grad]
        for factor in dict.fromkeys(factors.get(p, 1.0) for p in trained):
            own = [p for p in trained if factors.get(p, 1.0) == factor]
            found.append({**group, "params": own, "rate_factor": group["rate_factor"] * factor})
    return found
