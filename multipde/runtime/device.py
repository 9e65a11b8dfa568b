"""The device and precision of a computation, this process's slice of every batch, and deterministic algorithms."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

from multipde.runtime.processes import from_rank_zero, num_processes, own_device, rank

AMP = ("off", "bf16", "fp16", "auto")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """Device, precision (``"off"``: float32, ``"bf16"``, ``"fp16"``: convolutions and products in it) and shard."""

    device: torch.device
    amp: str = "off"
    rank: int = 0
    num_processes: int = 1

    @classmethod
    def of(cls, device: str | torch.device = "auto", amp: str = "off") -> "Compute":
        """The computation of whole batches on the device and in the precision of these names."""
        chosen = choose_device(device)
        return cls(chosen, choose_amp(chosen, amp))

    def distributed(self) -> "Compute":
        """The same for this process under torchrun: with its own device and slice of every batch, and one precision."""
        own = own_device(self.device), from_rank_zero(self.amp)
        return replace(self, device=own[0], amp=own[1], rank=rank(), num_processes=num_processes())

    @property
    def shard(self) -> tuple[int, int]:
        """The pair (k, n): this process takes the k-th of n equal slices of every batch."""
        return self.rank, self.num_processes

    def autocast(self) -> torch.autocast:
        """The context in which a network runs in this precision."""
        dtype = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.amp != "off")

    def place(self, net: N) -> N:
        """Move the network to the device, in channels_last layout unless it is three-dimensional, and return it."""
        net.to(self.device)
        if all(tensor.dim() != 5 for tensor in (*net.parameters(), *net.buffers())):
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return net


def choose_device(device: str | torch.device) -> torch.device:
    """The device of this name; ``"auto"`` takes CUDA if it is available, else MPS, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        message = f"device must be one that torch has here, got {device!r} ({reason}); type --device cpu"
        raise ValueError(message) from None
    return chosen


def choose_amp(device: torch.device, amp: str) -> str:
    """The precision of a name; ``"auto"`` becomes ``"bf16"`` where the device computes faster with it, else ``"off"``.

    Every CPU can compute with bf16, but without instructions for it it is slow, and with them it may be no faster than
    with float32: a convolution is timed in both.
    """
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}, got {amp!r}")
    if amp == "auto":
        return "bf16" if _has_bf16(device) and (device.type != "cpu" or _is_faster_with_bf16()) else "off"
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp must be off, bf16 or auto on {device}, got fp16, which needs CUDA; type --amp auto")
    if amp == "bf16" and device.type != "cpu" and not _has_bf16(device):
        raise ValueError(f"amp must be off on {device}, which has no bfloat16, got bf16; type --amp off")
    return amp


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within the context, if wanted, use only algorithms that give the same bits again on the same machine."""
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark


@cache
def _is_faster_with_bf16() -> bool:
    """Whether a convolution is at least a fifth faster in bf16 on this CPU; it takes a hundredth of a second."""
    seconds = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(8, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.ones(64, 64, 3, 3, dtype=dtype)
            tries = []
            for _ in range(5):
                started = time.perf_counter()
                functional.conv2d(x, weight, padding=1)
                tries.append(time.perf_counter() - started)
            seconds[dtype] = min(tries)
    return seconds[torch.float32] > 1.2 * seconds[torch.bfloat16]


def cpu_has(instructions: str) -> bool:
    """Whether the processor has instructions, by torch's name of them."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return bool(known.get(instructions, False))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(cpu_has(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)
