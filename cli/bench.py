"""``multipde bench``"""

from dataclasses import dataclass
from typing import Annotated, Union

import tyro

from multipde.cli.bench_timed import Architectures, Growth, Inference, Input, Memory, Plan, Scaling, Step
from multipde.cli.bench_trained import Ablation, Finetune, Finish, Pretrained, Regimes, Transfer

STUDIES = {
    "transfer": Transfer,
    "ablation": Ablation,
    "regimes": Regimes,
    "finetune": Finetune,
    "pretrained": Pretrained,
    "finish": Finish,
    "step": Step,
    "inference": Inference,
    "memory": Memory,
    "growth": Growth,
    "scaling": Scaling,
    "input": Input,
    "architectures": Architectures,
    "plan": Plan,
}
Study = Union[tuple(Annotated[cls, tyro.conf.subcommand(name)] for name, cls in STUDIES.items())]  # noqa: UP007


@dataclass(frozen=True)
class Bench:
    """Measure the library in comparison with alternatives.

    A row is written as soon as it is measured. Studies that train networks do not repeat rows that are in their file
    already, so that the same command continues an interrupted study; the other studies measure everything anew.
    """

    study: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Study]]  # pyright: ignore[reportInvalidTypeForm]
    """The study to run."""

    def run_command(self) -> None:
        rows = self.study.run_command()
        if self.study.json:
            from multipde.runtime.console import Log

            Log(needed=True).json({"rows": rows})
