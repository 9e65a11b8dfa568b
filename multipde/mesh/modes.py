"""Running a module without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """All submodules in evaluation mode inside, each with its own training flag again afterwards."""
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for m, flag in training.items():
            m.training = flag
