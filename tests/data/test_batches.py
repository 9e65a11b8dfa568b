"""Batches: normalised, augmented by keys, each image once."""

import pytest
import torch

from multipde import load_data, render_shapes
from multipde.data.augmentation import Augmentation
from multipde.data.batches import drawn_indices
from multipde.data.feed import Feed
from multipde.data.images import TensorImages
from multipde.data.streamed import StreamedImages
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute
from tests.fixtures import write_folder

CPU = torch.device("cpu")


def plain(images):
    return Feed(images, Normalize((), ()), Compute(CPU))


def numbered(num):
    return TensorImages(torch.arange(num).view(num, 1, 1, 1).expand(num, 3, 4, 4).to(torch.uint8), torch.arange(num))


def test_normalize_is_the_formula():
    x = torch.rand(2, 3, 4, 4) * 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = (x / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(Normalize(mean.tolist(), std.tolist())(x), expected)


def test_standardised_images_forget_brightness_and_contrast_and_an_even_one_is_zero():
    x = torch.rand(3, 3, 6, 6) * 100 + 20
    standardize = Normalize((), (), per_image=True)
    y = standardize(x)
    axes = (1, 2, 3)
    torch.testing.assert_close(y.mean(axes), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(axes, correction=0), torch.ones(3))
    torch.testing.assert_close(standardize(2.0 * x - 7.0), y, atol=1e-5, rtol=1e-5)
    assert standardize(torch.full((1, 3, 4, 4), 200.0)).abs().max() == 0


def test_taken_images_are_those_of_the_indices():
    images = numbered(5)
    part = images.take(torch.tensor([3, 1]))
    (x, labels), *_ = part.batches([(4, torch.arange(2))], CPU)
    assert labels.tolist() == x[:, 0, 0, 0].tolist() == [3, 1]


def test_an_epoch_holds_every_image_once_and_drops_only_what_is_left_over():
    feed = plain(numbered(23))
    batches = list(feed.training(torch.arange(23), [(4, 1.0)], 5, key=(0,)))
    seen = torch.cat([y for _, y in batches]).tolist()
    assert len(batches) == 4
    assert len(set(seen)) == 20
    for x, y in batches:
        torch.testing.assert_close(x[:, 0, 0, 0] * 255, y.float())
    assert len(list(feed.training(torch.arange(3), [(4, 1.0)], 5, key=(0,)))) == 1
    ordered = list(feed.evaluation(None, 4, 5))
    assert torch.cat([y for _, y in ordered]).tolist() == list(range(23))


def test_drawn_images_are_random_within_the_indices_and_repeatable():
    feed = plain(numbered(23))

    def draw(*key):
        parts = feed.drawn(torch.arange(10, 20), 6, 4, key)
        return (torch.cat(list(parts))[:, 0, 0, 0] * 255).round().int().tolist()

    assert draw(0) == draw(0) != draw(1)
    assert len(set(draw(0))) == 6
    assert set(draw(0)) <= set(range(10, 20))
    with pytest.raises(ValueError, match="num_images must be positive, got 0"):
        drawn_indices(5, 0, (0,))


def test_the_key_decides_order_and_augmentation():
    feed = plain(TensorImages(*render_shapes(20, 8)))

    def epoch(*key):
        batches = feed.training(torch.arange(20), [(8, 1.0)], 5, key=key, augment=Augmentation())
        return torch.cat([x for x, _ in batches])

    state = torch.get_rng_state()
    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("streamed", [False, True])
def test_slices_of_a_batch_are_those_of_the_whole(streamed, tmp_path):
    data = load_data("folder", root=write_folder(tmp_path, 9, 3), stream_files=streamed)
    if isinstance(data.train, StreamedImages):
        data.train.num_workers = 0

    def batches(**shard):
        feed = Feed(data.train, Normalize.of(data), Compute(CPU, **shard))
        return list(
            feed.training(torch.arange(27), ((8, 0.5), (16, 0.5)), 6, key=(0, "train"), augment=Augmentation(), start=1)
        )

    whole = batches()
    parts = [batches(rank=k, num_processes=3) for k in range(3)]
    assert len(whole) == 3
    for i, (x, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), labels)


def test_slices_for_evaluation_may_be_empty_and_make_up_the_whole():
    images = TensorImages(torch.arange(14, dtype=torch.uint8).view(14, 1, 1, 1), torch.arange(14))
    feeds = [Feed(images, Normalize((), ()), Compute(CPU, rank=k, num_processes=3)) for k in range(3)]
    found = [list(feed.evaluation(None, 1, 4)) for feed in feeds]
    assert [[len(y) for _, y in batches] for batches in found] == [[1, 1, 1, 0], [1, 1, 1, 1], [2, 2, 2, 1]]
    assert sorted(torch.cat([y for batches in found for _, y in batches]).tolist()) == list(range(14))
    drawn = [torch.cat(list(feed.drawn(None, 6, 1, (0,)))) for feed in feeds]
    assert torch.equal(drawn[0], drawn[2])


def test_no_drawn_batch_has_a_single_image():
    feed = plain(numbered(9))
    sizes = {num: [len(x) for x in feed.drawn(None, num, 4, (0, "test"), batch=4)] for num in (1, 4, 5, 8, 9)}
    assert sizes == {1: [1], 4: [4], 5: [5], 8: [4, 4], 9: [4, 5]}
