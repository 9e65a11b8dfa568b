"""``multipde convert``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from multipde.cli.options import AmpName, DataOptions, MethodName


@dataclass(frozen=True)
class Convert(DataOptions):
    """Convert a trained network to another image size, and report the changes of its layers and its accuracy.

    The network is a checkpoint or run directory, a classifier of torchvision or timm (--arch resnet18 --weights FILE),
    or a state dict alone. If there are data (those of the run, or --data), the statistics of BatchNorm are measured,
    the method is chosen by accuracy on held-back images, and report.json and report.svg are written beside the weights.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Directory written by `save`, run directory, or file with a state dict (.safetensors, .pt)."""
    size: int | None = None
    """New side of the images in pixels; of the mesh, for a network with a detail. Left out: the size stays."""
    sizes: tuple[int, ...] = ()
    """Instead of --size: sides of the images, e.g. 16 24 32, for one checkpoint that takes images of all these sizes.
    The sizes share the stencils, each has its own normalisation layers, and the finish trains all of them together."""
    detail: int | None = None
    """Side of the images / side of the mesh. 2 gives a network for 16 pixels a finer first layer, which takes images
    of 32 pixels and computes the same; 1 undoes that. Left out: the detail stays."""
    method: MethodName | Literal["auto"] = "auto"
    """Method of conversion of the stencils; auto takes the best of all on held-back images, copy without data."""
    steps: int | Literal["auto"] | None = None
    """New number of time steps per block; the final time stays, and the weights are interpolated in time. auto: more
    steps where the converted network would be less stable."""
    arch: str | None = None
    """A network by name instead of a checkpoint: resnet18 (torchvision), timm:resnet50d, package.module:function. With
    a checkpoint of a network from an import path: that path again."""
    weights: Path | None = None
    """State dict of --arch, .safetensors or .pt. Left out: random weights."""
    from_size: int = 224
    """Image side for which --arch or the state dict was trained."""
    normalize: Literal["imagenet", "data"] = "imagenet"
    """Mean and standard deviation with which images for --arch are normalised: those of ImageNet, or of the data."""
    skip: tuple[str, ...] = ()
    """Layers that keep their stencils: names, names of modules around them, or patterns such as '*.se.*'."""
    num_images: int = 2000
    """Number of test images, and of training images held back to choose the method."""
    finish: str = "auto"
    """How long the old network then teaches the converted one, on images that need no labels: 2min, 20000images, none,
    or auto: where there are images, until accuracy (without labels: agreement) grows no longer, at most 2min."""
    images: Path | None = None
    """Folder of images, flat or in classes, from which it learns. Left out: the training images of the data."""
    rivals: bool = False
    """Test also training on the labels of the same images, and training from scratch, with as many images."""
    compile: bool = False
    """Use compiled kernels for the finish."""
    out: Path | None = None
    """New directory for the converted checkpoint; it must be given."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    amp: AmpName = "off"
    """Mixed precision: bf16 computes convolutions in bfloat16; auto does so where that is faster."""
    quiet: bool = False
    """Print nothing."""
    json: bool = False
    """Print the report as one line of JSON instead of tables; what is said meanwhile goes to standard error."""

    def run_command(self) -> None:
        from multipde.reports.conversion_input import ConversionInput
        from multipde.reports.converted_network import convert_to_directory
        from multipde.runtime.console import Log

        data = (self.data, self.options()) if self.data else self.of(self.checkpoint) if self.checkpoint else None
        given = ConversionInput(
            self.checkpoint,
            self.out,
            arch=self.arch,
            weights=self.weights,
            from_size=self.from_size,
            normalize=self.normalize,
            data=data,
            need_data=self.data is not None or self.root is not None,
            num_images=self.num_images,
            finish=self.finish,
            unlabelled=self.images,
            skip_bad=self.skip_bad,
            compile=self.compile,
            device=self.device,
            amp=self.amp,
        )
        if self.sizes:
            self._convert_to_sizes(given)
            return
        report = convert_to_directory(
            given,
            size=self.size,
            detail=self.detail,
            method=self.method,
            steps=self.steps,
            rivals=self.rivals,
            skip=self.skip,
            log=Log(quiet=self.quiet, stream="stderr" if self.json else "stdout"),
        )
        if self.json:
            Log(needed=True).json({"out": str(self.out), "report": None if report is None else report.record()})

    def _convert_to_sizes(self, given: Any) -> None:
        from multipde.reports.converted_sizes import convert_to_sizes
        from multipde.runtime.console import Log

        for name in ("size", "detail", "method", "steps", "skip", "rivals", "json"):
            if (value := getattr(self, name)) != getattr(Convert, name):
                raise ValueError(f"{name} must be left out with --sizes, got {value}")
        convert_to_sizes(given, self.sizes, log=Log(quiet=self.quiet))
