"""The options beside ``--resume``: those that agree with the record of the run pass, the others are refused by name."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

OWN = ("run", "resume", "extend", "arch", "loss", "quiet", "json", "device", "root", "all_sizes", "finish_share")
"""Options that are not settings of the training, or may change when it is resumed."""


def typed_options(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The words after each option, by the name of the option in Python.

    >>> typed_options(["--sizes", "8", "16", "--amp=off", "--no-mixed"])
    {'sizes': ('8', '16'), 'amp': ('off',), 'no_mixed': ()}
    """
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            option, is_given, value = word[2:].partition("=")
            name = option.replace("-", "_")
            found[name] = (value,) if is_given else ()
        elif name:
            found[name] += (word,)
    return found


def check_options(words: Sequence[str], given: Any, run_dir: Path) -> None:
    """Raise ValueError for an option that does not agree with the record of a run, by its name and both values.

    An option agrees if it was typed in the same way when the run began, or if the record has its value.

    Args:
        words: the command as it was typed.
        given: the options as they were parsed.
    """
    from multipde.storage.run_directory import RECORD, read_run_record

    file = run_dir / RECORD
    if not file.exists():
        return  # the training says so
    record = read_run_record(run_dir)
    began: dict[str, tuple[str, ...]] = {}
    with suppress(ValueError):  # a record may hold any text
        began = typed_options(shlex.split(record.get("provenance", {}).get("command", "")))
    values = _recorded(record, file, given)
    for name, typed in typed_options(words).items():
        field = name if hasattr(given, name) else name.removeprefix("no_")
        if field in OWN or began.get(name) == typed:
            continue
        value = getattr(given, field)
        if field not in values or values[field] != _comparable(field, value, values[field]):
            plain = field.removeprefix("no_")
            was = f", {_text(values[plain])}" if plain in values else ""
            shown = f"--{name.replace('_', '-')}" + ("" if value is True or name != field else f" {_text(value)}")
            raise ValueError(f"{plain} must be that of the run{was}, got {shown}; leave it out")


def _recorded(record: Mapping[str, Any], file: Path, given: Any) -> dict[str, Any]:
    """The values of options that the record of a run has."""
    from multipde.training.plan import recorded_plan

    plan, settings, init = recorded_plan(record, file, given.arch)
    levels, options, spec = plan.levels, record.get("data_options") or {}, plan.configs()[0]
    values: dict[str, Any] = asdict(settings)
    values |= {name: getattr(spec, name) for name in ("dynamics", "memory", "standardize") if hasattr(spec, name)}
    values |= {"no_augment": settings.augment is False, "no_whiten": not settings.whiten}
    of_levels = ("epochs", "steps", "batch", "policy", "learning_rate", "warm_up")
    values |= {name: [getattr(level, name) for level in levels] for name in of_levels}
    values |= {"sizes": [level.label for level in levels], "mixed": any(level.mixed for level in levels)}
    values |= {"data": record.get("data"), "stream": options.get("stream_files"), "init": init}
    weights = record.get("weights") or {}
    values |= {"weights": weights.get("file"), "from_size": weights.get("from_size")}
    values |= {"shuffle_buffer": options.get("shuffle_buffer"), "test_share": options.get("test_share")}
    values |= {"skip_bad": options.get("skip_bad", False)}
    return values | ({"steps": "auto"} if settings.auto_steps else {})


def _comparable(name: str, value: Any, recorded: Any) -> Any:
    """The value of an option as the record has it, for a list with one entry per level."""
    if isinstance(value, Path):
        return str(value.resolve())
    if not isinstance(recorded, list):
        return value
    if value == "auto":
        return [None] * len(recorded)
    values = list(value) if isinstance(value, tuple) else [value]
    values = values * len(recorded) if len(values) == 1 else values
    return [str(each) for each in values] if name == "sizes" else values


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def tell_result(done: Any, given: Any) -> None:
    """Write the report of a finished run, and print its result if the options ask for JSON."""
    from multipde.reports.page import report_at_end
    from multipde.runtime.console import Log
    from multipde.runtime.launch import is_rank_zero_launched

    report_at_end(done.directory, Log(quiet=given.quiet or given.json), given.arch)
    if given.json and is_rank_zero_launched():
        Log(needed=True).json({"run": str(done.directory)} | dict(done.result))
