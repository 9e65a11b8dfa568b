"""``multipde train``"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from multipde.cli.options import AmpName, DataName, DataOptions, DynamicsName, MethodName, OptimizerName
from multipde.training.level import Level
from multipde.training.settings import TrainSettings

LEVEL: Any = Level
SETTINGS: Any = TrainSettings
"""Where the defaults are written. Any, because an option lists its choices where the library takes a string."""


@dataclass(frozen=True, kw_only=True)
class Train(DataOptions):
    """Train a network coarse to fine: small images first, then the network is converted to the next size.

    Without arguments: a complete training on the embedded shapes at 8, 16 and 32 pixels, about a minute on two
    cores. With CIFAR-10 as image files: multipde train --data folder --root data/cifar10 --amp bf16. By two processes:
    torchrun --nproc-per-node 2 -m -- multipde train --batch 124
    """

    data: DataName = "shapes"
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/*."""
    preset: str | None = None
    """Network, e.g. cifar10-second_order. Left out: the one for the data and the dynamics."""
    dynamics: DynamicsName | None = None
    """Time stepping of the blocks. Left out: hamiltonian."""
    arch: str | None = None
    """Any other network instead: a classifier of torchvision (resnet18) or timm (timm:resnet50d), or an import path
    package.module:function, looked up in the working directory first. Arguments in brackets: resnet18(groups=2)."""
    sizes: tuple[int, ...] = (8, 16, 32)
    """Image sides in pixels, one per level, in the order of training."""
    epochs: tuple[float, ...] | Literal["auto"] | None = None
    """Epochs per level, or auto with --budget: a level is left when it gains less than the next one would. Left out: 5,
    and 2 on the last."""
    budget: str | None = SETTINGS.budget
    """With --epochs auto: how much to spend, e.g. 10min or 40TFLOPs."""
    min_epochs: int = SETTINGS.min_epochs
    """With --epochs auto: the smallest number of epochs on each level."""
    max_epochs: int = SETTINGS.max_epochs
    """With --epochs auto: the largest number of epochs on each level but the last."""
    mixed: bool = False
    """Train on the batches of all levels in random order instead of one level after the other."""
    steps: tuple[int, ...] | Literal["auto"] | None = None
    """Time steps per level; the final time T stays. auto: more where the moved network would be less stable. Left out:
    those of the network."""
    batch: tuple[int, ...] | Literal["auto"] = (LEVEL.batch,)
    """Images per optimizer step, one number or one per level. auto: 125 on the finest level; on the others as many
    images as have the same number of pixels, with the learning rate scaled by the same factor."""
    learning_rate: tuple[float, ...] = (LEVEL.learning_rate,)
    """Peak learning rate, one number or one per level."""
    policy: Literal["across", "one_cycle", "piecewise", "piecewise_long"] = LEVEL.policy
    """Learning rate: one cycle across all levels, by work; one cycle in each; or in each 1, 1/5, 1/25 for 60, 20, 20
    per cent (as in the paper), down to 1/625 for 30, 20, 20, 20, 10 per cent (there for CIFAR-100)."""
    memory: Literal["store", "reversible", "checkpoint"] | None = None
    """What is stored for backpropagation: everything, the last state of a block (hamiltonian, second_order), or the
    state of every step. Left out: as the network has it."""
    transfer: MethodName = SETTINGS.transfer
    """How stencils move to the next level."""
    coordinates: Literal["level", "finest"] = SETTINGS.coordinates
    """Mesh of the trained parameter: that of each level, moved by --transfer, or the finest one throughout."""
    conditioning: float = SETTINGS.conditioning
    """With --coordinates finest: power of the preconditioner of the gradients, from 0 (none) to 1."""
    init: Path | None = None
    """Checkpoint to start from, e.g. a converted one."""
    run: Path | None = None
    """Directory for the record of the run. Left out: the next free runs/DATA-DYNAMICS-N."""
    resume: bool = False
    """Go on with the run in --run; everything else is taken from its record. A network from an import path has to be
    named again by --arch."""
    extend: tuple[str, ...] = ()
    """Train the finished run in --run further: SIZE:EPOCHS of each new level, e.g. 32:3. It has a cycle of the
    learning rate of its own."""
    seed: int = SETTINGS.seed
    """Seed of the weights, the split, the order of the images and their augmentation."""
    optimizer: OptimizerName = SETTINGS.optimizer
    """sgd; muon: orthogonalised momentum for the stencils of convolutions and SGD for the rest; or adamw, at 0.04 times
    the learning rate."""
    momentum: float = SETTINGS.momentum
    """Momentum of the stochastic gradient descent."""
    nesterov: bool | None = SETTINGS.nesterov
    """Look one step of the momentum ahead. Left out: with muon."""
    stencil_rate: float = SETTINGS.stencil_rate
    """With muon: learning rate of the stencils as a multiple of the other one."""
    stencil_momentum: float = SETTINGS.stencil_momentum
    """With muon: momentum of the stencils."""
    weight_decay: float | None = SETTINGS.weight_decay
    """Decay of the stencils, times their learning rate. Left out: 0, and 0.02 with adamw."""
    bias_rate: float = SETTINGS.bias_rate
    """Factor of the learning rate of the biases of norms."""
    momentum_rule: Literal["map", "dual", "reset"] = SETTINGS.momentum_rule
    """How momentum moves with the stencils: as they do, as gradients do, or not at all."""
    alpha1: float = SETTINGS.alpha1
    """Weight of the total variation of the controls in time, eq. (13)."""
    alpha2: float = SETTINGS.alpha2
    """Weight of the squares of the controls, eq. (13)."""
    box: float = SETTINGS.box
    """Bound on the stencils of the symmetric layers; 0 for none."""
    label_smoothing: float = SETTINGS.label_smoothing
    """Share of every label that is spread evenly over the classes, in the training loss."""
    augment: str | None = None
    """What is done at random to the training images: off, or names out of flip, crop, cutout, mixup, cutmix and
    randaugment, joined by commas. Left out: flip,crop."""
    no_augment: tyro.conf.FlagCreatePairsOff[bool] = False
    """The same as --augment off."""
    standardize: bool = False
    """Normalise every image by its own mean and standard deviation, not by those of the data set."""
    validation: float = SETTINGS.validation
    """Share of the training images set aside for validation."""
    checkpoint_every: float = SETTINGS.checkpoint_every
    """Minutes between checkpoints within an epoch; another one is written after every epoch."""
    on_divergence: Literal["stop", "rollback"] = SETTINGS.on_divergence
    """What to do when loss, activations or stencils go out of bounds: stop, or go back to the last checkpoint with half
    the learning rate, at most three times."""
    deterministic: bool = SETTINGS.deterministic
    """Use only algorithms that give the same bits again on the same machine."""
    compile: bool = SETTINGS.compile
    """Compile the norms for training, in C++ or on a GPU by torch.compile: faster after a few seconds."""
    tensorboard: bool = SETTINGS.tensorboard
    """Write event files for TensorBoard into the directory of the run."""
    device: str = SETTINGS.device
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""
    amp: AmpName = SETTINGS.amp
    """Mixed precision; auto: bf16 where the processor or GPU has it, which is faster."""
    quiet: bool = False
    """Print nothing."""

    def run_command(self) -> None:
        from multipde.reports.page import report_at_end
        from multipde.runtime.console import Log
        from multipde.training.run import next_run_directory, resume, train
        from multipde.training.schedule import Schedule, levels_from_lists
        from multipde.training.start import read_start, starting_network

        if self.resume or self.extend:
            levels = [_extension(text) for text in self.extend]
            done = resume(self._run_to_resume(), model=self.arch, extend=levels, quiet=self.quiet)
            report_at_end(done.directory, Log(quiet=self.quiet), self.arch)
            return
        is_auto = self.epochs == "auto"
        levels = levels_from_lists(
            self.sizes,
            None if isinstance(self.epochs, str) else self.epochs,
            None if isinstance(self.steps, str) else self.steps,
            (LEVEL.batch,) if isinstance(self.batch, str) else self.batch,
            self.learning_rate,
            policy=self.policy,
            mixed=self.mixed,
            auto=is_auto,
        )
        start = read_start(self.init, self.arch)
        config = starting_network(
            self.data,
            self.dynamics,
            max(self.sizes),
            self.preset,
            start,
            arch=self.arch,
            memory=self.memory,
            standardize=self.standardize,
        )
        shared = {f.name for f in fields(self)} & {f.name for f in fields(TrainSettings)}
        given: dict[str, Any] = {name: getattr(self, name) for name in shared}
        if self.no_augment and self.augment is not None:
            raise ValueError(f"augment must be left out with --no-augment, got {self.augment!r}")
        given["augment"] = False if self.no_augment else self.augment
        settings = TrainSettings(**given, auto_steps=self.steps == "auto")
        run = self.run or next_run_directory(self.data, config.label)
        done = train(
            config,
            Schedule(levels),
            self.data,
            run,
            settings=settings,
            init=start,
            data_options=self.options(),
            balance=self.batch == "auto",
            quiet=self.quiet,
        )
        report_at_end(done.directory, Log(quiet=self.quiet), self.arch)

    def _run_to_resume(self) -> Path:
        if self.run is None:
            flag = "--resume" if self.resume else "--extend SIZE:EPOCHS"
            raise ValueError(f"run must be given with {flag.split()[0]}; type --run DIR {flag}")
        own = ("run", "resume", "extend", "arch", "quiet")
        changed = [f.name for f in fields(self) if f.name not in own and getattr(self, f.name) != f.default]
        if changed:
            flag = changed[0].replace("_", "-")
            raise ValueError(f"resume takes everything from the run, got --{flag} too; leave it out")
        return self.run


def _extension(text: str) -> tuple[int, float]:
    """Size and epochs of a level."""
    size, _, epochs = text.partition(":")
    try:
        return int(size), float(epochs)
    except ValueError:
        raise ValueError(f"extend must be SIZE:EPOCHS such as 32:3, got {text!r}") from None
