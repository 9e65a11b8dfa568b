"""Laws of the time grid and of the regulariser (13)."""

from itertools import pairwise

import pytest
import torch

from multipde import Block, NetworkConfig, PDENet, convert
from multipde.networks.controls import interpolation_matrix
from multipde.networks.regularization import Box, Regularizer


def network(**options) -> PDENet:
    torch.manual_seed(0)
    options = {"dynamics": "hamiltonian", "channels": (4, 6), "out_channels": 6, "size": 8, "steps": 3} | options
    return PDENet(NetworkConfig(**options)).double()


def block_term(net: PDENet, alpha1: float, alpha2: float) -> torch.Tensor:
    return torch.stack([Regularizer(net, alpha1, alpha2).block(k) for k in range(len(net.blocks))]).sum()


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "resnet"])
def test_variation_is_invariant_under_linear_refinement(dynamics, factor):
    net = network(dynamics=dynamics)
    finer = convert(net, steps=3 * factor)
    assert finer.config.final_times == pytest.approx(net.config.final_times)
    torch.testing.assert_close(block_term(finer, 1.0, 0.0), block_term(net, 1.0, 0.0))


@pytest.mark.parametrize("factor", [2, 3])
def test_squares_are_invariant_under_constant_refinement(factor):
    net = network(interpolation="constant")
    torch.testing.assert_close(block_term(convert(net, steps=3 * factor), 0.0, 1.0), block_term(net, 0.0, 1.0))


def test_squares_converge_under_linear_refinement():
    net = network()
    values = [block_term(convert(net, steps=3 * n), 0.0, 1.0).item() for n in (1, 3, 9, 27)]
    gaps = [abs(a - b) for a, b in pairwise(values)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_regulariser_is_the_formula():
    net = network(dynamics="parabolic", channels=(4,), steps=2, dt=0.5, norm="none")
    first, second = (node[0].conv.weight for node in net.blocks[0].controls)
    tau = 1e-3
    variation = 0.5 * (((second - first) / 0.5).square().add(tau).sqrt() - tau**0.5).sum()
    squares = 0.5 * (first.square().sum() + second.square().sum())
    rest = sum(p.square().sum() for part in (net.opening, net.connectors, net.classifier) for p in part.parameters())
    torch.testing.assert_close(Regularizer(net, 0.3, 0.7)(), 0.3 * variation + 0.7 / 2 * (squares + rest))


def test_regulariser_and_box_live_on_the_reference_mesh_in_both_coordinates():
    values = []
    for coordinates in ("stencil", "beta"):
        net = network(coordinates=coordinates, reference=16)
        stencils = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for block in net.blocks:
            for node in block.controls:
                for layer in node:
                    p = layer.conv.parametrizations.weight
                    shape = p.original.shape
                    p.original.data.copy_(p[0].reference_parameter(3 * stencils[: shape[0], : shape[1]]))
        Box(net).project()
        p = net.blocks[0].controls[0][0].conv.parametrizations.weight
        wanted = 3 * stencils[: p.original.shape[0], : p.original.shape[1]]
        found, inside = p[0].reference_stencil(p.original), wanted.abs() <= 1
        torch.testing.assert_close(found[inside], wanted[inside])
        torch.testing.assert_close(found[~inside], wanted[~inside].sign())
        assert 0.2 < inside.double().mean() < 0.8
        values.append(block_term(net, 1.0, 1.0))
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("alphas", [(0.3, 0.7), (0.0, 0.7), (0.3, 0.0)])
@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_regulariser_is_that_of_its_formula(alphas, coordinates, layout):
    net = network(steps=(3, 1), dt=0.4, coordinates=coordinates, reference=16).to(memory_format=layout)
    net.classifier.bias.requires_grad_(False)
    parameters = [p for p in net.parameters() if p.requires_grad]
    regularizer = Regularizer(net, *alphas)
    expected = torch.autograd.grad(regularizer(), parameters)
    for p in parameters[::2]:
        p.grad = torch.ones_like(p)
    regularizer.add()
    for k, (p, e) in enumerate(zip(parameters, expected, strict=True)):
        torch.testing.assert_close(p.grad, e + (k % 2 == 0))
        assert p.grad is not None
        assert p.grad.stride() == p.stride()
    assert net.classifier.bias.grad is None


@pytest.mark.parametrize("interpolation", ["linear", "constant"])
@pytest.mark.parametrize(("nodes", "steps"), [(3, 3), (3, 6), (2, 5), (1, 4), (6, 3)])
def test_interpolation_keeps_constants_and_old_nodes(interpolation, nodes, steps):
    matrix = interpolation_matrix(nodes, steps, interpolation)
    torch.testing.assert_close(matrix.sum(1), torch.ones(steps, dtype=torch.float64))
    if steps % nodes == 0:
        torch.testing.assert_close(matrix[:: steps // nodes], torch.eye(nodes, dtype=torch.float64))


def test_linear_interpolation_is_exact_on_linear_controls_before_the_last_node():
    matrix = interpolation_matrix(4, 12)
    nodes = torch.arange(4, dtype=torch.float64) / 4
    times = torch.arange(12, dtype=torch.float64) / 12
    torch.testing.assert_close((matrix @ nodes)[:10], times[:10])
    torch.testing.assert_close((matrix @ nodes)[10:], nodes[-1].expand(2))


@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_fewer_controls_than_steps_give_the_steps_of_the_interpolated_block(dynamics, interpolation):
    torch.manual_seed(0)
    few = Block(dynamics, 4, 6, 0.5, 2, interpolation=interpolation).double()
    many = Block(dynamics, 4, 6, 0.5).double()
    matrix = interpolation_matrix(2, 6, interpolation)
    nodes = [dict(node.named_parameters()) for node in few.controls]
    with torch.no_grad():
        for row, node in zip(matrix, many.controls, strict=True):
            for name, p in node.named_parameters():
                p.copy_(sum(w * old[name] for w, old in zip(row, nodes, strict=True)))
    y = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(few(y), many(y))


def test_refined_network_converges_to_one_function_of_time():
    """Refining steps with T fixed changes the result less and less, by half each time (Euler)."""
    net = network(dynamics="parabolic", activation="tanh", norm="none").eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = [convert(net, steps=3 * n)(x) for n in (8, 16, 32)]
    ratio = (results[0] - results[1]).norm() / (results[1] - results[2]).norm()
    assert ratio.item() == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolation_matrix(0, 3), "num_from and num_to must be positive, got 0 and 3"),
        (lambda: interpolation_matrix(2, 3, "cubic"), "interpolation must be one of linear, constant, got 'cubic'"),
        (lambda: Block("parabolic", 4, 3, controls=4), "controls must be between 1 and steps = 3, got 4"),
        (lambda: Block("hamiltonian", 5), "channels must be positive and even for hamiltonian, got 5"),
        (lambda: Block("elliptic", 4), "dynamics must be one of parabolic, hamiltonian, second_order, resnet"),
        (lambda: Regularizer(network(), -1.0), "alpha1 must not be negative, got -1.0"),
        (lambda: Regularizer(network(), tau=0.0), "tau must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
