"""``multipde predict``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, Checkpoint


@dataclass(frozen=True)
class Predict:
    """Classes of image files, or of all images in folders, by a trained network."""

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files and folders."""
    arch: str | None = None
    """The network again, package.module:function, where the checkpoint is of one from an import path."""
    fit: Literal["image", "net"] = "image"
    """Images of another size: average the image to the size of the network, or convert the network to the image."""
    plot: Path | None = None
    """File for a figure of the images with bars of their probabilities, .png, .svg or .pdf."""
    views: Literal[1, 2] = 1
    """2: the mean of the scores of every image and of its mirror image."""
    json: bool = False
    """A line of JSON per image instead of a table."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""
    amp: AmpName = "off"
    """Mixed precision."""

    def run_command(self) -> None:
        from multipde.evaluation.predict import predict, tell_predictions
        from multipde.reports.plots import check_figure_file, prediction_figure
        from multipde.runtime.console import Log

        if self.plot is not None:
            check_figure_file(self.plot)
        log = Log()
        how = {"fit": self.fit, "device": self.device, "amp": self.amp, "views": self.views}
        found = predict(self.checkpoint, self.images, model=self.arch, **how)
        tell_predictions(found, log, as_json=self.json)
        if self.plot is not None:
            prediction_figure(found, self.plot)
