"""``multipde evaluate``"""

from dataclasses import dataclass

from multipde.cli.options import AmpName, Checkpoint, DataOptions, MethodName


@dataclass(frozen=True)
class Evaluate(DataOptions):
    """Accuracy, loss and cost of a checkpoint converted to each of several image sizes.

    A converted network is tested as it comes, and once more with BatchNorm recalibrated on training images.
    """

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    sizes: tuple[int, ...] | None = None
    """Image sides in pixels. Left out: that of the network."""
    method: tuple[MethodName, ...] = ("copy",)
    """How stencils move; several give a row each."""
    num_images: int | None = None
    """Only the first so many test images of a random order. Left out: all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    amp: AmpName = "off"
    """Mixed precision."""

    def run_command(self) -> None:
        from multipde.training.log import Log
        from multipde.training.move import evaluate_sizes

        evaluate_sizes(
            self.checkpoint,
            self.of(self.checkpoint),
            sizes=self.sizes,
            methods=self.method,
            num_images=self.num_images,
            device=self.device,
            amp=self.amp,
            log=Log(),
        )
