"""Two attempts of a job: the second one finds its own rank zero, though torchrun's store still names the first."""

import atexit
import multiprocessing
import os
import sys
import time

import torch.distributed as dist

from multipde.runtime.fresh_store import ADDRESS, end_together, fresh_store
from multipde.runtime.processes import from_rank_zero, process_group


def process(rank: int, port: int, is_killed: bool, found) -> None:
    """Meet the other process and agree with it; rank zero may be killed before the end."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # torch tells of the store that is gone
    store = fresh_store()
    assert store is not None
    store.add("met", 1)
    while store.add("met", 0) < 2:
        time.sleep(0.01)
    if is_killed and rank == 0:
        os._exit(1)
    try:
        if rank == 0:
            time.sleep(0.3)  # a report
            found.put(("report written", 0))
        atexit.register(lambda: found.put(("what is done at the exit", rank)))
        end_together()
        os._exit(3)  # is not reached
    except ValueError as error:
        found.put((str(error), rank))


def test_an_attempt_meets_its_own_rank_zero_and_its_processes_end_together():
    context = multiprocessing.get_context("spawn")
    torchrun = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore
    addresses, found = [], context.Queue()
    for is_killed in (True, False):
        ranks = [context.Process(target=process, args=(k, torchrun.port, is_killed, found)) for k in (1, 0)]
        ranks[0].start()  # sees what the first attempt has left
        time.sleep(0.5)
        ranks[1].start()
        for each in ranks:
            each.join(60)
        assert [each.exitcode for each in ranks] == [0, int(is_killed)]
        addresses.append(torchrun.get(f"{ADDRESS}/0"))
    assert addresses[0] != addresses[1]
    assert found.get(timeout=5) == ("processes must all run until the end, got one that has ended", 1)
    assert found.get(timeout=5) == ("report written", 0)
    assert sorted(found.get(timeout=5) for _ in range(2)) == [("what is done at the exit", k) for k in (0, 1)]


def groups(rank: int, port: int, restarts: int, found) -> None:
    """Two trainings in one script."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ["TORCHELASTIC_MAX_RESTARTS"] = str(restarts)
    for _ in range(2):
        with process_group():
            found.put(from_rank_zero(rank))


def test_processes_meet_again_in_the_same_script():
    context = multiprocessing.get_context("spawn")
    for restarts in (0, 3):
        torchrun = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore
        found = context.Queue()
        ranks = [context.Process(target=groups, args=(k, torchrun.port, restarts, found)) for k in (0, 1)]
        for each in ranks:
            each.start()
        assert [found.get(timeout=60) for _ in range(4)] == [0] * 4
        for each in ranks:
            each.join(60)
        assert [each.exitcode for each in ranks] == [0, 0]


def test_there_is_no_store_for_one_process(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert fresh_store() is None
    end_together()
