"""Where is computed: any module is laid out for its device, and wrong names are told."""

import pytest
import torch
from torch import nn

from multipde.runtime.device import Compute


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
    with pytest.raises(ValueError, match="amp must be one of off, bf16, auto, got 'half'"):
        Compute.of("cpu", "half")
    with pytest.raises(ValueError, match="device must be one that torch has here, got 'quantum'"):
        Compute.of("quantum")
