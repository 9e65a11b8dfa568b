"""``multipde bench scaling``: the speed of a training step that is shared by one, two, ... processes."""

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
from multipde.runtime.device import Compute
from multipde.runtime.processes import check_batch, check_devices, on_rank_zero, process_group
from multipde.runtime.spawning import SAFE_PATH
from multipde.runtime.table import table_of
from multipde.studies.bench.timing import alternated, random_images, step_of
from multipde.studies.study import Study
from multipde.training.level import Level

COLUMNS = """name: {dynamics} | size: {size} | processes: {processes} | threads: {threads}
    | images/s: {images_per_second:.0f} | speedup: {speedup:.2f}"""


def scaling_study(
    out: Path | None = None,
    *,
    dynamics: Sequence[str] = tuple(DYNAMICS),
    processes: Sequence[int] | None = None,
    sizes: Sequence[int] = (8, 16, 32),
    batch: int = 128,
    repeats: int = 7,
    rounds: int = 3,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure the images per second of a training step of the CIFAR-10 networks that several processes share.

    The batch is that of all processes together, and so is the result of the step. On a CPU the processes share the
    cores. In every round torchrun starts each number of processes once; times are medians of the rounds' medians.

    Args:
        processes: numbers of processes; speeds are compared with that of the first number. None for 1, 2, 4, ... up to
            the number of GPUs, or of cores.
        repeats: number of steps that are timed in every round.
    """
    compute = Compute.of(device, amp)
    most = torch.cuda.device_count() if compute.device.type == "cuda" else os.cpu_count() or 1
    chosen = processes or [2**k for k in range(most.bit_length())]
    for num in chosen:
        check_batch(batch, num)
        check_devices(compute.device, num)
    Level(max(sizes), 1, batch=batch)  # raises the errors of a batch
    study = Study(out, {"study": "scaling"}, ("dynamics", "size", "processes"), anew=True, log=log)
    task = {"dynamics": list(dynamics), "sizes": list(sizes), "batch": batch, "repeats": repeats}
    task |= {"device": device, "amp": compute.amp}
    found: dict[tuple[int, str, int], list[float]] = defaultdict(list)
    threads = {num: max(1, (os.cpu_count() or 1) // num) for num in chosen}
    for _ in range(rounds):
        for num in chosen:
            for measured in _launched(num, threads[num], task):
                found[num, measured["dynamics"], measured["size"]].append(measured["seconds"])
    for (num, name, size), times in found.items():
        seconds, first = statistics.median(times), statistics.median(found[chosen[0], name, size])
        speed = {"images_per_second": round(batch / seconds, 1), "speedup": round(first / seconds, 3)}
        settings = {"threads": threads[num], "batch": batch, "amp": compute.amp}
        study.add(name, size, num, **settings, seconds=seconds, **speed)
        study.log.say(f"{name}, {size}, {num} processes: {speed['images_per_second']:g} images/s")
    title = f"training step shared by processes, batch {batch}, amp {compute.amp}"
    return study.close({title: table_of(study.rows, COLUMNS)})


def _launched(num: int, threads: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Start a number of processes and return their rows of ``dynamics``, ``size`` and ``seconds``."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
        command += ["-m", "multipde.studies.bench.scaling", json.dumps(task), str(file)]
        environment = os.environ | SAFE_PATH | {"OMP_NUM_THREADS": str(threads)}
        nowhere, kept = subprocess.DEVNULL, subprocess.PIPE
        started = subprocess.Popen(
            command, env=environment, stdout=nowhere, stderr=kept, encoding="utf-8", errors="replace"
        )
        try:
            _, errors = started.communicate()
        except BaseException:  # an interrupted study must leave no processes
            started.terminate()
            started.communicate()
            raise
        if not file.exists():
            last = [line for line in errors.splitlines() if "Error" in line][:1]
            raise ValueError(f"processes must finish, got {' '.join(last)[:200] or 'no result'} from {num}")
        return json.loads(file.read_text(encoding="utf-8"))


def _measure(task: dict[str, Any], file: Path) -> None:
    """Time the step on the slice of this process; rank zero writes its times."""
    compute, rows = Compute.of(task["device"], task["amp"]).distributed(), []
    for name in task["dynamics"]:
        for size in task["sizes"]:
            config, num = preset(f"cifar10-{name}").on_mesh(size), task["batch"] // compute.num_processes
            x = random_images(num, 3, size, compute.device)
            step = step_of(compute.place(PDENet(config)).train(), x, compute)
            seconds = alternated({"step": step}, task["repeats"], compute.device)
            rows.append({"dynamics": name, "size": size, "seconds": seconds["step"]})
    on_rank_zero(lambda: file.write_text(json.dumps(rows), encoding="utf-8"))


if __name__ == "__main__":
    with process_group():
        _measure(json.loads(sys.argv[1]), Path(sys.argv[2]))
