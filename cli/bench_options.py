"""What all studies of ``multipde bench`` have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multipde.cli.options import AmpName

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Options that all studies have."""

    out: Path | None = None
    """File to which the rows are appended. Left out: no file is written."""
    json: bool = False
    """Print the rows as one line of JSON instead of tables; what is said meanwhile goes to standard error."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""

    def given(self) -> dict[str, Any]:
        """All options by name, and the log, for the function of the study."""
        from multipde.runtime.console import Log

        log = Log(stream="stderr") if self.json else Log(needed=self.out is None)
        return {name: value for name, value in vars(self).items() if name != "json"} | {"log": log}


@dataclass(frozen=True, kw_only=True)
class Precise(Measurement):
    """Options of all studies in which a network computes."""

    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""
