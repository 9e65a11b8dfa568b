"""``multipde predict``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, Checkpoint


@dataclass(frozen=True)
class Predict:
    """Classify image files, or all images in folders, with a trained network."""

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files and folders."""
    arch: str | None = None
    """For a checkpoint of a network from an import path: that path again, package.module:function."""
    fit: Literal["image", "net"] = "image"
    """For images of another size: resize the image to the size of the network, or convert the network to the image. A
    checkpoint of several sizes: the largest one, or the largest one within the image."""
    plot: Path | None = None
    """File for a figure of the images with bars for the probabilities, .png, .svg or .pdf."""
    views: Literal[1, 2] = 1
    """2: use the mean of the scores of every image and of its mirror image."""
    skip_bad: bool = False
    """Leave out files that cannot be decoded; they are counted, and the first is named."""
    json: bool = False
    """Print a line of JSON per image instead of a table."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""

    def run_command(self) -> None:
        from multipde.evaluation.predict import predict, tell_predictions
        from multipde.reports.plots import check_figure_file, prediction_figure
        from multipde.runtime.console import Log

        if self.plot is not None:
            check_figure_file(self.plot)
        log, notes = Log(needed=True), Log(stream="stderr")
        how = {"fit": self.fit, "device": self.device, "amp": self.amp, "views": self.views, "log": notes}
        found = predict(self.checkpoint, self.images, model=self.arch, skip_bad=self.skip_bad, **how)
        tell_predictions(found, log, as_json=self.json)
        if self.plot is not None:
            prediction_figure(found, self.plot)
