"""``multipde compare``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Compare:
    """Compare runs: their final figures, the settings in which they differ, and their curves on one HTML page."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of two or more runs, which may still be going on."""
    out: Path | None = None
    """File for the page with curves, figures and settings. Left out: only the tables are printed."""
    json: bool = False
    """Print one line of JSON instead of tables."""

    def run_command(self) -> None:
        from multipde.reports.comparison import compare_runs
        from multipde.runtime.console import Log

        compare_runs(self.runs, self.out, json=self.json, log=Log(needed=self.json or self.out is None))
        if self.out is not None:
            Log(stream="stderr" if self.json else "stdout").say(f"written to {self.out}")
