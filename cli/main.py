"""The command ``multipde``: parses, calls the library, and turns its errors into one line."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import tyro

from multipde.cli.bench import Bench
from multipde.cli.convert import Convert
from multipde.cli.evaluate import Evaluate
from multipde.cli.inspect import Inspect
from multipde.cli.predict import Predict
from multipde.cli.report import Report
from multipde.cli.reproduce import Reproduce
from multipde.cli.train import Train
from multipde.runtime.allocator import keep_freed_memory
from multipde.runtime.launch import num_launched
from multipde.runtime.signals import raising_on_signals

COMMANDS = {
    "train": Train,
    "convert": Convert,
    "evaluate": Evaluate,
    "predict": Predict,
    "inspect": Inspect,
    "report": Report,
    "reproduce": Reproduce,
    "bench": Bench,
}

DESCRIPTION = """Convolution stencils as differential operators: networks that move between image resolutions.

Start with `multipde train`: it trains coarse to fine on embedded data and needs no arguments."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 with one line on bad input, 128 and the signal when interrupted."""
    try:
        try:
            _run(list(sys.argv[1:] if args is None else args))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as in `multipde train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        from multipde import __version__

        print(f"multipde {__version__}")
        return
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="multipde", description=DESCRIPTION, args=arguments, sort_subcommands=False
    )
    keep_freed_memory()
    try:
        _check_alone(command)
        with raising_on_signals():
            command.run_command()
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", 128 + getattr(error, "signum", 2))
    except (RuntimeError, MemoryError) as error:
        if _is_lost(error):
            _fail("processes must all run until the end, got one that has ended", 2)
        if not _is_memory(error):
            raise
        _fail(f"memory must suffice, got: {str(error)[:200] or 'too little'}; type a smaller --batch or --sizes", 2)


def _check_alone(command: object) -> None:
    """Raise ValueError if torchrun has started several processes of a command that is made for one."""
    if num_launched() > 1 and not isinstance(command, Train):
        raise ValueError(f"processes must be one for all commands but train, got {num_launched()}; leave torchrun out")


def _is_lost(error: Exception) -> bool:
    return num_launched() > 1 and any(text in str(error) for text in ("gloo", "NCCL", "Connection closed"))


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in ("can't allocate", "out of memory"))


def _fail(message: str, status: int) -> NoReturn:
    """Print an error as one printable line, whatever an untrusted file has put into it, by one of the processes."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if num_launched() == 1 or is_first_to_report():
        print(f"multipde: {line}", file=sys.stderr)
    sys.exit(status)


def is_first_to_report() -> bool:
    from multipde.runtime.processes import is_first_to_report

    return is_first_to_report()
