"""``multipde bench memory``: what a training step holds and takes, for more and more time steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.networks.dynamics import DYNAMICS, MEMORY, Block
from multipde.runtime.console import Log
from multipde.runtime.device import autocast, choose_amp, choose_device
from multipde.studies.bench.rivals import has_memcnn, memcnn_block
from multipde.studies.bench.timing import PeakMemory, alternated, recorded


def memory_study(
    out: Path | None,
    *,
    dynamics: Sequence[str] | None = None,
    num_steps: Sequence[int] = (2, 4, 8, 16, 32, 64),
    channels: int = 32,
    size: int = 32,
    batch: int = 32,
    repeats: int = 5,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Peak memory and time of one block, forwards and backwards, by every way to keep states; prints a table.

    Memory is that of tensors alive at the same time, without weights, their gradients and stencils, in units of one
    tensor of features. The ways are timed in turn; the time is the median. memcnn is one more way for the hamiltonian
    block, where it is installed. For ``reversible`` the drift is measured too: how far the first state that the way
    back comes to is from the one it started from, in relative terms.

    Args:
        dynamics: which; None for all.
        out: file to which the rows are appended; None for none.

    Returns:
        A row per dynamics, number of steps and way.
    """
    log, where, rows = log or Log(quiet=True), choose_device(device), []
    amp = choose_amp(where, amp)
    for name in dynamics or DYNAMICS:
        ways = [m for m in MEMORY if m != "reversible" or DYNAMICS[name].reverse is not None]
        for steps in num_steps:
            torch.manual_seed(0)
            y = torch.randn(batch, channels, size, size, device=where).contiguous(memory_format=torch.channels_last)
            blocks: dict[str, nn.Module] = {
                way: Block(name, channels, steps, dt=3 / steps, memory=way).to(where) for way in ways
            }
            for block in blocks.values():
                block.load_state_dict(blocks["store"].state_dict())
                block.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if name == "hamiltonian" and has_memcnn():
                blocks["memcnn"] = memcnn_block(blocks["store"])  # pyright: ignore[reportArgumentType]
            calls = {way: _training_step(block, y, amp) for way, block in blocks.items()}
            peak = {way: _peak(block, y, calls[way]) for way, block in blocks.items()}
            seconds = alternated(calls, repeats, where)
            drift = _drift(blocks["reversible"], y, amp) if "reversible" in ways else None  # pyright: ignore
            for way in blocks:
                row = {
                    "study": "memory",
                    "dynamics": name,
                    "steps": steps,
                    "memory": way,
                    "channels": channels,
                    "size": size,
                    "batch": batch,
                    "amp": amp,
                    "tensors": round(peak[way] / (y.numel() * y.element_size()), 2),
                    "seconds": seconds[way],
                    "time_ratio": round(seconds[way] / seconds["store"], 3),
                    "drift": drift if way == "reversible" else None,
                }
                rows.append(recorded(row, out))
    log.table(
        [_row(row) for row in rows],
        f"peak of tensors alive, in units of the features ({batch} x {channels} x {size} x {size}), and time of a step",
    )
    return rows


def _training_step(block: nn.Module, y: Tensor, amp: str) -> Callable[[], None]:
    def call() -> None:
        x = y.detach().requires_grad_()
        block.zero_grad(set_to_none=True)
        with autocast(y.device, amp):
            result = block(x)
        result.backward(y)

    return call


@torch.no_grad()
def _drift(block: Block, y: Tensor, amp: str) -> float:
    """Largest relative distance between the parts of the first state and what they are recomputed to be."""
    with autocast(y.device, amp):
        state = block.scheme.start(y)
        found = block.inverse(block.propagate(state))
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, state, strict=True))


def _peak(block: nn.Module, y: Tensor, call: Callable[[], None]) -> int:
    """Bytes that the step holds at its peak; what is as small as a stencil does not count."""
    stencil = max(p.numel() * p.element_size() for p in block.parameters())
    with PeakMemory([y, *block.parameters()], least_bytes=stencil + 1) as seen:
        call()
    return seen.peak


def _row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "name": row["dynamics"],
        "steps": str(row["steps"]),
        "method": row["memory"],
        "features": f"{row['tensors']:.1f}",
        "ms": f"{1e3 * row['seconds']:.1f}",
        "time / store": f"{row['time_ratio']:.2f}",
        "drift": "" if row["drift"] is None else f"{row['drift']:.0e}",
    }
