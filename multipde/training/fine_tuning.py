"""Fine-tuning: which parameters a level trains, how fast, and which BatchNorm layers keep their statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multipde.conversions.optimizer_state import plain_parameters
from multipde.conversions.recalibration import keep_statistics
from multipde.networks.model_spec import spec_of
from multipde.training.level import Level
from multipde.training.muon import MOMENTUM_KEY
from multipde.training.parameter_groups import BODY, HEAD, is_matched, names_in, rate_factors
from multipde.training.rates import parsed_rate
from multipde.training.settings import TrainSettings


@dataclass(frozen=True)
class FineTuning:
    """What of a network is trained on a level.

    Args:
        freeze: groups, names or patterns of the parameters that are not trained.
        factors: the learning rate of groups, names or patterns as a multiple of that of the schedule.
        may_thaw: whether parameters that were frozen on an earlier level may be trained on this one.
    """

    freeze: tuple[str, ...] = ()
    factors: dict[str, float] = field(default_factory=dict)
    may_thaw: bool = False

    @classmethod
    def of(cls, settings: TrainSettings, levels: Sequence[Level], index: int) -> "FineTuning":
        """That of the level with this index; the rates of the settings are peaks on the last level."""
        is_thawed = settings.thaw is not None and index + 1 >= settings.thaw
        factors = {group: rate / levels[-1].learning_rate for group, rate in map(parsed_rate, settings.rate)}
        return cls(() if is_thawed else settings.freeze, factors, is_thawed)

    def rates(self, net: nn.Module) -> dict[nn.Parameter, float] | None:
        """The factors of the learning rates by parameter; None where nothing is frozen and all are alike."""
        return rate_factors(net, self.factors) if self.factors or self.freeze else None


class Frozen:
    """The frozen parameters of a network, which are those of the stored mesh and move with it at a conversion.

    A BatchNorm layer is frozen with the module that a pattern names, or with all of its parameters. It stays in
    evaluation mode, and nothing measures its statistics anew, see `keep_statistics`.

    Args:
        net: the network, whose frozen parameters no longer require gradients until `release`.
        patterns: groups, names or patterns, see `names_in`.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str]):
        self.net, self.norms = net, frozen_norms(net, patterns)
        keep_statistics(net, self.norms)
        self.parameters = [p for p in _matched(net, patterns) if p.requires_grad]
        if patterns and len(self.parameters) == sum(p.requires_grad for p in net.parameters()):
            raise ValueError(f"freeze must leave something to train, got {' '.join(patterns)}")
        for p in self.parameters:
            p.requires_grad_(False)

    def train_mode(self) -> None:
        """Put the network in training mode, except its frozen BatchNorm layers."""
        self.net.train()
        for norm in self.norms:
            norm.eval()

    def release(self) -> nn.Module:
        """Let the frozen parameters require gradients again, as before, and return the network."""
        for p in self.parameters:
            p.requires_grad_(True)
        return self.net

    def __str__(self) -> str:
        num, total = sum(p.numel() for p in self.parameters), sum(p.numel() for p in self.net.parameters())
        norms = f", and the statistics of {len(self.norms)} BatchNorm layers" if self.norms else ""
        return f"{num:,} of {total:,} weights of {spec_of(self.net).label} are frozen{norms}"


def frozen_norms(net: nn.Module, patterns: Sequence[str]) -> list[_BatchNorm]:
    """The BatchNorm layers that a pattern names, or all of whose parameters are frozen; with ``body`` all of them."""
    frozen, found = set(_matched(net, patterns)), []
    names = [pattern for pattern in patterns if pattern not in (HEAD, BODY)]
    for name, norm in net.named_modules():
        own = {p for p in norm.parameters() if isinstance(norm, _BatchNorm)}
        is_named = BODY in patterns or any(is_matched(name, pattern) for pattern in names)
        if isinstance(norm, _BatchNorm) and (is_named or (own and own <= frozen)):
            found.append(norm)
    return found


def _matched(net: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    parameters = plain_parameters(net)
    names = set().union(*names_in(net, patterns, "freeze").values())
    return [p for name, p in parameters.items() if name in names]


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give the parameters without momentum zeros where others of their group have it, as fused SGD needs.

    With zeros the first step is that without momentum: v = μ 0 + g.
    """
    for group in optimizer.param_groups:
        held = [p for p in group["params"] if isinstance(optimizer.state.get(p, {}).get(MOMENTUM_KEY), Tensor)]
        for p in group["params"] if held else ():
            if optimizer.state[p].get(MOMENTUM_KEY) is None:
                optimizer.state[p][MOMENTUM_KEY] = torch.zeros_like(p)
