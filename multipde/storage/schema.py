"""The schema of every record: the types and bounds of its entries, checked before anything is built from it.

A schema is a function of a value and its name, which raises ValueError where the value does not fit.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from multipde.networks.limits import DEPTH, ENTRIES, EPOCHS, LEVELS, SIDE, STEPS, TEXT, WHOLE

Schema = Callable[[Any, str], None]

FORMAT = 2
"""Format number of the records that are written; older ones are read too. From 2 on there are always checksums."""


def check_plain(value: Any, name: str = "record") -> None:
    """Raise ValueError for JSON that is nested too deeply or has too many, too long or too large values."""
    left, count = [(value, 0)], 0
    while left:
        node, depth = left.pop()
        count += 1
        if depth > DEPTH or count > ENTRIES:
            raise ValueError(f"{name} must have at most {ENTRIES:,} values, nested {DEPTH} times, got more")
        if isinstance(node, dict):
            left += [(key, depth) for key in node] + [(inner, depth + 1) for inner in node.values()]
        elif isinstance(node, list):
            left += [(inner, depth + 1) for inner in node]
        elif isinstance(node, str) and len(node) > TEXT:
            raise ValueError(f"{name} must have texts of at most {TEXT:,} characters, got {len(node):,}")
        elif isinstance(node, int) and abs(node) > WHOLE:
            raise ValueError(f"{name} must have whole numbers below 2^63, got one of {node.bit_length()} bits")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(low: float = -math.inf, high: float = math.inf) -> Schema:
    """A finite number between two bounds."""

    def check(value: Any, name: str) -> None:
        if not (_is_number(value) and math.isfinite(value) and low <= value <= high):
            between = "" if math.isinf(low) else f" from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
            raise ValueError(f"{name} must be a number{between}, got {_shown(value)}")

    return check


def whole(low: int = 0, high: int = WHOLE) -> Schema:
    """A whole number between two bounds."""

    def check(value: Any, name: str) -> None:
        if not (_is_number(value) and isinstance(value, int) and low <= value <= high):
            raise ValueError(f"{name} must be a whole number from {low} to {high}, got {_shown(value)}")

    return check


def of_type(kind: type, what: str) -> Schema:
    """Any value of a type, which `check_plain` has bounded."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {what}, got {_shown(value)}")

    return check


def optional(schema: Schema) -> Schema:
    """Null, or a value that fits."""
    return lambda value, name: None if value is None else schema(value, name)


def items(schema: Schema, most: int, least: int = 0) -> Schema:
    """A list whose values fit."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError(f"{name} must be a list of {least} to {most} values, got {_shown(value)}")
        for i, each in enumerate(value):
            schema(each, f"{name}[{i}]")

    return check


def entries(needed: Mapping[str, Schema], more: Mapping[str, Schema] | None = None) -> Schema:
    """A record with certain entries, and perhaps others; entries of other versions are passed over."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a record, got {_shown(value)}")
        for key, schema in {**needed, **(more or {})}.items():
            if key in value:
                schema(value[key], key)
            elif key in needed:
                raise ValueError(f"{name} must have the entry {key}, got none")

    return check


def _shown(value: Any) -> str:
    return "".join(c if c.isprintable() else "?" for c in repr(value)[:60])


text, plain = of_type(str, "a text"), of_type(dict, "a record")
share = number(0, 1)
side = whole(1, SIDE)
steps = items(whole(1, STEPS), 64)


def nan_or_number(value: Any, name: str) -> None:
    """A number, or NaN where none could be measured."""
    if not _is_number(value):
        raise ValueError(f"{name} must be a number, got {_shown(value)}")


def texts(value: Any, name: str) -> None:
    """A record of texts, numbers and nulls."""
    plain(value, name)
    for key, each in value.items():
        if not isinstance(each, str | int | float | None):
            raise ValueError(f"{key} must be a text or a number, got {_shown(each)}")


FORMATS = {"format": whole(1, FORMAT)}

PLACE = {"level": whole(0, LEVELS), "size": side, "steps": steps}
SPENT = {"total_seconds": number(0), "total_flops": number(1)}

ROW = entries(
    {"size": side, "epoch": whole(1), **SPENT, "train_loss": number(), "train_accuracy": share}
    | {"validation_loss": number(), "validation_accuracy": share},
    {**PLACE, "image_size": side, "validation_metric": nan_or_number, "seconds": number(0)}
    | {"images_per_second": number(0)},
)
"""A row of metrics.jsonl."""

LEVEL = entries(
    {**PLACE, **SPENT, "epochs": number(0, EPOCHS[1]), "validation_accuracy": number(-1)},
    {"image_size": side, "validation_metric": number()},
)
ACCURACIES = dict.fromkeys(("accuracy_before", "accuracy_moved", "accuracy_recalibrated"), number())
MOVE = entries(
    {"from": side, "to": side, **ACCURACIES},
    {**dict.fromkeys(("metric_before", "metric_moved", "metric_recalibrated"), nan_or_number)}
    | {"images": items(side, 2, 2), "method": text, "exponents": optional(plain), "steps": steps}
    | {"step_ratios": items(number(0), 64), "stable_steps": items(whole(0), 64)}
    | {"block_scales": optional(items(number(0), 64))},
)
ROLLBACK = entries({"error": text, "learning_rate": number(0)})
HISTORY = {"levels": items(LEVEL, LEVELS), "moves": items(MOVE, LEVELS)}
ROLLBACKS = {"rollbacks": items(ROLLBACK, 10)}

RESULT = entries(
    {**FORMATS, **HISTORY, "test_accuracy": share, "test_loss": number(), "seconds": number(0), "flops": number(1)},
    {**ROLLBACKS, "test_metric": number()},
)
"""result.json"""

STATE = entries(
    {**HISTORY, "index": whole(0, LEVELS), "checkpoints": whole(0, 10**9), "rows": whole(), "flops": number(0)}
    | dict.fromkeys(("epoch", "batch", "num_images", "num_correct"), whole())
    | dict.fromkeys(("seconds", "epoch_seconds"), number(0))
    | {"loss_sum": number(), "best_accuracy": optional(number()), "pace": plain},
    {**ROLLBACKS, "rate_scale": number(0, 1), "written": texts, "kept_accuracy": optional(number())},
)
CHECKPOINT = entries({**FORMATS, "state": STATE})
"""trainer.json"""


def level_plan(value: Any, name: str) -> None:
    """The record of a planned level, of which the size and the detail are also read as they stand."""
    plain(value, name)
    whole(1)(value.get("size"), f"{name}.size")
    whole(1)(value.get("detail", 1), f"{name}.detail")


PROVENANCE = entries({}, {"command": text, "versions": texts, "machine": texts, "data": texts})
RUN = entries(
    {**FORMATS, "network": plain, "levels": items(level_plan, LEVELS, 1), "settings": plain, "num_train": whole(1)},
    {"data": optional(text), "data_options": plain, "init": optional(text), "objective": texts}
    | {"weights": optional(entries({"file": text, "digest": text}, {"from_size": optional(side)}))}
    | {"provenance": PROVENANCE},
)
"""run.json, whose network, levels and settings are then made into dataclasses, with their own bounds"""

NETWORK = entries({**FORMATS, "network": plain})
"""config.json"""

SEVERAL = entries({**FORMATS, "network": plain, "sizes": items(side, LEVELS, 1)})
"""sizes.json, whose network is that of the largest size"""
