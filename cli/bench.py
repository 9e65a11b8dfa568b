"""``multipde bench``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import tyro

from multipde.cli.options import AmpName, DataName, DataOptions, DynamicsName


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Options that all studies have."""

    out: Path | None = None
    """File to which the rows are appended. Left out: none."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""

    def given(self) -> dict[str, Any]:
        """All options by name, and the log, for the function of the study; a list must have an entry."""
        from multipde.runtime.console import Log

        for name, value in vars(self).items():
            if value == ():
                raise ValueError(f"{name} must name at least one, got none")
        return vars(self) | {"log": Log()}


@dataclass(frozen=True, kw_only=True)
class Precise(Measurement):
    """Options of all studies in which a network computes."""

    amp: AmpName = "off"
    """Mixed precision; auto: bf16 where the processor or GPU has it, which is faster."""


@dataclass(frozen=True, kw_only=True)
class Trained(DataOptions, Precise):
    """Options of all studies that train networks; rows that the file has are not measured again."""

    size: int = 32
    """Full image side in pixels; of finetune the new one."""
    run_dir: Path = Path("runs/bench")
    """Directory of the study."""
    out: Path | None = None
    """File of rows; the figure lies beside it. Left out: rows.jsonl in the directory of the study."""

    def given(self) -> dict[str, Any]:
        own = {"data": (self.data, self.options()), "out": self.out or self.run_dir / "rows.jsonl"}
        inside = ("root", "download", "stream", "run_dir")
        return {name: value for name, value in (super().given() | own).items() if name not in inside}


@dataclass(frozen=True, kw_only=True)
class Transfer(Trained):
    """Ways from coarse to fine levels, all with the same work."""

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    run_dir: Path = Path("runs/bench-transfer")
    """Where the trainings are recorded; one that was interrupted is continued."""
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
    workers: int = 1
    """Trainings at a time."""

    def run_command(self) -> None:
        from multipde.studies.bench.transfer_study import transfer_study

        transfer_study(**self.given(), run_dir=self.run_dir)


@dataclass(frozen=True, kw_only=True)
class Regimes(Trained):
    """Which map of the stencils is right, depending on the smoothness of images and networks."""

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    run_dir: Path = Path("runs/bench-regimes")
    """Directory of the study."""

    def run_command(self) -> None:
        from multipde.studies.bench.regimes import regimes_study

        regimes_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Finetune(Trained):
    """Accuracy of a converted network, by the number of images on which it is trained again."""

    checkpoint: Path
    """The network to be converted: a run directory, or one written by `save`."""
    run_dir: Path = Path("runs/bench-finetune")
    """Directory of the study."""

    def run_command(self) -> None:
        from multipde.studies.bench.finetune import finetune_study

        given: dict[str, Any] = self.given() | {"data": self.of(self.checkpoint)}
        finetune_study(**given)


@dataclass(frozen=True, kw_only=True)
class Timed(Precise):
    """Options of all studies of the time and memory of a training step."""

    dynamics: tuple[DynamicsName, ...] = get_args(DynamicsName)
    """Dynamics of the networks."""


@dataclass(frozen=True, kw_only=True)
class Step(Timed):
    """A training step, beside the bare convolutions of the same network."""

    batch: int | Literal["auto"] = 125
    """Images in a step; auto: 125 at the largest size, and as many pixels at the others."""
    compile: bool = False
    """Compile the norms, and measure the step without compiled norms beside it."""

    def run_command(self) -> None:
        from multipde.studies.bench.step_speed import step_study

        step_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Memory(Timed):
    """Peak memory and time of a block with many time steps, for every way to keep its states."""

    def run_command(self) -> None:
        from multipde.studies.bench.memory import memory_study

        memory_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Scaling(Timed):
    """A training step that is shared by one, two, ... processes."""

    batch: int = 128
    """Images in a step, of all processes together."""
    processes: tuple[int, ...] | None = None
    """Numbers of processes. Left out: 1, 2, 4, ... up to the number of GPUs, or of cores."""

    def run_command(self) -> None:
        from multipde.studies.bench.scaling import scaling_study

        scaling_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Input(Measurement):
    """Images per second that reach the network on every level, from JPEG files of 256 pixels and from memory."""

    def run_command(self) -> None:
        from multipde.studies.bench.input import input_study

        input_study(**self.given())


STUDIES = {
    "transfer": Transfer,
    "regimes": Regimes,
    "finetune": Finetune,
    "step": Step,
    "memory": Memory,
    "scaling": Scaling,
    "input": Input,
}
Study = Union[tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in STUDIES.items())]  # noqa: UP007


@dataclass(frozen=True)
class Bench:
    """Measure the library beside its rivals.

    A row is written as soon as it is measured. Studies that train networks do not repeat the rows that their file has,
    so that a study that was interrupted goes on with the same command; the other studies measure everything anew.
    """

    study: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Study]]  # pyright: ignore[reportInvalidTypeForm]
    """What to measure."""

    def run_command(self) -> None:
        self.study.run_command()
