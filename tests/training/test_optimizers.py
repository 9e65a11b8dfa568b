"""Optimizers for any module: groups by kind of layer, their rates, and whole trainings with them."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportArgumentType=false

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from multipde import Muon, NetworkConfig, PDENet, Schedule, TrainSettings, make_optimizer, train
from multipde.runtime.device import Compute
from multipde.training.level import Level
from multipde.training.optimizers import optimizer_flops, planned_flops
from multipde.training.schedule import level_flops
from multipde.training.step import TrainStep
from multipde.training.trainer import Trainer

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16)


class Mixed(nn.Module):
    """A module with all kinds of layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 5, groups=4)
        self.mix = nn.Conv2d(4, 6, 1, bias=False)
        self.back = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 4, 3)
        self.other = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.again = nn.Conv2d(3, 4, 3)
        self.again.weight = self.first.weight
        self.layer_norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 2)


def named_groups(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[dict, set[str]]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return [(group, {names[id(p)] for p in group["params"]}) for group in optimizer.param_groups]


def test_groups_are_found_by_the_kind_of_layer():
    module = Mixed()
    groups = named_groups(module, make_optimizer(module, "muon", bias_rate=8.0))
    found = {group["conv_groups"]: names for group, names in groups if group["orthogonal"]}
    assert found == {1: {"first.weight", "mix.weight", "back.weight", "line.weight"}, 4: {"depthwise.weight"}}
    biases = [names for group, names in groups if group["rate_factor"] == 8]
    assert biases == [{"norm.bias", "layer_norm.bias"}]
    assert sum(len(names) for _, names in groups) == len(list(module.parameters()))


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
def test_stored_parameters_of_blocks_are_stencils(coordinates):
    net = PDENet(replace(NETWORK, coordinates=coordinates))
    stencils = {name for name, p in net.named_parameters() if p.dim() > 2}
    groups = named_groups(net, make_optimizer(net, "muon"))
    assert [names for group, names in groups if group["orthogonal"]] == [stencils]
    assert len(stencils) == 2 * 2 * 2 + 3


def test_sgd_without_wishes_is_one_group_of_all_parameters():
    net = PDENet(NETWORK)
    optimizer = make_optimizer(net, "sgd")
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in net.parameters()}
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)


def test_rates_are_multiples_of_that_of_the_schedule():
    settings = TrainSettings(optimizer="muon", stencil_rate=0.3, bias_rate=16.0, weight_decay=0.1, stencil_momentum=0.5)
    step = TrainStep(PDENet(NETWORK), settings, Compute(torch.device("cpu")))
    step(torch.randn(4, 3, 16, 16), torch.arange(4), 0.02)
    rows = [(g["orthogonal"], g["lr"], g["momentum"], g["weight_decay"]) for g in step.optimizer.param_groups]
    assert rows == [
        (True, pytest.approx(0.006), 0.5, 0.1),
        (False, pytest.approx(0.32), 0.9, 0.0),
        (False, pytest.approx(0.02), 0.9, 0.0),
    ]


def test_adamw_has_its_own_rate_and_decays_stencils():
    groups = make_optimizer(PDENet(NETWORK), "adamw").param_groups
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in groups] == [
        (pytest.approx(0.004), 0.02, (0.9, 0.999)),
        (pytest.approx(0.004), 0.0, (0.9, 0.999)),
    ]


@pytest.mark.parametrize(
    ("memory", "wishes"),
    [
        ("reversible", {"optimizer": "muon", "coordinates": "finest", "weight_decay": 0.1}),
        ("store", {"optimizer": "muon", "amp": "bf16", "momentum_rule": "dual", "nesterov": False}),
        ("store", {"optimizer": "adamw", "momentum_rule": "map"}),
        ("store", {"optimizer": "sgd", "nesterov": True, "weight_decay": 1e-3}),
    ],
)
def test_trainings_count_the_work_of_their_optimizer(memory, wishes, tmp_path, monkeypatch):
    carried, original = [], Trainer.begin

    def begin(self, *given):
        original(self, *given)
        carried.append(self)

    monkeypatch.setattr(Trainer, "begin", begin)
    plan = Schedule([Level(8, 1, batch=30), Level(16, 1, batch=30)])
    network = replace(NETWORK, memory=memory, steps=1)
    settings = TrainSettings(device="cpu", precise_images=0, calibration_images=40, **wishes)
    done = train(
        network, plan, "shapes", tmp_path / "a", settings=settings, data_options={"num_train": 75, "num_test": 20}
    )
    trainer = carried[0]
    own = optimizer_flops(trainer.step.optimizer)
    assert own == planned_flops(network, settings.optimizer)
    assert (own > 0) == (wishes["optimizer"] == "muon") == isinstance(trainer.step.optimizer, Muon)
    per_image = [
        level_flops(level, config) + own / 30
        for level, config in zip(plan.levels, trainer.schedule.configs(), strict=True)
    ]
    assert [row["total_flops"] for row in done.metrics] == pytest.approx([60 * per_image[0], 60 * sum(per_image)])
    key = "exp_avg" if wishes["optimizer"] == "adamw" else "momentum_buffer"
    for p in trainer.net.parameters():
        assert trainer.step.optimizer.state[p][key].stride() == p.stride()


def test_a_module_without_stencils_is_refused():
    with pytest.raises(
        ValueError, match="optimizer must be sgd or adamw for a module without convolutions, got 'muon'"
    ):
        make_optimizer(nn.Linear(3, 2), "muon")
    with pytest.raises(ValueError, match="optimizer must be one of sgd, muon, adamw, got 'lion'"):
        make_optimizer(Mixed(), "lion")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"conv_groups": 3}, r"orthogonal must be False for .* got shape \(4, 2, 3\) with 3 groups"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.zeros(4, 2, 3))], **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of sgd, muon, adamw, got 'adam'"),
        ({"stencil_momentum": 1.0}, r"stencil_momentum must lie in \[0, 1\), got 1.0"),
        ({"stencil_rate": 0.0}, "stencil_rate must be positive, got 0.0"),
        ({"bias_rate": float("inf")}, "bias_rate must be positive, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"nesterov": True, "momentum": 0.0}, "momentum must be positive with nesterov, got 0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)
