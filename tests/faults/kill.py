"""Kill a short training again and again, also in the middle of its writes, and take it up each time."""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import kornia.augmentation  # noqa: F401  (here once, and not in every child)
import torch
import torch._dynamo

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, resume, train
from multipde.storage.run_directory import newest_checkpoint
from tests.faults.operations import hook_operation
from tests.fixtures import rows_without_times

NETWORK = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=16)
OPTIONS = {"num_train": 150, "num_test": 40}
NUM_CALLS = 500
"""About as many calls of the file system does the training make; one of them is the last."""


def begin_or_go_on(directory: Path) -> None:
    """What a user types: the training, or --resume where there is something to take up."""
    if (directory / "run.json").exists():
        resume(directory, quiet=True)
        return
    plan = Schedule([Level(8, 2, batch=40), Level(16, 1.5, batch=40)])
    settings = TrainSettings(device="cpu", calibration_images=60, transfer="calibrated", checkpoint_every=1e-9)
    train(NETWORK, plan, "shapes", directory, settings=settings, data_options=OPTIONS, quiet=True)


def in_child(directory: Path, fatal_call: int | None) -> int:
    """Start the training in a child; its process number.

    Args:
        fatal_call: number of the file system call within which the child kills itself; None for none.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        if fatal_call is not None:
            _hook(fatal_call)
        begin_or_go_on(directory)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _hook(fatal_call: int) -> None:
    """Count calls of the file system; die within the given one, before it, after it, or half way through a write."""
    rng = random.Random(fatal_call)
    hook_operation(fatal_call, rng.choice(("before", "after", "within")))


def campaign(num: int, seed: int, place: Path) -> dict[str, int | float]:
    """Kill trainings ``num`` times, at random moments and within random file system calls, and finish each.

    Returns:
        Counts: kills by kind, trainings finished, checkpoints lost, trainings whose weights or metrics differ.
    """
    rng, counts = random.Random(seed), Counter(lost=0, different=0, failed=0)
    started = time.perf_counter()
    undisturbed = place / "undisturbed"
    if os.waitpid(in_child(undisturbed, None), 0)[1]:
        raise RuntimeError("the undisturbed training must finish")
    duration = time.perf_counter() - started
    number = 0
    while counts["killed"] < num:
        directory = place / f"run-{number}"
        number += 1
        while True:
            enough, by_write = counts["killed"] >= num, rng.random() < 0.5
            before = newest_checkpoint(directory)
            child = in_child(directory, rng.randrange(1, NUM_CALLS) if by_write and not enough else None)
            if not by_write and not enough:
                time.sleep(rng.uniform(0, 0.8 * duration))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                counts["killed"] += 1
                counts["within writes" if by_write else "at random times"] += 1
                counts["lost"] += not _is_whole(directory, before)
                continue
            counts["failed"] += status != 0
            break
        counts["finished"] += 1
        counts["different"] += not same_run(directory, undisturbed)
        shutil.rmtree(directory)
    return {**counts, "seconds": round(time.perf_counter() - started, 1)}


def _is_whole(directory: Path, before: Path | None) -> bool:
    """Whether there is a checkpoint where there was one, not an older one, and it can be read."""
    newest = newest_checkpoint(directory)
    if newest is None:
        return before is None
    try:
        load(directory)
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    return before is None or newest.name >= before.name


def same_run(directory: Path, undisturbed: Path) -> bool:
    """Whether weights, momentum and metrics are the same, times apart."""

    same_bytes = all(
        (directory / name).read_bytes() == (undisturbed / name).read_bytes()
        for name in ("model.safetensors", "config.json")
    )
    last, other = newest_checkpoint(directory), newest_checkpoint(undisturbed)
    assert last is not None
    assert other is not None
    momentum = (last / "momentum.safetensors").read_bytes() == (other / "momentum.safetensors").read_bytes()
    return same_bytes and momentum and rows_without_times(directory) == rows_without_times(undisturbed)
