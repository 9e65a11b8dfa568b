"""Signals that request a training to stop after the present step, or to save a checkpoint and continue."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP = ("SIGINT", "SIGTERM", "SIGHUP")
SAVE = ("SIGUSR1",)

LATER = 0.05
"""Seconds after which a signal that was received during an import is received again."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal has stopped a training after saving a checkpoint; the message says how to resume it."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class PendingSignals:
    """Requests received so far: ``stop`` is the number of the signal to stop, 0 for none; ``save`` a checkpoint."""

    def __init__(self):
        self.stop, self.save = 0, False

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
def raising_on_signals() -> Iterator[None]:
    """Within the context signals raise an exception, so that the code inside can clean up.

    An import is finished first: an exception would leave a module half imported, or be taken for a missing package. A
    request to save a checkpoint has no effect, since there is none to be saved outside of a training.
    """
    noted: dict[int, threading.Timer] = {}

    def interrupt(signum: int, frame: FrameType | None = None) -> None:
        if _is_importing(frame):
            noted[signum] = threading.Timer(LATER, _raise_in_main_thread, (signum,))
            noted[signum].daemon = True
            noted[signum].start()
            return
        noted.clear()
        raise Interrupted("", signum)

    with _handled(SAVE, lambda signum, frame: None), _handled(STOP, interrupt):
        yield
        for signum, again in noted.items():
            again.cancel()
            raise Interrupted("", signum)


def _raise_in_main_thread(signum: int) -> None:
    """Raise a signal where it also ends a call that waits, which it does in the thread that receives it alone."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:
        signal.raise_signal(signum)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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
