"""One network for several image sizes: the laws before any finish, picking by size, and storage."""

import copy
import json
import re

import pytest
import torch
from torch import nn

from multipde import (
    AllSizes,
    Level,
    NetworkConfig,
    PDENet,
    Schedule,
    convert,
    describe,
    evaluate,
    export,
    external_model,
    load,
    num_weights,
    recalibrate,
    save,
    share_stencils,
    train,
)
from multipde.networks.all_sizes import num_norms, shared_names
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.model_spec import spec_of
from multipde.storage.stored_sizes import SIZES, TENSORS

SIDES = (8, 12, 16)


class Small(nn.Module):
    """A classifier with BatchNorm that is no `PDENet`."""

    def __init__(self, norm: bool = True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity()
        self.classifier = nn.Linear(4, 5)

    def forward(self, x):
        return self.classifier(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def network(kind: str = "hamiltonian") -> nn.Module:
    """A network at 16 pixels whose running statistics are not those of the beginning."""
    torch.manual_seed(3)
    if kind in DYNAMICS:
        net: nn.Module = PDENet(NetworkConfig(kind, (4, 6), 8, steps=2, size=16))
    else:
        net = describe(Small(norm=kind == "module"), size=16, classes=5)
    net.train()(torch.randn(8, 3, 16, 16))
    return net.eval()


KINDS = (*DYNAMICS, "module", "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_the_outputs_are_those_of_the_old_network_and_of_its_copies_on_other_meshes(kind):
    old = network(kind)
    net = share_stencils(old, (16, 8, 12)).eval()
    assert net.sizes == SIDES
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(net(x), old(x))
    assert spec_of(net.at(16)) == spec_of(old)
    for size in (8, 12):
        x = torch.randn(3, 3, size, size)
        assert torch.equal(net(x), convert(old, size=size)(x))
        assert spec_of(net.at(size)).image_sizes == (size, size)


@pytest.mark.parametrize("kind", ["hamiltonian", "module", "plain"])
def test_all_but_the_normalisation_layers_is_one_storage(kind):
    net = copy.deepcopy(share_stencils(network(kind), SIDES))  # copies share as well
    first, second = (dict(net.at(size).named_parameters()) for size in (8, 16))
    names = shared_names(net.at(8))
    for name, p in first.items():
        assert (p is second[name]) == (name in names)
        assert (p.data_ptr() == second[name].data_ptr()) == (name in names)
    own = num_weights(net.at(8)) - sum(first[name].numel() for name in names)
    assert num_weights(net) == num_weights(net.at(8)) + 2 * own
    assert (own == 0) == (num_norms(net.at(8)) == 0) == (kind == "plain")
    assert not any(".norm." in name or name.startswith(("norm.", "opening.1.")) for name in names)


def test_the_old_network_and_its_numbers_do_not_change():
    old = network()
    before = copy.deepcopy(old.state_dict())
    net = share_stencils(old, SIDES)
    recalibrate(net.at(8), [torch.randn(20, 3, 8, 8)])
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert all(torch.equal(t, before[name]) for name, t in old.state_dict().items())
    assert not torch.equal(net.at(8).opening[1].running_mean, net.at(16).opening[1].running_mean)


def test_a_baked_network_and_one_of_finer_images_can_be_shared():
    from multipde import bake, with_detail

    old = network()
    net = share_stencils(bake(copy.deepcopy(old)), SIDES)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x), old(x))
    fine = with_detail(old, 2)
    net = share_stencils(fine, (16, 32))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), fine(x))
    assert spec_of(net.at(16)).sizes == (8, 8)


def test_what_is_saved_is_read_again_bit_for_bit(tmp_path):
    net = share_stencils(network(), SIDES).eval()
    recalibrate(net.at(12), [torch.randn(20, 3, 12, 12)])
    save(net, tmp_path / "net")
    found = load(tmp_path / "net")
    assert isinstance(found, AllSizes)
    assert not found.training
    for size in SIDES:
        x = torch.randn(2, 3, size, size)
        assert torch.equal(found(x), net(x))
        assert spec_of(found.at(size)) == spec_of(net.at(size))
    assert num_weights(found) == num_weights(net)  # they are shared again
    save(found, tmp_path / "again")
    for file in (tmp_path / "net").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    save(found.at(12), tmp_path / "one")  # one size alone is an ordinary checkpoint
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(load(tmp_path / "one")(x), net(x))


