"""What a training refuses before it begins, and the state of what it gives back."""

import json

import numpy as np
import pytest
import torch

from multipde import (
    Level,
    NetworkConfig,
    Schedule,
    TrainSettings,
    convert,
    evaluate,
    finish,
    load,
    load_data,
    resume,
    train,
)
from multipde.training.coarse_to_fine import CoarseToFine
from multipde.training.finish_settings import FinishSettings

NETWORK = NetworkConfig("parabolic", (4,), 4, steps=1, classes=3)


@pytest.fixture
def data():
    torch.manual_seed(0)
    labels = torch.arange(40) % 3
    images = torch.randint(0, 80, (40, 3, 8, 8), dtype=torch.uint8) + (80 * labels).to(torch.uint8)[:, None, None, None]
    return (images, labels), (images[:12], labels[:12])


def trained(data, run, settings=None, level=None, **options):
    settings = TrainSettings(precise_images=0, validation=0.25, **(settings or {}))
    plan = Schedule([Level(8, **({"epochs": 1, "batch": 10} | (level or {})))])
    return train(NETWORK, plan, data, run, settings=settings, quiet=True, **options)


def test_networks_are_given_back_for_evaluation(data, tmp_path):
    run = trained(data, tmp_path / "run", level={"epochs": 8})
    images = data[0][0].repeat(5, 1, 1, 1)
    finished = finish(convert(run.model, size=4), run.model, images, budget="20images", batch=10)
    for net in (run.model, resume(run.directory, data, quiet=True).model, load(run.directory), finished.net):
        assert not any(module.training for module in net.modules())
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    run.model(images[:1].float())
    assert all(torch.equal(t, before[name]) for name, t in run.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "level", "message"),
    [
        ({"seed": 10**23}, {}, "whole numbers"),
        ({"seed": 1e3}, {}, "seed of the wrong kind, '1000.0'"),
        ({"compile": 0}, {}, "compile of the wrong kind, '0'"),
        ({"keep": 10**30}, {}, "whole numbers"),
        ({}, {"batch": 10.0}, "batch"),
    ],
)
def test_settings_that_no_record_can_hold_are_refused_and_nothing_is_written(settings, level, message, data, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        trained(data, tmp_path / "run", settings, level)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_long_commands_are_recorded(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", *(f"image-{k}.jpg" for k in range(10_000))])
    run = trained(data, tmp_path / "run", {"seed": np.int64(3)})
    record = json.loads((run.directory / "run.json").read_text())
    assert record["settings"]["seed"] == 3
    assert record["provenance"]["command"].endswith(" ...")
    resume(run.directory, data, quiet=True)


class Counting(torch.optim.SGD):
    """An optimizer that keeps a number of Python for every parameter."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
        return super().step(closure)


def test_an_optimizer_whose_state_no_checkpoint_can_hold_is_refused_at_its_first_step(data, tmp_path):
    with pytest.raises(ValueError, match="optimizer must keep its state in tensors, got int 'calls'"):
        trained(data, tmp_path / "run", optimizer=lambda parameters: Counting(parameters, lr=0.1))


def test_a_metric_without_a_value_is_no_divergence(data, tmp_path):
    with pytest.raises(ValueError, match="metric must give a finite number, got nan where the loss is"):
        trained(data, tmp_path / "run", metric=lambda scores, labels: scores.mean() * float("nan"))


def test_one_class_is_refused(data, tmp_path):
    (images, labels), test = data
    with pytest.raises(ValueError, match="data must have at least two classes, got one, '0'; folders of classes"):
        trained(((images, 0 * labels), (test[0], 0 * test[1])), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"learning_rate": float("nan")}, {"learning_rate": 0.0}])
def test_a_finish_that_learns_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive, got"):
        FinishSettings(**wrong)


def test_a_report_that_is_no_number_is_no_best_one():
    levels = CoarseToFine([(8, 5), (16, 1)], "reports")
    for metric, spent in ((float("nan"), 1), (0.1, 0), (0.2, 0), (float("nan"), 1)):
        levels.report(metric)
        assert levels.spent == spent


def test_images_that_are_changed_in_place_are_seen(data):
    found, net = load_data(data), NETWORK.build().eval()
    before = evaluate(net, found, size=4).loss
    found.test.images[:] = 255 - found.test.images
    assert evaluate(net, found, size=4).loss != before


@pytest.mark.parametrize("factor", [1.0, 100.0, -1.0])
def test_a_level_ends_by_its_accuracy_whatever_the_metric_of_the_user(factor, data, tmp_path):
    """Metrics of other units and signs choose other weights, and leave the length of the levels as it is."""
    settings = TrainSettings(precise_images=0, validation=0.25, budget="0.0003TFLOPs", max_epochs=4)
    plan = Schedule([Level(size, epochs=None, batch=10, policy="warm_up") for size in (4, 8)])

    def metric(scores, labels):
        return factor * (scores.argmax(1) == labels).double().mean()

    own = train(NETWORK, plan, data, tmp_path / "own", settings=settings, metric=metric, quiet=True)
    plain = train(NETWORK, plan, data, tmp_path / "plain", settings=settings, quiet=True)
    assert len(own.metrics) == len(plain.metrics) > 1
