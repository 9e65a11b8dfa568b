"""``multipde evaluate``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, Checkpoint, DataOptions, MethodName


@dataclass(frozen=True)
class Evaluate(DataOptions):
    """Measure accuracy, loss and cost of a checkpoint at several image sizes; or the robustness of checkpoints.

    A converted network is tested directly after the conversion, and once more after the statistics of BatchNorm have
    been recalibrated on training images that are not held back for validation.

    With --robustness all checkpoints are tested on the same test images with noise, blur, less contrast and shifts, and
    under the attacks FGSM and PGD, each at several strengths. The growth of perturbations through each block and its
    bound are measured too, and for hyperbolic networks the energy along time.
    """

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Further checkpoints: each has a table of its own, or all of them one with --robustness."""
    arch: str | None = None
    """For a checkpoint of a network from an import path: that path again, package.module:function."""
    sizes: tuple[int, ...] | None = None
    """Image sides in pixels, to which the checkpoint is converted; a checkpoint of several sizes is tested at its own.
    Left out: that of the network's images, or all of them."""
    method: tuple[MethodName, ...] = ("copy",)
    """Methods of conversion of the stencils, each of which gives a row per size."""
    num_images: int | None = None
    """Number of test images, a fixed random subset. Left out: all."""
    views: Literal[1, 2] = 1
    """2: a second row for the mean of the scores of every image and of its mirror image."""
    json: bool = False
    """Print JSON instead of tables; without --robustness it has top-5 accuracy, precision and recall of every class,
    confusion matrix and reliability of the confidence."""
    robustness: bool = False
    """Measure accuracy under noise, blur, shifts and attacks instead, at the size of the networks and in float32."""
    by: Literal["checkpoint", "dynamics"] = "checkpoint"
    """With --robustness: one column per checkpoint, or per dynamics with mean and spread over its checkpoints."""
    out: Path | None = None
    """With --robustness: file to which rows are appended; networks that have a row are not measured again."""
    plot: Path | None = None
    """With --robustness: file for a figure, .png, .svg or .pdf."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log

        self._check_given()
        checkpoints = (self.checkpoint, *self.others)
        shared = {
            "model": self.arch,
            "num_images": self.num_images,
            "device": self.device,
            "log": Log(needed=self.out is None),
        }
        if self.robustness:
            from multipde.studies.robustness_study import compare_robustness

            data = self.of(self.checkpoint)
            log = Log(stream="stderr") if self.json else shared["log"]
            given = shared | {"by": self.by, "out": self.out, "plot": self.plot, "log": log}
            rows = compare_robustness(checkpoints, data, **given)
            if self.json:
                Log(needed=True).json({"rows": rows})
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
                json=self.json,
                **shared,
            )

    def _check_given(self) -> None:
        """Raise ValueError for an option of the other kind of evaluation."""
        for name in ("sizes", "method", "amp", "views") if self.robustness else ("by", "out", "plot"):
            if getattr(self, name) != getattr(Evaluate, name):
                rule = "be left out with" if self.robustness else "come with"
                raise ValueError(f"{name} must {rule} --robustness, got --{name}")
