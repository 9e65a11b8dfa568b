"""Laws of the β basis: exact on polynomials, second order on sines, invertible."""

import math
from itertools import pairwise

import pytest
import torch

from multipde import StencilBasis
from multipde.mesh.separable import apply_along_axes

WIDTHS = (1, 3, 5, 7)


def derivative_of_power(degree: int, order: int, x: float) -> float:
    return math.perm(degree, order) * x ** (degree - order) if degree >= order else 0.0


@pytest.mark.parametrize("reaction", ["121", "141"])
@pytest.mark.parametrize("width", WIDTHS)
def test_term_of_order_k_is_exact_on_polynomials_of_degree_k_plus_1(width, reaction):
    h, centre = 0.3, 0.7
    basis = StencilBasis(width, 1, h, reaction)
    points = centre + h * (torch.arange(width, dtype=torch.float64) - width // 2)
    for order in range(width):
        for degree in range(order + 2):
            value = (basis.matrix[:, order] * points**degree).sum().item()
            exact = (-1) ** (order // 2) * derivative_of_power(degree, order, centre)
            assert value == pytest.approx(exact, abs=1e-8 / h**order)


@pytest.mark.parametrize(("reaction", "smoothing"), [("121", 1 / 2), ("141", 1 / 3)])
def test_reaction_smooths_a_square_by_a_share_of_h_squared(reaction, smoothing):
    h = 0.1
    column = StencilBasis(3, 1, h, reaction).matrix[:, 0]
    x = torch.tensor([-h, 0.0, h], dtype=torch.float64)
    assert (column * x**2).sum().item() == pytest.approx(smoothing * h**2)


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_every_term_converges_with_second_order_on_a_sine(width):
    frequency, x = 2.0, 0.4
    for order in range(width):
        phase = frequency * x + order * math.pi / 2
        exact = (-1) ** (order // 2) * frequency**order * math.sin(phase)
        errors = []
        for h in (0.1, 0.05, 0.025):
            points = x + h * (torch.arange(width, dtype=torch.float64) - width // 2)
            taps = StencilBasis(width, 1, h).matrix[:, order]
            errors.append(abs((taps * torch.sin(frequency * points)).sum().item() - exact))
        rates = [math.log2(a / b) for a, b in pairwise(errors)]
        assert rates == pytest.approx([2, 2], abs=0.1)


def test_matrix_of_width_3_is_the_papers():
    h = 0.25
    paper = [[1 / 4, -1 / (2 * h), -1 / h**2], [1 / 2, 0, 2 / h**2], [1 / 4, 1 / (2 * h), -1 / h**2]]
    assert torch.equal(StencilBasis(3, 1, h).matrix, torch.tensor(paper, dtype=torch.float64))


def test_wide_terms_are_products_of_the_three():
    r, c, d = StencilBasis(3, 1, 0.5).matrix.T
    columns = StencilBasis(5, 1, 0.5).matrix.T

    def product(a, b):
        return torch.nn.functional.conv1d(a[None, None], b.flip(0)[None, None], padding=2)[0, 0]

    for column, (a, b) in zip(columns, [(r, r), (c, r), (d, r), (d, c), (d, d)], strict=True):
        torch.testing.assert_close(column, product(a, b))


@pytest.mark.parametrize(
    ("width", "dim", "h"), [(3, 1, 1 / 224), (3, 2, (1 / 224, 1 / 96)), ((7, 1), 2, 0.1), (5, 3, 1)]
)
def test_conversion_there_and_back_is_the_identity_up_to_rounding(width, dim, h):
    basis = StencilBasis(width, dim, h)
    beta = torch.randn(2, 3, *basis.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    back = basis.to_beta(basis.to_stencil(beta))
    largest = math.prod(h ** (1 - w) for h, w in zip(basis.mesh_size, basis.width, strict=True))
    torch.testing.assert_close(back, beta, rtol=0, atol=1e-15 * max(1, largest) * len(basis.orders))


def test_matrix_and_axes_agree_in_row_major_order():
    basis = StencilBasis((3, 5), 2, (0.5, 0.25))
    beta = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((basis.matrix @ beta.flatten()).view(3, 5), basis.to_stencil(beta))
    torch.testing.assert_close(apply_along_axes(basis.axis_matrices, beta), basis.to_stencil(beta))
    assert basis.orders[:6] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_entry_ij_belongs_to_dy_i_dx_j():
    h = (0.2, 0.1)
    basis = StencilBasis(3, 2, h)
    y, x = torch.meshgrid(*(s * (torch.arange(3, dtype=torch.float64) - 1) for s in h), indexing="ij")
    for order, function in {(1, 0): y, (0, 1): x, (1, 1): x * y, (0, 2): -(x**2) / 2, (2, 1): -(y**2) * x / 2}.items():
        beta = torch.zeros(3, 3, dtype=torch.float64)
        beta[order] = 1
        assert (basis.to_stencil(beta) * function).sum().item() == pytest.approx(1)


def test_condition_number_is_small_on_the_unit_mesh_and_hopeless_in_physical_units():
    assert torch.linalg.cond(StencilBasis(3, 2, 1.0).matrix).item() == pytest.approx(18, rel=0.02)
    assert torch.linalg.cond(StencilBasis(3, 2, 1 / 224).matrix).item() == pytest.approx(5e10, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 4}, "width must be odd and positive, got 4"),
        ({"width": 0}, "width must be odd and positive, got 0"),
        ({"mesh_size": 0.0}, "mesh_size must be positive, got"),
        ({"mesh_size": float("nan")}, "mesh_size must be positive, got"),
        ({"mesh_size": (1.0, 1.0, 1.0)}, "mesh_size must be one number or 2 numbers"),
        ({"reaction": "111"}, "reaction must be one of 121, 141, got '111'"),
        ({"dim": 4}, "dim must be 1, 2 or 3, got 4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        StencilBasis(**arguments)


def test_a_stencil_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"stencil must end in the axes \(3, 3\), got shape \(5, 5\)"):
        StencilBasis().to_beta(torch.zeros(5, 5))
