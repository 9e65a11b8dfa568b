"""What users give a training in Python: lists of augmentations, weights in tensors, metrics and functions."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load_data, resume, train
from multipde.runtime.signals import Interrupted
from tests.fixtures import weights

NETWORK = NetworkConfig("parabolic", (4, 6), 6, steps=1, classes=3)


@pytest.fixture
def data():
    images, labels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 3
    return (images, labels), (images[:12], labels[:12])


def trained(data, run, sizes=(4, 8), epochs=1, quiet=True, **options):
    settings = TrainSettings(precise_images=0, validation=0.25, **options.pop("settings", {}))
    plan = Schedule([Level(size, epochs=epochs, batch=10) for size in sizes])
    return train(NETWORK, plan, data, run, settings=settings, quiet=quiet, **options)


@pytest.mark.parametrize(
    ("given", "names"), [(["cutout"], "cutout"), ((), "off"), (["flip", "crop"], "flip,crop"), (None, None)]
)
def test_a_list_of_augmentations_is_what_it_says(given, names):
    assert TrainSettings(augment=given).augment == names


def test_what_is_no_augmentation_is_refused():
    for wrong in (0, 1.5, {"flip": True}):
        with pytest.raises(ValueError, match="augment must be text, True, False or a function, got"):
            TrainSettings(augment=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda x: x[..., :6, :6], r"torch.float32 of shape \(10, 3, 6, 6\)"),
        (lambda x: x[:, :1], r"torch.float32 of shape \(10, 1, 8, 8\)"),
        (lambda x: (255 * x).to(torch.uint8), r"torch.uint8 of shape"),
        (lambda x: None, "NoneType"),
    ],
)
def test_a_function_that_changes_the_shape_is_refused(function, got, data, tmp_path):
    line = rf"augment must give floats of the shape of its images, \(10, 3, 8, 8\), got {got}"
    with pytest.raises(ValueError, match=line):
        trained(data, tmp_path / "run", sizes=(8,), settings={"augment": function})


@pytest.mark.parametrize("weights", [torch.tensor([1.0, 2.0, 3.0]), np.array([1, 2, 3]), [1, 2, 3]], ids=type)
def test_weights_of_classes_in_tensors_arrays_and_lists(weights, data, tmp_path):
    trained(data, tmp_path / "run", sizes=(8,), settings={"class_weights": weights})
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["class_weights"] == [1, 2, 3]


def test_weights_without_an_order_are_refused():
    with pytest.raises(ValueError, match="class_weights must be numbers in the order of the classes, got a dictionary"):
        TrainSettings(class_weights={0: 1.0, 1: 2.0})  # pyright: ignore[reportArgumentType]


def test_a_metric_of_ones_own_stands_beside_the_accuracy_and_its_best_weights_are_kept(data, tmp_path, capsys):
    found = trained(
        data,
        tmp_path / "run",
        epochs=2,
        metric=lambda scores, labels: -5 * functional.cross_entropy(scores, labels),
        loss=functional.cross_entropy,
        quiet=False,
    )
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["validation_metric"] < -1 for row in rows)
    best = max(rows[2:], key=lambda row: row["validation_metric"])
    last, (move,) = found.result["levels"][-1], found.result["moves"]
    for key in ("validation_metric", "validation_accuracy"):
        assert last[key] == best[key]
    assert 0 <= move["accuracy_before"] <= 1
    assert move["metric_before"] < -1
    said = " ".join(capsys.readouterr().out.split())
    assert f"(metric {move['metric_before']:.4g}) before" in said
    assert f"metric {rows[0]['validation_metric']:.4g} " in said
    assert f"metric {found.result['test_metric']:.4g}, loss {found.result['test_loss']:.3f}" in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": [8, 16]}, "levels must be a list of Level, got int; type "),
        ({"schedule": Level(8, epochs=1)}, "levels must be a list of Level, got Level; type "),
        ({"schedule": None}, "levels must be a list of Level, got NoneType; type "),
        ({"settings": {"seed": 1}}, "settings must be TrainSettings, got dict; type TrainSettings"),
    ],
)
def test_other_types_are_refused_in_one_line(wrong, message, data, tmp_path):
    given = {"schedule": [Level(8, epochs=1)], "settings": None} | wrong
    with pytest.raises(ValueError, match=message):
        train(NETWORK, given["schedule"], data, tmp_path / "run", settings=given["settings"])
    assert not (tmp_path / "run").exists()


def test_a_metric_of_several_numbers_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"metric must give one number for a batch, got shape \(10,\)"):
        trained(data, tmp_path / "run", metric=lambda scores, labels: (scores.argmax(1) == labels).float())


class Rare(Dataset):
    """Images of which those of the last class are changed at random."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i].float() / 255
        return image * torch.rand(1) if self.labels[i] == 2 else image, int(self.labels[i])


