"""Where is computed: any module is laid out for its device, and wrong names are told."""

import pytest
import torch
from torch import nn

from multipde.runtime.device import Compute, _is_faster_with_bf16, choose_amp


def test_modules_in_two_axes_are_placed_channels_last_and_others_stay():
    compute = Compute.of("cpu")
    flat, solid = nn.Conv2d(2, 2, 3), nn.Sequential(nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3))
    assert compute.place(flat) is flat
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(weight.is_contiguous() for weight in compute.place(solid).parameters())
    assert compute.place(nn.Linear(2, 2)).weight.is_contiguous()


def test_a_computation_is_alone_unless_it_is_told_otherwise():
    compute = Compute.of("cpu", "bf16")
    assert compute.shard == compute.distributed().shard == (0, 1)
    with compute.autocast():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="amp must be one of off, bf16, fp16, auto, got 'half'"):
        Compute.of("cpu", "half")
    with pytest.raises(ValueError, match="device must be one that torch has here, got 'quantum'"):
        Compute.of("quantum")


@pytest.mark.parametrize(("seconds", "chosen"), [((2.0, 1.0), "bf16"), ((1.0, 2.0), "off"), ((1.1, 1.0), "off")])
def test_auto_takes_bf16_only_where_the_processor_is_faster_with_it(seconds, chosen, monkeypatch):
    steps = [step for each in seconds for step in [0.0, each] * 5]
    monkeypatch.setattr("multipde.runtime.device.time.perf_counter", lambda: steps.pop(0))
    monkeypatch.setattr("multipde.runtime.device._has_bf16", lambda device: True)
    _is_faster_with_bf16.cache_clear()
    assert choose_amp(torch.device("cpu"), "auto") == chosen
    assert steps == []
    _is_faster_with_bf16.cache_clear()
