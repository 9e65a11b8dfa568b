"""``multipde runs``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Runs:
    """List the runs in a directory and below it: network, data, sizes, state, accuracy, work and minutes."""

    directory: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Directory in which the runs are."""
    sort: str = "began"
    """What the table is sorted by: name, network, data, sizes, state, accuracy, tflops, minutes or began."""
    json: bool = False
    """Print one line of JSON instead of a table."""
    csv: bool = False
    """Print comma-separated values instead of a table."""

    def run_command(self) -> None:
        from multipde.reports.run_list import list_runs
        from multipde.runtime.console import Log

        list_runs(self.directory, sort=self.sort, json=self.json, csv=self.csv, log=Log(needed=True))
