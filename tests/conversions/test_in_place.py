"""Conversion in place is conversion, and everything that holds the parameters goes on."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from multipde import (
    NetworkConfig,
    PDENet,
    carry_optimizer_state,
    conversion,
    convert,
    convert_,
    make_optimizer,
    reparametrize,
)


def pde(**options):
    return PDENet(NetworkConfig("hamiltonian", (4, 8), 8, **{"steps": 2, "size": 16} | options)).double()


def plain():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).double()


def optimizer_of(kind, net):
    params = list(net.parameters())
    groups = [{"params": params[:2], "lr": 0.022}, {"params": params[2:], "lr": 0.07}]
    if kind == "muon":
        return make_optimizer(net, "muon", 0.03)
    return {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](
        groups, **({"momentum": 0.9} if kind == "sgd" else {})
    )


def step(net, optimizer, x):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 10).backward()
    optimizer.step()


CASES = [
    (pde, {"size": 32}),
    (pde, {"size": 32, "method": "galerkin"}),
    (pde, {"size": 32, "method": "calibrated", "calibration": torch.randn(8, 3, 32, 32).double()}),
    (pde, {"steps": 4}),
    (lambda: pde(steps=3), {"steps": 2, "size": 8}),
    (pde, {"detail": 2}),
    (lambda: convert(pde(), detail=2), {"size": 32, "detail": 1}),
    (lambda: pde(steps=3, controls=2), {"size": 32, "method": "rediscretize"}),
    (plain, {"factor": 2, "method": "galerkin"}),
    (lambda: reparametrize_(plain()), {"factor": 0.5, "method": "rediscretize"}),
]


def reparametrize_(net):
    reparametrize(net, 1 / 16)
    return net


ALL_KINDS = [1, 3, 5, 8]
"""Cases in which the three optimizers' states move differently: stencils, more steps, an opening, a plain module."""


@pytest.mark.parametrize(
    ("make", "how", "kind"),
    [(*case, "adamw") for case in CASES] + [(*CASES[k], kind) for k in ALL_KINDS for kind in ("sgd", "muon")],
)
def test_a_step_after_it_is_that_of_the_converted_copy(make, how, kind):
    net = make()
    optimizer = optimizer_of(kind, net)
    x = torch.randn(4, 3, *([16 * getattr(getattr(net, "config", None), "detail", 1)] * 2)).double()
    for _ in range(2):
        step(net, optimizer, x)
    twin, twins = copy.deepcopy((net, optimizer))
    modules, params = dict(net.named_modules()), dict(net.named_parameters())
    rates = [group["lr"] for group in optimizer.param_groups]

    move = conversion(twin, **how)
    expected = move(twin)
    new = optimizer_of(kind, expected)
    if kind != "muon":  # parameters that more steps add are in the group of their neighbours
        first = {id(p) for p in list(expected.parameters())[:2]}
        assert {id(p) for p in new.param_groups[0]["params"]} == first
    for group, rate in zip(new.param_groups, rates, strict=True):
        group["lr"] = rate
    carry_optimizer_state(move, twin, twins, expected, new)

    convert_(net, optimizer=optimizer, **how)
    torch.testing.assert_close(net.state_dict(), expected.state_dict(), rtol=0, atol=0)
    if "detail" not in how:  # a composed opening is another kind of layer
        assert all(modules.get(name, m) is m for name, m in net.named_modules())
    kept = [name for name, p in net.named_parameters() if params.get(name) is p]
    assert set(kept) == set(params) & set(dict(net.named_parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(net.parameters()))
    side = expected.config.image_sizes[0] if hasattr(expected, "config") else 24
    x = torch.randn(4, 3, side, side).double()
    torch.testing.assert_close(net(x), expected(x), rtol=0, atol=0)
    step(net, optimizer, x)
    step(expected, new, x)
    torch.testing.assert_close(net.state_dict(), expected.state_dict(), rtol=1e-9, atol=1e-12)


def test_average_and_scheduler_go_on():
    net = pde().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    ema = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    rates = []
    for i in range(8):
        size = net.config.size
        step(net, optimizer, torch.randn(4, 3, size, size).double())
        ema.update_parameters(net)
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if i == 3:
            expected = convert(ema.module, size=32, method="galerkin", steps=4)
            convert_(net, optimizer=optimizer, ema=ema, size=32, method="galerkin", steps=4)
            torch.testing.assert_close(ema.module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    plain_rates = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)]
    other = torch.optim.lr_scheduler.OneCycleLR(plain_rates[0], 0.1, total_steps=8)
    undisturbed = []
    for _ in range(8):
        plain_rates[0].step()
        other.step()
        undisturbed.append(plain_rates[0].param_groups[0]["lr"])
    assert rates == undisturbed
    assert ema(torch.randn(2, 3, 32, 32).double()).shape == (2, 10)


def test_fewer_and_more_steps_keep_the_groups_in_order():
    net = pde(steps=3)
    optimizer = torch.optim.AdamW(
        [{"params": net.blocks[k].parameters(), "lr": 0.01 * (k + 1)} for k in range(2)], weight_decay=0.1
    )
    step(net, optimizer, torch.randn(4, 3, 16, 16).double())
    convert_(net, optimizer=optimizer, steps=(6, 2))
    for k, group in enumerate(optimizer.param_groups):
        assert {id(p) for p in group["params"]} == {id(p) for p in net.blocks[k].parameters()}
        assert all(optimizer.state[p]["step"] == 1 for p in group["params"])
    assert len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"size": 17}, "size"),
        ({"size": 32, "method": "best"}, "method must be one of"),
        ({"size": 32, "rule": "magic"}, "rule must be one of"),
        ({"size": 32, "ema": plain()}, "ema must have the parameters of the model, got a difference in"),
        ({}, "size, factor, steps or detail must be given"),
    ],
)
def test_bad_arguments_change_nothing(how, line):
    net = pde()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, torch.randn(4, 3, 16, 16).double())
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    with pytest.raises(ValueError, match=line):
        convert_(net, optimizer=optimizer, **how)
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()), before)


def test_warnings_of_what_is_left_alone_name_the_line_of_the_user():
    net = nn.Sequential(nn.Conv2d(3, 4, 4), *plain()).double()
    for call in (convert, convert_):
        with pytest.warns(UserWarning, match=r"2 convolutions move, 1 stay as they are: 0 \(even width\)") as told:
            call(net, factor=2)
        assert [warning.filename for warning in told] == [__file__]
