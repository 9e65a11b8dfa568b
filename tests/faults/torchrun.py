"""torchrun and its worker in processes that are forked where torch has been imported already."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import torch


class ForkedAgent:
    """Stands for the `subprocess.Popen` of torchrun in `nodes`: the agent is forked, and forks its worker."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path, **streams: object):
        module = command.index("-m", 3)
        arguments, words = command[3:module], command[command.index("multipde", module) + 1 :]
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._said, given = Path(name), (arguments, words, dict(env), cwd, name)
        self._process = multiprocessing.get_context("spawn").Process(target=agent, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()
        self._said.unlink(missing_ok=True)

    def communicate(self, timeout: float) -> tuple[str, str]:
        self._process.join(timeout)
        said = self._said.read_text(errors="replace")
        self._said.unlink()
        return "", said


def agent(arguments: list[str], words: list[str], environment: dict[str, str], place: Path, said: str) -> None:
    """Be torchrun with these arguments for the command ``multipde`` with these words.

    What the agent and its worker say on standard error is appended to a file.
    """
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    config, _, _ = config_from_args(parse_args([*arguments, "--start-method", "fork", "multipde"]))
    elastic_launch(config, worker)(words)


def worker(words: list[str]) -> None:
    """Be the command in the environment that torchrun has made."""
    from multipde.cli.main import main

    torch.set_num_threads(1)
    sys.argv = ["multipde", *words]  # as the record of the run has it
    main(words)
