"""``multipde bench scaling``: a training step shared by one, two, ... processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from multipde.networks.dynamics import DYNAMICS
from multipde.networks.network import PDENet
from multipde.networks.presets import preset
from multipde.runtime.console import Log
from multipde.runtime.device import choose_amp, choose_device, place
from multipde.runtime.processes import (
    check_batch,
    check_devices,
    num_processes,
    on_rank_zero,
    own_device,
    process_group,
)
from multipde.studies.bench.timing import alternated, recorded
from multipde.training.settings import TrainSettings
from multipde.training.step import TrainStep


def scaling_study(
    out: Path | None,
    *,
    dynamics: Sequence[str] | None = None,
    processes: Sequence[int] | None = None,
    sizes: Sequence[int] = (8, 16, 32),
    batch: int = 128,
    repeats: int = 7,
    rounds: int = 3,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Images per second of a training step of the CIFAR-10 networks shared by several processes; prints a table.

    The batch is that of all processes together, and so is the result of the step. On a CPU the processes share the
    cores. Each number of processes is started by torchrun, all numbers in turn and that several times; times are
    medians of the rounds' medians.

    Args:
        dynamics: which; None for all.
        processes: how many, the first being what the others are compared with; None for 1, 2, 4, ... up to the number
            of devices, or of cores.
        repeats: steps that are timed in every round.
        out: file to which the rows are appended; None for none.

    Returns:
        A row per number of processes, dynamics and size.

    Raises:
        ValueError: more processes than devices, a batch that they cannot share, or processes that do not come through.
    """
    log, where = log or Log(quiet=True), choose_device(device)
    most = torch.cuda.device_count() if where.type == "cuda" else os.cpu_count() or 1
    chosen = processes or [2**k for k in range(most.bit_length())]
    for num in chosen:
        check_batch(batch, num)
        check_devices(where, num)
    task = {"dynamics": list(dynamics or DYNAMICS), "sizes": list(sizes), "batch": batch, "repeats": repeats}
    task |= {"device": device, "amp": choose_amp(where, amp)}
    found: dict[tuple[int, str, int], list[float]] = defaultdict(list)
    threads = {num: max(1, (os.cpu_count() or 1) // num) for num in chosen}
    for _ in range(rounds):
        for num in chosen:
            for measured in _launched(num, threads[num], task):
                found[num, measured["dynamics"], measured["size"]].append(measured["seconds"])
    rows = []
    for (num, name, size), times in found.items():
        seconds, first = statistics.median(times), statistics.median(found[chosen[0], name, size])
        row = {"study": "scaling", "dynamics": name, "size": size, "seconds": seconds}
        row |= {"processes": num, "threads": threads[num], "batch": batch, "amp": task["amp"]}
        row |= {"images_per_second": round(batch / seconds, 1), "speedup": round(first / seconds, 3)}
        rows.append(recorded(row, out))
    log.table([_row(row) for row in rows], f"training step shared by processes, batch {batch}, amp {task['amp']}")
    return rows


def _launched(num: int, threads: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    """What so many processes measure."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
        command = [*launcher, "-m", "multipde.studies.bench.scaling", json.dumps(task), str(file)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        started = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = started.communicate()
        except BaseException:  # an interrupted study leaves no processes
            started.terminate()
            started.communicate()
            raise
        if not file.exists():
            last = [line for line in errors.splitlines() if "Error" in line][:1]
            raise ValueError(f"processes must come through, got {' '.join(last)[:200] or 'no result'} from {num}")
        return json.loads(file.read_text())


def _measure(task: dict[str, Any], file: Path) -> None:
    """In each of the processes: time the step on its slice; the writer keeps what it finds."""
    device = own_device(choose_device(task["device"]))
    rows = []
    for name in task["dynamics"]:
        for size in task["sizes"]:
            torch.manual_seed(0)
            config, num = preset(f"cifar10-{name}").on_mesh(size), task["batch"] // num_processes()
            x = torch.randn(num, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
            labels = torch.arange(num, device=device) % config.classes
            step = TrainStep(place(PDENet(config), device).train(), TrainSettings(amp=task["amp"]), device)
            seconds = alternated({"step": lambda s=step, x=x, y=labels: s(x, y, 0.01)}, task["repeats"], device)
            rows.append({"dynamics": name, "size": size, "seconds": seconds["step"]})
    on_rank_zero(lambda: file.write_text(json.dumps(rows)))


def _row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "name": row["dynamics"],
        "size": str(row["size"]),
        "processes": str(row["processes"]),
        "threads": str(row["threads"]),
        "images/s": f"{row['images_per_second']:.0f}",
        "speedup": f"{row['speedup']:.2f}",
    }


if __name__ == "__main__":
    with process_group():
        _measure(json.loads(sys.argv[1]), Path(sys.argv[2]))
