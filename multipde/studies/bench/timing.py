"""Measurement of time, alternately for several computations, and of peak memory."""

import statistics
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multipde.networks.network import PDENet
from multipde.runtime.device import Compute
from multipde.training.settings import TrainSettings
from multipde.training.step import TrainStep

Name = TypeVar("Name", bound=Hashable)


def alternated(
    calls: Mapping[Name, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    turn_seconds: float = 0.0,
    clock: Callable[[], float] | None = None,
) -> dict[Name, float]:
    """The median time of each call in seconds; they are called alternately, so that a slow moment affects them all.

    Args:
        repeats: number of turns of every call, after one to warm up.
        turn_seconds: shortest duration of a turn; of several calls in it the first, with cold caches, does not count.
        clock: what gives the time in seconds; that of the wall if left out.
    """
    for _ in range(2):
        for call in calls.values():
            call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found = [_seconds(call, device, clock)]
            while sum(found) < turn_seconds:
                found.append(_seconds(call, device, clock))
            seconds[name] += found[1:] or found
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(call: Callable[[], Any], device: torch.device, clock: Callable[[], float] | None) -> float:
    started = _now(device, clock)
    call()
    return _now(device, clock) - started


def _now(device: torch.device, clock: Callable[[], float] | None = None) -> float:
    """The time in seconds at which the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock or time.perf_counter)()


def random_images(num: int, channels: int, size: int, device: torch.device) -> Tensor:
    """Random images or features in the memory layout of a training; this sets torch's seed to 0."""
    torch.manual_seed(0)
    return torch.randn(num, channels, size, size, device=device).contiguous(memory_format=torch.channels_last)


def matrix_product(compute: Compute) -> Callable[[], Tensor]:
    """A call whose rate is about the highest that the device reaches in this precision: a product of large matrices."""
    num = 1024 if compute.device.type == "cpu" else 8192
    torch.manual_seed(0)
    a = torch.randn(num, num, device=compute.device)
    with compute.autocast():
        a = a.to((a[:1] @ a).dtype)
    return lambda: a @ a


def flops_of(call: Callable[[], Any]) -> int:
    """The floating point operations of a call, counted while it is called once."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def step_of(
    net: PDENet,
    x: Tensor,
    compute: Compute,
    compile: bool = False,
    optimizer: str = "sgd",
    clock: list[float] | None = None,
) -> Callable[[], Any]:
    """A call that does a training step of a network on the images.

    Args:
        clock: a list to which each call appends the seconds of its optimizer.
    """
    labels = torch.arange(len(x), device=x.device) % net.config.classes
    recipe = "paper" if optimizer == "sgd" else "fast"
    settings = TrainSettings.of_recipe(recipe, compile=compile, optimizer=optimizer)
    step = TrainStep(net, settings, compute)
    if clock is not None:
        step.optimizer.register_step_pre_hook(lambda *_: clock.append(-_now(x.device)))
        step.optimizer.register_step_post_hook(lambda *_: clock.append(clock.pop() + _now(x.device)))
    return lambda: step(x, labels, 0.01)


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes that the tensors made inside the context occupy at the same time.

    Storages of tensors are counted, but not the scratch space of kernels, so the number means the same on every device.

    Args:
        without: tensors that do not count.
        least_bytes: smaller storages do not count either.
    """

    def __init__(self, without: Collection[Tensor] = (), least_bytes: int = 0):
        super().__init__()
        self.peak, self.least_bytes = 0, least_bytes
        self._known = {t.untyped_storage().data_ptr() for t in without}
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def present(self) -> int:
        """The bytes that are alive now, without storages that have been emptied since they were made."""
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
