"""Memory that a process keeps: page faults tell."""

import resource
import subprocess
import sys

import pytest

from multipde.runtime.allocator import keep_freed_memory

PROGRAM = """
import resource, torch
from multipde.runtime.allocator import keep_freed_memory
assert keep_freed_memory()
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
    """Without the call nearly all pages of all ten rounds are fetched anew, most of the times that it is tried."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    pages_of_a_round = 30 * 2**22 // resource.getpagesize()
    assert int(run.stdout) < pages_of_a_round / 10
