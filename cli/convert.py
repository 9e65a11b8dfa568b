"""``multipde convert``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multipde.cli.options import AmpName, DataOptions, MethodName


@dataclass(frozen=True)
class Convert(DataOptions):
    """Move a trained network to another image size, and report what that did to it and what it is good for.

    Takes a checkpoint or run directory, a classifier of torchvision (--arch resnet18 --weights FILE), or a bare state
    dict. With data at hand (the run's own, or --data) BatchNorm is measured anew, the method chosen by accuracy on
    images held back, and report.json and report.svg lie beside the converted weights.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Directory written by `save`, run directory, or file with a state dict (.safetensors, .pt)."""
    size: int | None = None
    """New image side in pixels. Left out: the size stays (to change the steps)."""
    method: MethodName | Literal["auto"] = "auto"
    """How stencils move; auto tries all and takes the best on held back images, copy without data."""
    steps: int | Literal["auto"] | None = None
    """New number of time steps per block; the final time stays and the controls are interpolated. auto: more where the
    converted network would be less stable."""
    arch: str | None = None
    """A network by name instead of a checkpoint: resnet18 (torchvision), timm:resnet50d, package.module:function. With
    a checkpoint of a network from an import path: that path again."""
    weights: Path | None = None
    """State dict of --arch, .safetensors or .pt. Left out: random weights."""
    from_size: int = 224
    """Image side for which --arch or the state dict was trained."""
    normalize: Literal["imagenet", "data"] = "imagenet"
    """Mean and standard deviation of the images for --arch."""
    num_images: int = 2000
    """Test images, and as many held back to choose the method."""
    out: Path | None = None
    """New directory for the converted checkpoint."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or mps."""
    amp: AmpName = "off"
    """Mixed precision while testing."""
    quiet: bool = False
    """Print nothing."""

    def run_command(self) -> None:
        from multipde.reports.converted_network import convert_to_directory
        from multipde.runtime.console import Log

        data = (self.data, self.options()) if self.data else self.of(self.checkpoint) if self.checkpoint else None
        convert_to_directory(
            self.checkpoint,
            self.out,
            size=self.size,
            method=self.method,
            steps=self.steps,
            arch=self.arch,
            weights=self.weights,
            from_size=self.from_size,
            normalize=self.normalize,
            data=data,
            need_data=self.data is not None or self.root is not None,
            num_images=self.num_images,
            device=self.device,
            amp=self.amp,
            log=Log(quiet=self.quiet),
        )
