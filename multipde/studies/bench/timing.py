"""Rivals timed side by side, and the memory that a computation holds at its peak."""

import statistics
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multipde.storage.files import writing
from multipde.storage.provenance import machine, versions
from multipde.storage.rows import append_row

Name = TypeVar("Name", bound=Hashable)


def alternated(
    calls: Mapping[Name, Callable[[], Any]], repeats: int, device: torch.device, turn_seconds: float = 0.0
) -> dict[Name, float]:
    """Median seconds of each call, all of them called in turn so that a slow moment of the machine meets them all.

    Every call is made twice before, to warm up.

    Args:
        repeats: turns of every call.
        turn_seconds: how long a turn goes on at least. Where it is more than one call the first does not count, which
            finds the rival's numbers in the processor's caches.
    """
    for _ in range(2):
        for call in calls.values():
            call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found = [_seconds(call, device)]
            while sum(found) < turn_seconds:
                found.append(_seconds(call, device))
            seconds[name] += found[1:] or found
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors that are alive at the same time, at most, of those made inside.

    What counts is the storages of tensors; the scratch space of kernels is not seen. So it means the same on every
    device.

    Args:
        without: tensors that do not count.
        least_bytes: smaller storages do not count either.
    """

    def __init__(self, without: Collection[Tensor] = (), least_bytes: int = 0):
        super().__init__()
        self.peak = 0
        self.least_bytes = least_bytes
        self._known = {t.untyped_storage().data_ptr() for t in without}
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def present(self) -> int:
        """Bytes alive now; a storage may have been emptied since it was made."""
        return sum(storage.nbytes() for storage in self._alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known and storage.nbytes() >= self.least_bytes:
                    self._alive.add(storage)
        self.peak = max(self.peak, self.present)
        return result


def recorded(row: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """A row of measurements with the machine and the versions that gave it, appended to a file unless that is None."""
    whole = {**row, "machine": machine(), "versions": versions()}
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        append_row(out, whole)
    return whole
