"""The hamiltonian block of another library, memcnn, if it is installed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from multipde.networks.dynamics import Block


class _Copy(nn.Module):
    """A copy of its input, because memcnn's coupling frees the memory of its own input."""

    def forward(self, y: Tensor) -> Tensor:
        return y.clone()


class _Scaled(nn.Module):
    """The layer dt F(y)."""

    def __init__(self, layer: nn.Module, dt: float):
        super().__init__()
        self.layer, self.dt = layer, dt

    def forward(self, y: Tensor) -> Tensor:
        return self.dt * self.layer(y)


def has_memcnn() -> bool:
    """Whether memcnn is installed; ``pip install --no-deps memcnn`` suffices."""
    return find_spec("memcnn") is not None


@contextmanager
def without_its_warnings() -> Iterator[None]:
    """Ignore the warnings of memcnn inside: it uses torch.cuda.amp, and frees features by TypedStorage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        yield


def memcnn_block(block: Block) -> nn.Module:
    """A hamiltonian block as memcnn's additive couplings over the same layers, which share their weights.

    A coupling is   y' = y + F(z), z' = z + G(y'),   so F = dt F1 and G = -dt F2, eq. (10).
    """
    with without_its_warnings():
        memcnn: Any = __import__("memcnn")
    couplings = [
        memcnn.AdditiveCoupling(_Scaled(node[0], block.dt), _Scaled(node[1], -block.dt))  # pyright: ignore
        for node in block.controls
    ]
    return nn.Sequential(_Copy(), *[memcnn.InvertibleModuleWrapper(c, keep_input=False) for c in couplings])
