"""Training in float16 with a scaled loss, tried on the CPU, for which the command refuses it."""

# pyright: reportArgumentType=false

import signal

import pytest
import torch
from torch import nn

from multipde import Level, Schedule, TrainSettings, resume, train
from multipde.networks.external import given_model
from multipde.runtime import device
from multipde.runtime.device import Compute
from multipde.runtime.signals import Interrupted
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.checkpoint import read_checkpoint
from multipde.training.step import TrainStep

CPU = torch.device("cpu")


def net(num_classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def step(amp, optimizer, **settings):
    made = given_model(net, size=8, classes=10).build()
    return TrainStep(made, TrainSettings(optimizer=optimizer, **settings), Compute(CPU, amp))


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_a_step_that_overflows_is_left_out_and_halves_the_scale(optimizer):
    one = step("fp16", optimizer)
    before = [p.clone() for p in one.net.parameters()]
    torch.manual_seed(1)
    x, labels = torch.randn(6, 3, 8, 8), torch.randint(10, (6,))
    one.scale.scaler.load_state_dict(one.scale.scaler.state_dict() | {"scale": 2.0**120})
    one(x, labels, 0.1)
    assert all(torch.equal(p, q) for p, q in zip(one.net.parameters(), before, strict=True))
    assert one.scale.scaler.get_scale() == 2.0**119
    one.scale.scaler.load_state_dict(one.scale.scaler.state_dict() | {"scale": 2.0**10})
    one(x, labels, 0.1)
    assert not any(torch.equal(p, q) for p, q in zip(one.net.parameters(), before, strict=True))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_those_without_a_scale_up_to_rounding(accumulate):
    torch.manual_seed(1)
    x, labels = torch.randn(6, 3, 8, 8), torch.randint(10, (6,))
    plain, scaled = step("off", "sgd"), step("fp16", "sgd", accumulate=accumulate, clip_norm=1e6, alpha2=0.1, box=0)
    penalised = step("off", "sgd", alpha2=0.1, box=0)
    for each in (plain, scaled, penalised):
        each(x, labels, 0.1)
    found = [[p.grad for p in each.net.parameters()] for each in (scaled, penalised, plain)]
    for s, expected in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(s, expected, rtol=0.02, atol=2e-3)  # the penalty is not scaled
    assert any(not torch.allclose(s, p, rtol=0.02, atol=2e-3) for s, p in zip(found[0], found[2], strict=True))


def test_the_scale_is_in_the_checkpoint_and_the_training_goes_on_bit_for_bit(tmp_path, monkeypatch, signal_at_step):
    monkeypatch.setattr(device, "choose_amp", lambda device, amp: amp)
    original = TrainStep.__init__

    def grows_often(self, *args, **options):
        original(self, *args, **options)
        self.scale.scaler.set_growth_interval(3)

    monkeypatch.setattr(TrainStep, "__init__", grows_often)
    data, plan = {"num_train": 150, "num_test": 40}, Schedule([Level(8, 1, batch=30), Level(16, 1, batch=30)])
    settings = TrainSettings(device="cpu", amp="fp16", calibration_images=60, transfer="copy")
    options = {"settings": settings, "data_options": data, "quiet": True}
    train(net, plan, "shapes", tmp_path / "a", **options)
    signal_at_step(2, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(net, plan, "shapes", tmp_path / "b", **options)
    signal_at_step(None)
    state = read_checkpoint(newest_checkpoint(tmp_path / "b"), net)[3]
    assert (state["0.weight:loss_scale"].item(), state["0.weight:loss_scale_growth"].item()) == (65536, 2)
    resume(tmp_path / "b", model=net, quiet=True)
    state = read_checkpoint(newest_checkpoint(tmp_path / "b"), net)[3]
    assert (state["0.weight:loss_scale"].item(), state["0.weight:loss_scale_growth"].item()) == (131072, 1)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_processor_refuses_float16():
    with pytest.raises(
        ValueError, match="amp must be off, bf16 or auto on cpu, got fp16, which needs CUDA; type --amp auto"
    ):
        Compute.of("cpu", "fp16")
