"""Starting other Python processes, so that neither the working directory nor the user's script is run in them."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from multipde.runtime.signals import SAVE, STOP

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Environment in which Python imports nothing from the working directory, where a file may have a library's name."""


@contextmanager
def spawning(deaf: bool = False) -> Iterator[None]:
    """Within the context, processes that multiprocessing spawns import neither the working directory nor the script.

    A script without ``if __name__ == "__main__"`` would otherwise start itself again in each of them.

    Args:
        deaf: the processes do not receive signals, from their first instruction on; this process decides for them.
    """
    from multiprocessing import resource_tracker

    before, main = os.environ.get("PYTHONSAFEPATH"), sys.modules["__main__"]
    os.environ.update(SAFE_PATH)
    sys.modules["__main__"] = ModuleType("__main__")
    numbers = {getattr(signal, name) for name in (*STOP, *SAVE) if deaf and hasattr(signal, name)}
    try:
        if os.name == "posix":
            resource_tracker.ensure_running()  # it changes the mask of signals itself
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # which new processes inherit
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        sys.modules["__main__"] = main
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before
