"""One optimizer step: loss, regulariser, gradients, momentum, box."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from multipde.conversions.recalibration import frozen_running_statistics
from multipde.networks.compilation import compile_layers
from multipde.networks.kernels.dispatch import wide
from multipde.networks.network import PDENet
from multipde.networks.regularization import Box, Regularizer, RegularizerGradient
from multipde.runtime.device import autocast
from multipde.runtime.processes import data_parallel, mean_over_processes
from multipde.runtime.sync_batchnorm import synchronized
from multipde.training.monitor import DivergenceError, Monitor, locate_nonfinite
from multipde.training.preconditioner import Preconditioner
from multipde.training.settings import TrainSettings


class TrainStep:
    """Stochastic gradient descent with momentum on a network, as the settings say.

    Of several processes each has its slice of the batch: BatchNorm sees the whole, loss and gradients are means over
    the slices. All else follows from these alike.

    Args:
        net: on its device.
    """

    def __init__(self, net: PDENet, settings: TrainSettings, device: torch.device):
        self.net, self.settings, self.device = net, settings, device
        if settings.compile:
            compile_layers(net)
        self.model = data_parallel(net)
        self.regularizer = RegularizerGradient(Regularizer(settings.alpha1, settings.alpha2), net)
        finest = settings.coordinates == "finest"
        self.preconditioner = Preconditioner(settings.conditioning) if finest and settings.conditioning else None
        fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=settings.momentum, fused=fused)
        self.box = Box(net, settings.box) if settings.box else None
        self.monitor = Monitor(net, self.box)

    def __call__(self, x: Tensor, labels: Tensor, rate: float, own_statistics: bool = True) -> tuple[Tensor, Tensor]:
        """Loss of a batch and scores of this process's slice, after which the weights are new.

        Args:
            rate: the learning rate.
            own_statistics: BatchNorm remembers those of the batch.

        Raises:
            DivergenceError: loss, activations or stencils are out of bounds; on the CPU the weights are still those
                from before this step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with (
            autocast(self.device, self.settings.amp),
            frozen_running_statistics(self.net, not own_statistics),
            synchronized(self.net),
        ):
            scores = self.model(x)
        loss = functional.cross_entropy(wide(scores), labels)
        whole = mean_over_processes(loss.detach())
        try:
            self.monitor.look(whole)
        except DivergenceError as error:
            with synchronized(self.net):
                place = locate_nonfinite(self.net, x)
            raise DivergenceError(f"{error} in {place}") from None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.regularizer.add()
        if self.preconditioner is not None:
            self.preconditioner(self.net)
        self.optimizer.step()
        if self.box is not None:
            self.box.project()
        return whole, scores.detach()

    def momentum(self) -> dict[str, Tensor]:
        """The momentum by name of the parameter."""
        state = self.optimizer.state
        found = {name: state[p].get("momentum_buffer") for name, p in self.net.named_parameters() if p in state}
        return {name: buffer.detach().cpu() for name, buffer in found.items() if buffer is not None}

    def set_momentum(self, momentum: Mapping[str, Tensor]) -> None:
        """Take up the momentum that `momentum` gave."""
        parameters = dict(self.net.named_parameters())
        for name, buffer in momentum.items():
            p = parameters[name]
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(buffer)
