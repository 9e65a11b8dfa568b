"""Data sets that transform their images at random: read anew in every epoch, repeated bit for bit."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from multipde import (
    Level,
    NetworkConfig,
    Schedule,
    TrainSettings,
    load_data,
    render_shapes,
    resize_images,
    resume,
    train,
)
from multipde.data.augmentation import Augmentation
from multipde.data.checksum import data_checksum
from multipde.data.feed import Feed
from multipde.data.image_data import ImageData
from multipde.data.images import TensorImages
from multipde.data.transformed import NUM_READS, TransformedImages
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute
from multipde.runtime.signals import Interrupted

CPU = torch.device("cpu")
EPOCH = (0, "train", 0, 1)
REVERSED = tuple(range(15, -1, -1))


class Shapes(torch.utils.data.Dataset):
    """Sixteen pictures as PIL images, each transformed when it is read."""

    def __init__(self, transform=None, size=16):
        self.images, self.labels = render_shapes(16, size)
        self.transform = transform or (lambda image: image)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())
        return self.transform(image), int(self.labels[index])


def of_python(image):
    return image.rotate(random.uniform(-30, 30))


def of_numpy(image):
    return Image.fromarray(np.roll(np.array(image), np.random.randint(8), axis=1))


def flipped(image):
    return v2.RandomHorizontalFlip()(image)


def cropped(image):
    """Another shape every time: 8 to 15 pixels high and 12 wide."""
    return v2.RandomCrop((int(torch.randint(8, 16, ())), 12))(image)


def load(transform, **options):
    return load_data((Shapes(transform, **options), Shapes()))


def pixels(images, order=tuple(range(16)), size=16, key=EPOCH, batch=5):
    """Images by their indices, read in this order."""
    parts = [(size, part) for part in torch.tensor(order).split(batch)]
    read = torch.cat([x for x, _ in images.batches(parts, CPU, key)])
    return dict(zip(order, read, strict=True))


def same(a, b):
    return all(torch.equal(a[i], b[i]) for i in a.keys() & b.keys())


@pytest.mark.parametrize("transform", [of_python, of_numpy, flipped, cropped])
def test_the_key_and_the_index_alone_decide_what_is_read(transform):
    images = load(transform).train
    assert isinstance(images, TransformedImages)
    epoch = pixels(images)
    assert same(epoch, pixels(images, order=(7, 3, 15, 0), batch=3))
    assert same(epoch, pixels(load(transform).train, order=REVERSED))
    taken = pixels(images.take(torch.tensor([4, 9])), order=(1, 0))
    assert same({4: taken[0], 9: taken[1]}, epoch)
    for other in ((0, "train", 0, 2), (0, "train", 1, 1), (1, "train", 0, 1), None):
        assert not same(epoch, pixels(images, key=other))


def test_without_a_key_the_images_are_those_of_one_fixed_draw():
    data, again = load(cropped), load(cropped)
    fixed = pixels(data.train, key=None)
    pixels(data.train)
    assert same(fixed, pixels(data.train, key=None, order=REVERSED))
    assert same(fixed, pixels(again.train, key=None))
    assert (data.mean, data.std) == (again.mean, again.std)
    assert data_checksum(data) == data_checksum(again)
    in_memory = ImageData("own", data.train.fixed, data.test, data.class_names, 16, data.mean, data.std)
    assert data_checksum(data) == data_checksum(in_memory)
    other = load(flipped)
    assert data_checksum(data) != data_checksum(other)


def test_the_test_images_are_read_once():
    data = load_data((Shapes(), Shapes(of_python)))
    assert isinstance(data.test, TensorImages)
    assert not data.transforms_itself
    assert same(pixels(data.test), pixels(load_data((Shapes(), Shapes(of_python))).test))


def test_an_epoch_that_is_taken_up_in_its_middle_goes_on_with_the_same_batches():
    feed = Feed(load(flipped).train, Normalize((), ()), Compute.of("cpu"))
    arguments = torch.arange(16), [(16, 0.5), (8, 0.5)], 4
    whole = list(feed.training(*arguments, key=EPOCH, augment=Augmentation()))
    rest = list(feed.training(*arguments, key=EPOCH, augment=Augmentation(), start=2))
    assert all(torch.equal(x, y) for a, b in zip(whole[2:], rest, strict=True) for x, y in zip(a, b, strict=True))
    before = torch.cat([x for x, _ in feed.evaluation(None, 8)])
    assert torch.equal(before, torch.cat([x for x, _ in feed.evaluation(None, 8)]))


@pytest.mark.parametrize("transform", [None, of_python, of_numpy, flipped])
def test_the_random_streams_of_the_caller_do_not_move(transform):
    def drawn():
        return torch.rand(4).tolist(), random.random(), np.random.rand()

    def seeded():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    seeded()
    expected = drawn()
    seeded()
    images = load(transform).train
    for _ in images.batches([(8, torch.arange(4)), (16, torch.arange(4))], CPU, EPOCH):
        assert drawn() == expected
        seeded()
    with pytest.raises(ValueError, match="train item 0"):
        load(lambda image: image.nothing)
    assert drawn() == expected


def test_images_of_any_shape_are_averaged_to_the_size_that_is_asked_for():
    data = load(flipped, size=32)
    native = pixels(data.train, size=32)
    for size in (16, 12, 8):
        averaged = {i: resize_images(x[None], size)[0] for i, x in native.items()}
        assert same(pixels(data.train, size=size), averaged)
    assert (data.size, data.train.fixed.images.shape) == (16, (16, 3, 16, 16))  # as the test images
    assert pixels(load(cropped).train, size=24)[0].shape == (3, 24, 24)


def test_a_data_set_that_changes_nothing_at_random_lies_in_memory():
    data = load(v2.Grayscale(3))
    assert isinstance(data.train, TensorImages)
    assert (data.transforms_itself, data.notes) == (False, ("no training image has the class '0', '1'",))
    assert same(pixels(data.train, key=EPOCH), pixels(data.train, key=None))


def test_transforms_are_found_and_said_also_where_they_are_rare():
    data = load(v2.RandomInvert(p=0.1))
    assert data.transforms_itself
    assert "read anew in every epoch, and flips and crops of our own are off" in data.notes[0]
    assert 0.9**NUM_READS < 0.05


def test_a_random_generator_that_cannot_be_seeded_is_refused():
    own = np.random.default_rng(0)
    with pytest.raises(ValueError, match="train must draw random numbers from the global CPU generators of torch"):
        load(lambda image: image.rotate(own.uniform(-30, 30)))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("image", 0), "^train item 3 must be a Pillow image, a tensor or an array, got str$"),
        ((torch.zeros(3, 16, 16), 0.5), "^train item 3 must be an image with .* got ValueError: label 0.5$"),
        (torch.zeros(3), "^train item 3 must be an image with a whole number as label, got ValueError: "),
        (
            (torch.full((3, 16, 16), -2.0), 0),
            r"^train item 3 must be uint8 or lie in \[0, 1\], got -2 to -2; leave out",
        ),
        ((torch.zeros(3, 16, 16).int(), 0), r"^train item 3 must be uint8 or lie in \[0, 1\], got torch.int32$"),
        ((torch.zeros(1, 16, 16), 0), r"^train item 3 must have 3 channels and 2 axes .* got shape \(1, 16, 16\)$"),
        ((torch.zeros(3, 16), 0), r"^train item 3 must have 3 channels and 2 axes .* got shape \(3, 16\)$"),
        ((torch.zeros(3, 16, 16), 11), "^train item 3 must keep its label [0-9], got 11$"),
    ],
)
def test_an_item_that_is_no_image_with_a_label_is_named(item, message):
    class Bad(Shapes):
        bad = -1

        def __getitem__(self, index):
            return item if index == self.bad else super().__getitem__(index)

    part = Bad(of_python)
    images = load_data((part, Shapes())).train
    part.bad = 3
    with pytest.raises(ValueError, match=message):
        pixels(images)
    if "label [0-9]" not in message:
        with pytest.raises(ValueError, match=message):
            load_data((part, Shapes()))


def test_a_training_that_is_resumed_sees_the_same_draws(tmp_path):
    reads, stop_at = [], None

    class Counted(Shapes):
        def __getitem__(self, index):
            reads.append(index)
            if len(reads) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    def run(directory):
        data = load_data((Counted(of_python), Shapes()))
        reads.clear()
        settings = TrainSettings(device="cpu", calibration_images=4, augment=False)
        plan = Schedule([Level(8, 2, batch=4), Level(16, 1, batch=4)])
        net = NetworkConfig("parabolic", (4,), 10, steps=1, size=16)
        return train(net, plan, data, directory, settings=settings, quiet=True).directory

    whole = run(tmp_path / "whole")
    assert len(reads) == 3 * 12  # of 16 images 13 are trained on, in batches of 4
    stop_at = 18
    with pytest.raises(Interrupted, match="saved at size 8 after 1 epochs"):
        run(tmp_path / "cut")
    stop_at = None
    resume(tmp_path / "cut", (Counted(of_python), Shapes()), quiet=True)
    model = [(directory / "model.safetensors").read_bytes() for directory in (whole, tmp_path / "cut")]
    assert model[0] == model[1]
