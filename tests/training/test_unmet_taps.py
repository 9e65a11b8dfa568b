"""Taps that meet no pixel have the gradient zero, whatever the convolution leaves there."""

# pyright: reportOptionalSubscript=false, reportOptionalOperand=false

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import Level, Schedule, TrainSettings, describe, load_data, train
from multipde.training import unmet_taps as module
from multipde.training.unmet_taps import zero_unmet_taps

CONVOLUTIONS = {
    (True, 2): functional.conv_transpose2d,
    (False, 1): functional.conv1d,
    (False, 2): functional.conv2d,
    (False, 3): functional.conv3d,
}


@pytest.mark.parametrize(("transposed", "dim"), CONVOLUTIONS)
def test_exactly_the_unmet_taps_get_no_gradient_from_ones(transposed, dim, monkeypatch):
    """In float64 torch's gradients are right: they are zero where nothing is met, and positive elsewhere."""
    found = []
    monkeypatch.setattr(module, "_zeroed", lambda unmet, gradients, _: found.append(unmet))
    sides = (1, 2, 3, 5) if dim < 3 else (1, 3)
    for side, width, s, p, d in itertools.product(sides, (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)):
        reach = d * (width - 1)
        if ((side - 1) * s - 2 * p + reach < 0) if transposed else (side + 2 * p <= reach):
            continue
        found.clear()
        taps = torch.zeros(1, 1, *[width] * dim, dtype=torch.float64, requires_grad=True)
        image = torch.ones(1, 1, *[side] * dim, dtype=torch.float64)
        loss = CONVOLUTIONS[transposed, dim](image, taps, None, s, p, dilation=d).sum()
        num = zero_unmet_taps(loss)
        loss.backward()
        unmet = taps.grad[0, 0] == 0
        assert num == len(found) == bool(unmet.any())
        assert not found or torch.equal(found[0], unmet)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_in_bf16_are_those_in_float64(stride, bias):
    """On processors with AVX-512 and bf16 torch leaves garbage at the unmet taps of the second stride."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, stride, padding=1, bias=bias)
    for _ in range(5):
        used = [torch.full((32 * 64 * 9,), 3e4) for _ in range(8)]
        del used  # memory with other values, which is used again
        x = torch.randn(8, 32, 1, 1, generator=generator)
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = conv(x).float().square().sum()
        assert zero_unmet_taps(loss) == 1
        loss.backward()
        exact = conv.to(torch.float64)
        expected = torch.autograd.grad(exact(x.double()).square().sum(), exact.weight)[0]
        conv = exact.float()
        error = (conv.weight.grad - expected).abs().max() / expected.abs().max()
        assert error < 0.02


def test_only_the_gradient_of_the_stencil_changes(monkeypatch):
    monkeypatch.setattr(module, "unmet_taps", lambda *shapes: torch.ones(3, 3, dtype=torch.bool))
    conv, x = nn.Conv2d(2, 4, 3, 2, padding=1), torch.randn(3, 2, 5, 5, requires_grad=True)
    expected = torch.autograd.grad(conv(x).square().sum(), (x, conv.weight, conv.bias))
    loss = conv(x).square().sum()
    assert zero_unmet_taps(loss) == 1
    image, stencil, bias = torch.autograd.grad(loss, (x, conv.weight, conv.bias))
    assert torch.equal(image, expected[0])
    assert torch.equal(bias, expected[2])
    assert not stencil.any()


class Strided(nn.Module):
    """Maps of one pixel before the last convolution, which is called as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 4, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        y = functional.conv2d(self.first(x).relu(), self.second.weight, None, 2, 1)
        return self.head(y.mean((2, 3)))


def test_a_training_in_bf16_leaves_unmet_taps_alone(tmp_path):
    data = load_data("shapes", size=4, num_train=100, num_test=20)
    net = describe(Strided(), size=4, classes=10)
    settings = TrainSettings(device="cpu", amp="bf16", optimizer="sgd", weight_decay=0.0, whiten=False)
    plan = Schedule([Level(4, epochs=2, batch=20)])
    found = train(net, plan, data, tmp_path / "run", settings=settings, quiet=True).model
    change = found.second.weight - net.second.weight
    assert change[..., 1, 1].abs().max() > 0
    change[..., 1, 1] = 0
    assert not change.any()
