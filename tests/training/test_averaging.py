"""Averaged weights: their formula, and that they are validated, kept, saved and resumed."""

import signal

import pytest
import torch
from torch import nn

from multipde import Level, NetworkConfig, Schedule, TrainSettings, resume, train
from multipde.runtime.signals import Interrupted
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.averaging import Average
from multipde.training.checkpoint import read_checkpoint
from tests.faults.kill import same_run

NETWORK = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=8)
PLAN = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)])


def trained(directory, average, **more):
    settings = TrainSettings(device="cpu", calibration_images=40, transfer="copy", average=average, **more)
    options = {"num_train": 100, "num_test": 20}
    return train(NETWORK, PLAN, "shapes", directory, settings=settings, data_options=options, quiet=True)


def test_the_average_is_the_weighted_mean_of_the_weights_after_every_step():
    net, seen = nn.Linear(3, 2).double(), []
    average = Average(net, 0.9)
    for num in (125, 250, 50, 125):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3, dtype=torch.float64))
        average.update(num)
        seen = [(w * 0.9 ** (num / 125), p) for w, p in seen] + [(1.0, net.weight.detach().clone())]
        mean = sum(w * p for w, p in seen) / sum(w for w, _ in seen)
        torch.testing.assert_close(average.network().weight, mean, rtol=1e-14, atol=1e-14)
    other = Average(nn.Linear(3, 2).double(), 0.9)
    other.set_state(average.state())
    assert other.total == average.total
    assert all(torch.equal(a, b) for a, b in zip(other.means, average.means, strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("average")
    return {average: trained(place / str(average), average) for average in (0.0, 0.99)}


def test_the_best_weights_are_averages_and_the_trained_ones_do_not_change(runs):
    found = {average: read_checkpoint(newest_checkpoint(run.directory)) for average, run in runs.items()}
    (plain, _, _, momentum), (net, best, _, kept) = found[0.0], found[0.99]
    for name, p in plain.named_parameters():
        assert torch.equal(p, dict(net.named_parameters())[name]), name
    assert set(kept) - set(momentum) == {name for name in kept if ":average" in name}
    means = {name.split(":")[0]: t for name, t in kept.items() if name.endswith(":average")}
    assert set(means) == {name for name, _ in net.named_parameters()}
    assert all(torch.equal(best[name], mean) for name, mean in means.items())
    assert not any(torch.equal(p, means[name]) for name, p in net.named_parameters())
    assert [r["train_loss"] for r in runs[0.0].metrics] == [r["train_loss"] for r in runs[0.99].metrics]


def test_interruptions_change_nothing(runs, tmp_path, signal_at_step):
    for num, call in ((3, lambda: trained(tmp_path / "b", 0.99)), (4, lambda: resume(tmp_path / "b", quiet=True))):
        signal_at_step(num, signal.SIGTERM)
        with pytest.raises(Interrupted):
            call()
    signal_at_step(None)
    resume(tmp_path / "b", quiet=True)
    assert same_run(tmp_path / "b", runs[0.99].directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": 1.0}, r"average must lie in \[0, 1\), got 1.0"),
        ({"average": 0.9, "precise_images": 0}, "precise_images must be positive with average"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)
