"""Detection of divergence in the step in which it happens, and of the layer in which it begins."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.conversions.recalibration import frozen_running_statistics
from multipde.evaluation.metrics import Metrics
from multipde.mesh.modes import hooked
from multipde.networks.dynamics import Block
from multipde.networks.model_spec import spec_of
from multipde.networks.regularization import Box
from multipde.stability.bounds import step_bound
from multipde.stability.norms import operator_norm
from multipde.storage.tensors import constants

EXPLODED = 1e8
"""Running variance of a BatchNorm's input beyond which activations count as exploding; usual is 0.1 to 100."""

SHARE_AT_BOX = 0.5
"""Share of all taps at their bound beyond which the box, not the loss, decides them."""


class DivergenceError(Exception):
    """Loss, activations or stencils are out of bounds; the message names the bound and the value."""


class DivergedError(ValueError):
    """A training diverged and was given up; its last checkpoint remains."""


class Monitor:
    """Checks loss, activations and stencils of every step without making the device wait.

    On a GPU the values are copied while the next step is computed and checked one step later. Checked are the loss; the
    running variances of the BatchNorm layers, which see the features of every block; and the taps at the box. These are
    counted only if the norm of all boxed stencils is as large as that of half the taps at the box.
    """

    def __init__(self, net: nn.Module, box: Box | None):
        self.bound = box.bound if box else math.inf
        self.norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
        self.stencils = box.stencils if box else []
        self.num_taps = sum(w.numel() for w in self.stencils)
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    @torch.no_grad()
    def look(self, loss: Tensor) -> None:
        """Record the values of this step and check those that have arrived; DivergenceError if one is out of bounds."""
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
        """Wait for all recorded values and check them; DivergenceError if one is out of bounds."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        copy, event = self._pending.pop(0)
        event.synchronize()  # recorded in the previous step, so this does not wait
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


def checked(metrics: Metrics, part: str, error: type[Exception] = DivergenceError) -> Metrics:
    """The metrics of a part of the data; the error if loss or score is not finite."""
    advice = "; type a smaller --learning-rate" if error is DivergedError else ""
    for name, value in (("loss", metrics.loss), ("score", metrics.score)):
        if not math.isfinite(value):
            raise error(f"{part} {name} must be finite, got {value}{advice}")
    return metrics


def check_metric(metrics: Metrics, metric: Any) -> Metrics:
    """The metrics with a score of the user's; ValueError where it is not finite and the loss is."""
    if metric is not None and math.isfinite(metrics.loss) and not math.isfinite(metrics.score):
        raise ValueError(f"metric must give a finite number, got {metrics.score} where the loss is {metrics.loss:.3g}")
    return metrics


def check_finite(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise DivergenceError for nan or inf in a network, except in its `constants`, or in the state of an optimizer."""
    free = constants(net)
    for name, tensor in (*net.state_dict().items(), *state.items()):
        if name not in free and not bool(tensor.isfinite().all()):
            plain = name.replace(".parametrizations.weight.original", "")
            raise DivergenceError(f"weights must stay finite, got nan or inf in {plain}")


def locate_nonfinite(net: nn.Module, x: Tensor) -> str:
    """Name the first part whose weights or output for a batch are not finite, with dt and step bound of its block."""
    for name, p in net.named_parameters():
        if not bool(p.isfinite().all()):
            return "weights " + name.replace(".parametrizations.weight.original", "")
    sizes: dict[str, float] = {}
    parts = spec_of(net).parts(net)

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(output, Tensor):
                sizes[name] = output.detach().abs().amax().item()

        return hook

    handles = (part.register_forward_hook(note(name)) for name, part in parts.items())
    with hooked(handles), torch.no_grad(), frozen_running_statistics(net):
        net(x)
    if not sizes:
        return "the network"
    bad = [name for name, size in sizes.items() if not size < math.sqrt(EXPLODED)]
    name = bad[0] if bad else max(sizes, key=lambda key: sizes[key])
    return f"{name} (|y| up to {sizes[name]:.1e}{_bound_text(net, name, x)})"


def _bound_text(net: nn.Module, name: str, x: Tensor) -> str:
    """Text with dt of the part's block and its bound."""
    if not spec_of(net).has_step_bounds:
        return ""
    blocks: list[Block] = list(net.blocks)  # pyright: ignore
    k = int(name.rpartition(".")[2]) if "." in name else 0 if name == "opening" else len(blocks) - 1
    block = blocks[k]
    size = [s // (spec_of(net).detail * 2**k) for s in x.shape[2:]]
    bounds = []
    for forces in block.forces():
        norms = [operator_norm(f.controls[0].detach(), size, tolerance=1e-3) for f in forces]
        bounds.append(step_bound(block.dynamics, norms))
    return f"; block {k} has dt {block.dt:g}, its bound without norm is {min(bounds):.2g}"
