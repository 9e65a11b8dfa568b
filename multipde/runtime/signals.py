"""Signals that request a training to stop after the present step, or to save a checkpoint and continue."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOP = ("SIGINT", "SIGTERM", "SIGHUP")
SAVE = ("SIGUSR1",)


class Interrupted(KeyboardInterrupt):
    """Raised when a signal has stopped a training after saving a checkpoint; the message says how to resume it."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclass
class PendingSignals:
    """Requests received so far: ``stop`` is the number of the signal to stop, 0 for none; ``save`` a checkpoint."""

    stop: int = 0
    save: bool = False

    def receive(self, signum: int, frame: object = None) -> None:
        """Record a request; a second SIGINT raises KeyboardInterrupt at once."""
        if signal.Signals(signum).name in SAVE:
            self.save = True
        elif self.stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.stop = signum


@contextmanager
def pending_signals(names: tuple[str, ...] = (*STOP, *SAVE)) -> Iterator[PendingSignals]:
    """Record signals as requests within the context; ignored signals, and threads but the main one, do not change."""
    pending = PendingSignals()
    with _handled(names, pending.receive):
        yield pending


@contextmanager
def raising_on_signals(names: tuple[str, ...] = STOP[1:]) -> Iterator[None]:
    """Within the context signals raise an exception, as SIGINT does, so that the code inside can clean up."""

    def interrupt(signum: int, frame: object = None) -> None:
        raise Interrupted("", signum)

    with _handled(names, interrupt):
        yield


@contextmanager
def _handled(names: tuple[str, ...], handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in names:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) != signal.SIG_IGN:
                before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