def test_of_a_large_network_what_is_shared_is_stored_once(tmp_path):
    old = external_model("resnet18", size=16, classes=3).build().eval()
    net = share_stencils(old, (8, 16)).eval()
    save(net, tmp_path / "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "net")(x), net(x))
    assert 1 < (tmp_path / "net" / TENSORS).stat().st_size / (4 * num_weights(old)) < 1.01


def test_a_module_given_in_python_must_be_given_again(tmp_path):
    net = share_stencils(network("module"), SIDES)
    save(net, tmp_path / "net")
    with pytest.raises(ValueError, match="network must be given again"):
        load(tmp_path / "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "net", Small())(x), net.eval()(x))


@pytest.mark.parametrize("shape", [(2, 3, 10, 10), (2, 3, 8, 16), (3, 16, 16), (2, 3)])
def test_another_size_is_refused_with_the_names_of_those_that_there_are(shape):
    net = share_stencils(network(), SIDES)
    with pytest.raises(ValueError, match="images must have a size that was trained, 8, 12, 16, got"):
        net(torch.zeros(shape))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "sizes must be different positive numbers of pixels, got none"),
        ((8, 8), "sizes must be different positive numbers of pixels, got 8, 8"),
        ((8, 0), "sizes must be different positive numbers of pixels, got 8, 0"),
        ((8, 13), "size must be a positive multiple of 2"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        share_stencils(network(), sizes)


def test_what_needs_a_network_of_one_size_refuses_one_of_several(tmp_path):
    net = share_stencils(network(), SIDES)
    save(net, tmp_path / "net")
    one_size = r"network must be of one size, got a checkpoint of the sizes 8, 12, 16; in Python .at\(16\)"
    for use in (
        lambda: convert(net, size=8),
        lambda: share_stencils(net, (8,)),
        lambda: spec_of(net),
        lambda: train(None, Schedule([Level(8, 1)]), "shapes", tmp_path / "run", init=tmp_path / "net"),
    ):
        with pytest.raises(ValueError, match=one_size):
            use()
    with pytest.raises(ValueError, match="size must be given for a network of the sizes 8, 12, 16, got none"):
        export(net, tmp_path / "net.pt2", format="pt2")
    with pytest.raises(ValueError, match="size must be one that was trained, 8, 12, 16, got 24"):
        evaluate(net, "shapes", 24)


def damaged(place, change) -> None:
    """Change the record of a saved network, checksum included."""
    from multipde.storage.files import SUMS, checksums

    record = json.loads((place / SIZES).read_bytes())
    change(record)
    (place / SIZES).write_text(json.dumps(record))
    (place / SUMS).write_bytes(checksums({name: (place / name).read_bytes() for name in (SIZES, TENSORS)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(sizes=[]), "sizes must be a list of 1 to"),
        (lambda r: r.update(sizes=[8, 8]), "sizes must be different positive numbers"),
        (lambda r: r.update(sizes=[8, 16]), "an unknown tensor '12:"),
        (lambda r: r.update(sizes=[8, 12, 16, 24]), "no tensor '24:"),
        (lambda r: r.update(sizes=[8, 13]), "size must be a positive multiple"),
        (lambda r: r["network"].update(out_channels=9), "instead of"),
        (lambda r: r.update(format=9), "must have format 2 or older"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path, change, message):
    save(share_stencils(network(), SIDES), tmp_path / "net")
    damaged(tmp_path / "net", change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net")


def test_damage_and_missing_files_are_noticed(tmp_path):
    save(share_stencils(network(), SIDES), tmp_path / "net")
    file = tmp_path / "net" / TENSORS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{file} must have its checksum")):
        load(tmp_path / "net")
    file.unlink()
    with pytest.raises(ValueError, match=f"checkpoint must hold {TENSORS}"):
        load(tmp_path / "net")
