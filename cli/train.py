"""``multipde train``"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from multipde.cli.fine_tuning import FineTuningOptions
from multipde.cli.finish_sizes import FINISH_SHARE, check_sizes_of, check_sizes_option, finish_sizes, naming_sizes
from multipde.cli.options import (
    AmpName,
    DataName,
    DataOptions,
    DynamicsName,
    MethodName,
    OptimizerName,
    PolicyName,
    TrackerName,
)
from multipde.cli.resume import check_options, tell_result, typed_options
from multipde.training.level import Level, parsed_size
from multipde.training.settings import TrainSettings

LEVEL: Any = Level
SETTINGS: Any = TrainSettings
"""The defaults come from the library. Any, because options list their choices where the library takes a string."""


@dataclass(frozen=True, kw_only=True)
class Train(FineTuningOptions, DataOptions):
    """Train a network coarse to fine: on small images first, then converted to larger and larger ones.

    Without arguments it trains on the built-in shapes at 8, 16 and 32 pixels, in about a minute on one core.
    CIFAR-10 from image files: multipde train --data folder --root data/cifar10 --amp bf16. With two processes:
    torchrun --nproc-per-node 2 -m -- multipde train --batch 124

    A job that torchrun starts again (--max-restarts) resumes its run by itself; --run is then required, in a directory
    that all nodes share.
    """

    data: DataName = "shapes"
    """Data set. folder: ROOT/train/CLASS/* and ROOT/test/CLASS/* (or val, valid), or ROOT/CLASS/* with --test-share.
    csv: the images that the file ROOT lists. webdataset: tar files as `multipde shard` writes them."""
    preset: str | None = None
    """Network by name, e.g. cifar10-second_order. Left out: the default for the data set and the dynamics."""
    dynamics: DynamicsName | None = None
    """Time stepping of the blocks. Left out: hamiltonian."""
    arch: str | None = None
    """Another kind of network instead: a classifier of torchvision (resnet18) or timm (timm:resnet50d), or an import
    path package.module:function, looked up in the working directory first. Arguments follow in parentheses:
    'resnet18(zero_init_residual=True)'."""
    sizes: tuple[int | str, ...] = (8, 16, 32)
    """Image sides in pixels, one per level, in the order of training. 16:32 trains a mesh of 16 on images of 32 pixels:
    the network that was trained on 16 pixels sees the detail of finer images, for a few per cent more work."""
    a_trous: int | None = None
    """Go from sizes such as 16:32 to 32 by dilated stencils, which nearly keeps the answers; so many blocks, from the
    finest on, lose their dilation in the first half of the level. Left out: average the opening, and use --transfer."""
    epochs: tuple[float, ...] | Literal["auto"] | None = None
    """Epochs per level, or auto with --budget: a level ends when the next one is expected to gain more accuracy for the
    same work. Left out: 5, and 1 on the last level."""
    work: tuple[float, ...] | None = None
    """Instead of --epochs, with --budget in FLOPs: share of the budget that each level may cost, e.g. 10 30 60."""
    budget: str | None = SETTINGS.budget
    """With --epochs auto or --work: time (min, h) or work (GFLOPs, TFLOPs) of the whole training, e.g. 10min."""
    min_epochs: int = SETTINGS.min_epochs
    """With --epochs auto: the smallest number of epochs on each level."""
    max_epochs: int = SETTINGS.max_epochs
    """With --epochs auto: the largest number of epochs on each level but the last."""
    mixed: bool = False
    """Train on the batches of all levels in random order instead of one level after the other."""
    steps: tuple[int, ...] | Literal["auto"] | None = None
    """Number of time steps on each level; the final time T stays. auto: more steps where the converted network would be
    less stable. Left out: those of the network."""
    batch: tuple[int, ...] | Literal["auto"] | None = None
    """Images per optimizer step, one number or one per level. auto: 125 on the finest level; on the others as many
    images as have the same number of pixels, with the learning rate scaled by the same factor. Left out: 125."""
    learning_rate: tuple[float, ...] | None = None
    """Peak learning rate, one number or one per level. Left out: 0.1."""
    policy: PolicyName = LEVEL.policy
    """Learning rate. across: one cycle over the work of all levels. one_cycle: one on each level. piecewise: 1, 1/5,
    1/25 of the peak for 60, 20, 20 per cent of each level, as in the paper. piecewise_long: down to 1/625 for 30, 20,
    20, 20, 10 per cent, as in the paper for CIFAR-100."""
    warm_up: float | None = None
    """With --policy across or one_cycle: share of the cycle in which the learning rate rises. Left out: 0.25."""
    memory: Literal["store", "reversible", "checkpoint"] | None = None
    """What is stored for backpropagation. store: everything. reversible: the last state of a block, for hamiltonian and
    second_order. checkpoint: the state of every step. Left out: as in the network."""
    transfer: MethodName = SETTINGS.transfer
    """Method by which stencils are converted to the next level."""
    coordinates: Literal["level", "finest"] = SETTINGS.coordinates
    """Mesh to which the trained parameters belong. level: that of each level, converted by --transfer. finest: the
    finest mesh on all levels, so that the parameters need no conversion."""
    conditioning: float = SETTINGS.conditioning
    """With --coordinates finest: exponent of the preconditioner of the gradients, from 0 (none) to 1."""
    init: Path | None = None
    """Checkpoint to start from, e.g. a converted one."""
    all_sizes: tuple[int, ...] = ()
    """After the training, make one checkpoint for images of these sides, e.g. 16 24 32, in RUN/all-sizes: the sizes
    share the stencils, and a finish trains all of them together."""
    finish_share: float = FINISH_SHARE
    """With --all-sizes: work of that finish / work of the training."""
    run: Path | None = None
    """Directory for the record of the run. Left out: the next free runs/DATA-NETWORK-N, where NETWORK is the
    dynamics or the name in --arch."""
    resume: bool = False
    """Continue the run in --run with the options of its record; --device may be another one. Data that have moved are
    named by --root, and a network from an import path must be named again with --arch."""
    extend: tuple[str, ...] = ()
    """Train the finished run in --run further: SIZE:EPOCHS of each new level, e.g. 32:3. Each has its own cycle of the
    learning rate."""
    recipe: Literal["fast", "paper"] = SETTINGS.recipe
    """Named set of values for the options that are left out. fast: muon, smoothed labels, a whitened first convolution.
    paper: stochastic gradient descent as in the paper."""
    seed: int = SETTINGS.seed
    """Seed of the weights, the validation split, the order of the images and their augmentation."""
    optimizer: OptimizerName | None = None
    """sgd: stochastic gradient descent with momentum. muon: orthogonalised momentum for the stencils of convolutions,
    and SGD for the rest. adamw: AdamW at 0.04 times the learning rate. Left out: as the recipe says."""
    momentum: float | None = None
    """Momentum of stochastic gradient descent; beta1 of adamw. Left out: 0.9."""
    nesterov: bool | None = SETTINGS.nesterov
    """Use Nesterov's momentum. Left out: True with muon, otherwise False."""
    stencil_rate: float | None = None
    """With muon: learning rate of the stencils as a multiple of --learning-rate. Left out: 0.5."""
    stencil_momentum: float | None = None
    """With muon: momentum of the stencils. Left out: 0.6."""
    weight_decay: float | None = SETTINGS.weight_decay
    """Weight decay of the stencils, multiplied by their learning rate. Left out: 0.06 with muon, 0.02 with adamw, 0
    with sgd."""
    bias_rate: float | None = None
    """Learning rate of the biases of normalisation layers as a multiple of --learning-rate. Left out: 1."""
    momentum_rule: Literal["map", "dual", "reset"] = SETTINGS.momentum_rule
    """How momentum is converted to the next level: like the stencils, like gradients, or set to zero."""
    alpha1: float | None = None
    """Weight in the penalty of the total variation of the blocks' weights in time, eq. (13). Left out: 0, or 2e-4 with
    the recipe paper."""
    alpha2: float | None = None
    """Weight in the penalty of the squares of the weights, eq. (13). Left out: 0, or 2e-4 with the recipe paper."""
    box: float | None = None
    """Bound on the absolute values of the taps of the symmetric layers; 0 for no bound. Left out: 1."""
    whiten: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start with a first convolution whose outputs are uncorrelated along the training images. Left out: as the recipe
    says; fast does it."""
    no_whiten: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not whiten, although the recipe does."""
    label_smoothing: float | None = None
    """Share of every label that is spread evenly over the classes, in the training loss. Left out: 0.1, or 0 with the
    recipe paper."""
    augment: str | None = None
    """Random changes of the training images: off, or names out of flip, crop, cutout, mixup, cutmix and randaugment,
    joined by commas. Left out: flip,crop."""
    no_augment: tyro.conf.FlagCreatePairsOff[bool] = False
    """The same as --augment off."""
    standardize: bool = False
    """Normalise every image by its own mean and standard deviation instead of those of the data set."""
    validation: float = SETTINGS.validation
    """Share of the training images that is held back for validation."""
    precise_images: int = SETTINGS.precise_images
    """Training images on which BatchNorm is measured before each validation; 0 for its running averages."""
    average: float = SETTINGS.average
    """Decay per step of the average of the weights that is validated and kept in their place, e.g. 0.99; 0 for none."""
    checkpoint_every: float = SETTINGS.checkpoint_every
    """Minutes between checkpoints within an epoch; another one is written after every epoch."""
    keep: int = SETTINGS.keep
    """Number of checkpoints that are kept. If the newest one is damaged, --resume goes on from the one before."""
    on_divergence: Literal["stop", "rollback"] = SETTINGS.on_divergence
    """What to do when loss, activations or stencils are too large or not finite: stop, or return to the last checkpoint
    with half the learning rate, at most three times."""
    deterministic: bool = SETTINGS.deterministic
    """Use only algorithms that give the same bits again on the same machine."""
    compile: bool = SETTINGS.compile
    """Compile the normalisation layers for training, in C++ or on a GPU by torch.compile, which makes it faster."""
    tensorboard: bool = SETTINGS.tensorboard
    """Write event files for TensorBoard into the run directory."""
    track: tuple[TrackerName, ...] = SETTINGS.track
    """Write the metrics also as a CSV file, for TensorBoard, MLflow or Weights & Biases (wandb), all in the run
    directory; MLFLOW_TRACKING_URI and WANDB_MODE=online send them to a server."""
    device: str = SETTINGS.device
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    amp: AmpName = SETTINGS.amp
    """Mixed precision: bf16 computes convolutions in bfloat16, and auto does so where that is faster; fp16 in float16,
    with a scaled loss, on a CUDA GPU."""
    quiet: bool = False
    """Print nothing."""
    json: bool = False
    """Print the result at the end as one line of JSON, and nothing else."""

    def run_command(self, words: Sequence[str] = ()) -> None:
        """Train; ``words`` are the options as they were typed."""
        from multipde.runtime.fresh_store import end_together
        from multipde.runtime.processes import process_group

        with process_group():
            done = self._trained(words)
        tell_result(done, self)
        finish_sizes(self, done.directory, self.device if "device" in typed_options(words) else None)
        end_together()

    def _trained(self, words: Sequence[str]) -> Any:
        """Train or resume a run; what `train` or `resume` returns."""
        from multipde.storage.free_directory import free_directory
        from multipde.storage.run_directory import is_unfinished
        from multipde.training.imported_loss import imported_loss
        from multipde.training.job import goes_on, levels_to_add
        from multipde.training.recipe import level_values
        from multipde.training.run import resume, train
        from multipde.training.schedule import Schedule, levels_from_lists
        from multipde.training.start import read_start, starting_network

        check_sizes_option(self)
        loss, is_restarted = None if self.loss is None else imported_loss(self.loss), goes_on(self.run)
        if is_restarted or self.resume or self.extend:
            levels = levels_to_add(self.run or Path(), [_extension(text) for text in self.extend], is_restarted)
            run, device = self._run_to_resume(words), self.device if "device" in typed_options(words) else None
            given = {"model": self.arch, "root": self.root, "device": device, "loss": loss}
            with naming_sizes(self):
                if levels and is_restarted and is_unfinished(run):  # its result was removed, and no level was added
                    resume(run, quiet=self.quiet or self.json, **given)
                return resume(run, extend=levels, quiet=self.quiet or self.json, **given)
        is_auto, epochs = self.epochs == "auto", None if isinstance(self.epochs, str) else self.epochs
        if self.work is not None:
            if self.epochs is not None:
                raise ValueError(f"epochs must be left out with --work, got {self.epochs}")
            epochs = (1,) * len(self.sizes)
        sizes, detail = zip(*map(parsed_size, self.sizes), strict=True) if self.sizes else ((), ())
        shared = level_values(self.recipe)
        levels = levels_from_lists(
            sizes,
            epochs,
            None if isinstance(self.steps, str) else self.steps,
            (shared.get("batch", LEVEL.batch),) if self.batch in (None, "auto") else self.batch,
            self.learning_rate or (shared.get("learning_rate", LEVEL.learning_rate),),
            policy=self.policy,
            mixed=self.mixed,
            auto=is_auto,
            warm_up=shared.get("warm_up", LEVEL.warm_up) if self.warm_up is None else self.warm_up,
            detail=detail,
            a_trous=self.a_trous,
        )
        start = read_start(self.init, self.arch)
        config = starting_network(
            self.data,
            self.dynamics,
            max(sizes),
            self.preset,
            start,
            arch=self.arch,
            memory=self.memory,
            standardize=self.standardize,
            normalize=self.normalize,
        )
        check_sizes_of(config, self.all_sizes)
        with naming_sizes(self), nullcontext(self.run) if self.run else free_directory(self.data, config.label) as run:
            return train(
                config,
                Schedule(levels),
                self.data,
                run,
                settings=self._settings(),
                init=start,
                weights=self.weights,
                from_size=self.from_size,
                loss=loss,
                data_options=self.options(),
                balance=self.batch == "auto",
                work=self.work,
                quiet=self.quiet or self.json,
            )

    def _settings(self) -> TrainSettings:
        """The settings of the recipe with the values of the options that are given."""
        for name in ("augment", "whiten"):
            if getattr(self, f"no_{name}") and getattr(self, name):
                raise ValueError(f"{name} must be left out with --no-{name}, got {getattr(self, name)!r}")
        names = {f.name for f in fields(self)} & {f.name for f in fields(TrainSettings)} - {"recipe", "whiten"}
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.whiten or self.no_whiten:
            given["whiten"] = self.whiten
        if self.no_augment:
            given["augment"] = False
        return TrainSettings.of_recipe(self.recipe, **given, auto_steps=self.steps == "auto")

    def _run_to_resume(self, words: Sequence[str]) -> Path:
        if self.run is None:
            flag = "--resume" if self.resume else "--extend SIZE:EPOCHS"
            raise ValueError(f"run must be given with {flag.split()[0]}; type --run DIR {flag}")
        check_options(words, self, self.run)
        return self.run


def _extension(text: str) -> tuple[int, float]:
    """Size and epochs of a level."""
    size, _, epochs = text.partition(":")
    try:
        return int(size), float(epochs)
    except ValueError:
        raise ValueError(f"extend must be SIZE:EPOCHS such as 32:3, got {text!r}") from None
