"""Candidates: whoever asks, a network is converted, recalibrated and tested in the same way and on the same images."""

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet, load_data, save
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.measured_conversion import convert_reported
from multipde.evaluation.sizes import evaluate_sizes
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute

OPTIONS = {"num_train": 300, "num_test": 60}
PLAIN = Normalize((), ())


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=16, **OPTIONS)


def classifier(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, *head).eval()


def test_what_is_held_back_is_never_drawn_and_every_size_shows_the_same_images(data):
    evaluator = Evaluator.of(data, Compute.of("cpu"), PLAIN, split=(3, 0.3), num_images=50)
    assert len(set(evaluator.drawable.tolist()) | set(evaluator.held_back.tolist())) == 210 + 50
    assert len(evaluator.tested) == 50
    drawn = evaluator.images(10**6, 16)
    own = data.train.images[evaluator.drawable].float() / 255
    torch.testing.assert_close(drawn.sum((1, 2, 3)).sort().values, own.sum((1, 2, 3)).sort().values)
    torch.testing.assert_close(evaluator.images(20, 8), nn.functional.avg_pool2d(evaluator.images(20, 16), 2))


def test_the_table_of_sizes_and_the_report_of_a_conversion_agree(data, tmp_path):
    torch.manual_seed(0)
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16, class_names=data.class_names)
    net = PDENet(config).eval()
    save(net, tmp_path / "net")
    arguments = {"sizes": (8, 16), "methods": ("copy", "calibrated"), "num_images": 60, "device": "cpu"}
    copied, calibrated, own = evaluate_sizes(tmp_path / "net", ("shapes", OPTIONS), **arguments)
    evaluator = Evaluator.of(data, Compute.of("cpu"), PLAIN, num_images=60)
    _, report = convert_reported(net, evaluator, old_size=16, new_size=8, method="calibrated")
    found = {c.name: c for c in report.candidates}
    assert own["loss"] == found["original at 16"].loss
    for record in (copied, calibrated):
        plain, again = found[record["method"]], found[f"{record['method']}, recalibrated"]
        assert [record["accuracy"], record["loss"], record["flops"]] == [plain.accuracy, plain.loss, plain.flops]
        assert [record["recalibrated_accuracy"], record["recalibrated_loss"]] == [again.accuracy, again.loss]
        assert record["loss"] != record["recalibrated_loss"]


def test_a_network_without_batch_norm_and_time_steps_is_measured_once(data):
    evaluator, net = Evaluator.of(data, Compute.of("cpu"), num_images=60), classifier()
    converted = evaluator.convert(net, 16, 8, "galerkin", "auto")
    assert converted.num_recalibrated == 0
    assert [c.name for c in converted.measured] == ["galerkin"]
    assert evaluator.step_bounds(net, 16) == []
    assert evaluator.convert(classifier(nn.BatchNorm2d(8)), 16, 8, "copy").num_recalibrated == 1


def test_a_rival_sees_the_images_at_its_own_size(data):
    """Averages of averages are averages: what is brought from 16 to 8 pixels is what is read at 8."""
    evaluator, net = Evaluator.of(data, Compute.of("cpu"), num_images=60), classifier()
    assert evaluator.test(net, 16, 8).loss == pytest.approx(evaluator.test(net, 8).loss, rel=1e-5)
