"""Jobs of two nodes, both on this machine, whose workers are killed: torchrun starts them again, the run goes on."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch

from multipde.cli.main import main
from multipde.runtime.spawning import SAFE_PATH
from tests.fixtures import rows_without_times, write_folder

OPTIONS = ("--data", "folder", "--sizes", "4", "8", "--batch", "12", "--preset", "shapes-parabolic", "--quiet")
ATTEMPT = 120.0
"""Seconds within which the workers must be there and begin to train."""


class Command:
    """An agent and its workers as commands, in a session of their own."""

    def __init__(self, options: list[str], train: list[str], said: Path):
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "--", "multipde", *train]
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= SAFE_PATH | {"OMP_NUM_THREADS": "1"}
        with said.open("w") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
        self.pid, self.poll = self.process.pid, self.process.poll

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Forked:
    """The same, forked from the server that the tests share."""

    def __init__(self, options: list[str], train: list[str], said: Path):
        arguments = ([*options, "--start-method", "fork", "multipde"], train, said)
        self.process = multiprocessing.get_context("spawn").Process(target=_run_agent, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _run_agent(options: list[str], train: list[str], said: Path) -> None:
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    torch.set_num_threads(1)
    config, *_ = torchrun.config_from_args(torchrun.parse_args(options))
    elastic_launch(config, _run_worker)(train)


def _run_worker(train: list[str]) -> None:
    sys.argv = ["multipde", *train]  # as the record has it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", lambda status: None)  # the agent waits for what a function returns
        main(train)


class Nodes:
    """Two torchrun agents on this machine that meet by the c10d rendezvous, with one worker each.

    Args:
        root: folder of images, as `write_folder` makes it.
        run: the run directory; what both nodes say is written beside it.
        words: further options of ``multipde train``.
        restarts: how often torchrun may start the workers again.
        forked: agents and workers are forked from a process that has imported everything, which a test has the time
            for; else they are commands, as users type them.
    """

    def __init__(self, root: Path, run: Path, words: tuple[str, ...] = (), restarts: int = 3, forked: bool = False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--rdzv-backend", "c10d"]
        options += ["--rdzv-id", "job", "--rdzv-endpoint", endpoint, "--monitor-interval", "0.1"]
        options += ["--local-addr", "127.0.0.1"]
        train = ["train", *OPTIONS, "--root", str(root), "--run", str(run), *words]
        self.said = [run.parent / f"{run.name}-node-{k}.txt" for k in (0, 1)]
        self.agents = [(Forked if forked else Command)(options, train, file) for file in self.said]

    def worker(self, node: int) -> int | None:
        """Process number of the worker of a node; None while there is none."""
        pid = self.agents[node].pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
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

    def end(self, timeout: float = 300) -> tuple[list[int | None], str]:
        """Wait for both agents.

        Returns:
            Their exit statuses, None for one that did not end in time, and what they and their workers said on standard
            error.
        """
        until = time.monotonic() + timeout
        while None in (statuses := [agent.poll() for agent in self.agents]) and time.monotonic() < until:
            time.sleep(0.02)
        self.close()
        return statuses, "".join(file.read_text(errors="replace") for file in self.said)

    def close(self) -> None:
        """End everything that is left of the job."""
        for node, agent in enumerate(self.agents):
            if agent.poll() is None:
                self.kill(node)  # a worker has a session of its own
                agent.kill()


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
