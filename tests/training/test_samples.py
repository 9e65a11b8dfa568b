"""Which images a training sees, and whether it augments them itself."""

from dataclasses import replace

import pytest
import torch

from multipde import NetworkConfig, TrainSettings, load_data
from multipde.runtime.device import Compute
from multipde.training.level import Level
from multipde.training.samples import Samples

SPEC = NetworkConfig("parabolic", (4,), 4, size=8)
DATA = load_data("shapes", size=8, num_train=50, num_test=10)


def samples(data=DATA, **settings):
    return Samples(data, TrainSettings(calibration_images=12, **settings), SPEC, Compute.of("cpu"))


@pytest.mark.parametrize(
    ("itself", "asked", "augments"),
    [(False, None, True), (True, None, False), (True, True, True), (False, False, False)],
)
def test_own_augmentation_is_off_where_the_data_transform_themselves_unless_asked_for(itself, asked, augments):
    found = samples(replace(DATA, transforms_itself=itself), augment=asked)
    assert (found.augment is not None) is augments
    plain = samples(augment=False)
    level = Level(8, 1, batch=20)
    (x, labels), (y, same) = (next(iter(s.epoch(level, 0, 0, 0))) for s in (found, plain))
    assert torch.equal(labels, same)
    assert torch.equal(x, y) is not augments


def test_measurements_see_only_images_that_are_not_held_back():
    found = samples()
    assert len(found.held_back) == 10
    assert sorted([*found.indices.tolist(), *found.held_back.tolist()]) == list(range(50))
    drawn = found.evaluator(1).images(1000, 8)
    assert len(drawn) == 40
    held = torch.cat([x for x, _ in found.train.evaluation(found.held_back, 8)])
    assert not any(torch.equal(a, b) for a in held for b in drawn)
    assert torch.equal(found.evaluator(1).images(5, 8), drawn[:5])
    assert not torch.equal(found.evaluator(2).images(5, 8), drawn[:5])


def test_numbers_of_images_are_those_that_the_epochs_see():
    found, level = samples(), Level(8, 1.5, batch=20)
    counts = [sum(len(labels) for _, labels in found.epoch(level, 0, epoch, 0)) for epoch in (0, 1)]
    assert counts == [found.num_in_epoch(level), found.num_in_epoch(level, 0.5)] == [40, 20]
    assert found.num_in_level(level, 9) == 60
    assert found.num_in_level(Level(8, None, batch=20, policy="constant"), 3) == 120
