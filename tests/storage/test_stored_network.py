"""What a network may hold, what is written of it, and what is read again."""

import pytest
import torch
from torch import nn

from multipde import AllSizes, Level, NetworkConfig, PDENet, convert, describe, load, save, train
from multipde.networks.all_sizes import share


class Masked(nn.Module):
    """A network with buffers of other types, and one that is infinite."""

    def __init__(self, kept=None):
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 4, 3, padding=1), kept
        self.register_buffer("chosen", torch.tensor([True, False, True, True]))
        self.register_buffer("order", torch.arange(4, dtype=torch.int32))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0, 0.0]))

    def forward(self, x):
        return (self.conv(x).mean((2, 3)) * self.chosen)[:, self.order] + self.mask.clamp_min(-9)

    def get_extra_state(self):
        return torch.zeros(1) if self.kept is None else self.kept

    def set_extra_state(self, state):
        pass


def test_masks_and_indices_are_stored_trained_and_read_again(tmp_path):
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
    done = train(Masked(), [Level(8, 1, batch=20)], ((images, labels), (images, labels)), tmp_path / "run", quiet=True)
    net = load(tmp_path / "run", model=Masked)
    for name, t in done.model.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], t, rtol=0, atol=0)
    assert net.chosen.dtype == torch.bool
    broken = Masked()
    broken.conv.bias.data[0] = float("inf")
    save(describe(broken, size=8, classes=4), tmp_path / "broken")
    with pytest.raises(ValueError, match=r"must hold finite weights, got inf in conv.bias"):
        load(tmp_path / "broken", model=Masked)


def test_masks_of_a_network_for_several_sizes_are_read_again(tmp_path):
    spec = describe(Masked(), size=16, classes=4).multipde_spec
    networks = [spec.for_images(size).build() for size in (8, 16)]
    share(networks)
    save(AllSizes(networks), tmp_path / "net")
    found = load(tmp_path / "net", model=Masked)
    for size, net in zip((8, 16), networks, strict=True):
        for name, t in net.state_dict().items():
            torch.testing.assert_close(found.at(size).state_dict()[name], t, rtol=0, atol=0)
    assert found.at(8).conv.weight is found.at(16).conv.weight


def test_a_state_that_is_no_tensor_is_refused_when_it_is_written(tmp_path):
    with pytest.raises(ValueError, match="state must be tensors of floats, .* got dict in _extra_state"):
        save(describe(Masked(kept={"a": 1}), size=8, classes=4), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_networks_of_several_sizes_that_differ_otherwise_are_not_stored_as_one(tmp_path):
    net = PDENet(NetworkConfig("hamiltonian", (4, 6), 5, steps=4, controls=1, size=16))
    small = convert(net, size=8, steps=2)
    with pytest.raises(
        ValueError, match="networks must differ by their sizes alone .* at 8 pixels, which is not that of"
    ):
        save(AllSizes([small, net]), tmp_path / "net")
    assert not (tmp_path / "net").exists()
