"""Somebody else's loop goes from coarse to fine, stops and goes on bit for bit."""

import copy
from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

from multipde import CoarseToFine, Level, NetworkConfig, PDENet, Schedule, make_optimizer


def plain():
    layers = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))


def pde():
    return PDENet(NetworkConfig("hamiltonian", (4, 8), 8, steps=2, size=16))


def batches(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(10, 3, 16, 16, generator=generator), torch.arange(10)) for _ in range(num)]


def objects(make, kind="muon", **options):
    torch.manual_seed(0)
    net = make().train()
    optimizer = make_optimizer(net, kind, 0.05)
    return net, optimizer, CoarseToFine([(8, 3), (16, 2)], "steps", **options)


def go(net, optimizer, growing, parts):
    for batch in parts:
        x, y = growing.step(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


STOPS = [*((2, pde, kind, "galerkin") for kind in ("sgd", "muon", "adamw")), (4, pde, "muon", "galerkin")]
STOPS += [(2, pde, "adamw", "copy"), (2, pde, "adamw", "calibrated"), (4, plain, "sgd", "copy")]


@pytest.mark.parametrize(("stop", "make", "kind", "method"), [*STOPS, (2, plain, "muon", "calibrated")])
def test_a_stopped_training_goes_on_bit_for_bit(stop, make, kind, method):
    parts = batches(6)
    net, optimizer, growing = objects(make, kind, method=method)
    growing.begin(net, optimizer)
    go(net, optimizer, growing, parts[:stop])
    kept = copy.deepcopy([each.state_dict() for each in (growing, net, optimizer)])
    go(net, optimizer, growing, parts[stop:])
    assert [move["to"] for move in growing.moves] == [16]

    again, other, resumed = objects(make, kind, method=method)
    resumed.load_state_dict(kept[0])
    resumed.begin(again, other)
    again.load_state_dict(kept[1])
    other.load_state_dict(kept[2])
    go(again, other, resumed, parts[stop:])
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert resumed.state_dict() == growing.state_dict()


@pytest.mark.parametrize(
    ("unit", "lengths", "options"),
    [
        ("steps", (3, 1), {}),
        ("images", (25, 1), {}),
        ("epochs", (1.5, 1), {"num_images": 20}),
        ("flops", (3 * 30 * (2 * 27 * 4 * 64 + 2 * 40), 1), {}),
    ],
)
def test_a_level_is_as_long_as_it_should_be(unit, lengths, options):
    net = plain()
    growing = CoarseToFine([(8, lengths[0]), (16, lengths[1])], unit, **options)
    growing.begin(net)
    sides = [growing.step(batch)[0].shape[-1] for batch in batches(5)]
    assert sides == [8, 8, 8, 16, 16]
    assert growing.size == 16


def test_a_level_ends_when_a_metric_no_longer_grows():
    growing = CoarseToFine([(8, 2), (16, 1)], "reports")
    growing.begin(plain())
    for metric, side in ((0.1, 8), (0.3, 8), (0.2, 8), (0.4, 8), (0.4, 8), (0.3, 16), (0.0, 16)):
        growing.report(metric)
        assert growing.step(batches(1)[0])[0].shape[-1] == side


def test_a_schedule_and_every_form_of_batch_are_taken():
    growing = CoarseToFine(Schedule([Level(8, 1), Level(16, 1)]), num_images=100)
    growing.begin(plain())
    x, y = torch.randn(2, 3, 24, 16), torch.arange(2)
    assert growing.step(x).shape == (2, 3, 12, 8)
    found = growing.step([x, y, "more"])
    assert (type(found), found[0].shape, found[1], found[2]) == (list, (2, 3, 12, 8), y, "more")
    assert growing.step({"pixel_values": x, "labels": y})["pixel_values"].shape == (2, 3, 12, 8)
    assert growing.spent == 6
    named = growing.step(Named(x, y))
    assert (type(named), named.images.shape, named.labels) == (Named, (2, 3, 12, 8), y)
    held = growing.step(UserDict(image=x, label=y))
    assert (type(held), held["image"].shape, x.shape[-1]) == (UserDict, (2, 3, 12, 8), 16)


class Named(NamedTuple):
    """A batch whose parts have names."""

    images: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: CoarseToFine([]), "schedule must have at least one level"),
        (lambda: CoarseToFine([(8, 1)], "years"), "unit must be one of epochs, images, steps, flops, reports, got"),
        (lambda: CoarseToFine([(8, 1)]), "num_images must be the number of images in an epoch, got None"),
        (lambda: CoarseToFine([(0, 1)], "steps"), "schedule must have positive whole sizes, got 0"),
        (lambda: CoarseToFine([(8, 0), (16, 1)], "steps"), "schedule must have positive lengths, got 0, 1"),
        (lambda: CoarseToFine([(8, 1)], "steps", method="best"), "method must be one of"),
        (lambda: CoarseToFine([(8, 1)], "steps").step(torch.zeros(1, 3, 8, 8)), "begin must be called before step"),
        (
            lambda: begun().step(torch.zeros(1, 3, 4, 4)),
            r"images must be at least as large as the level, 8 pixels",
        ),
        (lambda: begun().step(torch.zeros(1, 3, 8, 8).byte()), "batch must begin with normalised images"),
        (
            lambda: begun().step([torch.zeros(1, 3, 8, 8)] * 2),
            "batch must hold one tensor of images, got several of the",
        ),
        (lambda: begun().step(dict.fromkeys(("image", "pixel_values"), torch.zeros(1, 3, 8, 8))), "got several of the"),
        (lambda: begun().step({"x": 1}), "batch must begin with normalised images .* got NoneType"),
        (lambda: begun().load_state_dict({"level": 3}), "state must be that of one of 1 levels, got level 3"),
    ],
)
def test_bad_arguments_are_told_in_one_line(call, line):
    with pytest.raises(ValueError, match=line) as told:
        call()
    assert "\n" not in str(told.value)


