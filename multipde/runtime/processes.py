"""The processes that torchrun has started for one training: ranks, communication, and work that rank zero does alone.

A single process has rank zero, and nothing is communicated.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multipde.runtime.fresh_store import connected, fresh_store
from multipde.runtime.launch import num_launched

T = TypeVar("T")
_GROUPS = count()

PATIENCE = timedelta(days=1)
"""Time that processes wait for one that works alone, such as rank zero while it copies a stream or sums up files."""

REPORT_TIMEOUT = timedelta(seconds=10)
"""Time that a failing process waits to learn whether another one has already reported an error."""


@contextmanager
def process_group() -> Iterator[None]:
    """Within the context, join torch's process group if there are several processes: gloo on CPUs, NCCL on GPUs.

    After an error the group is kept until the process ends; otherwise the others would fail before it is reported.
    """
    if num_launched() == 1 or dist.is_initialized():
        yield
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus and _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    store = fresh_store(next(_GROUPS))
    where = {} if store is None else {"store": store, "rank": int(os.environ["RANK"]), "world_size": num_launched()}
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=PATIENCE, **where)
    yield
    gc.collect()  # a model in a reference cycle would keep the group and its threads alive until the interpreter exits
    dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 for a single one."""
    return dist.get_rank() if num_processes() > 1 else 0


def num_processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this process has rank zero, which alone writes files and prints."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: the GPU of its local rank if there are several processes."""
    if num_processes() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"device must be cuda or cpu for several processes, got {device}; type --device cpu")
    check_devices(device, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes())))
    return torch.device("cuda", _local_rank())


def check_devices(device: torch.device, num: int) -> None:
    """Raise ValueError for more processes on this machine than it has devices of that kind; a CPU serves many."""
    num_devices = torch.cuda.device_count() if device.type == "cuda" else num
    if num > num_devices:
        raise ValueError(
            f"processes must be at most as many as devices ({num_devices}), got {num}; "
            f"start {num_devices}, or type --device cpu"
        )


def check_batch(batch: int, num: int) -> None:
    """Raise ValueError for a batch that cannot be divided evenly among this number of processes."""
    if num < 1:
        raise ValueError(f"processes must be positive, got {num}")
    if batch % num:
        fitting, fewer = max(1, batch // num) * num, max(n for n in range(1, num) if batch % n == 0)
        raise ValueError(
            f"batch must be a multiple of the number of processes ({num}), got {batch}; "
            f"start {fewer}, or type --batch {fitting} for a new run"
        )


@torch.no_grad()
def broadcast_weights(net: nn.Module) -> None:
    """Copy weights and buffers of rank zero to all processes, bit for bit, in place."""
    if num_processes() > 1:
        for tensor in (*net.parameters(), *net.buffers()):
            dist.broadcast(tensor, 0)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum over the processes, the same bits in all of them."""
    if num_processes() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over the processes, the same bits in all of them."""
    return value if num_processes() == 1 else sum_over_processes(value) / num_processes()


def largest(*values: int) -> tuple[int, ...]:
    """The maximum of each value over the processes."""
    if num_processes() == 1:
        return values
    agreed = torch.tensor(values)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return tuple(agreed.tolist())


def over_processes(value: T) -> list[T]:
    """The values of all processes, by their ranks."""
    found: list[Any] = [value] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(found, value)
    return found


def on_rank_zero(call: Callable[[], T]) -> T:
    """Call a function on rank zero only and return its result in all processes; all raise its error, too."""
    if num_processes() == 1:
        return call()
    shared: list[Any] = [None, None]
    if is_rank_zero():
        try:
            shared[0] = call()
        except (ValueError, OSError) as error:
            shared[1] = error
    dist.broadcast_object_list(shared, device=torch.device("cpu"))
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def from_rank_zero(value: T) -> T:
    """Broadcast a value from rank zero, such as the time or the contents of a file that may change."""
    return on_rank_zero(lambda: value)


def rank_zero_first(call: Callable[[], T]) -> T:
    """Call a function on rank zero first and then on the others, which find the files that rank zero has cached."""
    results: list[T] = []
    on_rank_zero(lambda: results.append(call()))
    return results[0] if results else call()


def is_first_to_report() -> bool:
    """Whether this process is the first to ask, and therefore the one that prints the error."""
    if num_launched() == 1:
        return True
    try:
        store = connected(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), REPORT_TIMEOUT)
        return store.add(f"multipde/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the launcher has exited
        return os.environ["RANK"] == "0"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
