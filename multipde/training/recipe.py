"""Recipes: settings of a training that belong together, by name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from multipde.training.level import Level

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "whiten": False,
        "learning_rate": 0.1,
        "alpha1": 2e-4,
        "alpha2": 2e-4,
        "box": 1.0,
    },
    "fast": {
        "optimizer": "muon",
        "label_smoothing": 0.1,
        "whiten": True,
        "alpha1": 0.0,
        "alpha2": 0.0,
    },
}
"""Values of `TrainSettings` and of `Level` by name; everything else has its default.

``fast``, the default: orthogonalised momentum with decay in place of the penalty, smoothed labels and a whitened
opening. ``paper``: stochastic gradient descent with momentum, without Nesterov's look-ahead, with the penalty and the
box of Ruthotto & Haber (2018), section 5."""


PLAIN: dict[str, Any] = {key: RECIPES["paper"][key] for key in RECIPES["fast"]} | {"recipe": None}
"""The values of the paper for all that ``fast`` sets: the defaults before there were recipes."""


def recipe_values(name: str | None) -> dict[str, Any]:
    """The values of a recipe, none for None; ValueError for an unknown name."""
    if name is not None and name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return {} if name is None else dict(RECIPES[name])


def level_values(name: str | None) -> dict[str, Any]:
    """The values of a recipe that belong to its levels; the others are those of `TrainSettings.of_recipe`."""
    known = {f.name for f in fields(Level)}
    return {key: value for key, value in recipe_values(name).items() if key in known}


def recipe_text(name: str, values: Mapping[str, Any]) -> str:
    """A line with the values of a recipe that are in force, i.e. are the ones of a training.

    >>> recipe_text("fast", {"optimizer": "adamw", "label_smoothing": 0.1, "whiten": True})
    'recipe fast: label_smoothing 0.1, whiten True'
    """
    shown = [f"{key} {value}" for key, value in recipe_values(name).items() if values.get(key) == value]
    return f"recipe {name}: {', '.join(shown) or 'all of its values are replaced'}"