def test_the_state_of_the_network_may_come_before_begin():
    """As Lightning does it: the checkpoint has put the stencils on the mesh of its level."""
    parts, kept = batches(6), []
    for _ in range(2):
        net, optimizer, growing = objects(pde, method="calibrated")
        if not kept:
            growing.begin(net, optimizer)
            go(net, optimizer, growing, parts[:2])
            kept = copy.deepcopy([growing.state_dict(), net.state_dict(), optimizer.state_dict()])
        else:
            with pytest.warns(UserWarning, match="mesh size follows the state dict"):
                net.load_state_dict(kept[1])
            growing.load_state_dict(kept[0])
            growing.begin(net, optimizer)
            optimizer.load_state_dict(kept[2])
        assert net.multipde_spec.size == 8
        go(net, optimizer, growing, parts[2:])
        kept.append(copy.deepcopy(net.state_dict()))
    assert [move["to"] for move in growing.moves] == [16]
    torch.testing.assert_close(kept[4], kept[3], rtol=0, atol=0)


class Around(nn.Module):
    """A module around a network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_what_cannot_grow_is_refused_at_once():
    net = plain()
    net.forward = lambda x: nn.Sequential.forward(net, x)
    for wrong, line in ((Around(pde()), "convert its .net and put it in its place"), (net, "forward")):
        growing = CoarseToFine([(8, 1), (16, 1)], "steps")
        with pytest.raises(ValueError, match=line):
            growing.begin(wrong)


def test_levels_serve_one_network():
    net, optimizer, growing = objects(pde)
    growing.begin(net, optimizer)
    go(net, optimizer, growing, batches(5))
    growing.begin(net, optimizer)
    with pytest.raises(ValueError, match="levels must be those of one network, got another one; make a new CoarseT"):
        growing.begin(pde())


def begun():
    growing = CoarseToFine([(8, 1)], "steps")
    growing.begin(plain())
    return growing
