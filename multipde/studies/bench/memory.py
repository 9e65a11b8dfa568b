"""``multipde bench memory``: peak memory and time of a training step against the number of time steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.networks.dynamics import DYNAMICS, MEMORY, Block
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.studies.bench.rivals import has_memcnn, memcnn_block, without_its_warnings
from multipde.studies.bench.timing import PeakMemory, alternated, random_images
from multipde.studies.study import Study

COLUMNS = """name: {dynamics} | steps: {steps} | method: {memory} | features: {tensors:.1f} | ms: {ms:.1f}
    | time / store: {time_ratio:.2f} | drift: {far}"""


def memory_study(
    out: Path | None = None,
    *,
    dynamics: Sequence[str] = tuple(DYNAMICS),
    num_steps: Sequence[int] = (2, 4, 8, 16, 32, 64),
    channels: int = 32,
    size: int = 32,
    batch: int = 32,
    repeats: int = 5,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure peak memory and time of one block, forward and backward, for every value of `Block.memory`.

    Memory is that of tensors alive at the same time, without weights, their gradients and stencils, in units of one
    tensor of features. The values of ``memory`` are timed alternately; times are medians. If memcnn is installed, its
    hamiltonian block is measured too. For ``reversible`` the drift is the relative distance between the first state and
    the same state recomputed from the last one.
    """
    compute = Compute.of(device, amp)
    study = Study(out, {"study": "memory"}, ("dynamics", "steps", "memory"), anew=True, log=log)
    shape = {"channels": channels, "size": size, "batch": batch, "amp": compute.amp}
    for name in dynamics:
        for steps in num_steps:
            y, blocks, measured = measured_block(name, steps, size, channels, batch, compute, repeats)
            drift = _drift(blocks["reversible"], y, compute) if "reversible" in blocks else None  # pyright: ignore
            for way, (seconds, peak) in measured.items():
                tensors, ratio = peak / (y.numel() * y.element_size()), seconds / measured["store"][0]
                found = {"tensors": round(tensors, 2), "seconds": seconds, "time_ratio": round(ratio, 3)}
                study.add(name, steps, way, **shape, **found, drift=drift if way == "reversible" else None)
                study.log.say(f"{name}, {steps} steps, {way}: {tensors:.1f} features, {ratio:.2f} of the time")
    features = f"({batch} x {channels} x {size} x {size})"
    title = f"peak of tensors alive, in units of the features {features}, and time of a step"
    drifts = ["" if row["drift"] is None else f"{row['drift']:.0e}" for row in study.rows]
    rows = [row | {"ms": 1e3 * row["seconds"], "far": far} for row, far in zip(study.rows, drifts, strict=True)]
    return study.close({title: table_of(rows, COLUMNS)})


def measured_block(
    name: str, steps: int, size: int, channels: int, batch: int, compute: Compute, repeats: int
) -> tuple[Tensor, dict[str, nn.Module], dict[str, tuple[float, int]]]:
    """Features, the blocks of `blocks_of`, and for each the seconds of a training step and its peak memory in bytes."""
    y, blocks = random_images(batch, channels, size, compute.device), blocks_of(name, channels, steps, compute)
    calls = {way: training_step(block, y, compute) for way, block in blocks.items()}
    with without_its_warnings():
        peaks = {way: peak_of(block, y, calls[way]) for way, block in blocks.items()}
        seconds = alternated(calls, repeats, compute.device)
    return y, blocks, {way: (seconds[way], peaks[way]) for way in blocks}


def blocks_of(name: str, channels: int, steps: int, compute: Compute) -> dict[str, nn.Module]:
    """Blocks of equal weights for every value of `Block.memory`; memcnn's beside hamiltonian if that is installed."""
    ways = [way for way in MEMORY if way != "reversible" or DYNAMICS[name].reverse is not None]
    blocks: dict[str, nn.Module] = {
        way: compute.place(Block(name, channels, steps, dt=3 / steps, memory=way)) for way in ways
    }
    for block in blocks.values():
        block.load_state_dict(blocks["store"].state_dict())
    if name == "hamiltonian" and has_memcnn():
        blocks["memcnn"] = memcnn_block(blocks["store"])  # pyright: ignore[reportArgumentType]
    return blocks


def training_step(block: nn.Module, y: Tensor, compute: Compute) -> Callable[[], None]:
    """A call that computes a block forwards and backwards."""

    def call() -> None:
        x = y.detach().requires_grad_()
        block.zero_grad(set_to_none=True)
        with compute.autocast():
            result = block(x)
        result.backward(y)

    return call


@torch.no_grad()
def _drift(block: Block, y: Tensor, compute: Compute) -> float:
    """The relative distance between the first state and the recomputed one, as the maximum over their parts."""
    with compute.autocast():
        state = block.scheme.start(y)
        found = block.inverse(block.propagate(state))
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, state, strict=True))


def peak_of(block: nn.Module, y: Tensor, call: Callable[[], None]) -> int:
    """Peak memory of a step in bytes, without tensors that are as small as a stencil."""
    stencil = max(p.numel() * p.element_size() for p in block.parameters())
    with PeakMemory([y, *block.parameters()], least_bytes=stencil + 1) as seen:
        call()
    return seen.peak
