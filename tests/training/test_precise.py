"""Validation with BatchNorm measured on training images: it reads the weights of now and leaves training as it was."""

import json
import math

import pytest
import torch
from torch import nn

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, load_data, recalibrate, train
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.training.plan import recorded_plan
from multipde.training.precise import num_precise, precise_statistics
from multipde.training.samples import Samples

NETWORK = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=8)
PLAN = Schedule([Level(4, 1, batch=20), Level(8, 2, batch=20)])
OPTIONS = {"num_train": 100, "num_test": 20}


def trained(directory, precise, network=NETWORK):
    settings = TrainSettings(device="cpu", calibration_images=40, precise_images=precise, transfer="copy")
    return train(network, PLAN, "shapes", directory, settings=settings, data_options=OPTIONS, quiet=True)


def samples(num_train, net=None, **settings):
    grey = torch.randint(256, (num_train, 3, 4, 4), dtype=torch.uint8), torch.arange(num_train) % 10
    data = load_data((grey, grey)) if net is None else load_data("shapes", size=8, num_train=num_train, num_test=10)
    return Samples(data, TrainSettings(**settings), spec_of(net) if net else NETWORK, Compute.of("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("precise")
    return {precise: trained(place / str(precise), precise) for precise in (0, 60)}


def newest(run):
    return load(next(run.directory.glob("checkpoint-*")))


def test_the_training_is_the_same_with_running_averages_and_without(runs):
    for one, two in zip(runs[0].metrics, runs[60].metrics, strict=True):
        assert one["train_loss"] == two["train_loss"]
        assert one["validation_loss"] != two["validation_loss"]
        assert two["total_flops"] == pytest.approx(one["total_flops"] * (1 + 60 / 3 / 80))
    others = dict(newest(runs[60]).named_parameters())
    assert all(torch.equal(p, others[name]) for name, p in newest(runs[0]).named_parameters())


def test_stored_weights_have_the_statistics_of_the_images_and_not_of_the_past(runs):
    net = runs[60].model
    found = samples(100, net, precise_images=60)
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert precise_statistics(net, found, PLAN.levels[1], index=1) == 60
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_a_network_without_batchnorm_costs_nothing(tmp_path):
    assert precise_statistics(nn.Conv2d(3, 1, 1), samples(100), PLAN.levels[0], 0) == 0
    assert precise_statistics(nn.BatchNorm2d(3), samples(100, precise_images=0), PLAN.levels[0], 0) == 0


@pytest.mark.parametrize(
    ("precise", "num_train", "expected"), [(1000, 5000, 360), (300, 5000, 300), (1000, 500, 250), (1000, 50, 40)]
)
def test_at_most_three_per_cent_of_an_epoch_but_at_least_a_batch(precise, num_train, expected):
    level, found = Level(8, 3, batch=20), samples(num_train, precise_images=precise)
    assert num_precise(found, level) == expected
    if 0.8 * num_train * 0.09 > 250:
        assert math.isclose(expected / 3, min(0.03 * found.num_in_epoch(level), precise / 3))


def test_records_from_before_keep_running_averages(runs):
    file = runs[60].directory / "run.json"
    record = json.loads(file.read_text())
    assert recorded_plan(record, file)[1].precise_images == 60
    del record["settings"]["precise_images"]
    assert recorded_plan(record, file)[1].precise_images == 0
    with pytest.raises(ValueError, match="precise_images must be 0 or at least 2, got 1"):
        TrainSettings(precise_images=1)


def test_an_external_network_has_them_too(tmp_path):
    def small():
        layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(4, 10))

    done = trained(tmp_path / "run", 60, small)
    net = done.model
    found = samples(100, net, precise_images=60)
    x = torch.cat(list(found.train.drawn(found.indices, 60, 8, (0, "precise", 1))))
    other = small()
    other.load_state_dict(net.state_dict())
    assert recalibrate(other, [x]) == 1
    torch.testing.assert_close(dict(other.named_buffers()), dict(net.named_buffers()))
