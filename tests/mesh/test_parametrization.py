"""Reparametrised modules: the function stays, the mesh moves, the state travels."""

import copy
import math

import pytest
import torch
from torch import nn

from multipde import (
    NetworkConfig,
    PDENet,
    StencilBasis,
    bake,
    coefficients,
    mesh_size,
    reparametrize,
    set_mesh_size,
    skipped_layers,
    stencil_layers,
    transfer_stencil,
    with_detail,
)
from multipde.mesh.reparametrize import set_reference, stencil_parametrization

COORDINATES = ("stencil", "beta")


def mixed_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=4),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 4, 1),
        nn.Conv2d(4, 4, 2),
        nn.ConvTranspose2d(4, 4, 3),
    )


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_function_stays_and_so_do_the_parameter_objects(coordinates):
    model = mixed_model().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before, parameters = model(x), set(model.parameters())
    assert reparametrize(model, 1 / 32, reference=1 / 64, coordinates=coordinates) is model
    torch.testing.assert_close(model(x), before)
    assert set(model.parameters()) == parameters


def test_1x1_even_and_transposed_convolutions_are_left_alone_and_listed():
    model = reparametrize(mixed_model(), 1 / 32)
    assert skipped_layers(model) == {"5": "1x1", "6": "even width", "7": "transposed"}
    assert list(stencil_layers(model)) == ["0", "2", "4"]
    torch.nn.utils.parametrizations.weight_norm(plain := nn.Conv2d(2, 2, 3))
    assert skipped_layers(nn.Sequential(plain)) == {"0": "parametrised otherwise"}


def test_an_example_traces_strides_and_dilation_widens_the_mesh():
    model = reparametrize(mixed_model(), 1 / 32, example=torch.zeros(1, 3, 32, 32))
    h = {name: layer.parametrizations.weight[0].basis().mesh_size for name, layer in stencil_layers(model).items()}
    assert h == {"0": (1 / 32, 1 / 32), "2": (1 / 16, 1 / 16), "4": (1 / 4, 1 / 4)}
    assert model.training


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("reaction", ["121", "141"])
def test_moving_the_mesh_rediscretises_and_keeps_physical_coefficients(coordinates, reaction):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 5)).double()
    old = [c.weight.detach().clone() for c in model]  # pyright: ignore
    reparametrize(model, 1 / 16, coordinates=coordinates, reaction=reaction)
    beta = coefficients(model)
    set_mesh_size(model, 1 / 24)
    assert mesh_size(model) == 1 / 24
    for conv, weight in zip(model, old, strict=True):
        torch.testing.assert_close(conv.weight, transfer_stencil(weight, "rediscretize", 1.5, reaction=reaction))
    for name, moved in coefficients(model).items():
        torch.testing.assert_close(moved, beta[name])
    set_mesh_size(model, 1 / 16)
    for conv, weight in zip(model, old, strict=True):
        torch.testing.assert_close(conv.weight, weight)


def test_coefficients_are_those_of_the_basis_on_the_layers_mesh():
    model = reparametrize(nn.Sequential(nn.Conv1d(1, 1, 3)), 0.1, stride=2)
    expected = StencilBasis(3, 1, 0.2).to_beta(model[0].weight.detach().double())
    torch.testing.assert_close(coefficients(model)["0"], expected)


def test_one_mesh_size_per_axis_in_three_dimensions():
    model = reparametrize(nn.Sequential(nn.Conv3d(1, 1, (3, 5, 3))), (1 / 4, 1 / 8, 1 / 16))
    assert mesh_size(model) == (1 / 4, 1 / 8, 1 / 16)
    old = model[0].weight.detach().clone()
    set_mesh_size(model, (1 / 8, 1 / 8, 1 / 8))
    torch.testing.assert_close(model[0].weight, transfer_stencil(old, "rediscretize", (2.0, 1.0, 0.5), dim=3))


def test_bake_gives_plain_layers_with_the_present_stencils():
    model = reparametrize(mixed_model(), 1 / 32)
    set_mesh_size(model, 1 / 48)
    x = torch.randn(1, 3, 48, 48)
    expected = model(x)
    bake(model)
    torch.testing.assert_close(model(x), expected)
    assert not any("parametrizations" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="module must be reparametrised, got a plain one"):
        mesh_size(model)


