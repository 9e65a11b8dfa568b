"""Random numbers from a generator of one's own, in code that draws from torch's global one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWING = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "binomial"}
DRAWING |= {"_standard_gamma", "_sample_dirichlet", "kaiming_uniform_", "kaiming_normal_"}
DRAWING |= {"uniform_", "normal_", "bernoulli_", "random_", "exponential_", "geometric_", "log_normal_", "cauchy_"}
"""The functions of torch that take ``generator=``."""

LIKE = {"rand_like": torch.rand, "randn_like": torch.randn}
"""Functions that do not, and what stands for them."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the context torch's global generators have this seed; afterwards those of CPU and device are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class OwnRandomness(TorchFunctionMode):
    """Within the context this thread draws from generators with this seed, and the global ones are left as they are.

    The numbers are those that ``torch.manual_seed`` would give. Other threads see nothing of it.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed, self.generators = seed, {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in LIKE:
            x, func, name = args[0], LIKE[name], name.removesuffix("_like")
            args, kwargs = (x.shape,), {"dtype": x.dtype, "device": x.device, **kwargs}
        if name in DRAWING and kwargs.get("generator") is None:
            given = next((a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            device = torch.device(kwargs.get("device") or given or torch.get_default_device())
            if device.type != "meta":
                kwargs = {**kwargs, "generator": self._generator(device)}
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]
