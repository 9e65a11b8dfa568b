"""``multipde list``"""

from dataclasses import dataclass
from typing import get_args

from multipde.cli.options import AmpName, DataName, DynamicsName, MethodName, OptimizerName, PolicyName, TrackerName


@dataclass(frozen=True)
class List:
    """List the names that the commands take: presets, data sets, dynamics, methods, optimizers, recipes and more."""

    json: bool = False
    """Print one line of JSON instead of a table."""

    def run_command(self) -> None:
        from multipde.data.augmentation import NAMES
        from multipde.networks.presets import preset_names
        from multipde.runtime.console import Log
        from multipde.training.recipe import RECIPES

        names = {
            "train --preset": preset_names(),
            "--data": get_args(DataName),
            "--dynamics": get_args(DynamicsName),
            "--arch": ("resnet18 and others of torchvision", "timm:NAME", "package.module:function"),
            "--method, --transfer": get_args(MethodName),
            "--optimizer": get_args(OptimizerName),
            "--recipe": tuple(RECIPES),
            "--policy": get_args(PolicyName),
            "--augment": NAMES,
            "--track": get_args(TrackerName),
            "--amp": get_args(AmpName),
        }
        log = Log(needed=True)
        if self.json:
            log.json(names)
        else:
            for option, known in names.items():
                log.say(f"{option}: {', '.join(known)}")
