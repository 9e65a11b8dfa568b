"""Numbers that go wrong, noticed in the step in which they do."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.conversions.recalibration import frozen_running_statistics
from multipde.networks.dynamics import Block
from multipde.networks.model_spec import Box, spec_of
from multipde.stability.bounds import step_bound
from multipde.stability.norms import operator_norm

EXPLODED = 1e8
"""Running variance of a BatchNorm's input beyond which activations count as exploding; usual is 0.1 to 100."""

SHARE_AT_BOX = 0.5
"""Share of all taps at their bound beyond which the box, not the loss, decides them."""


class DivergenceError(Exception):
    """Loss, activations or stencils went out of bounds.

    Args:
        what: must hold but does not, with the value that was got.
    """


class DivergedError(ValueError):
    """A training went out of bounds and was given up; what was saved before is still there."""


class Monitor:
    """Looks at every step without waiting for it.

    On the CPU the values are there at once. On other devices they are copied while the next step is computed, and
    looked at one step later, so that the device never waits.

    What is looked at costs next to nothing: the loss; the running variances of the BatchNorm layers, which see every
    block's features; and the norm of all boxed stencils, which must exceed the root of half the number of taps before
    half of them can be at the box, and are only then counted.

    Args:
        box: of the stencils, None for none.
    """

    def __init__(self, net: nn.Module, box: Box | None):
        self.bound = box.bound if box else math.inf
        self.norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
        self.stencils = box.stencils if box else []
        self.num_taps = sum(w.numel() for w in self.stencils)
        self._pending: list[tuple[Tensor, torch.cuda.Event | None]] = []

    @torch.no_grad()
    def look(self, loss: Tensor) -> None:
        """Note the values of this step, and look at those that have come.

        Raises:
            DivergenceError: one of them is out of bounds.
        """
        variances = [m.running_var.amax() for m in self.norms if m.running_var is not None]
        norm = [nn.utils.get_total_norm(self.stencils)] if self.stencils else []
        values = torch.stack([v.detach().float() for v in (loss, *norm, *variances)])
        if values.device.type != "cuda":
            self._check(values)
            return
        copy = torch.empty(values.shape, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((copy, event))
        if len(self._pending) > 1:
            self._take()

    def settle(self) -> None:
        """Look at everything that is still on its way, before it is saved.

        Raises:
            DivergenceError: one of the values is out of bounds.
        """
        while self._pending:
            self._take()

    def _take(self) -> None:
        copy, event = self._pending.pop(0)
        if event is not None:
            event.synchronize()  # of the step before: done long ago
        self._check(copy)

    def _check(self, values: Tensor) -> None:
        loss, *rest = values.tolist()
        if not math.isfinite(loss):
            raise DivergenceError(f"loss must stay finite, got {loss}")
        if self.stencils:
            norm = rest.pop(0)
            if not norm < self.bound * math.sqrt(SHARE_AT_BOX * self.num_taps):
                share = sum(int((w.abs() >= self.bound).sum()) for w in self.stencils) / self.num_taps
                if share > SHARE_AT_BOX or not math.isfinite(norm):
                    raise DivergenceError(
                        f"stencils must stay inside the box {self.bound:g}, got {share:.0%} of the taps at it"
                    )
        largest = max(rest, default=0.0)
        if not largest < EXPLODED:
            raise DivergenceError(f"activations must stay moderate, got a variance of {largest:.1e}")


def check_finite(*groups: Mapping[str, Tensor]) -> None:
    """Raise DivergenceError for a tensor with a number that is none."""
    for name, tensor in ((name, t) for group in groups for name, t in group.items()):
        if not bool(tensor.isfinite().all()):
            raise DivergenceError(f"weights must stay finite, got nan or inf in {_plain(name)}")


def _plain(name: str) -> str:
    return name.replace(".parametrizations.weight.original", "")


def locate_nonfinite(net: nn.Module, x: Tensor) -> str:
    """Where numbers went wrong: the first part with a bad weight or output, and the step bound of its block.

    Args:
        x: the batch with which it happened.
    """
    for name, p in net.named_parameters():
        if not bool(p.isfinite().all()):
            return f"weights {_plain(name)}"
    sizes: dict[str, float] = {}
    parts = spec_of(net).parts(net)

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(output, Tensor):
                sizes[name] = output.detach().abs().amax().item()

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        with torch.no_grad(), frozen_running_statistics(net):
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    if not sizes:
        return "the network"
    bad = [name for name, size in sizes.items() if not size < math.sqrt(EXPLODED)]
    name = bad[0] if bad else max(sizes, key=lambda key: sizes[key])
    return f"{name} (|y| up to {sizes[name]:.1e}{_bound_text(net, name, x)})"


def _bound_text(net: nn.Module, name: str, x: Tensor) -> str:
    """dt of the part's block beside its bound."""
    if not spec_of(net).has_step_bounds:
        return ""
    blocks: list[Block] = list(net.blocks)  # pyright: ignore
    k = int(name.rpartition(".")[2]) if "." in name else 0 if name == "opening" else len(blocks) - 1
    block = blocks[k]
    size = [s // 2**k for s in x.shape[2:]]
    bounds = []
    for forces in block.forces():
        norms = [operator_norm(f.controls[0].detach(), size, tolerance=1e-3) for f in forces]
        bounds.append(step_bound(block.dynamics, norms))
    return f"; block {k} has dt {block.dt:g}, its bound without norm is {min(bounds):.2g}"
