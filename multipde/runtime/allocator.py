"""How the C library handles the memory of large tensors on a processor."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 2**25
"""Above it glibc accepts no threshold for blocks of their own."""


def keep_freed_memory() -> bool:
    """Let the process keep the memory that its tensors free, for the tensors of the next step.

    Otherwise glibc gives much of it back to the system at the end of every step, and gets it back page by page, filled
    with zeros: some 6 per cent of a training step of the Hamiltonian CIFAR-10 network in float32. The process then
    holds what it once needed at its peak until it ends. It is for programs of one's own, such as the command line.

    Returns:
        Whether there is a glibc that does so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
