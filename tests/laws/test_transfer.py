"""Laws of the maps between meshes."""

from functools import reduce

import pytest
import torch
from torch.nn.functional import conv1d, conv2d

from multipde import StencilBasis, prolong_images, restrict_images, transfer_stencil
from multipde.mesh.stencil import order_powers
from multipde.mesh.transfer import METHODS

G = torch.tensor([[1 / 2, 1 / 8, 0], [1 / 2, 3 / 4, 1 / 2], [0, 1 / 8, 1 / 2]], dtype=torch.float64)


def unit_stencils(*width: int) -> torch.Tensor:
    num = int(torch.tensor(width).prod())
    return torch.eye(num, dtype=torch.float64).view(num, 1, *width)


def random_stencils(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_galerkin_is_the_matrix_of_the_design_along_every_axis():
    for stencil in unit_stencils(3, 3):
        torch.testing.assert_close(transfer_stencil(stencil, "galerkin", 0.5)[0], G @ stencil[0] @ G.T)
    inverse = torch.linalg.inv(G)
    for stencil in unit_stencils(3):
        torch.testing.assert_close(transfer_stencil(stencil, "galerkin", 2.0, dim=1)[0], inverse @ stencil[0])


def test_galerkin_is_r_k_p_inside_the_domain_in_1d():
    coarse_units = torch.eye(12, dtype=torch.float64)[:, None]
    prolonged = prolong_images(coarse_units, 24, order=1)
    for stencil in unit_stencils(3):
        assembled = restrict_images(conv1d(prolonged, stencil[None], padding=1), 12)
        direct = conv1d(coarse_units, transfer_stencil(stencil, "galerkin", 0.5, dim=1)[None], padding=1)
        torch.testing.assert_close(assembled[..., 2:-2], direct[..., 2:-2])


def test_galerkin_is_r_k_p_inside_the_domain_in_2d_for_all_nine_unit_stencils():
    coarse_units = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    prolonged = prolong_images(coarse_units, 16, order=1)
    for stencil in unit_stencils(3, 3):
        assembled = restrict_images(conv2d(prolonged, stencil[None], padding=1), 8)
        direct = conv2d(coarse_units, transfer_stencil(stencil, "galerkin", 0.5)[None], padding=1)
        torch.testing.assert_close(assembled[..., 2:-2, 2:-2], direct[..., 2:-2, 2:-2])


def test_galerkin_keeps_beta_of_the_141_basis():
    for factor in (0.5, 2.0, 0.75):
        theta = random_stencils(4, 3, 5, 5)
        old, new = StencilBasis(5, 2, 1.0, "141"), StencilBasis(5, 2, 1.0 / factor, "141")
        torch.testing.assert_close(new.to_beta(transfer_stencil(theta, "galerkin", factor)), old.to_beta(theta))


@pytest.mark.parametrize("reaction", ["121", "141"])
@pytest.mark.parametrize(("width", "dim"), [(3, 1), (3, 2), (7, 2), (3, 3)])
def test_rediscretize_keeps_beta(width, dim, reaction):
    theta = random_stencils(2, 2, *(width,) * dim)
    new = transfer_stencil(theta, "rediscretize", 1.5, dim, reaction)
    beta = StencilBasis(width, dim, 1 / 32, reaction).to_beta(theta)
    torch.testing.assert_close(StencilBasis(width, dim, 1 / 48, reaction).to_beta(new), beta)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0, 0.75, (2.0, 0.5)])
def test_there_and_back_is_the_identity(method, factor):
    theta = random_stencils(3, 3, 3, 5)
    back = tuple(1 / f for f in factor) if isinstance(factor, tuple) else 1 / factor
    returned = transfer_stencil(transfer_stencil(theta, method, factor), method, back)
    torch.testing.assert_close(returned, theta, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_two_halvings_are_one_quartering(method):
    theta = random_stencils(3, 3, 3, 3)
    twice = transfer_stencil(transfer_stencil(theta, method, 0.5), method, 0.5)
    torch.testing.assert_close(twice, transfer_stencil(theta, method, 0.25))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_the_map_commutes_with_the_adjoint(method, factor):
    theta = random_stencils(4, 3, 3, 3)

    def adjoint(t):
        return t.transpose(0, 1).flip(2, 3)

    moved = transfer_stencil(adjoint(theta), method, factor)
    torch.testing.assert_close(moved, adjoint(transfer_stencil(theta, method, factor)))


def test_rediscretised_operators_agree_on_smooth_functions_to_second_order():
    theta = random_stencils(1, 1, 3)

    def difference(num: int) -> float:
        def apply(n, stencil):
            x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
            return conv1d(torch.sin(3 * x + 0.3)[None, None], stencil, padding=1)

        beta = StencilBasis(3, 1, 1 / 16).to_beta(theta)  # one differential operator, on meshes n and 2n
        coarse, fine = (StencilBasis(3, 1, 1 / n).to_stencil(beta) for n in (num, 2 * num))
        return (restrict_images(apply(2 * num, fine), num) - apply(num, coarse))[..., 2:-2].abs().max().item()

    assert difference(64) / difference(128) == pytest.approx(4, rel=0.1)


def test_prolonging_a_random_stencil_multiplies_its_norm_as_findings_say():
    theta = random_stencils(2000, 1, 3, 3)
    growth = {m: (transfer_stencil(theta, m, 2.0).norm() / theta.norm()).item() for m in METHODS}
    assert growth["copy"] == 1
    assert growth["rediscretize"] == pytest.approx(7, rel=0.1)
    assert growth["galerkin"] == pytest.approx(8.5, rel=0.1)


def test_scales_are_products_of_powers():
    scales = reduce(torch.outer, order_powers((3, 5), (2.0, 0.5), METHODS["rediscretize"].exponent))
    assert scales[2, 3].item() == 2.0**2 * 0.5**3
    scales = reduce(torch.outer, order_powers((3, 3), (2.0, 2.0), METHODS["copy"].exponent))
    assert torch.equal(scales, torch.ones(3, 3, dtype=torch.float64))


def test_integer_stencils_are_not_cut():
    sobel = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for method in ("galerkin", "rediscretize"):
        torch.testing.assert_close(transfer_stencil(sobel, method, 0.5), transfer_stencil(sobel.float(), method, 0.5))
    basis = StencilBasis(3, 1, 0.5)
    torch.testing.assert_close(basis.to_stencil(torch.tensor([1, 0, 0])), torch.tensor([0.25, 0.5, 0.25]))
    torch.testing.assert_close(basis.to_beta(torch.tensor([1, -2, 1])), torch.tensor([0, 0, -0.25]))


def test_one_by_one_stencils_are_left_by_every_method():
    theta = random_stencils(4, 4, 1, 1)
    for method in METHODS:
        torch.testing.assert_close(transfer_stencil(theta, method, 2.0), theta)


@pytest.mark.parametrize(
    ("method", "factor", "message"),
    [
        (
            "linear",
            2.0,
            "method must be one of copy, rediscretize, galerkin, calibrated, calibrated_full, got",
        ),
        ("copy", 0.0, "factor must be positive, got 0.0"),
        ("copy", (2.0, 2.0, 2.0), "factor must be one number or 2 numbers"),
    ],
)
def test_bad_arguments_are_named(method, factor, message):
    with pytest.raises(ValueError, match=message):
        transfer_stencil(torch.zeros(1, 1, 3, 3), method, factor)
