"""What `evaluate` and its relatives do with wrappers, equal names, other shapes and scores that are no numbers."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from multipde import (
    NetworkConfig,
    PDENet,
    describe,
    evaluate,
    growth_report,
    load_data,
    predict,
    recalibrate,
    robustness,
    stability_report,
    state_energies,
)
from multipde.evaluation.reliability import right_among
from multipde.networks.inputs import Normalize

SMALL = NetworkConfig("hamiltonian", (2, 4), 4, steps=1, size=8, mean=(0.1,) * 3, std=(0.9,) * 3)


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=8, num_train=40, num_test=20)


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel])
def test_a_wrapped_network_keeps_its_description(wrap, data):
    net = PDENet(SMALL)
    expected, found = (evaluate(each, data, device="cpu") for each in (net, wrap(net)))
    assert (found.loss, found.flops) == (expected.loss, expected.flops)


def test_a_module_around_a_network_is_refused(data):
    with pytest.raises(ValueError, match=r"got a Sequential around it; pass its .0, or describe the whole by describe"):
        evaluate(nn.Sequential(PDENet(SMALL)), data, device="cpu")


def test_classes_of_one_name_stay_apart():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    nn.init.zeros_(net[2].weight)
    net[2].bias.data = torch.tensor([5.0, 0.0, 1.0])
    net = describe(net, size=8, classes=3, class_names=("crane", "dog", "crane"))
    (found,) = predict(net, torch.zeros(3, 8, 8), device="cpu")
    assert list(found.probabilities) == ["crane (0)", "dog", "crane (2)"]
    assert found.ranking[0][0] == "crane (0)"
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_names_that_look_like_numbered_ones_stay_apart():
    names = NetworkConfig("hamiltonian", (2,), 4, classes=3, size=8, class_names=("a", "a", "a (1)")).class_names
    assert names == ("a (0)", "a (1)", "a (1) (2)")


def test_a_score_that_is_no_number_is_not_among_the_highest():
    scores = torch.tensor([[float("nan"), 1.0, 2.0], [0.0, float("nan"), 2.0], [0.0, 1.0, 2.0]])
    assert [int(right_among(scores, torch.tensor([0, 2, 2]), num)) for num in (1, 2, 3)] == [1, 2, 2]


def test_a_network_for_other_shapes_is_refused(data):
    net = PDENet(NetworkConfig("hamiltonian", (2, 4), 4, steps=1, size=(8, 16)))
    for measure in (evaluate, robustness):
        with pytest.raises(ValueError, match="model must be for square images, got a network for 8x16; call the netw"):
            measure(net, data, device="cpu")


def test_a_batch_of_no_images_is_refused(data):
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        evaluate(PDENet(SMALL), data, batch=0, device="cpu")


@pytest.mark.parametrize("measure", [growth_report, stability_report, state_energies])
def test_measurements_of_stability_take_what_others_take_and_name_what_is_wrong(measure):
    net, images = PDENet(SMALL), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalised = Normalize.of(SMALL)(images.float())
    expected = measure(net, normalised)
    assert measure(net, images) == measure(net, normalised.double()) == expected
    with torch.inference_mode():
        assert measure(net, normalised) == expected
    with pytest.raises(ValueError, match="batch must hold images, got none"):
        measure(net, images[:0])
    plain = describe(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=8, classes=2)
    with pytest.raises(ValueError, match=r"model must be a PDENet, got Sequential|dynamics must be parabolic"):
        measure(plain, images)


def layers():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2), nn.Flatten())


def test_one_image_alone_gives_no_statistics():
    images = torch.rand(7, 3, 8, 8)
    with pytest.raises(ValueError, match=r"batches must hold several images each .* got 1 of shape \(3, 8, 8\)"):
        recalibrate(layers(), [images[:6], images[6:]])
    assert recalibrate(layers(), [images[:5], images[5:]]) == 1
