"""``multipde inspect``"""

from dataclasses import dataclass

from multipde.cli.options import Checkpoint


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint is: blocks, weights, mesh sizes, FLOPs, and its stencils as derivatives."""

    checkpoint: Checkpoint
    """Directory written by `save`, or a run directory."""
    physical: bool = False
    """Coefficients on the unit square instead of in units of each layer's mesh."""

    def run_command(self) -> None:
        from multipde.mesh.spectrum import order_rms
        from multipde.networks.network import count_flops
        from multipde.runtime.console import Log
        from multipde.storage.network import load

        net, log = load(self.checkpoint), Log()
        log.say(str(net))
        flops = count_flops(net.config), count_flops(net.config, training=True)
        log.say(f"{flops[0] / 1e6:.1f} MFLOPs per image, {flops[1] / 1e6:.1f} in training")
        if net.config.class_names:
            log.say(f"classes: {', '.join(net.config.class_names)}")
        if net.config.width == 1:
            return
        unit = "unit square" if self.physical else "the layer's mesh"
        rows = [
            {"layer": layer} | {f"order {k}": f"{v:.3g}" for k, v in enumerate(rms)}
            for layer, rms in order_rms(net, self.physical).items()
        ]
        log.table(rows, f"rms of β by total order of derivative, lengths in units of {unit}")
