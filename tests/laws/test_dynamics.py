"""Laws of the time integrators: reversibility, stability bounds, energy."""

import pytest
import torch

from multipde import Block, SymmetricLayer, energy, operator_norm, step_bound
from multipde.networks.dynamics import DYNAMICS

SIZE = 6


def block(dynamics: str, **options) -> Block:
    torch.manual_seed(0)
    return Block(dynamics, 4, **options).double()


def scale_to_norm(layer: SymmetricLayer, norm: float) -> None:
    with torch.no_grad():
        layer.conv.weight.mul_(norm / operator_norm(layer.conv.weight, SIZE, tolerance=1e-12, num_iterations=20000))


def image(channels: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, channels, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["tv", "none"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("dynamics", ["hamiltonian", "second_order"])
@pytest.mark.parametrize("controls", [None, 3])
def test_hyperbolic_blocks_are_reversible(dynamics, activation, norm, controls):
    b = block(dynamics, steps=8, dt=0.7, controls=controls, norm=norm, activation=activation)
    start = b.scheme.start(image())
    for a, c in zip(b.inverse(b.propagate(start)), start, strict=True):
        assert (a - c).abs().max() < 1e-10


@pytest.mark.parametrize("dynamics", ["parabolic", "resnet"])
def test_the_others_say_that_they_are_not(dynamics):
    b = block(dynamics)
    with pytest.raises(ValueError, match="dynamics must be hamiltonian or second_order to be inverted"):
        b.inverse(b.scheme.start(image()))


@pytest.mark.parametrize("norm", ["tv", "none"])
def test_the_symmetric_layer_is_the_negative_adjoint_around_the_hidden_layer(norm):
    """<F(y), x> = -<σ(N(K y)), K x>."""
    torch.manual_seed(0)
    layer = SymmetricLayer(4, norm=norm).double()
    y, x = image(seed=1), image(seed=2)
    kx = torch.nn.functional.conv2d(x, layer.conv.weight, padding=1)
    torch.testing.assert_close((layer(y) * x).sum(), -(layer.hidden(y, layer.controls()) * kx).sum())


def test_the_jacobian_of_the_symmetric_layer_is_symmetric_and_negative_semidefinite():
    torch.manual_seed(0)
    layer = SymmetricLayer(4, norm="none").double()
    y = image()[:1]
    jacobian = torch.func.jacrev(lambda v: layer(v).flatten())(y).reshape(y.numel(), y.numel()).detach()
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).max() < 1e-12


def test_power_iteration_finds_the_largest_singular_value_with_the_boundary():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    units = torch.eye(2 * SIZE**2, dtype=torch.float64).view(-1, 2, SIZE, SIZE)
    assembled = torch.nn.functional.conv2d(units, weight, padding=1).flatten(1)
    found = operator_norm(weight, SIZE, tolerance=1e-13, num_iterations=20000)
    assert found == pytest.approx(torch.linalg.matrix_norm(assembled, 2).item(), rel=1e-6)
    assert operator_norm(torch.zeros(1, 1, 3, 3), 4) == 0


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
def test_parabolic_steps_are_non_expansive_up_to_their_bound(activation):
    b = block("parabolic", steps=1, norm="none", activation=activation)
    layer = b.controls[0][0]
    scale_to_norm(layer, 1.5)
    b.dt = step_bound("parabolic", [1.5])
    for seed in range(20):
        u, v = image(seed=seed), image(seed=seed + 100)
        assert (b(u) - b(v)).norm() <= (u - v).norm() * (1 + 1e-12)


def test_beyond_the_bound_a_parabolic_step_expands():
    b = block("parabolic", steps=60, controls=1, norm="none", activation="identity")
    scale_to_norm(b.controls[0][0], 1.5)
    b.dt = 1.05 * step_bound("parabolic", [1.5])
    assert b(image()).norm() > 10 * image().norm()


@pytest.mark.parametrize("dynamics", ["hamiltonian", "second_order"])
@pytest.mark.parametrize(("factor", "stable"), [(0.99, True), (1.02, False)])
def test_hyperbolic_bounds_are_sharp_for_linear_layers(dynamics, factor, stable):
    b = block(dynamics, steps=400, controls=1, norm="none", activation="identity")
    layers = list(b.controls[0])
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        scale_to_norm(layer, 1.3)
    b.dt = factor * step_bound(dynamics, [1.3] * len(layers))
    growth = b(image()).norm() / image().norm()
    assert (growth < 30) if stable else (growth > 1e4)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_the_energy_drifts_by_dt_squared(activation):
    layer = block("second_order", steps=1, norm="none", activation=activation).controls[0][0]
    scale_to_norm(layer, 2.0)

    def drift(steps: int) -> float:
        dt = 2.0 / steps
        b = Block("second_order", 4, steps, dt, 1, norm="none", activation=activation).double()
        b.controls[0][0].load_state_dict(layer.state_dict())
        states = [b.scheme.start(image())]
        for forces in b.forces():
            states.append(b.scheme.step(states[-1], forces, dt))
        path = [s[0] for s in states]
        energies = [
            energy(layer, y, (after - before) / (2 * dt))
            for before, y, after in zip(path, path[1:], path[2:], strict=False)
        ]
        return max(((e - energies[0]) / energies[0]).abs().max().item() for e in energies)

    drifts = [drift(n) for n in (40, 80, 160)]
    assert drifts[0] / drifts[1] == pytest.approx(4, rel=0.25)
    assert drifts[1] / drifts[2] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_one_step_is_the_equation(dynamics):
    b, y, dt = block(dynamics, steps=1, dt=0.3), image(), 0.3
    (layer, *more) = b.controls[0]
    if dynamics == "hamiltonian":
        first, second = y[:, :2], y[:, 2:]
        first = first + dt * layer(second)
        expected = torch.cat([first, second - dt * more[0](first)], 1)
    else:
        expected = y + (dt**2 if dynamics == "second_order" else dt) * layer(y)
    torch.testing.assert_close(b(y), expected)


@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order"])
def test_steps_converge_to_the_solution_of_the_differential_equation(dynamics):
    """Halving dt at constant controls: first order for Euler and Verlet's z, second for leapfrog with smooth σ."""
    base = block(dynamics, steps=8, dt=1 / 8, controls=1, norm="none", activation="tanh")

    def solve(steps):
        b = Block(dynamics, 4, steps, 1 / steps, 1, norm="none", activation="tanh").double()
        b.load_state_dict(base.state_dict())
        return b(image())

    exact = solve(2048)
    ratio = ((solve(32) - exact).norm() / (solve(64) - exact).norm()).item()
    assert ratio == pytest.approx(2, rel=0.1)


def test_a_dynamics_without_a_bound_is_named():
    with pytest.raises(ValueError, match="dynamics must be parabolic, hamiltonian or second_order to have a bound"):
        step_bound("resnet", [1.0])
