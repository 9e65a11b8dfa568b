"""Laws of restriction and prolongation of images."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from multipde import image_pyramid, prolong_images, resize_images, restrict_images
from multipde.mesh.pyramid import cell_average_matrix


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("fine", "coarse"), [(32, 16), (30, 20), (7, 3), (96, 36), (5, 5)])
def test_restriction_and_constant_prolongation_are_adjoint_up_to_the_cell_ratio(fine, coarse):
    u, v = images(1, 1, fine, fine), images(1, 1, coarse, coarse)
    left = (restrict_images(u, coarse) * v).sum() / coarse**2
    right = (u * prolong_images(v, fine)).sum() / fine**2
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("old", "new"), [(32, 8), (30, 20), (7, 3), (20, 30), (8, 32)])
def test_means_and_constants_are_kept(old, new):
    u = images(2, 3, old, old)
    torch.testing.assert_close(resize_images(u, new).mean((2, 3)), u.mean((2, 3)))
    torch.testing.assert_close(resize_images(torch.ones_like(u), new), torch.ones(2, 3, new, new, dtype=u.dtype))


def test_at_ratio_2_restriction_is_the_2x2_mean_and_prolongation_the_nearest_neighbour():
    u = images(2, 3, 16, 16)
    torch.testing.assert_close(restrict_images(u, 8), avg_pool2d(u, 2))
    torch.testing.assert_close(prolong_images(u, 32), u.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pooling_and_matrices_give_the_same_restriction(ratio):
    u = images(1, 1, 12 * ratio)
    matrix = cell_average_matrix(12 * ratio, 12)
    torch.testing.assert_close(restrict_images(u, 12), u @ matrix.T)


def test_restriction_is_exact_on_linear_functions_at_any_ratio():
    def centres(n):
        return ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[None, None]

    torch.testing.assert_close(restrict_images(centres(12), 6), centres(6))
    torch.testing.assert_close(restrict_images(centres(30), 10), centres(10))


def test_restriction_undoes_constant_prolongation():
    u = images(1, 2, 6, 8)
    torch.testing.assert_close(restrict_images(prolong_images(u, (12, 24)), (6, 8)), u)


def test_linear_prolongation_has_the_taps_1_3_3_1():
    unit = torch.zeros(1, 1, 6, dtype=torch.float64)
    unit[..., 3] = 4
    assert prolong_images(unit, 12, order=1)[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 3, 3, 1, 0, 0, 0]


def test_pyramid_is_finest_first_and_works_in_1d_and_3d():
    assert [tuple(p.shape[2:]) for p in image_pyramid(images(1, 1, 8, 8), [2, 8, 4])] == [(8, 8), (4, 4), (2, 2)]
    assert restrict_images(images(1, 1, 8), 3).shape == (1, 1, 3)
    assert restrict_images(images(1, 1, 8, 8, 8), (4, 8, 3)).shape == (1, 1, 4, 8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: restrict_images(u, 16), r"size must not exceed the image size \(8, 8\) in a restriction"),
        (lambda u: prolong_images(u, 4), r"size must not be below the image size \(8, 8\) in a prolongation"),
        (lambda u: prolong_images(u, 16, order=2), "order must be 0 .constant. or 1 .linear., got 2"),
        (lambda u: resize_images(u, 0), "size must be positive, got 0"),
        (lambda u: resize_images(u.to(torch.uint8), 7), "images must be in floating point to be averaged, got torch.u"),
        (lambda u: resize_images(u[0, 0], 4), r"images must have shape \(N, C, \*size\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(images(1, 1, 8, 8))
