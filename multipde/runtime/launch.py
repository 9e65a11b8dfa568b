"""Number and rank of the processes that torchrun has started, without importing torch."""

import os


def num_launched() -> int:
    """The number of processes that torchrun has started, this one included; 1 without torchrun."""
    is_launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


def is_rank_zero_launched() -> bool:
    """Whether torchrun has started this process as rank zero; it can be asked after the group is closed, too."""
    return num_launched() == 1 or os.environ["RANK"] == "0"


def launcher() -> list[str]:
    """The words before a command of multipde that start as many processes as there are now; none for a single one."""
    if num_launched() == 1:
        return []
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    machines = num_launched() // int(here)
    return ["torchrun", *(["--nnodes", str(machines)] if machines > 1 else []), "--nproc-per-node", here, "-m", "--"]


def num_nodes() -> int:
    """The number of machines on which torchrun has started the processes."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def num_restarts() -> tuple[int, int]:
    """How often torchrun has started the processes again, as far as this machine knows, and how often it may."""
    done, most = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return int(done), int(most)