def test_baking_a_copy_leaves_the_original_as_it_was():
    model = reparametrize(mixed_model(), 1 / 32)
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(bake(copy.deepcopy(model))(x), expected)
    torch.testing.assert_close(model(x), expected)
    assert mesh_size(model) == 1 / 32


def test_the_mesh_travels_with_the_state_dict_and_is_not_overlooked():
    model = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 1 / 16, reference=1 / 32)
    other = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 1 / 16)
    set_mesh_size(other, 1 / 8)
    with pytest.warns(UserWarning, match="mesh size follows the state dict"):
        other.load_state_dict(model.state_dict())
    assert mesh_size(other) == 1 / 16
    torch.testing.assert_close(other[0].weight, model[0].weight)
    wrong = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 1 / 16, coordinates="beta")
    with pytest.raises((ValueError, RuntimeError), match="coordinates 'beta'"):
        wrong.load_state_dict(model.state_dict())


def test_gradients_reach_the_parameter_and_training_at_the_reference_is_the_plain_one():
    torch.manual_seed(0)
    plain = nn.Conv2d(2, 2, 3).double()
    layer = reparametrize(nn.Sequential(copy.deepcopy(plain)), 1 / 32)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    for module, weight in ((plain, plain.weight), (layer, layer[0].parametrizations.weight.original)):
        optimizer = torch.optim.SGD([weight], lr=0.1)
        module(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(plain.weight, layer[0].weight)


def test_precision_changes_are_rounded_from_float64():
    layer = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 1 / 30, reference=1 / 32)
    layer.to(torch.bfloat16).double()
    p = layer[0].parametrizations.weight[0]
    fresh = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3).double()), 1 / 30, reference=1 / 32)
    assert torch.equal(p.matrix, fresh[0].parametrizations.weight[0].matrix)


def test_deepcopy_and_compile_survive_a_change_of_mesh():
    model = reparametrize(nn.Sequential(nn.Conv2d(1, 2, 3)), 1 / 16)
    twin = copy.deepcopy(model)
    set_mesh_size(twin, 1 / 8)
    assert mesh_size(model) == 1 / 16
    compiled = torch.compile(twin, backend="eager")
    x = torch.randn(1, 1, 6, 6)
    for h in (1 / 8, 1 / 16, 1 / 32):
        set_mesh_size(twin, h)
        torch.testing.assert_close(compiled(x), twin(x))


def test_gradient_norm_grows_when_the_reference_is_coarser_than_the_mesh():
    """The Jacobian of W(h) in p has norm 1 at the reference, and about 17 on a mesh half as wide."""
    layer = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 1 / 32, reference=1 / 16)
    norm = torch.linalg.matrix_norm(layer[0].parametrizations.weight[0].matrix.double(), 2).item()
    assert norm == pytest.approx(17, rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reparametrize(nn.Linear(2, 2), 0.1), "module must have a convolution with odd stencils"),
        (lambda: reparametrize(nn.Conv2d(1, 1, 3), -0.1), "mesh_size must be positive, got"),
        (lambda: reparametrize(nn.Conv2d(1, 1, 3), math.inf), "mesh_size must be positive, got"),
        (lambda: reparametrize(nn.Conv2d(1, 1, 3), 0.1, reference=0.0), "reference must be positive, got"),
        (lambda: reparametrize(nn.Conv2d(1, 1, 3), 0.1, coordinates="raw"), "coordinates must be one of stencil, beta"),
        (lambda: reparametrize(nn.Conv2d(1, 1, 3), (0.1, 0.1, 0.1)), "mesh_size must be one number or 2 numbers"),
        (lambda: set_mesh_size(nn.Conv2d(1, 1, 3), 0.1), "use reparametrize.module, mesh_size. first"),
        (lambda: coefficients(nn.Conv2d(1, 1, 3)), "module must be reparametrised, got a plain one"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_twice_reparametrised_or_tied_layers_are_refused_and_nothing_is_changed():
    model = reparametrize(nn.Sequential(nn.Conv2d(1, 1, 3)), 0.1)
    with pytest.raises(ValueError, match="module must be plain, got '0' reparametrised already"):
        reparametrize(model, 0.1)
    tied = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layers must not share a weight, got '0' and '1'"):
        reparametrize(tied, 0.1)
    assert not any("parametrizations" in name for name in tied.state_dict())


@pytest.mark.parametrize(("width", "coordinates"), [(3, "stencil"), (3, "beta"), (5, "stencil"), (9, "stencil")])
def test_autocast_and_lower_precision_do_not_round_the_map_of_stencils(width, coordinates):
    conv = torch.nn.Conv2d(2, 2, width, padding="same")
    reparametrize(conv, 1 / 8, coordinates=coordinates)
    set_mesh_size(conv, 1 / 32)
    expected = conv.weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.weight, expected)
        seen, of = conv(torch.zeros(1, 2, 8, 8)), torch.bfloat16
    assert seen.dtype == of
    low = copy.deepcopy(conv).bfloat16()
    again, exact = stencil_parametrization(low), stencil_parametrization(conv)
    assert again is not None
    assert exact is not None
    p = low.parametrizations.weight.original.float()  # pyright: ignore
    torch.testing.assert_close(again(p), exact(p))
    assert low.weight.dtype == of


