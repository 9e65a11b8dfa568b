"""``multipde evaluate``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, Checkpoint, DataOptions, MethodName


@dataclass(frozen=True)
class Evaluate(DataOptions):
    """Accuracy, loss and cost of checkpoints converted to each of several image sizes; or how robust they are.

    A converted network is tested as it comes, and once more with BatchNorm recalibrated on training images that
    are not held back for validation.

    With --robustness all checkpoints see the same test images with Gaussian noise, blur, less contrast and small
    shifts, and attacked by FGSM and PGD, each at several strengths; then the growth of perturbations through each block
    beside its bound, and the energy along time for the hyperbolic networks.
    """

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Further checkpoints."""
    arch: str | None = None
    """The network again, package.module:function, where the checkpoint is of one from an import path."""
    sizes: tuple[int, ...] | None = None
    """Image sides in pixels. Left out: that of the network."""
    method: tuple[MethodName, ...] = ("copy",)
    """How stencils move; several give a row each."""
    num_images: int | None = None
    """Only the first so many test images of a random order. Left out: all."""
    views: Literal[1, 2] = 1
    """2: a second row for the mean of the scores of every image and of its mirror image."""
    robustness: bool = False
    """Measure robustness, at the size of the networks and in float32."""
    by: Literal["checkpoint", "dynamics"] = "checkpoint"
    """With --robustness: a column per checkpoint, or per dynamics with mean and spread over its checkpoints."""
    out: Path | None = None
    """With --robustness: file of rows, appended to; networks that it has are not measured again."""
    plot: Path | None = None
    """With --robustness: file for a figure, .png, .svg or .pdf."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""
    amp: AmpName = "off"
    """Mixed precision."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log

        self._check_given()
        checkpoints = (self.checkpoint, *self.others)
        shared = {"model": self.arch, "num_images": self.num_images, "device": self.device, "log": Log()}
        if self.robustness:
            from multipde.studies.robustness_study import compare_robustness

            data = self.of(self.checkpoint)
            compare_robustness(checkpoints, data, by=self.by, out=self.out, plot=self.plot, **shared)
            return
        from multipde.evaluation.sizes import evaluate_sizes
        from multipde.training.plan import recorded_split

        for checkpoint in checkpoints:
            evaluate_sizes(
                checkpoint,
                self.of(checkpoint),
                sizes=self.sizes,
                methods=self.method,
                split=recorded_split(checkpoint),
                amp=self.amp,
                views=self.views,
                **shared,
            )

    def _check_given(self) -> None:
        """Raise ValueError for an option that goes with the other kind of evaluation."""
        others = {"sizes": None, "method": ("copy",), "amp": "off", "views": 1}
        others = others if self.robustness else {"by": "checkpoint", "out": None, "plot": None}
        for name, default in others.items():
            if getattr(self, name) != default:
                rule = "be left out with" if self.robustness else "come with"
                raise ValueError(f"{name} must {rule} --robustness, got --{name}")
