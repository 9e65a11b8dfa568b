"""``multipde reproduce``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName


@dataclass(frozen=True)
class Reproduce:
    """Repeat the paper's table or one of its figures: do the trainings that are missing, show and write the results.

    Trainings are kept in the run directory: finished ones are not repeated, interrupted ones are continued, and the
    figures share the trainings of the table. With images as files: multipde reproduce table1 --data cifar10 --amp bf16
    """

    experiment: Annotated[Literal["table1", "fig1", "fig2", "fig3", "fig4"], tyro.conf.Positional]
    """table1: accuracy and loss of the three networks. fig1: images with bars of their probabilities. fig2: accuracy
    with part of the training images. fig3: confusion matrices with part of them. fig4: accuracy at every epoch."""
    data: tuple[Literal["stl10", "cifar10", "cifar100"], ...] | None = None
    """Data sets. Left out: those of the paper, which are all for table1, stl10 for fig1 to fig3, and both cifar for
    fig4."""
    root: Path = Path("data")
    """Directory with NAME/{train,test}/CLASS/*, with {train,test}/CLASS/*, or as torchvision stores the data."""
    download: bool = False
    """Download data sets that are missing."""
    budget: Literal["full", "hour", "smoke"] = "hour"
    """full: the paper's epochs. hour: as many as two cores with --amp bf16 do in about an hour per data set (and as
    much again for partial data). smoke: a minute or two, with 200 training and 100 test images."""
    epochs: int | None = None
    """Most epochs of a training, for example to see how long one takes. Left out: those of the budget."""
    run_dir: Path = Path("runs/reproduce")
    """Directory in which the trainings are kept, by budget."""
    out: Path | None = None
    """Directory of the rows (.jsonl) and figures (.svg). Left out: that of the trainings."""
    seed: int = 0
    """Seed of the weights, the split, the order, the augmentation and the images shown."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""
    amp: AmpName = "off"
    """Mixed precision; bf16 is faster where the processor has it."""
    compile: bool = False
    """Norms compiled while training, in C++ or on a GPU by torch.compile."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log
        from multipde.studies.paper.experiments import reproduce

        reproduce(**vars(self), log=Log())
