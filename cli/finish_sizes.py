"""The options ``--all-sizes`` and ``--finish-share`` of ``multipde train``."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FINISH_SHARE = 0.125


def check_sizes_option(given: Any) -> None:
    """Raise ValueError, before any training, for options that do not go together."""
    from multipde.networks.all_sizes import check_sizes
    from multipde.reports.sizes_of_run import check_share
    from multipde.runtime.launch import num_launched

    if not given.all_sizes:
        if given.finish_share != FINISH_SHARE:
            raise ValueError(f"finish_share must come with --all-sizes, got {given.finish_share:g}")
        return
    check_share(given.finish_share)
    check_sizes(given.all_sizes)
    if num_launched() > 1:
        raise ValueError(
            f"all_sizes must be left out with several processes, got {num_launched()}; "
            "type multipde convert RUN --sizes N ... --out DIR afterwards"
        )


def check_sizes_of(network: Any, sizes: Iterable[int]) -> None:
    """Raise ValueError for sizes that the network cannot have."""
    from multipde.networks.cost import count_flops

    for size in sizes:
        count_flops(network.for_images(size))


def finish_sizes(given: Any, run: Path, device: str | None = None) -> None:
    """Make the checkpoint for several sizes of a finished run, if the options ask for one."""
    from multipde.reports.sizes_of_run import sizes_of_run
    from multipde.runtime.console import Log

    if given.all_sizes:
        log = Log(quiet=given.quiet or given.json, stream="stderr" if given.json else "stdout")
        sizes_of_run(run, given.all_sizes, given.finish_share, model=given.arch, device=device, log=log)


@contextmanager
def naming_sizes(given: Any) -> Iterator[None]:
    """Within the context, the command by which an interrupted training goes on names the sizes of its finish, too."""
    from multipde.runtime.signals import Interrupted

    try:
        yield
    except Interrupted as stop:
        if not given.all_sizes or "--resume" not in str(stop):
            raise
        share = "" if given.finish_share == FINISH_SHARE else f" --finish-share {given.finish_share:g}"
        sizes = " ".join(map(str, given.all_sizes))
        raise Interrupted(f"{stop} --all-sizes {sizes}{share}", stop.signum) from None
