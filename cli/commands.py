"""The commands by name, and their parser."""

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from multipde.cli.bench import STUDIES, Bench
from multipde.cli.compare import Compare
from multipde.cli.completion import Completion
from multipde.cli.convert import Convert
from multipde.cli.evaluate import Evaluate
from multipde.cli.export import Export
from multipde.cli.inspect import Inspect
from multipde.cli.list import List
from multipde.cli.predict import Predict
from multipde.cli.report import Report
from multipde.cli.reproduce import Reproduce
from multipde.cli.resume import typed_options
from multipde.cli.runs import Runs
from multipde.cli.shard import Shard
from multipde.cli.train import Train
from multipde.runtime.allocator import keep_freed_memory
from multipde.runtime.console import Log
from multipde.runtime.launch import num_launched

COMMANDS = {
    "train": Train,
    "convert": Convert,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "inspect": Inspect,
    "report": Report,
    "reproduce": Reproduce,
    "bench": Bench,
    "runs": Runs,
    "compare": Compare,
    "shard": Shard,
    "list": List,
    "completion": Completion,
}

DESCRIPTION = """Convolution stencils as differential operators: networks that move between image resolutions.

Start with `multipde train`: it trains coarse to fine on embedded data and needs no arguments. `multipde --version`
shows the versions of multipde and torch and the device.

Exit status: 0 when all is done; 2 for wrong input, or where memory or a file system does not suffice, with one line
that says what to type; 128 + N when signal N has ended the command (130: Ctrl-C, 143: SIGTERM); 1 with a traceback for
an error of multipde itself."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and run their command."""
    if list(arguments) == ["--version"]:
        _tell_version()
        return
    with contextlib.redirect_stdout(sys.stdout or io.StringIO()):  # a parser needs a place for its help
        command = _parsed(arguments)
    if num_launched() > 1 and not isinstance(command, Train):
        raise ValueError(f"processes must be one for all commands but train, got {num_launched()}; leave torchrun out")
    keep_freed_memory()
    if isinstance(command, Train):
        command.run_command(arguments[1:])
    elif isinstance(command, Completion):
        command.run_command(COMMANDS)
    else:
        command.run_command()


def _parsed(arguments: Sequence[str]) -> Any:
    """The command with its options; ValueError for an unknown name, which names the nearest one."""
    name, *others = arguments or [""]
    if name not in COMMANDS:
        if name and not name.startswith("-"):
            _check_name("command", name, COMMANDS, "multipde")
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="multipde", description=DESCRIPTION, args=arguments, sort_subcommands=False
        )
    prog, kind = f"multipde {name}", COMMANDS[name]
    if kind is Bench and others and not others[0].startswith("-"):
        _check_name("study", others[0], STUDIES, prog)
        kind, prog = STUDIES[others[0]], f"{prog} {others[0]}"
    own = [entry.name for entry in fields(kind)]
    own += [f"no_{entry.name}" for entry in fields(kind) if isinstance(entry.default, bool)]
    known = ["--help", *(f"--{option.replace('_', '-')}" for option in own)]
    for typed in [word.partition("=")[0] for word in others if word.startswith("--")]:
        _check_name("option", typed, known, prog, f"those of {prog}")
    command = tyro.cli(COMMANDS[name], prog=f"multipde {name}", args=others)
    _check_lists(command.study if isinstance(command, Bench) else command, others)
    return _with_home(command)


def _with_home(options: Any) -> Any:
    """The options with ``~`` expanded in all paths, which a shell does not do in ``--run=~/runs/1``."""

    def expanded(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.expanduser(value))
        if isinstance(value, tuple):
            return tuple(map(expanded, value))
        return _with_home(value) if is_dataclass(value) else value

    found = {entry.name: getattr(options, entry.name) for entry in fields(options) if entry.init}
    changed = {name: new for name, value in found.items() if (new := expanded(value)) != value}
    return replace(options, **changed) if changed else options


def _check_lists(options: Any, words: Sequence[str]) -> None:
    """Raise ValueError for an option that takes a list and was typed without a value."""
    for name, values in typed_options(words).items():
        if not values and getattr(options, name, None) == ():
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{name} must name at least one, got none; type {option} VALUE or leave {option} out")


def _check_name(what: str, name: str, known: Collection[str], prog: str, names: str = "") -> None:
    """Raise ValueError for a name that is not known, with the nearest of them; ``names`` is said in place of all."""
    if name in known or name.replace("_", "-") in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {near[0]}?" if near else f"type {prog} --help"
    raise ValueError(f"{what} must be one of {names or ', '.join(known)}, got {name!r}; {advice}")


def _tell_version() -> None:
    """Print the versions, and the device that ``--device auto`` takes."""
    from multipde import __version__

    log = Log(needed=True)
    log.say(f"multipde {__version__}")
    import torch

    from multipde.runtime.device import choose_device

    device = choose_device("auto")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    log.say(f"Python {sys.version.split()[0]}, torch {torch.__version__}, device {device}{name}")
