"""The options of ``multipde train`` for fine-tuning, and for the steps of the optimizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multipde.training.settings import TrainSettings

SETTINGS: Any = TrainSettings


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """From which weights a training starts, what of them it changes, and how a step is computed."""

    weights: Path | None = None
    """State dict in .safetensors, .pt, .pth or .ckpt to start from, for --arch or for a network of the paper. Prefixes
    of wrappers such as `module.` are removed. Where it was trained for another number of classes, the last layer begins
    at random."""
    from_size: int | None = None
    """Image side in pixels for which --weights were trained, from which they are converted to the first level. Left
    out: the stencils are taken as they are."""
    normalize: Literal["data", "imagenet"] = "data"
    """Mean and standard deviation by which images are normalised for --arch, as they were for --weights: those of the
    data set or of ImageNet."""
    freeze: tuple[str, ...] = SETTINGS.freeze
    """Parameters that are not trained: head (the last layer, which gives the scores), body (all others), or names of
    modules and parameters and patterns such as 'layer?.*.conv1'. BatchNorm in them keeps its statistics, too."""
    thaw: int | None = SETTINGS.thaw
    """With --freeze: number of the level from which everything is trained; the first level has the number 1."""
    rate: tuple[str, ...] = SETTINGS.rate
    """Peak learning rates of groups, GROUP=RATE such as head=0.01 body=0.001, named as for --freeze; on levels before
    the last they are in proportion to --learning-rate."""
    accumulate: int = SETTINGS.accumulate
    """Number of parts into which a batch is divided, whose gradients are added before each step. It needs less memory;
    BatchNorm sees one part at a time."""
    clip_norm: float | None = SETTINGS.clip_norm
    """Largest norm of the gradient of all parameters; a larger one is scaled down to it."""
    class_weights: tuple[float, ...] | Literal["balanced"] | None = SETTINGS.class_weights
    """Weight of the images of each class in the training loss. balanced: in inverse proportion to their number."""
    balance: bool = SETTINGS.balance
    """Draw the images of an epoch so that all classes are equally frequent."""
    loss: str | None = None
    """Training loss by its import path, package.module:function, of scores and labels to the mean over the images. It
    must be named again with --resume. Left out: cross entropy."""
