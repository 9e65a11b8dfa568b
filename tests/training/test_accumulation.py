"""Laws of the step: accumulated gradients, class weights, clipping, balanced sampling, in float64."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import Level, NetworkConfig, Schedule, TrainSettings, train
from multipde.networks.external import given_model
from multipde.runtime.device import Compute
from multipde.training.accumulation import divided
from multipde.training.class_weights import balanced_indices, weights_of_classes
from multipde.training.objective import Objective
from multipde.training.step import TrainStep

CPU = Compute(torch.device("cpu"))
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 3.0], dtype=torch.float64)


class Net(nn.Module):
    """A network whose norm sees every image by itself."""

    def __init__(self, num_classes: int = 4, norm=lambda: nn.GroupNorm(2, 6)):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), norm(), nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(functional.relu(self.norm(self.conv(x))).mean((2, 3)))


def made(**options):
    torch.manual_seed(0)
    net = given_model(lambda: Net(**options), size=8, classes=4).build().double()
    torch.manual_seed(1)
    return net, torch.randn(10, 3, 8, 8, dtype=torch.float64), torch.randint(4, (10,))


def gradients(num, objective=None, labels=None, net=None, **settings):
    """The loss, the scores and the gradients of one step with a batch in so many parts."""
    made_net, x, own = made()
    net = made_net if net is None else net
    step = TrainStep(net, TrainSettings(accumulate=num, **settings), CPU, objective)
    loss, scores = step(x, own if labels is None else labels, 1e-3)
    return [loss, scores, *[p.grad.clone() for p in net.parameters()]]


@pytest.mark.parametrize("num", [2, 3, 4, 10, 50])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradients_of_the_parts_sum_to_that_of_the_batch(num, weights, mixed):
    shares = torch.rand(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = shares / shares.sum(1, keepdim=True) if mixed else None
    objective = Objective(class_weights=weights)
    for one, parts in zip(gradients(1, objective, labels), gradients(num, objective, labels), strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-12, atol=1e-13)


def test_a_mean_of_the_means_of_unequal_parts_would_be_another_gradient():
    net, x, labels = made()
    parts = divided(x, labels, 3, Objective())
    assert [len(part.x) for part in parts] == [4, 3, 3]
    assert [part.share for part in parts] == [0.4, 0.3, 0.3]
    losses = [functional.cross_entropy(net(part.x), part.labels) for part in parts]
    whole = functional.cross_entropy(net(x), labels)
    assert abs(sum(losses) / 3 - whole) > 1e-4
    torch.testing.assert_close(sum(p.share * loss for p, loss in zip(parts, losses, strict=True)), whole)


def test_parts_are_accumulated_with_a_loss_of_the_user_too():
    objective = Objective(loss=lambda scores, labels: functional.multi_margin_loss(scores, labels))
    for one, parts in zip(gradients(1, objective), gradients(3, objective), strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-12, atol=1e-13)


def test_batchnorm_sees_the_parts_and_this_is_said():
    net, x, labels = made(norm=lambda: nn.BatchNorm2d(6))
    step = TrainStep(net, TrainSettings(accumulate=2), CPU)
    assert step.notes() == ["note: BatchNorm normalises each of the 2 parts of a batch by itself"]
    step(x, labels, 1e-3)
    assert net.norm.num_batches_tracked == 2
    assert TrainStep(made()[0], TrainSettings(accumulate=2), CPU).notes() == []


def test_class_weights_are_those_of_torch_without_smoothing():
    net, x, labels = made()
    scores = net(x)
    own = Objective(class_weights=WEIGHTS).training_loss(scores, labels)
    torch.testing.assert_close(own, functional.cross_entropy(scores, labels, weight=WEIGHTS))
    sure = functional.one_hot(labels, 4).double()
    torch.testing.assert_close(own, Objective(class_weights=WEIGHTS).training_loss(scores, sure))
    none = Objective(class_weights=WEIGHTS).training_loss(scores[:2], torch.tensor([2, 2]))
    assert none.item() == 0  # a batch without weight, and not 0/0


def test_balanced_weights_give_every_class_the_same_sum():
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = weights_of_classes("balanced", labels, 4)
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 0, 10 / 4])
    assert [(weights[labels] * (labels == c)).sum().item() for c in (0, 1, 3)] == pytest.approx([2.5] * 3)
    with pytest.raises(ValueError, match="class_weights must have an entry for each of the 4 classes, got 2"):
        weights_of_classes((1.0, 2.0), labels, 4)


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_clipping_bounds_the_norm_of_all_gradients_and_leaves_small_ones(optimizer):
    free = gradients(1, optimizer=optimizer)[2:]
    norm = math.sqrt(sum(float(g.square().sum()) for g in free))
    clipped = gradients(1, optimizer=optimizer, clip_norm=norm / 3)[2:]
    for g, c in zip(free, clipped, strict=True):
        torch.testing.assert_close(c, g / 3, rtol=1e-5, atol=1e-9)  # torch adds 1e-6 to the norm
    assert all(torch.equal(g, c) for g, c in zip(free, gradients(1, clip_norm=2 * norm)[2:], strict=True))


def test_balanced_sampling_draws_every_class_equally_and_no_image_twice_too_early():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3 + [0] * 40)
    indices = torch.arange(60)
    drawn = balanced_indices(indices, labels, (0, "train", 0, 0))
    assert len(drawn) == 60
    assert torch.bincount(labels[drawn]).tolist() == [20, 20, 20]
    times = torch.bincount(drawn, minlength=60)
    assert times[:50].max() == 1
    assert set(times[50:57].tolist()) == {2, 3}
    assert set(times[57:].tolist()) <= {6, 7}
    assert torch.equal(drawn, balanced_indices(indices, labels, (0, "train", 0, 0)))
    assert not torch.equal(drawn, balanced_indices(indices, labels, (0, "train", 0, 1)))
    odd = torch.bincount(labels[balanced_indices(indices[:59], labels, (0, "a"))])
    assert sorted(odd.tolist()) == [19, 20, 20]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"accumulate": 31}, "accumulate must be at most 30, the images of a batch, got 31"),
        ({"accumulate": 0}, "accumulate must be positive, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, got 0.0"),
        ({"class_weights": (1.0,)}, "class_weights must have an entry for each of the 10 classes, got 1"),
        (
            {"class_weights": (-1.0,)},
            "class_weights must be balanced, or numbers of at least zero, one above it, got -1.0",
        ),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(settings, line, tmp_path):
    network = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=8)
    plan, data = Schedule([Level(8, 0.5, batch=30)]), {"num_train": 150, "num_test": 40}
    with pytest.raises(ValueError, match=line):
        train(network, plan, "shapes", tmp_path / "a", settings=TrainSettings(**settings), data_options=data)
    assert not (tmp_path / "a").exists()


def test_class_weights_and_a_loss_of_the_user_exclude_each_other(tmp_path):
    network = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=8)
    plan, data = Schedule([Level(8, 0.5, batch=30)]), {"num_train": 150, "num_test": 40}
    settings = replace(TrainSettings(), class_weights="balanced")
    with pytest.raises(ValueError, match="class_weights must be left out with a loss of your own, got both"):
        train(
            network, plan, "shapes", tmp_path / "a", settings=settings, loss=functional.cross_entropy, data_options=data
        )
