"""What recalibration and calibration take: batches of loaders as they come, or one line that says what is wrong."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from multipde import NetworkConfig, PDENet, calibrate, convert, recalibrate
from multipde.networks.inputs import Normalize

X = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    means = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    return PDENet(NetworkConfig("parabolic", (4,), 4, steps=1, size=8, classes=3, **means))


def plain(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), *layers)


def statistics(net, batches):
    recalibrate(net, batches)
    return torch.cat([b.flatten() for name, b in sorted(net.named_buffers()) if "running" in name])


def test_batches_of_loaders_are_the_images_in_them(net):
    seen = Normalize.of(net.multipde_spec)(X.float())
    expected = statistics(net, list(seen.split(4)))
    several = [
        DataLoader(TensorDataset(seen, Y), 4),
        DataLoader(TensorDataset(seen), 4),
        DataLoader(TensorDataset(X, Y), 4),
        list(X.split(4)),
        [{"image": x, "label": y} for x, y in zip(seen.split(4), Y.split(4), strict=True)],
        [{"pixel_values": x} for x in X.split(4)],
        [(x, ["a", "b"]) for x in seen.split(4)],
        [[x, torch.zeros(4, 8, 8)] for x in seen.split(4)],  # masks
    ]
    for batches in several:
        assert torch.equal(statistics(net, batches), expected)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    one = calibrate(net, 2.0, Normalize.of(net.multipde_spec)(images.float()))
    for batch in (images, (images, Y[:6]), {"img": images, "target": Y[:6]}):
        other = calibrate(net, 2.0, batch)
        assert all(torch.equal(one.matrices[name], other.matrices[name]) for name in one.matrices)
    assert convert(net, factor=2.0, calibration=(images, Y[:6])).config.size == 16


WRONG = [
    ((X, X), r"must be a tensor of images \(N, C, \*size\), or a pair of it and labels, got a tuple of 2 entries$"),
    (list(X), r".*got a list of 12 entries$"),
    ([X[0]], r"must be images \(N, C, \*size\) with 2 axes \*size, got shape \(3, 8, 8\)$"),
    (X[:, 0], r"must be images \(N, C, \*size\) with 2 axes \*size, got shape \(12, 8, 8\)$"),
    (X[..., None], r"must be images \(N, C, \*size\) with 2 axes \*size, got shape \(12, 3, 8, 8, 1\)$"),
    (X[:, :1], r"must be images with 3 channels, got shape \(12, 1, 8, 8\)$"),
    (X.long(), "must be images as the network sees them, got torch.int64; give floats or uint8$"),
    ({"pixels": X}, "must have one entry 'image', got pixels$"),
    ("images", ".*got str$"),
    (None, ".*got NoneType$"),
    (X.numpy(), ".*got ndarray$"),
]


@pytest.mark.parametrize(("batch", "message"), WRONG)
def test_what_is_no_batch_of_images_is_named(net, batch, message):
    before = statistics(net, [X])
    with pytest.raises(ValueError, match=f"^batches {message}"):
        recalibrate(net, [batch])
    assert torch.equal(torch.cat([b.flatten() for n, b in sorted(net.named_buffers()) if "running" in n]), before)
    with pytest.raises(ValueError, match=f"^calibration {message}"):
        calibrate(net, 2.0, batch)


def test_uint8_needs_a_description():
    with pytest.raises(
        ValueError, match="^batches must be images .*, got torch.uint8; type images / 255 and normalise"
    ):
        recalibrate(plain(), [X])
    with pytest.raises(ValueError, match="^batches must be a list or a loader of batches, got one batch; type"):
        recalibrate(plain(), X.float())  # a tensor would be taken for its rows


def test_one_clip_is_no_batch_of_clips():
    video = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4))
    with pytest.raises(ValueError, match=r"with 3 axes \*size, got shape \(3, 4, 8, 8\)$"):
        recalibrate(video, [torch.rand(3, 4, 8, 8)])
    assert recalibrate(video, [torch.rand(2, 3, 4, 8, 8)]) == 1


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, first, second):
        return self.net(first) - self.net(second)


class OfList(Two):
    def forward(self, images):
        return [self.net(image.pixels[None]) for image in images]


@pytest.mark.parametrize("kind", [Two, OfList])
def test_networks_of_other_inputs_are_named(kind):
    for call in (lambda net, x: recalibrate(net, [x]), lambda net, x: calibrate(net, 2.0, x)):
        with pytest.raises(ValueError, match=r"^\w+ must be for a model of one batch of images \(N, C, \*size\), got "):
            call(kind(), X.float())


def test_a_size_that_the_factor_does_not_divide_is_told_without_contradiction():
    images = torch.rand(2, 3, 33, 33)
    message = (
        r"^calibration must have whole pixels on both meshes, got 16.5 x 16.5 and 33 x 33 for images of \(33, 33\)$"
    )
    with pytest.raises(ValueError, match=message):
        calibrate(plain(), 2.0, images)
