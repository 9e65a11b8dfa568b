"""``multipde bench growth``: how time and memory of a training step grow with size, depth, channels, batch, threads."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from multipde.evaluation.figure_style import PAGE, figure_style, subplots
from multipde.networks.dynamics import DYNAMICS
from multipde.reports.plots import save, style
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import Row, Table
from multipde.studies.bench.memory import measured_block
from multipde.studies.study import Study, matching

BASE = {"size": 32, "steps": 6, "channels": 32, "batch": 16}
"""A block in the middle of the ranges; one of its numbers is changed at a time."""

RANGES = {
    "size": (12, 24, 48, 120),
    "steps": (2, 4, 8, 20),
    "channels": (8, 16, 32, 80),
    "batch": (4, 8, 16, 40),
}
"""The values of each number, over a decade."""

LAWS = {
    "size": {"time": 2.0, "store": 2.0, "reversible": 2.0, "checkpoint": 2.0},
    "steps": {"time": 1.0, "store": 1.0, "reversible": 0.0, "checkpoint": 1.0},
    "channels": {"time": 2.0, "store": 1.0, "reversible": 1.0, "checkpoint": 1.0},
    "batch": {"time": 1.0, "store": 1.0, "reversible": 1.0, "checkpoint": 1.0},
    "threads": {"time": -1.0},
}
"""The exponents of time, and of memory by the way in which the states are stored, for large values: a convolution
costs size² channels² per step and image, and a state holds size² channels numbers; of every step all that its gradient
needs is kept, nothing, or one state. For threads it is that of perfect division."""


def growth_study(
    out: Path | None = None,
    *,
    dynamics: Sequence[str] = tuple(DYNAMICS),
    repeats: int = 5,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure time and peak memory of a training step of one block while one of its numbers changes over a decade.

    Times are medians of alternated calls. Memory is that of the tensors alive at the same time, without weights and
    stencils. memcnn's block is measured beside hamiltonian where it is installed. On a processor the number of threads
    changes, too, up to that of the cores on which this process may run.
    """
    compute = Compute.of(device, amp)
    study = Study(out, {"study": "growth"}, ("dynamics", "varied", "value", "memory"), anew=True, log=log)
    ranges: dict[str, Sequence[int]] = dict(RANGES)
    if compute.device.type == "cpu" and (cores := _cores()) > 1:
        ranges["threads"] = [2**k for k in range(cores.bit_length()) if 2**k <= cores]
    threads = torch.get_num_threads()
    for name in dynamics:
        for varied, values in ranges.items():
            for value in values:
                shape = BASE | ({varied: value} if varied in BASE else {})
                try:
                    torch.set_num_threads(value if varied == "threads" else threads)
                    _, _, measured = measured_block(name, compute=compute, repeats=repeats, **shape)
                    for way, (seconds, peak) in measured.items():
                        study.add(name, varied, value, way, **shape, seconds=seconds, bytes=peak, amp=compute.amp)
                finally:
                    torch.set_num_threads(threads)
            study.log.say(f"{name}: {varied} {', '.join(map(str, values))}")
    return study.close(
        {
            f"{name}: exponents, in brackets by the law": growth_table(matching(study.rows, dynamics=name))
            for name in dynamics
        },
        lambda file: growth_figure(study.rows, file),
    )


def _cores() -> int:
    """The number of cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exponent(rows: Sequence[Row], what: str) -> float:
    """The slope of the logarithm of a measured number against that of the value, between the two largest values.

    At small values the fixed cost of a step hides the law.
    """
    (x0, y0), (x1, y1) = [(math.log(row["value"]), math.log(row[what])) for row in rows[-2:]]
    return (y1 - y0) / (x1 - x0)


def growth_table(rows: Sequence[Row]) -> Table:
    """For every number the exponents of time and memory, with those of `LAWS`; a line per way to store the states."""
    table = []
    for way in dict.fromkeys(row["memory"] for row in rows):
        line = {"memory": way}
        law = "reversible" if way == "memcnn" else way
        for varied in dict.fromkeys(row["varied"] for row in rows):
            own = matching(rows, memory=way, varied=varied)
            if len(own) > 1:
                line[f"{varied}: time"] = f"{exponent(own, 'seconds'):.2f} ({LAWS[varied]['time']:g})"
            if len(own) > 1 and law in LAWS[varied]:
                line[f"{varied}: memory"] = f"{exponent(own, 'bytes'):.2f} ({LAWS[varied][law]:g})"
        table.append(line)
    return table


@figure_style(PAGE)
def growth_figure(rows: Sequence[Row], file: Path) -> None:
    """Time and memory of the first dynamics against each number, on logarithmic axes."""
    rows = matching(rows, dynamics=rows[0]["dynamics"])
    varied = [name for name in RANGES if matching(rows, varied=name)]
    figure, axes = subplots(2, len(varied), figsize=(3 * len(varied), 5.4), squeeze=False)
    scales = (("seconds", 1e3, "ms per step"), ("bytes", 2**-20, "MiB of features"))
    for line, (what, scale, label) in zip(axes, scales, strict=True):
        for axis, name in zip(line, varied, strict=True):
            for i, way in enumerate(dict.fromkeys(row["memory"] for row in rows)):
                own = matching(rows, varied=name, memory=way)
                axis.plot([r["value"] for r in own], [scale * r[what] for r in own], **style(i, label=way, ms=4))
            axis.set(xscale="log", yscale="log", xlabel=name)
            axis.set_xticks(RANGES[name], [str(v) for v in RANGES[name]])
            axis.minorticks_off()
        line[0].set_ylabel(label)
    axes[0][0].legend()
    figure.tight_layout()
    save(figure, file)
