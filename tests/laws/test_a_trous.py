"""The à-trous way: on the mesh of the images the network computes the coarse one at all shifts, exactly."""

from itertools import pairwise, product

import pytest
import torch
from torch.nn import functional

from multipde import NetworkConfig, with_detail
from multipde.networks.a_trous import a_trous, end_dilation
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.external import external_model
from multipde.networks.layers import CONVOLVE, CONVOLVE_TRANSPOSED, SymmetricLayer, split_shifts

TOLERANCE = 1e-12
SIZE = {1: 16, 2: 8, 3: 4}


def network(dim=2, detail=2, **changed):
    """In float64, with running statistics that differ from channel to channel."""
    torch.manual_seed(0)
    given = {"dynamics": "hamiltonian", "channels": (4, 6), "out_channels": 6, "in_channels": 2, "steps": 2}
    net = NetworkConfig(**(given | {"size": SIZE[dim], "dim": dim} | changed)).build().double()
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.copy_((0.0 if "mean" in name else 0.5) + 0.2 * torch.rand(tensor.shape, dtype=torch.float64))
    return with_detail(net.eval(), detail)


def images(side, dim, border=0):
    """Images with a border of zeros."""
    x = torch.randn(2, 2, *(side - 2 * border,) * dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return functional.pad(x, (border,) * 2 * dim)


def assert_close(got, wanted):
    assert (got - wanted).norm() <= TOLERANCE * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("dim", "detail"), [*product((1, 2), (2, 3, 4)), (3, 2)])
def test_features_are_the_mean_over_all_shifts(dynamics, dim, detail):
    """The border of zeros is as wide as the shifts, so that no pixel leaves the image with them."""
    net, side = network(dim, detail, dynamics=dynamics), detail * SIZE[dim]
    x, new = images(side, dim, border=detail), a_trous(net)
    first = detail - (3 * detail - 1) // 2  # reach of the coarse opening to the left, and of the fine one
    shifts = [[-(first + s) for s in shift] for shift in product(range(detail), repeat=dim)]
    moved = [net.features(torch.roll(x, shift, tuple(range(2, dim + 2)))) for shift in shifts]
    assert_close(new.features(x), torch.stack(moved).mean(0))
    assert new.config.image_sizes == new.config.sizes == (side,) * dim
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), new.parameters(), strict=True))
    assert_close(new.blocks[0].controls[0][0].conv.weight, net.blocks[0].controls[0][0].conv.weight)


@pytest.mark.parametrize(("dim", "dilation"), list(product((1, 2, 3), (2, 3))))
def test_a_layer_on_the_shifts_is_the_dilated_layer(dim, dilation):
    """Up to the border, with padding by the dilation."""
    torch.manual_seed(0)
    layer = SymmetricLayer(3, dim=dim, norm="tv").double()
    y = images(4 * dilation, dim).repeat(1, 2, *(1,) * dim)[:, :3]
    wide = {"padding": dilation, "dilation": dilation}
    assert layer.norm is not None
    hidden = torch.relu(layer.norm(CONVOLVE[dim](y, layer.conv.weight, **wide)))
    wanted = -CONVOLVE_TRANSPOSED[dim](hidden, layer.conv.weight, **wide)
    assert_close(layer(split_shifts(y, dilation)), split_shifts(wanted, dilation))


def test_shifts_keep_the_layout_of_memory():
    y = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        parts = split_shifts(y.to(memory_format=layout), 2)
        assert parts.is_contiguous(memory_format=layout)
        assert torch.equal(parts[4 + 2], y[1, :, 1::2, 0::2])


def test_blocks_lose_their_dilation_one_after_the_other():
    """In the middle the next mean is the plain one; in the end the network is a plain one with the wide opening."""
    net = a_trous(network(channels=(4, 6, 6), size=8))
    x, seen = images(16, 2), []
    for fraction, dilation in ((0.16, 2), (0.17, (1, 2, 2)), (0.34, (1, 1, 2)), (0.5, 1)):
        changed = end_dilation(net, fraction, 3)
        assert changed == (dilation != 2)
        assert not end_dilation(net, fraction, 3)
        assert net.config.dilation == dilation
        fresh = net.config.build().double().eval()
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(fresh(x), net(x))
        strides = [
            {layer.conv.parametrizations.weight[0].stride for node in block.controls for layer in node}
            for each in (net, fresh)
            for block in each.blocks
        ]
        assert strides[:3] == strides[3:]
        seen.append(net(x))
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    y = net.blocks[0](net.opening(x))
    for k in (1, 2):
        y = net.blocks[k](net.connectors[k - 1](y, pool=True))
    assert_close(net(x), net.classifier(net.connectors[2](y).mean((2, 3))))


def test_gradients_reach_all_weights_as_in_the_coarse_network():
    """Of the mean over shifts: the gradients of the two networks are the same."""
    net, x = network(), images(16, 2, border=2)
    new = a_trous(net)
    shifts = [torch.roll(x, (-s, -t), (2, 3)) for s in range(2) for t in range(2)]
    mean = torch.stack([net.features(moved) for moved in shifts]).mean(0)
    wanted = torch.autograd.grad(net.classifier(mean).square().sum(), list(net.parameters()))
    got = torch.autograd.grad(new(x).square().sum(), list(new.parameters()))
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b)


def test_refused():
    base = {"dynamics": "resnet", "channels": (4, 4, 4), "out_channels": 4, "size": 16}
    for changed, message in (
        ({"dilation": (2, 1, 1)}, r"dilation must be one number, or per block \(3\) 1 and then one number"),
        ({"dilation": (1, 2, 3)}, "dilation must be one number, or per block"),
        ({"dilation": (1, 2)}, "dilation must be one number, or per block"),
        ({"dilation": 0}, "dilation must be one number, or per block"),
        ({"dilation": 2, "size": 12}, r"size must be a positive multiple of 8 \(halved between 3 blocks\), got 12"),
        ({"dilation": 2, "detail": 2}, "detail must be 1 with a dilation or an opening_width, got 2"),
        ({"opening_width": 6, "detail": 2}, "detail must be 1 with a dilation or an opening_width, got 2"),
        ({"opening_width": 0}, r"opening_width must give 1 to 1000 taps, got 0\^2"),
        ({"opening_width": -1}, r"opening_width must give 1 to 1000 taps, got -1\^2"),
        ({"opening_width": 2.5}, "opening_width must be whole numbers, got 2.5"),
    ):
        with pytest.raises(ValueError, match=message):
            NetworkConfig(**(base | changed))
    with pytest.raises(
        ValueError, match="a_trous must be left out for networks other than those of PDEs, got resnet18"
    ):
        external_model("resnet18", size=16).a_trous()
    with pytest.raises(ValueError, match="anything but one convolution reads the images"):
        with_detail(a_trous(network()), 2)
