"""``multipde bench``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import tyro

from multipde.cli.options import AmpName, DataName, DataOptions, DynamicsName, OptimizerName

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
        """All options by name, and the log, for the function of the study; a list must have an entry."""
        from multipde.runtime.console import Log

        for name, value in vars(self).items():
            if value == ():
                raise ValueError(f"{name} must name at least one, got none")
        log = Log(stream="stderr") if self.json else Log(needed=self.out is None)
        return {name: value for name, value in vars(self).items() if name != "json"} | {"log": log}


@dataclass(frozen=True, kw_only=True)
class Precise(Measurement):
    """Options of all studies in which a network computes."""

    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""


@dataclass(frozen=True, kw_only=True)
class Trained(DataOptions, Precise):
    """Options of all studies that train networks; rows that are in the file already are not measured again."""

    size: int = 32
    """Image side in pixels: the full size, or for finetune the new size."""
    run_dir: Path = Path("runs/bench")
    """Directory of the study."""
    out: Path | None = None
    """File of rows; the figure is written to the same directory. Left out: rows.jsonl in the directory of the study."""

    def given(self) -> dict[str, Any]:
        own = {"data": (self.data, self.options()), "out": self.out or self.run_dir / "rows.jsonl"}
        inside = ("root", "download", "stream", "test_share", "run_dir")
        return {name: value for name, value in (super().given() | own).items() if name not in inside}


@dataclass(frozen=True, kw_only=True)
class Compiled(Trained):
    """Options of all studies whose trainings may use compiled kernels."""

    compile: bool = False
    """Train with compiled kernels."""


@dataclass(frozen=True, kw_only=True)
class Transfer(Compiled):
    """Compare ways to train from coarse to fine, called arms, which all do the same work."""

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    run_dir: Path = Path("runs/bench-transfer")
    """Directory in which the trainings are recorded; one that was interrupted is continued."""
    small: bool = False
    """Run a quick version, about ten minutes on two cores: a quarter of the work, two seeds."""
    arms: tuple[str, ...] | None = None
    """Train only these arms. Left out: all once, then fine only, copy and the two best with all dynamics and seeds."""
    dynamics: tuple[DynamicsName, ...] = ("hamiltonian",)
    """Dynamics for --arms."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the second part (all dynamics and seeds), or for --arms."""
    recipes: tuple[str, ...] = ("sgd",)
    """Recipes with which the arms are trained: sgd, muon, or fast as
    in `train --recipe fast`. Rivals with a recipe of their own use that."""
    budget: float | str = 2.0
    """Work of every training in epochs at the full size, half of it for other dynamics than hamiltonian; or for
    instance 30TFLOPs, the same for all."""
    workers: int = 1
    """Number of trainings at the same time."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.transfer_study import transfer_study

        return transfer_study(**self.given(), run_dir=self.run_dir)


@dataclass(frozen=True, kw_only=True)
class Ablation(Compiled):
    """Measure what each ingredient of the recipe fast is worth, left out of it and added to plain SGD."""

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    run_dir: Path = Path("runs/bench-ablation")
    """Directory in which the trainings are recorded; one that was interrupted is continued."""
    variants: tuple[str, ...] | None = None
    """Train only these, for instance "full recipe" "without decay". Left out: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    budget: float | str = "10TFLOPs"
    """Work of every training, in epochs at the full size or in FLOPs."""
    workers: int = 1
    """Number of trainings at the same time."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.ablation import ablation_study

        return ablation_study(**self.given(), run_dir=self.run_dir)


@dataclass(frozen=True, kw_only=True)
class Regimes(Trained):
    """Compare the methods of conversion for images and networks of different smoothness."""

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    run_dir: Path = Path("runs/bench-regimes")
    """Directory of the study."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.regimes import regimes_study

        return regimes_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Finetune(Trained):
    """Measure the accuracy of a converted network against the number of images on which it is fine-tuned."""

    checkpoint: Path
    """The network to be converted: a run directory, or one written by `save`."""
    run_dir: Path = Path("runs/bench-finetune")
    """Directory of the study."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.finetune import finetune_study

        given: dict[str, Any] = self.given() | {"data": self.of(self.checkpoint)}
        return finetune_study(**given)


@dataclass(frozen=True, kw_only=True)
class Finish(Compiled):
    """Let a converted network learn from the old one, and measure its accuracy against the number of images."""

    checkpoint: Path
    """The network to be converted: a run directory, or one written by `save`."""
    size: int = 16
    """New side of the mesh in pixels."""
    arms: tuple[str, ...] | None = None
    """What is learned: answers, answers and labels, labels, or labels from scratch. Left out: all of them."""
    images: tuple[int, ...] = (500, 2000, 5000, 40000)
    """Numbers of different images."""
    learned: int = 40000
    """Number of images that each training sees, repetitions included."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the trainings."""
    run_dir: Path = Path("runs/bench-finish")
    """Directory of the study."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.finishing import finish_study

        given: dict[str, Any] = self.given() | {"data": self.of(self.checkpoint)}
        return finish_study(**given)


@dataclass(frozen=True, kw_only=True)
class Timed(Precise):
    """Options of all studies of the time and memory of a training step."""

    dynamics: tuple[DynamicsName, ...] = get_args(DynamicsName)
    """Dynamics of the networks."""


@dataclass(frozen=True, kw_only=True)
class Step(Timed):
    """Measure the speed of a training step, and that of the bare convolutions of the same network."""

    batch: int | Literal["auto"] = 125
    """Images per step; auto: 125 at the largest size, and as many pixels at the others."""
    optimizer: OptimizerName = "sgd"
    """Optimizer of the step."""
    compile: bool = False
    """Compile the normalisation layers, and measure the step with and without them."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.step_speed import step_study

        return step_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Memory(Timed):
    """Measure peak memory and time of a block with many time steps, for every way to store its states."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.memory import memory_study

        return memory_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Growth(Timed):
    """Measure how time and memory of a training step grow with size, depth, channels, batch and threads."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.cost_growth import growth_study

        return growth_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Scaling(Timed):
    """Measure the speed of a training step that is shared by one, two, ... processes."""

    batch: int = 128
    """Images per step, of all processes together."""
    processes: tuple[int, ...] | None = None
    """Numbers of processes. Left out: 1, 2, 4, ... up to the number of GPUs, or of cores."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.scaling import scaling_study

        return scaling_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Input(Measurement):
    """Measure the images per second that reach the network on every level, from JPEG files and from memory."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.input import input_study

        return input_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Architectures(Measurement):
    """Try 40 networks of torchvision, timm and audio: what can be done with them, and what is refused.

    Networks whose row is in the file already are not tried again.
    """

    arch: tuple[str, ...] | None = None
    """Try only these networks of the list. Left out: all of them."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.architecture_study import architectures_study

        return architectures_study(**self.given())


STUDIES = {
    "transfer": Transfer,
    "ablation": Ablation,
    "regimes": Regimes,
    "finetune": Finetune,
    "finish": Finish,
    "step": Step,
    "memory": Memory,
    "growth": Growth,
    "scaling": Scaling,
    "input": Input,
    "architectures": Architectures,
}
Study = Union[tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in STUDIES.items())]  # noqa: UP007


@dataclass(frozen=True)
class Bench:
    """Measure the library in comparison with alternatives.

    A row is written as soon as it is measured. Studies that train networks do not repeat rows that are in their file
    already, so that the same command continues an interrupted study; the other studies measure everything anew.
    """

    study: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Study]]  # pyright: ignore[reportInvalidTypeForm]
    """The study to run."""

    def run_command(self) -> None:
        rows = self.study.run_command()
        if self.study.json:
            from multipde.runtime.console import Log

            Log(needed=True).json({"rows": rows})