@pytest.mark.parametrize(
    ("width", "dtype", "size"), [(7, torch.float32, 224), (3, torch.bfloat16, 224), (5, torch.float16, 224)]
)
def test_a_reference_that_the_precision_of_the_weights_cannot_bear_is_refused(width, dtype, size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, width, padding=width // 2)).to(dtype)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=f"reference must be nearer to the mesh size for '[01]' .* in {str(dtype)[6:]}"
    ):
        reparametrize(net, 1 / 32, reference=1 / size)
    assert net.state_dict().keys() == before.keys()
    reparametrize(net, 1 / 32)
    with pytest.raises(ValueError, match="reference must be nearer"):
        set_reference(net, 1 / size)
    assert all(torch.equal(layer.weight, before[f"{k}.weight"]) for k, layer in enumerate(net))
    set_reference(net, 1 / 48 if dtype is torch.float32 else 1 / 33)
    moved = [layer.weight.detach().clone() for layer in net]
    with pytest.raises(ValueError, match="reference must be nearer"):
        set_reference(net, 1 / size)
    assert all(torch.equal(layer.weight, stencils) for layer, stencils in zip(net, moved, strict=True))


def test_parameters_that_are_put_in_the_place_of_others_bring_their_device():
    net = reparametrize(mixed_model(), 1 / 32, reference=1 / 48, coordinates="beta")
    with torch.device("meta"):
        outline = reparametrize(mixed_model(), 1 / 32, reference=1 / 48, coordinates="beta")
    moved = copy.deepcopy(outline).to_empty(device="cpu")
    moved.load_state_dict(net.state_dict())
    outline.load_state_dict(net.state_dict(), assign=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(outline(x), net(x))
    assert torch.equal(moved(x), net(x))
    assert torch.equal(outline.to("cpu")(x), net(x))


def test_parameters_in_the_same_memory_are_refused_wherever_they_would_change_twice():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    net[1].weight = nn.Parameter(net[0].weight.data)
    with pytest.raises(ValueError, match="must not share a weight, got '0' and '1'"):
        reparametrize(net, 1 / 32, reference=1 / 64)
    net[1].weight = nn.Parameter(net[0].weight.data.clone())
    reparametrize(net, 1 / 32)
    net[1].parametrizations.weight.original = net[0].parametrizations.weight.original
    set_mesh_size(net, 1 / 64)
    for change in (bake, lambda tied: set_reference(tied, 1 / 48)):
        with pytest.raises(ValueError, match="must not share a weight, got '0' and '1'"):
            change(net)


def test_the_mesh_of_a_network_with_a_detail_is_moved_by_convert():
    net = with_detail(PDENet(NetworkConfig("parabolic", (4,), 4, size=8, coordinates="beta")), 2)
    set_mesh_size(net, 1 / 8)
    with pytest.raises(ValueError, match="module must have detail 1, got 2; convert moves it with its opening"):
        set_mesh_size(net, 1 / 16)
