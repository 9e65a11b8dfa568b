"""A loss by its import path, as the command line names it."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multipde.networks.architectures import imported_object, parsed_arguments


@dataclass(frozen=True)
class ImportedLoss:
    """A loss and the import path under which the record of a run has it."""

    import_path: str
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return self.function(scores, labels)


def imported_loss(path: str) -> ImportedLoss:
    """The loss at an import path ``package.module:function``, which is looked up in the working directory first.

    A class is called to make the loss, and so is a function with arguments in parentheses, such as
    ``torch.nn:MultiMarginLoss(margin=0.5)``.

    Raises:
        ValueError: there is no such function, or it does not accept the arguments.
    """
    found = re.fullmatch(r"\s*([\w.]+:[\w.]+)\s*(\(.*\))?\s*", path, re.DOTALL)
    if not found:
        raise ValueError(f"loss must be package.module:function, got {path!r}")
    loss: Any = imported_object(found[1], "loss")
    if found[2] or inspect.isclass(loss):
        try:
            loss = loss(**dict(parsed_arguments(found[2] or "()", path, "loss")))
        except Exception as error:  # code of the user can raise anything
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"loss must have arguments that it accepts, got {path} ({reason})") from None
        if not callable(loss):
            raise ValueError(f"loss must be a function of scores and labels, got {path}")
    function: Any = loss
    return ImportedLoss(path.strip(), function)
