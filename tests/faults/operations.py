"""A fault at every file operation of a training: killed before, within and after it, EIO, ENOSPC; then taken up."""

import errno
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, resume, train
from tests.fixtures import rows_without_times

OPERATIONS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir", "ftruncate")
FAULTS = ("before", "within", "after", "EIO", "ENOSPC")
NETWORK = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)


def hook_operation(number: int, fault: str, count: Callable[[str], None] = lambda name: None) -> None:
    """Let the operation of this number fail from now on in this process; ``count`` is called with every operation.

    Reading is no operation: only files that are opened to be written count. Within anything but a write is after it.
    """
    left = [number]

    def hooked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return call(*args, **options)
            left[0] -= 1
            count(name)
            if left[0]:
                return call(*args, **options)
            if fault in ("EIO", "ENOSPC"):
                if name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                code = getattr(errno, fault)
                raise OSError(code, os.strerror(code))
            if fault == "within" and name == "write":
                call(args[0], bytes(args[1])[: len(args[1]) // 2])
            elif fault != "before":
                call(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return operation

    for name in OPERATIONS:
        setattr(os, name, hooked(name, getattr(os, name)))


def go_on(directory: Path) -> None:
    """What a user types: the training, or --resume where there is something to take up."""
    if (directory / "run.json").exists():
        resume(directory, quiet=True)
        return
    plan = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)])
    settings = TrainSettings(device="cpu", calibration_images=20, transfer="copy")
    data = {"num_train": 50, "num_test": 20}
    train(NETWORK, plan, "shapes", directory, settings=settings, data_options=data, quiet=True)


def in_child(directory: Path, number: int = 0, fault: str = "", pipe: int | None = None) -> int:
    """Go on in a child, with a fault in one operation; its exit status, which is negative for a signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            write = os.write
            if number or pipe is not None:
                hook_operation(number, fault, lambda name: pipe is not None and write(pipe, f"{name}\n".encode()))
            go_on(directory)
            status = 0
        except OSError as error:
            status = 2 if "\n" not in str(error) else 1
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(directory: Path) -> dict[str, Any]:
    """The bytes of the results of a run, and its metrics without times."""
    names = ("model.safetensors", "config.json")
    return {name: (directory / name).read_bytes() for name in names} | {"rows": rows_without_times(directory)}


def campaign(place: Path, every: int = 1, seed: int = 0) -> dict[str, Any]:
    """Every fault in every so many-th operation; then the training is taken up once.

    Returns:
        How many operations there are and trials were made, how many of those did not end as they must (killed, or with
        one line), could not be taken up, or gave another result.
    """
    started, counts = time.perf_counter(), Counter(trials=0, unclean=0, lost=0, different=0)
    reader, writer = os.pipe()
    in_child(place / "undisturbed", pipe=writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        names = stream.read().split()
    expected = outcome(place / "undisturbed")
    for number in range(1 + seed % every, len(names) + 1, every):
        for fault in FAULTS:
            directory = place / "run"
            status = in_child(directory, number, fault)
            counts["trials"] += 1
            # the removal of the lock and of old files at the end may fail, and nothing is lost
            counts["unclean"] += status not in ((-signal.SIGKILL,) if fault.islower() else (0, 2))
            if in_child(directory):
                counts["lost"] += 1
            else:
                counts["different"] += outcome(directory) != expected
            shutil.rmtree(directory, ignore_errors=True)
    seconds = round(time.perf_counter() - started, 1)
    return {"operations": len(names), **Counter(names), **counts, "seconds": seconds}
