"""``multipde export``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multipde.cli.options import Checkpoint, DataOptions


@dataclass(frozen=True)
class Export(DataOptions):
    """Write a trained network to a file that needs nothing of multipde, compared with the network before it is kept.

    The stencils are baked, time steps and BatchNorm are contained in them, and the batch may have any length. Images
    per second are printed beside those of torch.
    """

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    out: Path
    """New file."""
    format: Literal["onnx", "pt2", "state_dict"] = "onnx"
    """ONNX, a program of torch.export, or weights (.pt, .safetensors) with a file of Python that makes the module."""
    size: int | None = None
    """Side of the images in pixels; the network is converted to it by copying its stencils. Left out: its own. For a
    checkpoint of several sizes: which of them is exported."""
    normalize: bool = False
    """The exported network normalises the images itself, which then are grey values 0 to 255 in uint8."""
    int8: bool = False
    """Convolutions compute with integers of eight bits, calibrated on training images of --data, which is read for this
    alone; the accuracy is printed."""
    opset: int = 18
    """Version of the operators of ONNX."""
    num_images: int | None = None
    """Number of test images for the accuracy of --int8, a fixed random subset. Left out: all."""
    arch: str | None = None
    """For a checkpoint of a network from an import path: that path again, package.module:function."""
    json: bool = False
    """Print the result as one line of JSON instead of a table."""

    def run_command(self) -> None:
        from multipde.exports.export import export
        from multipde.runtime.console import Log
        from multipde.storage.stored_network import load
        from multipde.training.plan import recorded_split

        data, options = (self.of(self.checkpoint) if self.int8 else None) or (None, {})
        done = export(
            load(self.checkpoint, self.arch),
            self.out,
            format=self.format,
            size=self.size,
            normalize=self.normalize,
            opset=self.opset,
            int8=self.int8,
            data=data,
            data_options=options,
            split=recorded_split(self.checkpoint),
            num_images=self.num_images,
            log=Log(stream="stderr" if self.json else "stdout"),
        )
        if self.json:
            Log(needed=True).json(vars(done) | {"files": [str(file) for file in done.files]})
