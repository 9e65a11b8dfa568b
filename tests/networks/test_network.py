"""The networks of the paper, and their description."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

from multipde import NetworkConfig, PDENet, TVNorm, count_flops, mesh_size, num_weights, preset, preset_names
from multipde.mesh.reparametrize import stencil_layers, stencil_parametrization
from multipde.mesh.spectrum import order_rms
from multipde.networks.layers import ResidualLayer, SymmetricLayer
from multipde.networks.presets import default_network

TABLE_1 = {
    "stl10-parabolic": 618_554,
    "stl10-hamiltonian": 324_794,
    "stl10-second_order": 618_554,
    "cifar10-parabolic": 502_570,
    "cifar10-hamiltonian": 264_106,
    "cifar10-second_order": 502_570,
    "cifar100-parabolic": 652_484,
    "cifar100-hamiltonian": 362_180,
    "cifar100-second_order": 652_484,
}


def small(dynamics="hamiltonian", **options) -> NetworkConfig:
    return NetworkConfig(dynamics, (4, 6), 8, **{"size": 8} | options)


@pytest.mark.parametrize(("name", "weights"), TABLE_1.items())
def test_weight_counts_are_those_of_table_1(name, weights):
    with torch.device("meta"):
        assert num_weights(PDENet(preset(name))) == weights


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_runs(name):
    config = replace(preset(name).on_mesh(16), classes=3)
    assert PDENet(config).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("layer", [SymmetricLayer, ResidualLayer])
def test_a_factor_in_the_stencils_is_one_of_the_layer(layer):
    """dt F(θ, y) is computed so, with the gradients of both."""
    net, y = layer(4).double(), torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs = (y, *net.controls())
    found, expected = net.force(y, net.controls(), 0.3), 0.3 * net(y)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, g), torch.autograd.grad(expected, inputs, g))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
def test_one_code_path_for_1d_2d_and_3d(dim, dynamics):
    net = PDENet(small(dynamics, dim=dim, in_channels=2))
    net(torch.randn(2, 2, *(8,) * dim)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_every_block_lies_on_a_mesh_twice_as_wide():
    net = PDENet(preset("cifar10-hamiltonian"))
    assert mesh_size(net) == 1 / 32
    for name, layer in stencil_layers(net).items():
        block = int(name.split(".")[1]) if name.startswith("blocks") else 0
        assert stencil_parametrization(layer).basis().mesh_size == (2**block / 32,) * 2  # pyright: ignore


def test_rectangles_have_a_mesh_size_per_axis():
    net = PDENet(small(size=(8, 16)))
    assert mesh_size(net) == (1 / 8, 1 / 16)
    assert net(torch.zeros(1, 3, 8, 16)).shape == (1, 10)


def test_tv_norm_is_equation_9():
    norm = TVNorm(3, eps=1e-3).double()
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.bias)
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = y / (y.square().sum(1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(y), expected * norm.scale.view(3, 1, 1) + norm.bias.view(3, 1, 1))
    assert norm(torch.zeros_like(y)).isfinite().all()


def test_printing_a_network_shows_its_blocks():
    text = str(PDENet(preset("cifar10-hamiltonian")))
    assert "264,106 weights" in text
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[1] for row in rows] == ["32x32", "16x16", "8x8"]
    assert [float(row[2]) for row in rows] == [0.03125, 0.0625, 0.125]
    assert sum(int(row[-1].replace(",", "")) for row in rows) == sum(
        num_weights(b) for b in PDENet(preset("cifar10-hamiltonian")).blocks
    )


def test_flops_are_those_of_the_convolutions():
    config = NetworkConfig("parabolic", (4,), 5, steps=2, size=8, classes=10)
    pixels = 8 * 8
    expected = 2 * pixels * (9 * 3 * 4 + 2 * 2 * 9 * 4 * 4 + 4 * 5) + 2 * 5 * 10
    assert count_flops(config) == expected
    assert 2.5 * expected < count_flops(config, training=True) < 3.01 * expected


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
def test_flops_are_counted_for_coarse_control_grids_too(coordinates):
    few, many = small(steps=6, controls=2, coordinates=coordinates), small(steps=6, coordinates=coordinates)
    assert count_flops(few, training=True) == pytest.approx(count_flops(many, training=True), rel=0.1)


def test_config_survives_json_and_deepcopy():
    config = small(
        steps=(2, 3), dt=(1.0, 0.5), class_names=tuple("abcdefghij"), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)
    )
    assert NetworkConfig(**json.loads(json.dumps(asdict(config)))) == config
    net = PDENet(config).eval()
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_times_scale_with_steps_and_controls():
    config = small(steps=3, dt=1.0).with_steps(6)
    assert (config.block_dt, config.final_times) == ((0.5, 0.5), (3.0, 3.0))
    assert small(steps=6, controls=2).block_controls == (2, 2)
    assert len(PDENet(small(steps=6, controls=2)).blocks[0].controls) == 2


def test_order_rms_sees_a_pure_derivative():
    net = PDENet(small())
    conv = net.opening[0]
    basis = stencil_parametrization(conv).basis()  # pyright: ignore[reportOptionalMemberAccess]
    beta = torch.zeros(4, 3, 3, 3, dtype=torch.float64)
    beta[:, :, 0, 2] = 5.0
    with torch.no_grad():
        conv.parametrizations.weight.original.copy_(basis.to_stencil(beta))
    assert order_rms(net, physical=True)["opening.0"] == pytest.approx([0, 0, 5 / 3**0.5, 0, 0], abs=1e-5)
    scaled = order_rms(net)["opening.0"][2]
    assert scaled == pytest.approx(5 / 3**0.5 * 8**2, rel=1e-5)


def test_default_networks():
    assert default_network("folder", "parabolic", 32) == preset("cifar10-parabolic")
    assert default_network("folder", None, 96) == preset("stl10-hamiltonian")
    assert default_network("shapes", "resnet", 32, "cifar100-resnet") == preset("cifar100-resnet")
    with pytest.raises(ValueError, match="dynamics must be that of the preset cifar10-resnet, got parabolic"):
        default_network("shapes", "parabolic", 32, "cifar10-resnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, "size must be a positive multiple of 2 .halved between 2 blocks., got 7"),
        ({"dynamics": "hyperbolic"}, "dynamics must be one of"),
        ({"channels": (3, 4)}, "channels must be positive and even for hamiltonian, got 3"),
        ({"channels": ()}, "channels must name 1 to 64 blocks, got"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"steps": (3,)}, r"steps must be one number or one per block \(2\), got \(3,\)"),
        ({"dt": float("nan")}, "dt must be positive, got nan"),
        ({"controls": 4}, "controls must not exceed steps = 3, got 4"),
        ({"width": 4}, "width must be odd and positive, got 4"),
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"activation": "gelu"}, "activation must be one of relu, tanh, identity, got 'gelu'"),
        ({"norm": "batch"}, "norm must be one of tv, none, got 'batch'"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std must be given together"),
        ({"steps": 2.5}, "steps must be whole numbers, got 2.5"),
        ({"class_names": ("a",)}, "class_names must have 10 entries, got 1"),
        ({"mean": (0.0,) * 3, "std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"reference": 0}, "reference must be positive, got 0"),
    ],
)
def test_bad_descriptions_are_named(options, message):
    arguments = {"dynamics": "hamiltonian", "channels": (4, 6), "out_channels": 8, "size": 8} | options
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**arguments)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (1, 3, 7, 8)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="must have shape|must be a positive multiple"):
        PDENet(small())(torch.zeros(shape))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be one of stl10-parabolic, .*got 'mnist-resnet'"):
        preset("mnist-resnet")
