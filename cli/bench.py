"""``multipde bench``"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, DataName, DataOptions, DynamicsName

IMAGES = ("data", "root", "download", "stream", "size")

OWN_OPTIONS = {
    "transfer": (*IMAGES, "amp", "run_dir", "small", "arms", "dynamics", "seeds", "budget", "workers"),
    "regimes": (*IMAGES, "amp", "run_dir"),
    "finetune": (*IMAGES, "amp", "run_dir", "checkpoint"),
    "step": ("amp", "dynamics", "batch", "compile"),
    "memory": ("amp", "dynamics"),
    "scaling": ("amp", "dynamics", "batch", "processes"),
    "input": (),
}
"""Of the options that not all studies have, those of each."""

Study = Literal["transfer", "regimes", "finetune", "step", "memory", "scaling", "input"]


@dataclass(frozen=True, kw_only=True)
class Bench(DataOptions):
    """Measure against the rivals.

    transfer: ways from coarse to fine, all with the same work. regimes: where which map of the stencils is right, by
    the smoothness of images and networks. finetune: how many images a converted --checkpoint must see again. step: a
    training step against its bare convolutions. memory: what a block of many time steps holds, and for how long.
    scaling: a training step shared by one, two, ... processes. input: images per second that reach the network on every
    level, from JPEG files of 256 pixels and from memory.

    Rows are appended to a file as they are finished; what is there is not done again, so that a study can be cut off
    and taken up, and ends with its tables and a figure beside the file. Only step, memory, scaling and input are
    measured anew each time, and written where --out says so.
    """

    study: Annotated[Study, tyro.conf.Positional]
    """What to measure."""
    data: DataName | None = None
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*. Left out: shapes, or the checkpoint's own."""
    size: int = 32
    """Full image side in pixels; for finetune the new one."""
    checkpoint: Path | None = None
    """For finetune: the network to be converted."""
    small: bool = False
    """A quick version, about ten minutes on two cores: a quarter of the work, two seeds."""
    arms: tuple[str, ...] | None = None
    """Only these arms. Left out: all once, then fine only, copy and the two best with every dynamics and seed."""
    dynamics: tuple[DynamicsName, ...] | None = None
    """Dynamics for --arms, step, memory and scaling. Left out: hamiltonian for --arms, else all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the second part, or of --arms."""
    budget: float = 2.0
    """Work of every training in epochs at the full size; half of it for other dynamics than hamiltonian."""
    batch: int | Literal["auto"] | None = None
    """Images in a step, for step and scaling; for step also auto: as many pixels at all sizes. Left out: 125, 128."""
    compile: bool = False
    """For step: norms compiled, and beside them those that are not."""
    processes: tuple[int, ...] | None = None
    """For scaling: numbers of processes. Left out: 1, 2, 4, ... up to the number of GPUs, or of cores."""
    out: Path | None = None
    """File of rows. Left out: rows.jsonl in the run directory."""
    run_dir: Path | None = None
    """Where the trainings are recorded. Left out: runs/bench-STUDY."""
    workers: int = 1
    """Trainings at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    amp: AmpName = "off"
    """Mixed precision; auto: bf16 where the processor or GPU has it, which is faster."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log
        from multipde.storage.rows import check_rows

        run_dir = self.run_dir or Path("runs") / f"bench-{self.study}"
        out = self.out or run_dir / "rows.jsonl"
        self._check_given()
        if self.out is not None:
            check_rows(self.out)
        if self.study == "input":
            from multipde.studies.bench.input import input_study

            input_study(self.out, device=self.device, log=Log())
            return
        if self.study in ("step", "memory", "scaling"):
            from multipde.studies.bench.memory import memory_study
            from multipde.studies.bench.scaling import scaling_study
            from multipde.studies.bench.step import step_study

            study = {"step": step_study, "memory": memory_study, "scaling": scaling_study}[self.study]
            given = {"balance": True} if self.batch == "auto" else {"batch": self.batch, "processes": self.processes}
            given |= {"compiled": True} if self.compile else {}
            given = {name: value for name, value in given.items() if value is not None}
            study(self.out, device=self.device, amp=self.amp, log=Log(), dynamics=self.dynamics, **given)
            return
        shared = {"size": self.size, "device": self.device, "amp": self.amp, "log": Log()}
        name = self.data or "shapes"
        if self.study == "regimes":
            from multipde.studies.bench.regimes import regimes_study

            regimes_study(name, self.options(), out, **shared)
            return
        if self.study == "finetune":
            from multipde.studies.bench.finetune import finetune_study

            source = None if self.data is None else (self.data, self.options())
            finetune_study(self.checkpoint, source, out, **shared)
            return
        from multipde.studies.bench.transfer_study import transfer_study

        transfer_study(
            name,
            self.options(),
            out,
            small=self.small,
            arms=self.arms,
            dynamics=self.dynamics or ("hamiltonian",),
            seeds=self.seeds,
            budget=self.budget,
            run_dir=run_dir,
            workers=self.workers,
            **shared,
        )

    def _check_given(self) -> None:
        """Raise ValueError for an option that the study does not have."""
        special = {name for names in OWN_OPTIONS.values() for name in names} - set(OWN_OPTIONS[self.study])
        for field in fields(self):
            if field.name in special and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"{field.name} must be left out for bench {self.study}, got --{flag}")
            if getattr(self, field.name) == ():
                raise ValueError(f"{field.name} must name at least one, got none")
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"batch must be positive, got {self.batch}")
        if isinstance(self.batch, int) and self.batch >= 2**31:
            raise ValueError(f"batch must be below 2^31, got {self.batch}")
        if self.study == "scaling" and self.batch == "auto":
            raise ValueError("batch must be a number for bench scaling, got auto")
