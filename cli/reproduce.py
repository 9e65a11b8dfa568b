"""``multipde reproduce``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName


@dataclass(frozen=True)
class Reproduce:
    """Reproduce the paper's table or one of its figures: train the missing networks, show and write the results.

    Trainings are kept in the run directory: finished ones are not repeated, interrupted ones are continued, and the
    figures share the trainings of the table. With images as files: multipde reproduce table1 --data cifar10 --amp bf16
    """

    experiment: Annotated[Literal["table1", "fig1", "fig2", "fig3", "fig4"], tyro.conf.Positional]
    """table1: accuracy and loss of the three networks. fig1: images with bars for probabilities. fig2: accuracy with a
    part of the training images. fig3: confusion matrices with a part of them. fig4: accuracy after every epoch."""
    data: tuple[Literal["stl10", "cifar10", "cifar100"], ...] | None = None
    """Data sets. Left out: those of the paper, which are all three for table1, stl10 for fig1 to fig3, and cifar10 and
    cifar100 for fig4."""
    dynamics: tuple[Literal["parabolic", "hamiltonian", "second_order"], ...] | None = None
    """Dynamics of the networks. Left out: all three. One cell of the table: --data stl10 --dynamics hamiltonian"""
    root: Path = Path("data")
    """Directory with NAME/{train,test}/CLASS/*, with {train,test}/CLASS/*, or as torchvision stores the data."""
    download: bool = False
    """Download data sets that are missing."""
    recipe: Literal["paper", "fast"] = "paper"
    """paper: the recipe of the paper, at the full size throughout. fast: that of `multipde train`, from coarse to fine,
    with at most a fifth of the paper's work."""
    budget: str = "hour"
    """full: the paper's epochs; with --recipe fast a fifth of their work. hour: as much as two cores with --amp bf16 do
    in about an hour per data set (and again in an hour for parts of it). smoke: a minute or two, with 200 training and
    100 test images. Or the work of each training, such as 30TFLOPs."""
    epochs: int | None = None
    """Largest number of epochs of a training, for example to see how long one takes. Left out: that of the budget.
    Not with --recipe fast."""
    plan: bool = False
    """Only print what the trainings cost, in work and in minutes on this machine."""
    run_dir: Path = Path("runs/reproduce")
    """Directory of the trainings, in a folder per budget."""
    out: Path | None = None
    """Directory for the rows (.jsonl) and figures (.svg). Left out: that of the trainings."""
    seed: int = 0
    """Seed of the weights, the validation split, the order and augmentation of images, and the images shown."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""
    compile: bool = False
    """Compile the normalisation layers for training, in C++ or on a GPU by torch.compile."""
    json: bool = False
    """Print the rows as one line of JSON instead of tables; what is said meanwhile goes to standard error."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log
        from multipde.studies.paper.experiments import reproduce

        given = {name: value for name, value in vars(self).items() if name != "json"}
        rows = reproduce(**given, log=Log(stream="stderr" if self.json else "stdout"))
        if self.json:
            Log(needed=True).json({"rows": rows})
