"""A context in which a module is in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put all submodules in evaluation mode within the context; afterwards each has its own training flag again."""
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for m, flag in training.items():
            m.training = flag
