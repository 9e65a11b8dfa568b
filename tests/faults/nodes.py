"""Jobs of two nodes, both on this machine, whose workers are killed: torchrun starts them again, the run goes on."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from multipde.runtime.spawning import SAFE_PATH
from tests.conftest import rows_without_times, write_folder

OPTIONS = ("--data", "folder", "--sizes", "4", "8", "--batch", "12", "--preset", "shapes-parabolic", "--quiet")
ATTEMPT = 120.0
"""Seconds within which the workers must be there and begin to train."""


class Nodes:
    """Two torchrun agents on this machine that meet by the c10d rendezvous, with one worker each.

    Args:
        root: folder of images, as `write_folder` makes it.
        run: the run directory.
        words: further options of ``multipde train``.
        restarts: how often torchrun may start the workers again.
        directories: working directories of the two nodes.
    """

    def __init__(
        self,
        root: Path,
        run: Path,
        words: tuple[str, ...] = (),
        restarts: int = 3,
        directories: tuple[Path, ...] | None = None,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--max-restarts", str(restarts), "--rdzv-backend", "c10d", "--rdzv-id", "job"]
        command += ["--rdzv-endpoint", endpoint, "--monitor-interval", "0.1", "--local-addr", "127.0.0.1", "-m", "--"]
        command += ["multipde", "train", *OPTIONS, "--root", str(root), "--run", str(run), *words]
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= SAFE_PATH | {"OMP_NUM_THREADS": "1"}
        self.run, self.agents = run, []
        for k in (0, 1):
            where = (directories or (Path.cwd(), Path.cwd()))[k]
            self.agents.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=where,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,
                )
            )

    def worker(self, node: int) -> int | None:
        """Process number of the worker of a node; None while there is none."""
        pid = self.agents[node].pid
        with contextlib.suppress(OSError, ValueError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in map(int, children):
                if b"multipde" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        return None

    def kill(self, node: int) -> bool:
        """Kill the worker of a node; whether there was one."""
        worker = self.worker(node)
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                return True
        return False

    def have_workers(self) -> bool:
        return None not in (self.worker(0), self.worker(1))

    def is_running(self) -> bool:
        return all(agent.poll() is None for agent in self.agents)

    def end(self, timeout: float = 300) -> tuple[list[int], str]:
        """Wait for both agents: their exit statuses, and what they and their workers said on standard error."""
        try:
            said = "".join(agent.communicate(timeout=timeout)[1] for agent in self.agents)
        finally:
            self.close()
        return [agent.returncode for agent in self.agents], said

    def close(self) -> None:
        """End everything that is left of the job."""
        for node, agent in enumerate(self.agents):
            if agent.poll() is None:
                self.kill(node)  # a worker has a session of its own
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()


def num_checkpoints(run: Path) -> int:
    """The largest number of a checkpoint of a run; 0 before there is one."""
    return max((int(path.name[-4:]) for path in run.glob("checkpoint-*")), default=0)


def wait_for(condition, nodes: Nodes, seconds: float = ATTEMPT) -> bool:
    """Wait until a condition holds, or a node has ended; whether it holds."""
    until = time.monotonic() + seconds
    while nodes.is_running() and time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def campaign(num: int, seed: int, place: Path) -> dict[str, int | float]:
    """Kill workers of jobs ``num`` times in all, of either node, at random times; compare with an undisturbed job.

    Returns:
        Counts: kills by node, those after the first checkpoint, and those after the result was written, when torchrun
        may fail because the other node has ended; jobs that ended, failed then or otherwise, or differ in weights or
        metrics; the lowest and highest test accuracy.
    """
    rng, counts, started = random.Random(seed), Counter(killed=0, failed=0, different=0), time.perf_counter()
    words, undisturbed = ("--epochs", "8", "8", "--checkpoint-every", "0.01"), place / "undisturbed"
    write_folder(place / "images")
    whole = Nodes(place / "images", undisturbed, words)
    counts["failed"] += whole.end(900)[0] != [0, 0]
    duration = time.perf_counter() - started
    accuracies = [_accuracy(undisturbed)]
    for number in itertools.count():
        run = place / f"run-{number}"
        nodes, is_late = Nodes(place / "images", run, words, restarts=3 * num), False
        try:
            while counts["killed"] < num and wait_for(nodes.have_workers, nodes):
                time.sleep(rng.uniform(0, duration))  # while the libraries are imported, and while the net is trained
                node, is_done = rng.randrange(2), (run / "result.json").exists()
                if nodes.is_running() and nodes.kill(node):
                    counts["killed"] += 1
                    counts[f"of node {node}"] += 1
                    counts["after a checkpoint"] += num_checkpoints(run) > 0
                    counts["after the result"] += is_done
                    is_late |= is_done
                    time.sleep(0.5)  # until the agents have noticed
            statuses, said = nodes.end(900)
            counts["ended with an error after the result"] += is_late and statuses != [0, 0]
            if statuses != [0, 0] and not is_late:
                counts["failed"] += 1
                print(said, file=sys.stderr)
        finally:
            nodes.close()
        counts["jobs"] += 1
        same = (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
        counts["different"] += not (same and rows_without_times(run) == rows_without_times(undisturbed))
        accuracies.append(_accuracy(run))
        if counts["killed"] >= num:
            found = {"lowest accuracy": min(accuracies), "highest accuracy": max(accuracies)}
            return {**counts, **found, "seconds": round(time.perf_counter() - started, 1)}
    raise AssertionError


def _accuracy(run: Path) -> float:
    return json.loads((run / "result.json").read_text())["test_accuracy"]
