"""Levels that train on windows of the images: which windows, what they cost, and an exact switch to whole images."""

import pytest
import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, train
from multipde.data.augmentation import Augmentation
from multipde.data.feed import Feed
from multipde.data.images import TensorImages
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=1, size=16)
LEVELS = [Level(16, 1, crop=4, batch=20), Level(16, 0.5, crop=8, batch=20), Level(16, 1, batch=20)]
OPTIONS = {"data_options": {"num_train": 100, "num_test": 20}, "quiet": True}


def feed(shard=(0, 1)):
    pixels = torch.arange(36).view(1, 1, 6, 6) + 100 * torch.arange(2).view(2, 1, 1, 1)
    images = TensorImages(pixels.expand(2, 3, 6, 6).repeat(30, 1, 1, 1).to(torch.uint8), torch.arange(60))
    compute = Compute(torch.device("cpu"))
    if shard != (0, 1):
        compute = type("Sharded", (), {"device": compute.device, "shard": shard})()
    return Feed(images, Normalize((), ()), compute)  # pyright: ignore[reportArgumentType]


def batches(shard=(0, 1), **options):
    return list(feed(shard).training(torch.arange(60), [(6, 1.0)], 12, key=(3,), crop=4, **options))


def test_windows_are_parts_of_their_image_at_all_places():
    corners = set()
    for x, labels in batches():
        assert x.shape == (12, 3, 4, 4)
        for window, label in zip((255 * x).round().int(), labels, strict=True):
            number = int(window[0, 0, 0]) - 100 * int(label % 2)
            top, left = divmod(number, 6)
            expected = torch.arange(36).view(6, 6)[top : top + 4, left : left + 4] + 100 * int(label % 2)
            assert (window == expected).all()
            corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


@pytest.mark.parametrize("augment", [None, Augmentation(("flip",))])
def test_processes_share_the_windows_of_one(augment):
    for (whole, _), (one, _), (two, _) in zip(
        *(batches(s, augment=augment) for s in ((0, 1), (0, 2), (1, 2))), strict=True
    ):
        assert torch.equal(whole, torch.cat([one, two]))


def test_a_level_of_windows_costs_what_small_images_cost_and_has_the_stencils_of_the_large_ones():
    plan, small = Schedule(LEVELS, NETWORK), Schedule([Level(4, 1), Level(8, 1), Level(16, 1)], NETWORK)
    assert plan.flops() == small.flops()
    assert [config.size for config in plan.configs()] == [16] * 3
    assert [level.label for level in plan.levels] == ["16 crop 4", "16 crop 8", "16"]


def test_a_switch_to_larger_windows_changes_no_weight(tmp_path):
    settings = TrainSettings(device="cpu", calibration_images=40, transfer="calibrated")
    done = train(NETWORK, Schedule(LEVELS), "shapes", tmp_path / "a", settings=settings, **OPTIONS)
    assert [(m["from"], m["to"]) for m in done.result["moves"]] == [(16, 16)] * 2
    for move in done.result["moves"]:
        assert move["accuracy_moved"] == move["accuracy_before"]
    assert load(tmp_path / "a").multipde_spec.size == 16


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({"crop": 0}, 0),
        ({"crop": 17}, 17),
        ({"crop": 4, "detail": 2}, 4),
        ({"crop": 16, "mixed": ((8, 0.5), (16, 0.5))}, 16),
    ],
)
def test_windows_that_no_level_has_are_refused(wrong, got):
    with pytest.raises(ValueError, match=f"crop must lie between 1 and size 16, without mixed or detail, got {got}"):
        Level(16, 1, **wrong)


def test_windows_need_the_stencils_of_their_level(tmp_path):
    settings = TrainSettings(device="cpu", coordinates="finest")
    with pytest.raises(ValueError, match="coordinates must be level for levels with a crop, got finest"):
        train(NETWORK, Schedule(LEVELS), "shapes", tmp_path / "a", settings=settings, **OPTIONS)
