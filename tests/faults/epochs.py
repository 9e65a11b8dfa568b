"""Every image of an epoch once: trainings on shards in 1, 2 and 4 processes, killed in the middle and resumed.

The colour of an image is its number. As a module this file is a worker, which notes the numbers of every batch:

    torchrun --nproc-per-node 2 -m tests.faults.epochs NOTES train --data webdataset ...
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from multipde import write_shards
from multipde.runtime.spawning import SAFE_PATH

CLASSES = 3
OPTIONS = (
    "--data webdataset --sizes 4 8 --epochs 2 2 --batch 60 --preset shapes-parabolic --no-augment --seed 1 --quiet"
)


def write_numbered(root: Path, num: int) -> None:
    """A folder of one-coloured images, whose red and green values are the digits of their number to the base 256."""
    for part, count in (("train", num), ("test", 30)):
        for i in range(count):
            path = root / part / f"class{i % CLASSES}" / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(path)


def campaign(num: int, seed: int, place: Path) -> dict[str, Any]:
    """Train on ``num`` images in 1, 2 and 4 processes, each killed within its second epoch and resumed.

    Returns:
        For each number of processes the number of batches before the kill, of epochs, of images in them, of images that
        an epoch lacks although it has whole batches only, and of images that it has twice, of batches that differ
        between two readings, and of those that differ from the batches of one process.
    """
    rng = random.Random(seed)
    write_numbered(place / "images", num)
    write_shards(place / "images", place / "shards", images_per_shard=num // 7)
    counts: dict[str, Any] = {"num": num}
    first: dict[tuple[int, ...], list[int]] = {}
    for n in (1, 2, 4):
        notes, run = place / f"notes-{n}", place / f"run-{n}"
        notes.mkdir()
        words = [*OPTIONS.split(), "--root", str(place / "shards"), "--run", str(run), "--checkpoint-every", "0.001"]
        begun = _killed(_start(n, notes, words), notes, rng)
        resumed = _start(n, notes, ["--run", str(run), "--resume", "--quiet"])
        status = resumed.wait(900)
        seen, differing = _batches(notes)
        first = first or seen
        epochs: dict[tuple[int, ...], list[int]] = {}
        for (level, epoch, _), numbers in seen.items():
            epochs.setdefault((level, epoch), []).extend(numbers)
        whole = round(num * 0.8) // 60 * 60
        counts[f"{n} processes"] = {
            "status": status,
            "killed after batches": begun,
            "epochs": len(epochs),
            "images": sum(map(len, epochs.values())),
            "lost": sum(whole - len(set(numbers)) for numbers in epochs.values()),
            "twice": sum(len(numbers) - len(set(numbers)) for numbers in epochs.values()),
            "read again and different": differing,
            "different from one process": sum(seen[key] != first[key] for key in seen),
        }
    return counts


def _start(n: int, notes: Path, words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", "--"]
    environment = (
        os.environ | SAFE_PATH | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    command += ["tests.faults.epochs", str(notes), "train", *words]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _killed(job: subprocess.Popen, notes: Path, rng: random.Random) -> int:
    """Kill a job and all of its processes at a random batch of its second epoch; how many batches it had begun."""
    batch = rng.randrange(1, 10)
    while job.poll() is None and not any(key >= (0, 1, batch) for key in _batches(notes)[0]):
        time.sleep(0.05)
    for path in notes.iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return len(_batches(notes)[0])


def _batches(notes: Path) -> tuple[dict[tuple[int, ...], list[int]], int]:
    """The numbers in every batch, by level, epoch and batch, and how many notes contradict an earlier one."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    differing = 0
    for path in sorted(notes.iterdir()):
        rank = int(path.name.split("-")[0])
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                *key, numbers = json.loads(line)
                known = found.setdefault(tuple(key), {}).setdefault(rank, numbers)
                differing += known != numbers
    return {key: [i for _, part in sorted(ranks.items()) for i in part] for key, ranks in found.items()}, differing


def main() -> None:
    """Run a command of multipde and note the images of every batch."""
    from multipde.cli.main import main as command
    from multipde.training.samples import Samples

    file = open(Path(sys.argv[1]) / f"{os.environ['RANK']}-{os.getpid()}", "w", encoding="utf-8")  # noqa: SIM115
    original = Samples.epoch

    def epoch(self: Samples, level: Any, index: int, epoch: int, start: int) -> Iterator[Any]:
        for number, (x, labels) in enumerate(original(self, level, index, epoch, start), start):
            normalize = self.train.normalize
            red, green = (((x[:, c, 0, 0] - normalize.shift[c]) / normalize.scale[c]).round().int() for c in (0, 1))
            print(json.dumps([index, epoch, number, (red + 256 * green).tolist()]), file=file, flush=True)
            yield x, labels

    Samples.epoch = epoch
    command(sys.argv[2:])


if __name__ == "__main__":
    main()
