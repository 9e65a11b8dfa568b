"""torchrun and its worker in processes that are forked where torch has been imported already."""

import os
import sys
from pathlib import Path

import torch


def agent(arguments: list[str], words: list[str], place: Path, said: Path) -> None:
    """Be torchrun with these arguments for the command ``multipde`` with these words, in a directory.

    What the agent and its worker say on standard error is appended to a file, and the number of the worker's process is
    written beside it.
    """
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    os.setsid()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    _redirect(place, said)
    config, _, _ = config_from_args(parse_args([*arguments, "--start-method", "fork", "multipde"]))
    elastic_launch(config, worker)(words, place, said)


def worker(words: list[str], place: Path, said: Path) -> None:
    """Be the command in the environment that torchrun has made."""
    from multipde.cli.main import main

    _redirect(place, said)
    torch.set_num_threads(1)
    said.with_suffix(".pid").write_text(str(os.getpid()))
    sys.argv = ["multipde", *words]  # as the record of the run has it
    main(words)


def _redirect(place: Path, said: Path) -> None:
    os.chdir(place)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
