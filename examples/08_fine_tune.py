"""Fine-tuning on small images first: a network that has learned half of the classes of CIFAR-10 learns the other half.

A small ResNet is trained on five classes at 16 pixels. Its weights are then fine-tuned on the other five at 32 pixels,
at once or first at 16 and then at 32 pixels for the same work, beside trainings from random weights:

    python examples/08_fine_tune.py

The images are in data/cifar10/{train,test}/CLASS, or named by --data and --root.
It takes about eight minutes of one core. What it reaches on CIFAR-10, one seed:

    weights     sizes   epochs of work   TFLOPs   test accuracy
    random      32                 0.5     1.02           83.3%
    random      16 32              0.5     1.06           85.3%
    fine-tuned  32                 0.5     1.02           85.0%
    fine-tuned  16 32              0.5     1.06           86.6%
    random      32                   1     2.00           87.3%
    random      16 32                1     2.08           88.4%
    fine-tuned  32                   1     2.00           88.8%
    fine-tuned  16 32                1     2.08           89.2%

So small images first help trained weights too, and less than random ones.
"""

import argparse
import itertools
import tempfile
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

import multipde
from multipde import Level, Schedule, TrainSettings, train

PRETRAINED, LEARNED = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
"""Classes of the two halves: airplane to deer, dog to truck."""


class SmallResNet(nn.Module):
    """A ResNet with one block of each width, for small images."""

    def __init__(self, num_classes: int = 5, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        layers, before = [], widths[0]
        for width in widths:
            stride = 1 if width == before else 2
            smaller = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            layers.append(BasicBlock(before, width, stride, None if stride == 1 else smaller))
            before = width
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(before, num_classes)

    def forward(self, x):
        return self.fc(self.layers(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def half(images, classes: tuple[int, ...]):
    """The images of some classes, for training and for test, with labels from 0 on."""
    parts = []
    for part in (images.train, images.test):
        chosen = torch.isin(part.labels, torch.tensor(classes)).nonzero()[:, 0]
        parts.append((part.images[chosen], torch.searchsorted(torch.tensor(classes), part.labels[chosen])))
    return tuple(parts)


def levels(sizes: tuple[int, ...], shares: tuple[float, ...], epochs: float) -> Schedule:
    """Levels that share the work of so many epochs at 32 pixels; an image of half the side costs a quarter."""
    return Schedule([Level(s, epochs * share * (32 / s) ** 2) for s, share in zip(sizes, shares, strict=True)])


def main(
    data: str = "folder",
    root: str | None = "data/cifar10",
    epochs: float = 6,
    budgets: tuple[float, ...] = (0.5, 1),
    widths: tuple[int, ...] = (16, 32, 64, 128),
    **more,
) -> None:
    """Pretrain for so many epochs at 16 pixels; fine-tune for the work of each number of epochs at 32 pixels."""
    images = multipde.load_data(data, size=32, **({"root": root} if root else {}), **more)
    network = partial(SmallResNet, widths=widths)
    own = TrainSettings(augment="flip,crop", device="cpu")
    with tempfile.TemporaryDirectory() as place:
        plan, five = Schedule([Level(16, epochs)]), half(images, PRETRAINED)
        first = train(network, plan, five, f"{place}/0", settings=own, quiet=True)
        print(f"five classes at 16 pixels: {first.result['test_accuracy']:.1%}")
        weights = {"weights": f"{place}/0/model.safetensors", "from_size": 16}
        arms = {"random": ({}, own), "fine-tuned": (weights, replace(own, rate={"head": 0.1, "body": 0.03}))}
        print("weights     sizes   epochs of work   TFLOPs  seconds   test accuracy")
        for budget, start, (sizes, shares) in itertools.product(
            budgets, arms, (((32,), (1.0,)), ((16, 32), (0.4, 0.6)))
        ):
            (given, settings), directory = arms[start], f"{place}/{start}-{len(sizes)}-{budget:g}"
            plan = levels(sizes, shares, budget)
            run = train(network, plan, half(images, LEARNED), directory, settings=settings, quiet=True, **given)
            shown, done = " ".join(map(str, sizes)), run.result
            row = f"{start:10}  {shown:6}  {budget:14g}  {done['flops'] / 1e12:7.2f}  {done['seconds']:7.0f}"
            print(f"{row}   {done['test_accuracy']:13.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tuning coarse to fine, beside fine-tuning at full size.")
    parser.add_argument("--data", default="folder")
    parser.add_argument("--root", default="data/cifar10", help="directory of the data set")
    main(**vars(parser.parse_args()))
