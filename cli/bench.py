"""``multipde bench``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, DataName, DataOptions, DynamicsName

Study = Literal["transfer"]


@dataclass(frozen=True, kw_only=True)
class Bench(DataOptions):
    """Measure against the rivals. `transfer`: ways from coarse to fine, all with the same work.

    Rows are appended to a file as they are finished; what is there is not done again, so that a study can be cut off
    and taken up, and ends with its tables and a figure beside the file.
    """

    study: Annotated[Study, tyro.conf.Positional]
    """What to measure."""
    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    size: int = 32
    """Full image side in pixels."""
    small: bool = False
    """A quick version, about ten minutes on two cores: a quarter of the work, two seeds."""
    arms: tuple[str, ...] | None = None
    """Only these arms. Left out: all once, then fine only, copy and the two best with every dynamics and seed."""
    dynamics: tuple[DynamicsName, ...] = ("hamiltonian",)
    """Dynamics for --arms."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the second part, or of --arms."""
    budget: float = 2.0
    """Work of every training in epochs at the full size; half of it for other dynamics than hamiltonian."""
    out: Path | None = None
    """File of rows. Left out: runs/bench-transfer/rows.jsonl."""
    run_dir: Path = Path("runs/bench-transfer")
    """Where the trainings are recorded."""
    workers: int = 1
    """Trainings at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    amp: AmpName = "off"
    """Mixed precision; bf16 is faster where the processor has it."""

    def run_command(self) -> None:
        from multipde.analysis.bench.study import transfer_study
        from multipde.training.log import Log

        transfer_study(
            self.data,
            self.options(),
            self.out or self.run_dir / "rows.jsonl",
            size=self.size,
            small=self.small,
            arms=self.arms,
            dynamics=self.dynamics,
            seeds=self.seeds,
            budget=self.budget,
            run_dir=self.run_dir,
            workers=self.workers,
            device=self.device,
            amp=self.amp,
            log=Log(),
        )
