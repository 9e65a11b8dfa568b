"""One optimizer step: loss, regulariser, gradients, momentum, box."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from multipde.conversions.recalibration import frozen_running_statistics
from multipde.networks.compilation import compile_layers
from multipde.networks.kernels.dispatch import wide
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.runtime.processes import mean_over_processes, num_processes
from multipde.runtime.sync_batchnorm import synchronized
from multipde.training.accumulation import communicating, divided
from multipde.training.averaging import KEY, TOTAL, Average
from multipde.training.fine_tuning import FineTuning, Frozen, begin_momentum
from multipde.training.group_state import GroupState, is_group_entry
from multipde.training.level import Level
from multipde.training.loss_scale import GROWTH, SCALE, LossScale
from multipde.training.monitor import DivergenceError, Monitor, locate_nonfinite
from multipde.training.muon import MOMENTUM_KEY, Muon
from multipde.training.objective import Objective
from multipde.training.optimizers import make_optimizer, optimizer_flops
from multipde.training.preconditioner import Preconditioner
from multipde.training.schedule import level_flops
from multipde.training.settings import TrainSettings
from multipde.training.unmet_taps import zero_unmet_taps


class TrainStep:
    """One training step with the optimizer that the settings name, or with that of the objective.

    Each process computes its slice of the batch. BatchNorm uses the statistics of the whole batch, and loss and
    gradients are means over the slices, so that all processes take the same step.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: TrainSettings,
        compute: Compute,
        objective: Objective | None = None,
        tuning: FineTuning | None = None,
    ):
        self.net, self.settings, self.compute = net, settings, compute
        self.objective, spec, self.tuning = objective or Objective(), spec_of(net), tuning or FineTuning()
        self.frozen, self.scale = Frozen(net, self.tuning.freeze), LossScale(compute)
        if settings.compile:
            compile_layers(net)
        self.model = net if num_processes() == 1 else DistributedDataParallel(net)  # averages the gradients
        alphas = (settings.alpha1, settings.alpha2)
        self.penalty = spec.penalty(net, *alphas) if any(alphas) else None
        if self.objective.optimizer is not None:
            if self.tuning.factors:
                raise ValueError(f"rate must be left out with an optimizer of your own, got {' '.join(settings.rate)}")
            own_parameters = [p for p in net.parameters() if p.requires_grad or not self.tuning.freeze]
            self.optimizer: torch.optim.Optimizer = self.objective.optimizer_for(own_parameters)
        else:
            own = ("momentum", "nesterov", "stencil_rate", "stencil_momentum", "weight_decay", "bias_rate")
            options = {name: getattr(settings, name) for name in own}
            self.optimizer = make_optimizer(net, settings.optimizer, rates=self.tuning.rates(net), **options)
        self.groups = GroupState(self.optimizer)
        wanted = settings.coordinates == "finest" and settings.conditioning and not isinstance(self.optimizer, Muon)
        self.preconditioner = Preconditioner(settings.conditioning) if wanted else None
        self.box = spec.box(net, settings.box) if settings.box else None
        is_moved = settings.coordinates == "finest"  # then most taps lie at the box, since a finer mesh has larger ones
        self.monitor = Monitor(net, None if is_moved else self.box)
        self.average = Average(net, settings.average) if settings.average else None
        self._may_be_unmet = compute.device.type == "cpu" and compute.amp != "off"
        self._all_met: set[tuple[torch.Size, ...]] = set()
        self._all_used = self.model is net  # one process needs no gradient of parameters that the loss does not use

    def __call__(self, x: Any, labels: Tensor, rate: float, own_statistics: bool = True) -> tuple[Tensor, Tensor]:
        """Update the weights; return the loss of the batch and the scores of this process's slice.

        Args:
            rate: the learning rate.
            own_statistics: update the running statistics of BatchNorm.

        Raises:
            DivergenceError: loss, activations or stencils are out of bounds; on the CPU the weights are not updated.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        whole, scores = self._gradients(x, labels, own_statistics)
        if not self._all_used:
            self._check_all_used()
        try:
            self.monitor.look(whole)
        except DivergenceError as error:
            with synchronized(self.net):
                place = self.locate(x)
            raise DivergenceError(f"{error} in {place}") from None
        self.scale.unscale(self.optimizer)
        if self.penalty is not None:
            self.penalty.add()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip_norm)
        if self.preconditioner is not None:
            self.preconditioner(self.net)
        if self.tuning.may_thaw:
            begin_momentum(self.optimizer)
        self.scale.step(self.optimizer)
        if self.box is not None:
            self.box.project()
        if self.average is not None:
            self.average.update(len(labels) * num_processes())
        return whole, scores

    def _check_all_used(self) -> None:
        """Raise ValueError for a parameter without a gradient, for which processes that share a step would wait."""
        for name, p in self.net.named_parameters():
            if p.requires_grad and p.grad is None:
                got = f"got none for {name}; type --freeze {name}"
                raise ValueError(f"parameters must have gradients where several processes train, {got}")
        self._all_used = True

    def _gradients(self, x: Tensor, labels: Tensor, own_statistics: bool) -> tuple[Tensor, Tensor]:
        """Add the gradient of the loss of a batch, part by part; return the loss and the scores."""
        parts, losses, found = divided(x, labels, self.settings.accumulate, self.objective), [], []
        for i, part in enumerate(parts):
            with communicating(self.model, i + 1 == len(parts)):
                with (
                    self.compute.autocast(),
                    frozen_running_statistics(self.net, not own_statistics),
                    synchronized(self.net),
                ):
                    scores = self.model(part.x)
                loss = self.objective.training_loss(wide(scores), part.labels, self.settings.label_smoothing)
                scaled = self.scale.scaled(part.share * loss)
                self._zero_unmet_taps(scaled, part.x)
                scaled.backward()
            losses.append(part.share * loss.detach())
            found.append(scores.detach())
        return mean_over_processes(torch.stack(losses).sum()), torch.cat(found)

    def _zero_unmet_taps(self, loss: Tensor, x: Tensor | Sequence[Tensor]) -> None:
        """See `zero_unmet_taps`; where there are none, images of the same shape are not looked at again."""
        shapes = tuple(images.shape for images in ((x,) if isinstance(x, Tensor) else x))
        if self._may_be_unmet and shapes not in self._all_met and not zero_unmet_taps(loss):
            self._all_met.add(shapes)

    def notes(self) -> list[str]:
        """What a user must know of the step, in lines."""
        norms = {m for m in self.net.modules() if isinstance(m, _BatchNorm)} - {*self.frozen.norms}
        note = f"note: BatchNorm normalises each of the {self.settings.accumulate} parts of a batch by itself"
        until = "" if self.settings.thaw is None else f", until level {self.settings.thaw}"
        return ([f"{self.frozen}{until}"] if self.frozen.parameters else []) + (
            [note] if norms and self.settings.accumulate > 1 else []
        )

    def locate(self, x: Any) -> str:
        """Name the first part of the network that is not finite for a batch."""
        return locate_nonfinite(self.net, x)

    def image_flops(self, level: Level) -> float:
        """Floating point operations per training image of a level: forward and backward pass, and the optimizer."""
        return level_flops(level, spec_of(self.net)) + optimizer_flops(self.optimizer) / level.batch

    def judged(self) -> nn.Module:
        """The network to validate: a copy with averaged weights if the settings want them, else the trained one."""
        return self.net if self.average is None else self.average.network()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state: momentum by name of the parameter, other entries as ``NAME:KEY``; tensors only.

        That of the average is among them, and what has changed in the parameter groups.
        """
        found: dict[str, Tensor] = {} if self.average is None else self.average.state()
        found |= self.scale.state(next(name for name, _ in self.net.named_parameters()))
        for name, p in self.net.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                if value is None:
                    continue
                if not isinstance(value, Tensor):
                    raise ValueError(f"optimizer must keep its state in tensors, got {type(value).__name__} {key!r}")
                found[name if key == MOMENTUM_KEY else f"{name}:{key}"] = value.detach().cpu()
        return found | self.groups.changed()

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the state of the optimizer to one that `state` returned."""
        parameters = dict(self.net.named_parameters())
        self.scale.set_state(state)
        self.groups.set(state)
        if self.average is not None:
            self.average.set_state(state)
        for name, value in state.items():
            if self.average is not None and name.endswith((f":{KEY}", f":{TOTAL}")):
                continue
            if name.endswith((f":{SCALE}", f":{GROWTH}")) or is_group_entry(name):
                continue
            base, _, key = name.partition(":")
            p = parameters[base]
            like = torch.empty_like(p) if value.shape == p.shape else torch.empty_like(value)
            self.optimizer.state[p][key or MOMENTUM_KEY] = like.to(value.dtype).copy_(value)
