"""The studies of ``multipde bench`` that train networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multipde.cli.bench_options import Precise, Rows
from multipde.cli.options import DataName, DataOptions, DynamicsName


@dataclass(frozen=True, kw_only=True)
class Trained(DataOptions, Precise):
    """Options of all studies that train networks; rows that are in the file already are not measured again."""

    size: int = 32
    """Image side in pixels of the finest level; of bench finetune and bench finish the new side."""
    run_dir: Path = Path("runs/bench")
    """Directory of the study."""
    out: Path | None = None
    """File of rows; the figure is written to the same directory. Left out: rows.jsonl in the directory of the study."""

    def given(self) -> dict[str, Any]:
        own = {"data": (self.data, self.options()), "out": self.out or self.run_dir / "rows.jsonl"}
        inside = ("root", "download", "stream", "test_share", "shuffle_buffer", "skip_bad", "run_dir")
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
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*. Left out: the built-in shapes."""
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
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*. Left out: the built-in shapes."""
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
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*. Left out: the built-in shapes."""
    run_dir: Path = Path("runs/bench-regimes")

    def run_command(self) -> Rows:
        from multipde.studies.bench.regimes import regimes_study

        return regimes_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Finetune(Trained):
    """Measure the accuracy of a converted network against the number of images on which it is fine-tuned."""

    checkpoint: Path
    """The network to be converted: a run directory, or one written by `save`."""
    run_dir: Path = Path("runs/bench-finetune")

    def run_command(self) -> Rows:
        from multipde.studies.bench.finetune import finetune_study

        given: dict[str, Any] = self.given() | {"data": self.of(self.checkpoint)}
        return finetune_study(**given)


@dataclass(frozen=True, kw_only=True)
class Pretrained(Trained):
    """Fine-tune pretrained weights on small images first, and compare with the full size at once, for the same work.

    The network is ResNet-18 with half of its channels and a 3x3 opening; its weights are pretrained first.
    """

    data: DataName = "shapes"
    """Data set that is learned in the end; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*. Left out: the
    built-in shapes."""
    pretrain_data: DataName = "folder"
    """Data set of the pretraining."""
    pretrain_root: Path = Path("data/cifar100")
    """Its directory."""
    pretrain_size: int = 32
    """Image side in pixels at which the pretraining ends."""
    pretrain_budget: str = "30TFLOPs"
    """Work of the pretraining."""
    budgets: tuple[str, ...] = ("3TFLOPs",)
    """Work of every training after it."""
    arms: tuple[str, ...] | None = None
    """What is compared: "full size", "coarse to fine", detail, and the first two from scratch. Left out: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    test_images: int = 2000
    """Number of test images, the same for all trainings."""
    batch: int = 64
    """Images per optimizer step after the pretraining."""
    run_dir: Path = Path("runs/bench-pretrained")
    """Directory in which the trainings are recorded; one that was interrupted is continued."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.pretrained_study import pretrained_study

        given = self.given()
        source = given.pop("pretrain_data"), {"root": given.pop("pretrain_root")}
        return pretrained_study(**given, pretrain=source, run_dir=self.run_dir)


@dataclass(frozen=True, kw_only=True)
class Finish(Compiled):
    """Let a converted network learn from the old one, and measure its accuracy against the number of images."""

    checkpoint: Path
    """The network to be converted: a run directory, or one written by `save`."""
    size: int = 16
    """New side of the images in pixels."""
    ways: tuple[str, ...] = ("copy",)
    """How the network gets to the new size: copy, calibrated; for larger images also detail, a trous."""
    arms: tuple[str, ...] | None = None
    """What is learned: answers, answers and labels, labels, or labels from scratch. Left out: all of them."""
    images: tuple[int, ...] = (500, 2000, 5000, 40000)
    """Numbers of different images."""
    learned: int = 40000
    """Number of images that each training sees, repetitions included."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the trainings."""
    run_dir: Path = Path("runs/bench-finish")

    def run_command(self) -> Rows:
        from multipde.studies.bench.finishing import finish_study

        given: dict[str, Any] = self.given() | {"data": self.of(self.checkpoint)}
        return finish_study(**given)
