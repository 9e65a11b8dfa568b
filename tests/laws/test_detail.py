"""The detail level: the composed network on fine images is the old network on their means, boundary included."""

from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import NetworkConfig, convert, describe, restrict_images, with_detail
from multipde.mesh.reparametrize import stencil_layers, stencil_parametrization
from multipde.networks.detail import averaged_taps, composed_taps
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.layers import BATCH_NORM, CONV

TOLERANCE = 1e-12


def small(dim=2, size=8, **changed):
    given = {"dynamics": "hamiltonian", "channels": (4, 6), "out_channels": 6, "in_channels": 2, "steps": 2}
    return NetworkConfig(**(given | {"size": size, "dim": dim} | changed))


def with_statistics(net):
    """In float64, with running statistics and norms that differ from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.double().state_dict().items():
        if "running" in name or name.endswith("1.weight"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return net.eval()


def images(channels, size, dim):
    return torch.randn(3, channels, *(size,) * dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def assert_same(new, old, x, size):
    wanted, got = old(restrict_images(x, size)), new(x)
    assert (got - wanted).norm() <= TOLERANCE * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("dim", "detail"), list(product((1, 2, 3), (2, 3, 4))))
def test_pde_network_is_the_same_function(dynamics, dim, detail):
    size = {1: 16, 2: 8, 3: 4}[dim]
    torch.manual_seed(0)
    net = with_statistics(small(dim, size, dynamics=dynamics).build())
    new = with_detail(net, detail)
    assert_same(new, net, images(2, size * detail, dim), size)
    assert new.config == net.config.on_mesh(size, detail)
    assert new.config.image_sizes == (size * detail,) * dim
    assert new.opening[0].weight.shape == (4, 2, *(3 * detail,) * dim)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(("dim", "detail"), list(product((1, 2, 3), (2, 3, 4))))
def test_any_module_whose_images_are_read_by_one_convolution(mode, dim, detail):
    """Also with even width, stride, groups and bias."""
    torch.manual_seed(0)
    for width, stride, padding in ((3, 1, 1), (4, 2, 1), (5, 3, 2), (1, 1, 0)):
        conv = CONV[dim](2, 6, width, stride=stride, padding=padding, groups=2, padding_mode=mode)
        net = with_statistics(nn.Sequential(conv, BATCH_NORM[dim](6), nn.ReLU(), CONV[dim](6, 3, 3)))
        size = {1: 16, 2: 14, 3: 9}[dim]
        example = torch.zeros(1, 2, *(size,) * dim, dtype=torch.float64)
        assert_same(with_detail(net, detail, example=example), net, images(2, size * detail, dim), size)


def test_opening_of_seven_taps_and_stride_two():
    from torchvision import models

    torch.manual_seed(0)
    net = with_statistics(describe(models.resnet18(num_classes=5), size=33, classes=5))
    new = with_detail(net, 2)
    assert (new.conv1.kernel_size, new.conv1.stride, new.conv1.padding) == ((14, 14), (4, 4), (6, 6))
    assert_same(new, net, images(3, 66, 2), 33)
    others = {k: t for k, t in net.state_dict().items() if k != "conv1.weight"}
    assert all(torch.equal(new.state_dict()[k], t) for k, t in others.items())


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=padding), nn.ReLU()).double()
    new = with_detail(net, 3, example=torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    assert_same(new, net, images(2, 18, 2), 6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_composing_twice_and_back(dim):
    """Twice by 2 is 4, and summing the repeated taps inverts each composition, to the bit for powers of two."""
    torch.manual_seed(0)
    net = small(dim, 4).build()
    four, twice = with_detail(net, 4), with_detail(with_detail(net, 2), 4)
    for part in (four, twice, with_detail(with_detail(net, 3), 4)):
        close = {"rtol": 1e-6, "atol": 0}
        torch.testing.assert_close(part.opening[0].weight, four.opening[0].weight, **close)
    assert torch.equal(four.opening[0].weight, twice.opening[0].weight)
    for back in (with_detail(four, 1), with_detail(with_detail(four, 2), 1)):
        assert back.config == net.config
        assert back.state_dict().keys() == net.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(back.state_dict().values(), net.state_dict().values(), strict=True)
        )
    taps = torch.randn(2, 3, *(6,) * dim, dtype=torch.float64)
    torch.testing.assert_close(averaged_taps(composed_taps(taps, 3), 3), taps, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
def test_opening_moves_back_to_its_reference_mesh(coordinates):
    """On another mesh than that of its parameter, in both coordinates: the parameter returns too."""
    torch.manual_seed(0)
    net = with_statistics(small(size=8, reference=16, coordinates=coordinates).build())
    new = with_detail(net, 2)
    assert_same(new, net, images(2, 16, 2), 8)
    back = with_detail(new, 1)
    p, q = (stencil_parametrization(each.opening[0]) for each in (net, back))
    assert p is not None
    assert q is not None
    assert (p.mesh_size, p.reference, p.stride, p.coordinates) == (q.mesh_size, q.reference, q.stride, q.coordinates)
    for (name, old), (other, new) in zip(net.named_parameters(), back.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(new, old, rtol=1e-13, atol=1e-13)


def test_mesh_and_opening_move_together():
    """16:2 to 32 is: back to the mesh, then the method; 16 to 32:2 the method, then composed."""
    torch.manual_seed(0)
    net = small(size=16).build().double()
    fine = with_detail(net, 2)
    fine.opening[0].weight.data += 0.1 * torch.randn(fine.opening[0].weight.shape, dtype=torch.float64)
    for method in ("copy", "rediscretize", "galerkin"):
        moved = convert(fine, size=32, detail=1, method=method)
        wanted = convert(with_detail(fine, 1), size=32, method=method)
        assert moved.config == wanted.config == net.config.on_mesh(32)
        torch.testing.assert_close(list(moved.parameters()), list(wanted.parameters()))
        composed = convert(net, size=32, detail=2, method=method)
        torch.testing.assert_close(
            list(composed.parameters()), list(with_detail(convert(net, size=32, method=method), 2).parameters())
        )


@pytest.mark.parametrize("method", ["copy", "rediscretize", "galerkin"])
def test_composed_opening_changes_mesh_as_its_average_does(method):
    """At the same detail, averaging and moving commute; what averages to zero is copied."""
    torch.manual_seed(0)
    net = with_detail(small(size=16).build().double(), 2)
    net.opening[0].weight.data += 0.1 * torch.randn(net.opening[0].weight.shape, dtype=torch.float64)
    moved = convert(net, size=8, method=method)
    assert moved.config == net.config.on_mesh(8)
    assert moved.config.image_sizes == (16, 16)
    average = convert(with_detail(net, 1), size=8, method=method)
    torch.testing.assert_close(with_detail(moved, 1).opening[0].weight, average.opening[0].weight)
    rest = [w - composed_taps(averaged_taps(w, 2), 2) for w in (net.opening[0].weight, moved.opening[0].weight)]
    torch.testing.assert_close(rest[1], rest[0])
    assert list(stencil_layers(moved)) == [
        name for name in stencil_layers(with_detail(moved, 1)) if "opening" not in name
    ]


class Reader(nn.Module):
    def __init__(self, forward, **options):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, **({"padding": 1} | options)), nn.Conv2d(3, 4, 3, padding=1)
        self.read = forward

    def forward(self, x):
        return self.read(self, x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("forward", "options", "message"),
    [
        (lambda m, x: m.conv(x) + x.mean(), {}, "anything but one convolution reads the images, got aten.mean"),
        (lambda m, x: m.conv(x.flip(3)), {}, "anything but one convolution reads the images, got aten.flip"),
        (lambda m, x: m.conv(x.flatten(1).view_as(x)), {}, "anything but one convolution reads the images, got aten"),
        (lambda m, x: m.conv(x) + m.other(x), {}, "not exactly one convolution reads the images, got 2"),
        (lambda m, x: m.conv(x) + m.conv(x), {}, "not exactly one convolution reads the images, got 2"),
        (lambda m, x: functional.conv2d(x, m.conv.weight), {}, "reads the images, got aten.convolution"),
        (lambda m, x: m.conv(x), {"padding_mode": "reflect"}, "neither zeros nor circular, got 'reflect'"),
        (lambda m, x: m.conv(x), {"padding_mode": "replicate"}, "neither zeros nor circular, got 'replicate'"),
        (lambda m, x: m.conv(x), {"dilation": 2}, r"dilated, got dilation \(2, 2\) in 'conv'"),
        (lambda m, x: m.conv(x), {"kernel_size": 4, "padding": "same"}, "two unequal sides, got 'same' in 'conv'"),
    ],
)
def test_refused_with_the_reason(forward, options, message):
    kernel, options = options.get("kernel_size", 3), {k: v for k, v in options.items() if k != "kernel_size"}
    model = Reader(forward, **options)
    if kernel != 3:
        model.conv = nn.Conv2d(3, 4, kernel, **options)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        with_detail(model, 2, example=torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())


def test_refused_arguments():
    net = small().build()
    tied = Reader(lambda m, x: m.conv(x))
    tied.other.weight = tied.conv.weight
    with pytest.raises(ValueError, match="stencils of the opening are shared or parametrised, got such ones in 'conv'"):
        with_detail(tied, 2, example=torch.zeros(1, 3, 8, 8))
    for detail in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"detail must be a positive whole number, got {detail}"):
            with_detail(net, detail)
        with pytest.raises(ValueError, match=f"detail must be a positive whole number, got {detail}"):
            small(detail=detail)
    with pytest.raises(ValueError, match="example must be given for a model without a description"):
        with_detail(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3))), 2)
    with pytest.raises(ValueError, match="a multiple of 2 pixels per axis"):
        with_detail(net, 2)(torch.zeros(1, 2, 15, 15))
    with pytest.raises(ValueError, match="multiple of the detail 2, got 15"):
        with_detail(net, 2).config.for_images(15)


def test_a_network_that_needs_values_to_run():
    """Its opening is found on the device of the model, since shapes alone do not get through it."""
    torch.manual_seed(0)
    model = Reader(lambda m, x: m.conv(x) * (1 + m.conv.bias.sum().item())).double()
    assert_same(with_detail(model, 2, example=torch.zeros(1, 3, 8, 8)), model, images(3, 16, 2), 8)
