"""What torchrun says about the processes that it has started, without importing torch."""

import os


def num_launched() -> int:
    """How many processes torchrun has started, of which this is one; 1 without it."""
    is_launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


def is_rank_zero_launched() -> bool:
    """Whether this is the first of the processes that torchrun has started, also after they have parted."""
    return num_launched() == 1 or os.environ["RANK"] == "0"
