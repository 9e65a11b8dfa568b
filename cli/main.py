"""The command ``multipde``: calls the command and turns errors of the library into one line.

What a command needs is imported inside `main`, where a signal ends the program properly, and Ctrl-C is one.
"""

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from multipde.runtime.launch import num_launched
from multipde.runtime.signals import raising_on_signals


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 with one line on bad input, 128 and the signal when interrupted."""
    # 1x1 stencils have two equal memory layouts, and kernels differ in which one their gradients have
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        with raising_on_signals(), warnings.catch_warnings():
            _open_standard_files()
            _check_working_directory()
            from multipde.cli.commands import run
            from multipde.runtime.console import StandardOutput, complain

            warnings.showwarning = lambda message, *where, **more: complain(f"note: {message}")
            run(sys.argv[1:] if args is None else args)
            if (error := _flush()) and not StandardOutput.is_lost:
                raise error
    except BrokenPipeError:  # the reader has closed the pipe, as in `multipde train --help | head`
        _flush()
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", 128 + getattr(error, "signum", 2))
    except (RuntimeError, MemoryError, ImportError) as error:
        from multipde.data.worker_failure import failure_text

        if line := _lost_text(str(error)) or failure_text(str(error)):
            _fail(line, 2)
        if not _is_memory(error):
            raise
        _fail(f"memory must suffice, got: {str(error)[:200] or 'too little'}; type a smaller --batch or --sizes", 2)


def _open_standard_files() -> None:
    """Open what was closed as the null device, or else the next file that is opened takes its number; and let
    characters that the console lacks become escape sequences."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check_working_directory() -> None:
    """Raise OSError in a directory that has been removed, in which torch's libraries end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OSError("working directory must exist, got one that has been removed; cd to another") from None


def _flush() -> OSError | None:
    """Flush standard output; where that fails, let Python's own flush at the exit succeed, and return the error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # pyright: ignore[reportOptionalMemberAccess]
        return error
    return None


def _lost_text(error: str) -> str:
    """The line for processes that have lost each other; none for another error."""
    if num_launched() == 1 or not any(text in error for text in ("gloo", "NCCL", "Connection closed")):
        return ""
    if any(text in error for text in ("Connection closed", "reset by peer", "Broken pipe")):
        from multipde.runtime.fresh_store import LOST

        return LOST
    return f"processes must reach each other, got: {' '.join(error.split())[:300]}"


def _is_memory(error: Exception) -> bool:
    texts = ("can't allocate", "cannot allocate", "out of memory", "failed to map segment", "can't start new thread")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def _fail(message: str, status: int) -> NoReturn:
    """Print an error as one printable line, whatever an untrusted file has put into it, by one of the processes."""
    from multipde.runtime.console import complain

    if num_launched() == 1 or _is_first_to_report():
        complain(message)
    _flush()
    sys.exit(status)


def _is_first_to_report() -> bool:
    from multipde.runtime.processes import is_first_to_report

    return is_first_to_report()
