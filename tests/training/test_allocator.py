"""Memory that a process keeps: page faults tell."""

import resource
import subprocess
import sys

import pytest

from multipde.training.allocator import keep_freed_memory

PROGRAM = """
import resource, torch
from multipde.training.allocator import keep_freed_memory
{call}
def faults(num):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num):
        kept = [torch.ones(2**20) for _ in range(30)]  # 4 MiB each
        while kept:
            kept.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(3)
print(faults(10))
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="another C library than glibc")
def test_tensors_reuse_the_pages_of_those_that_are_gone():
    def faults(call: str) -> int:
        run = subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, check=True)
        return int(run.stdout)

    pages_of_a_round = 30 * 2**22 // resource.getpagesize()
    given_back = faults("")
    assert given_back > pages_of_a_round
    assert faults("keep_freed_memory()") < given_back / 5
