"""Augmentation by names: each does what its paper says, and slices of a batch are those of the whole."""

import pytest
import torch

from multipde import render_shapes
from multipde.data.augmentation import NAMES, Augment, Augmentation, augmentation_names
from multipde.data.feed import Feed
from multipde.data.images import TensorImages
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute

CPU = torch.device("cpu")


def same(x):
    return x


def augmented(x, *names, labels=None, key=("test",), **options):
    augment = Augment(x.shape[-1], Augmentation(names, **options))
    return augment(x, torch.zeros(len(x), dtype=torch.int64) if labels is None else labels, same, key, len(x))


def noisy(x):
    """A function of the user's that draws for the whole batch."""
    return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)


def test_names_are_read_from_text_and_flags():
    assert augmentation_names(None) == augmentation_names(True) == augmentation_names("flip, crop") == ("flip", "crop")
    assert augmentation_names(False) == augmentation_names("off") == ()
    for wrong in ("flop", "flip,flip", "", "off,flip"):
        with pytest.raises(ValueError, match=f"augment must be off or different names among flip, .*, got '{wrong}'"):
            augmentation_names(wrong)


def test_flip_and_crop_are_a_flip_and_a_shift_by_whole_pixels_over_zeros():
    size, num = 32, 400
    assert [Augment(s).padding for s in (size, 8, 96)] == [2, 1, 6]
    picture = torch.rand(1, 1, size, size) + 1
    padded = torch.nn.functional.pad(picture, (2, 2, 2, 2))
    candidates = {}
    for flip in (False, True):
        source = padded.flip(3) if flip else padded
        for dy in range(5):
            for dx in range(5):
                candidates[flip, dy, dx] = source[0, 0, dy : dy + size, dx : dx + size]
    result, _ = augmented(picture.expand(num, 1, size, size), "flip", "crop")
    found = {}
    for image in result[:, 0]:
        matches = [k for k, c in candidates.items() if torch.allclose(c, image, atol=1e-6)]
        assert len(matches) == 1
        found[matches[0]] = found.get(matches[0], 0) + 1
    assert len(found) > 45  # of 50
    flips = sum(v for (flip, _, _), v in found.items() if flip)
    assert 160 < flips < 240


def test_flip_and_crop_have_the_bits_that_they_had_before_there_were_others():
    from kornia import augmentation

    from multipde.data.images import stream_seed

    x = torch.rand(7, 3, 8, 8)
    flip = augmentation.RandomHorizontalFlip(p=0.5)
    crop = augmentation.RandomCrop((8, 8), padding=1, cropping_mode="slice")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("test"))
        expected = crop(flip(x))
    assert torch.equal(augmented(x, "flip", "crop")[0], expected)


@pytest.mark.parametrize(("size", "side"), [(32, 12), (16, 6), (8, 3), (2, 1)])
def test_cutout_erases_one_square_of_three_eighths_of_the_side(size, side):
    y, _ = augmented(torch.ones(50, 2, size, size), "cutout")
    erased = y[:, 0] == 0
    assert torch.equal(y[:, 0], y[:, 1])
    assert (erased.sum((1, 2)) == side**2).all()
    assert (erased.any(1).sum(1) == side).all()
    assert len({tuple(e.nonzero()[0].tolist()) for e in erased}) > 1


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_mixup_is_the_convex_combination_with_the_image_before(axes):
    x, labels = torch.rand(5, 2, *(4,) * axes), torch.arange(5)
    y, shares = augmented(x, "mixup", labels=labels, classes=6)
    weight = shares[0, 0]
    assert 0 < weight < 1
    torch.testing.assert_close(y, weight * x + (1 - weight) * x.roll(1, 0))
    one_hot = torch.eye(6)[:5]
    torch.testing.assert_close(shares, weight * one_hot + (1 - weight) * one_hot.roll(1, 0))


def test_cutmix_pastes_one_rectangle_and_mixes_the_labels_by_its_area():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    y, shares = augmented(x, "cutmix", labels=torch.arange(5), classes=5, key=("cutmix", 3))
    pasted = y != x
    assert torch.equal(y[pasted], x.roll(1, 0)[pasted])
    assert torch.equal(pasted, pasted[:1].expand_as(pasted))
    rows, columns = pasted[0, 0].any(1).sum(), pasted[0, 0].any(0).sum()
    assert pasted[0].sum() == rows * columns > 0
    torch.testing.assert_close(shares.diagonal(), 1 - pasted[0].float().mean().expand(5))
    torch.testing.assert_close(shares.sum(1), torch.ones(5))


def test_a_batch_gets_mixup_or_cutmix():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    batches = [augmented(x, "mixup", "cutmix", labels=torch.arange(5), classes=5, key=(k,))[0] for k in range(40)]
    whole = [all(image.unique().numel() == 1 for image in y) and not torch.equal(y, x) for y in batches]
    assert 10 < sum(whole) < 30


def test_randaugment_takes_each_image_by_itself():
    x = 255 * torch.rand(20, 3, 8, 8).round(decimals=2)
    y, _ = augmented(x.round(), "randaugment")
    assert y.min() >= 0
    assert y.max() <= 255
    assert sum(not torch.equal(a, b) for a, b in zip(x.round(), y, strict=True)) > 10
    alone, _ = augmented(x[:1].round(), "randaugment")
    assert torch.equal(alone, y[:1])


def test_images_that_a_name_cannot_take_are_refused():
    with pytest.raises(ValueError, match="augment must be off or mixup for images with 1 axes, got flip"):
        augmented(torch.zeros(2, 3, 8), "flip")
    with pytest.raises(ValueError, match="augment must leave out randaugment for images of 2 channels"):
        augmented(torch.zeros(2, 2, 8, 8), "randaugment")


@pytest.mark.parametrize(
    "augmentation",
    [
        *(Augmentation((name,), 4) for name in NAMES),
        Augmentation(NAMES, 4),
        Augmentation((), 4, noisy),
        Augmentation(("mixup",), 4, noisy),
    ],
    ids=lambda a: "+".join([*a.names, *([a.function.__name__] if a.function else [])]),
)
def test_slices_of_a_batch_become_what_they_would_there(augmentation):
    images, labels = render_shapes(24, 8)

    def batches(**shard):
        feed = Feed(TensorImages(images, labels % 4), Normalize((0.5,) * 3, (0.2,) * 3), Compute(CPU, **shard))
        state = torch.get_rng_state()
        found = list(feed.training(torch.arange(24), ((8, 1.0),), 6, key=(0, "train"), augment=augmentation, start=1))
        assert torch.equal(torch.get_rng_state(), state)
        return found

    whole, parts = batches(), [batches(rank=k, num_processes=3) for k in range(3)]
    assert len(whole) == 3
    for i, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), y)
    assert not torch.equal(whole[0][0], whole[1][0])
