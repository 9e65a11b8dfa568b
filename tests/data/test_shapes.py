"""The embedded pictures: deterministic, the same at every size."""

import pytest
import torch

from multipde import render_shapes, restrict_images
from multipde.data.shapes import _DISTANCES, CLASS_NAMES


def test_the_same_pictures_at_every_size():
    fine, labels = render_shapes(30, 64, seed=3)
    for size in (32, 16, 8, 24):
        coarse, same = render_shapes(30, size, seed=3)
        assert torch.equal(labels, same)
        # the finest are rounded to whole grey values first, and clamped to [0, 1] where noise leaves it
        difference = (restrict_images(fine.float(), size) - coarse.float()).abs()
        assert difference.mean() < 0.5
        assert difference.max() < 8


def test_a_seed_decides_everything_and_a_longer_draw_is_another_one():
    a, b, c = (render_shapes(600, 8, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_all_classes_appear_about_evenly():
    _, labels = render_shapes(2000, 8, seed=0)
    assert labels.bincount(minlength=10).min() > 150
    assert set(_DISTANCES) == set(CLASS_NAMES)


def test_every_shape_has_an_inside_and_an_outside():
    grid = torch.linspace(-1.2, 1.2, 121)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    for name, distance in _DISTANCES.items():
        inside = (distance(u, v) < 0).float().mean().item()
        assert 0.1 < inside < 0.6, name


@pytest.mark.parametrize(("num", "size", "message"), [(0, 8, "num must be positive"), (3, 0, "size must be positive")])
def test_bad_arguments_are_named(num, size, message):
    with pytest.raises(ValueError, match=message):
        render_shapes(num, size)