def test_random_changes_of_a_rare_class_are_drawn_in_every_epoch(data):
    found = load_data((Rare(*data[0]), data[1]))
    assert found.transforms_itself
    part, epochs = [(8, torch.tensor([0, 2]))], []
    for epoch in (0, 1):
        ((images, _),) = found.train.batches(part, torch.device("cpu"), (epoch,))
        epochs.append(images)
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][1], epochs[1][1])


def test_a_loss_with_weights_of_its_own_is_refused(data, tmp_path):
    class Scaled(nn.Module):
        """Cross entropy with a temperature that it would learn."""

        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, scores, labels):
            return functional.cross_entropy(scores / self.temperature, labels)

    with pytest.raises(ValueError, match="loss must have no parameters, which nothing would train; put them into"):
        trained(data, tmp_path / "run", loss=Scaled())


class Counting(torch.optim.SGD):
    """Steps of the rate divided by their number, which the group has."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0].update(k=0, total=torch.zeros(()), first=None)

    def step(self, closure=None):
        group = self.param_groups[0]
        group["k"] += 1
        group["total"] = group["total"] + 0.5
        group["first"] = group["lr"] if group["first"] is None else group["first"]
        group["lr"] /= group["k"]
        return super().step()


def test_what_an_optimizer_keeps_in_its_groups_is_resumed_and_goes_on_at_the_next_level(data, tmp_path, signal_at_step):
    whole = trained(data, tmp_path / "whole", optimizer=Counting)
    for step in (2, 5):  # within the first level and within the second
        signal_at_step(step)
        with pytest.raises(Interrupted):
            trained(data, tmp_path / f"{step}", optimizer=Counting)
        signal_at_step(None)
        resume(tmp_path / f"{step}", data, optimizer=Counting, quiet=True)
        assert weights(tmp_path / f"{step}") == weights(whole.directory)
    newest = sorted((tmp_path / "whole").glob("checkpoint-*"))[-1]
    stored = load_file(newest / "momentum.safetensors")
    assert stored[":group:0:k"] == 6  # three steps at each level
    assert stored[":group:0:total"] == 3
    assert stored[":group:0:first"].dtype == torch.float64


def grows_a_list(parameters):
    """An optimizer whose group has a list, which is changed in every step."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.param_groups[0].update(seen=["a"]))
    return optimizer


OTHERS = [nn.Parameter(torch.zeros(1))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"loss": lambda s, y: (s - y).mean()},
            r"loss must take scores \(10, 3\) and labels \(10,\) in torch.int64, got The size",
        ),
        ({"metric": lambda scores: 0}, r"metric must take scores \(10, 3\) and labels \(10,\) in torch.int64, got "),
        (
            {"optimizer": torch.optim.SGD(OTHERS, lr=1)},
            "optimizer must be a function of the parameters, got SGD; ",
        ),
        ({"optimizer": lambda parameters: None}, "optimizer must make an optimizer, got NoneType; type optimizer=lamb"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer must step without a closure, got LBFGS; type optimizer=lambda"),
        ({"optimizer": lambda parameters: torch.optim.SGD(OTHERS, lr=1)}, "optimizer must hold the parameters that it"),
        ({"optimizer": grows_a_list}, "optimizer must keep single numbers in its parameter groups, got list 'seen'"),
        ({"settings": {"class_weights": "balanced", "balance": True}}, "class_weights must be left out where balance"),
    ],
)
def test_functions_that_do_not_fit_are_told_in_one_line(wrong, message, data, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        trained(data, tmp_path / "run", sizes=(8,), **wrong)


def test_a_frozen_network_cannot_be_trained(data, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential must have weights that require a gradient, got none; thaw some"):
        train(net, [Level(8, epochs=1)], data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
