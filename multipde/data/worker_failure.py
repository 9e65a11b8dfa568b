"""Why a process that decodes images has ended: one line for each cause, with its remedy."""

import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

SHARED = Path("/dev/shm")
WHO = "processes that decode images"

SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}
"""Numbers of signals by the descriptions that torch writes into its message."""


def failure_text(message: str, files: Sequence[str] = (), status: int | None = None) -> str | None:
    """The cause of an error of torch's data loader, or None if no process has ended.

    Args:
        message: text of the error.
        files: files that the process was decoding.
        status: its exit status, or minus the number of the signal that has ended it; None to take it from the message.
    """
    if found := re.search(r"unable to \w+ shared memory.*|unable to (mmap|resize).*|shm_open.*", message):
        return shared_memory_text(re.sub(r" *(for file )?</torch_\w+>", "", found[0]))
    if "DataLoader worker" not in message:
        return None
    if status is None:
        found = re.search(r"killed by signal: ([^.]*)\.|exit code (\d+)", message)
        status = -SIGNALS.get(found[1], 0) if found and found[1] else int(found[2]) if found else 0
    if files and status != -getattr(signal, "SIGKILL", 9):
        return f"image must not crash the process that decodes it, got {', '.join(files)}"
    if status == -getattr(signal, "SIGBUS", 0):
        return shared_memory_text("bus error")
    if status == -getattr(signal, "SIGKILL", 9):
        return (
            f"{WHO} must not be killed, got SIGKILL, as a system without free memory sends it; type a smaller --batch"
        )
    if status < 0:
        return f"{WHO} must run until the end, got one that {signal.Signals(-status).name} has ended; type --resume"
    return (
        f"{WHO} must run until the end, got exit status {status}; type --stream False to decode all images at the start"
    )


def shared_memory_text(reason: str) -> str:
    """The line for shared memory that is too small, or that cannot be written."""
    free = f" with {shutil.disk_usage(SHARED).free / 2**20:.0f} MiB free" if SHARED.is_dir() else ""
    return (
        f"shared memory must hold a few batches for each of the {WHO}, got {SHARED}{free} "
        f"({' '.join(reason.split())[:100]}); type --stream False, or docker run --shm-size 1g"
    )
