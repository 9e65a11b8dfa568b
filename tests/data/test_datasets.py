"""Data sets by name and from the user; everything that can be wrong with a folder."""

import os

import pytest
import torch
import torchvision
from PIL import Image

from multipde import load_data, render_shapes
from multipde.data.datasets import split_indices
from multipde.data.decode import decode_image
from multipde.data.decoded_cache import DecodedCache
from multipde.data.images import TensorImages
from multipde.data.streamed import StreamedImages
from tests.fixtures import write_folder


def all_images(images, size):
    batches = list(images.batches([(size, part) for part in torch.arange(len(images)).split(7)], torch.device("cpu")))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_a_folder_is_read_with_classes_in_name_order(folder):
    data = load_data("folder", root=folder)
    assert data.class_names == ("disc", "ring", "square")
    assert (data.size, len(data.train), len(data.test), data.notes) == (16, 120, 60, ())
    rendered, labels = render_shapes(800, 16, seed=0)
    assert torch.equal(data.train.images[:40], rendered[labels == 0][:40])
    x = data.train.images.double() / 255
    assert data.mean == pytest.approx(x.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-5)


def test_streamed_images_are_those_in_memory_at_every_size(folder):
    kept, streamed = load_data("folder", root=folder), load_data("folder", root=folder, stream_files=True)
    assert isinstance(streamed.train, StreamedImages)
    assert "streamed from their files" in streamed.notes[0]
    streamed.train.num_workers = streamed.test.num_workers = 0
    for size in (16, 8):
        (a, la), (b, lb) = all_images(kept.train, size), all_images(streamed.train, size)
        assert torch.equal(la, lb)
        assert (a - b).abs().max() <= 0.5  # streamed ones are rounded to whole grey values
    assert kept.mean == pytest.approx(streamed.mean)


def test_worker_processes_give_the_same_batches(folder):
    data = load_data("folder", root=folder, stream_files=True).test
    data.num_workers = 0
    alone = all_images(data, 8)
    data.num_workers = 2
    assert all(torch.equal(a, b) for a, b in zip(all_images(data, 8), alone, strict=True))


def test_decoded_images_are_kept_until_a_file_changes(folder):
    first = load_data("folder", root=folder)
    paths = sorted((folder / "train").rglob("*.png")) + sorted((folder / "test").rglob("*.png"))
    assert DecodedCache(paths, None).file.exists()
    again = load_data("folder", root=folder)
    assert torch.equal(first.train.images, again.train.images)
    Image.new("RGB", (16, 16), "red").save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    assert load_data("folder", root=folder).train.images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_damaged_cache_is_decoded_again(folder):
    first = load_data("folder", root=folder)
    paths = sorted((folder / "train").rglob("*.png")) + sorted((folder / "test").rglob("*.png"))
    DecodedCache(paths, None).file.write_bytes(b"broken")
    assert torch.equal(load_data("folder", root=folder).train.images, first.train.images)


def test_images_of_different_sizes_become_squares_with_a_note(folder):
    Image.new("RGB", (40, 20)).save(folder / "train/disc/zz.png")
    data = load_data("folder", root=folder)
    assert data.notes == ("images have 2 sizes, 16x16 to 20x40 (height x width): resized to 16x16",)
    assert load_data("folder", root=folder, size=12).size == 12


def test_grey_and_rgba_images_become_rgb(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "rgba.png")
    assert decode_image(tmp_path / "grey.png")[:, 0, 0].tolist() == [77, 77, 77]
    assert decode_image(tmp_path / "rgba.png")[:, 0, 0].tolist() == [1, 2, 3]


def test_a_broken_image_is_named_with_its_path(folder):
    good = (folder / "train/ring/003.png").read_bytes()
    (folder / "train/ring/003.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"image must be readable, got .*train/ring/003.png"):
        load_data("folder", root=folder)
    (folder / "train/ring/003.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"image must be readable, got .*train/ring/003.png"):
        load_data("folder", root=folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_streamed_image_is_named_in_one_line(folder, num_workers):
    data = load_data("folder", root=folder, stream_files=True).test
    data.num_workers = num_workers
    good = data.paths[3].read_bytes()
    data.paths[3].write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"^image must be readable, got .*003.png: [^\n]*$"):
        all_images(data, 8)


def test_an_empty_class_folder_is_named(folder):
    (folder / "train/zebra").mkdir()
    with pytest.raises(ValueError, match="class folder must hold images, got none in .*zebra"):
        load_data("folder", root=folder)


def test_classes_in_only_one_part_are_named(folder):
    (folder / "test/square").rename(folder / "test/cube")
    with pytest.raises(ValueError, match="the same classes in train and test, got 'cube' in only one"):
        load_data("folder", root=folder)


def test_missing_and_odd_roots_are_named(tmp_path):
    with pytest.raises(ValueError, match="root must be given for data 'folder'; type --root DIR"):
        load_data("folder")
    with pytest.raises(ValueError, match="root must be a directory, got .*nowhere"):
        load_data("folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got no directory .*train"):
        load_data("folder", root=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="root must hold a folder per class, got none in .*train"):
        load_data("folder", root=tmp_path)
    with pytest.raises(ValueError, match="data must be one of shapes, cifar10"):
        load_data("mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_a_torchvision_set_that_is_not_there_says_how_to_fetch_it(name, tmp_path):
    with pytest.raises(ValueError, match=f"root must hold {name}, got none in .*type --download to fetch it"):
        load_data(name, root=tmp_path)


class FakeCIFAR10(torch.utils.data.Dataset):
    """CIFAR-10 as torchvision gives it, with three images."""

    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        self.images, labels = render_shapes(6 if train else 4, 32)
        self.labels = labels % 2

        self.data = self.images.permute(0, 2, 3, 1).numpy()
        self.targets = self.labels.tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy()), int(self.labels[index])


def test_torchvision_sets_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)
    data = load_data("cifar10", root=tmp_path)
    assert (data.name, data.class_names, data.size) == ("cifar10", ("cat", "dog"), 32)
    assert torch.equal(data.train.images, render_shapes(6, 32)[0])


def test_tensors_and_data_sets_of_the_user():
    x, y = render_shapes(10, 8)
    data = load_data(((x, y), (x.float() / 255, y)))
    assert torch.equal(data.train.images, data.test.images)
    assert len(data.class_names) == int(y.max()) + 1
    pair = load_data((FakeCIFAR10("", True, False), FakeCIFAR10("", False, False)))
    assert pair.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((torch.zeros(2, 3, 8, 8), torch.zeros(3)), "train must hold images"),
        ((torch.full((2, 3, 8, 8), 2.0), torch.zeros(2)), r"train images must be uint8 or lie in \[0, 1\], got 2 to 2"),
        ((torch.zeros(2, 3, 8, 8, dtype=torch.int16), torch.zeros(2)), "train images must be uint8 or lie in .*int16"),
        ((torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2)), "train images must be uint8 or lie in"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0.5, 1.0])), "train labels must be whole numbers"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([-1, 1])), "train labels must lie in 0..999999, got -1"),
        ((torch.zeros(2, 3, 8, 4), torch.zeros(2)), r"train images must be square, got \(8, 4\)"),
        ((torch.zeros(2, 3, 6, 6), torch.zeros(2)), "train and test images must have one shape"),
        (7, "train must be a data set or .images, labels. tensors, got int"),
        ([], "train must hold images, got none"),
    ],
)
def test_bad_data_of_the_user_are_named(train, message):
    with pytest.raises(ValueError, match=message):
        load_data((train, (torch.zeros(2, 3, 8, 8), torch.zeros(2))))


def test_the_split_is_a_partition_decided_by_its_seed():
    train, validation = split_indices(100, seed=1, validation=0.2)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(100))
    assert len(validation) == 20
    assert torch.equal(split_indices(100, 1)[0], train)
    assert not torch.equal(split_indices(100, 2)[0], train)
    with pytest.raises(ValueError, match="validation must leave images on both sides, got 0.2 of 2 images"):
        split_indices(2, 0)


def test_the_level_in_use_is_averaged_once_and_keeps_the_mean():
    images = TensorImages(*render_shapes(5, 32))
    level = images.at_size(8, torch.device("cpu"))
    assert images.at_size(8, torch.device("cpu")) is level
    torch.testing.assert_close(level.mean((2, 3)), images.images.float().mean((2, 3)))


def test_jpeg_folders_work(tmp_path):
    assert load_data("folder", root=write_folder(tmp_path / "jpeg", 3, 2, suffix=".jpg")).size == 16


def test_a_worker_that_crashes_while_it_ends_does_not_hide_the_broken_image(folder):
    class Crashing:
        def _shutdown_workers(self):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Aborted.")

    data = StreamedImages(sorted((folder / "test/ring").iterdir()), torch.zeros(20).long(), num_workers=0)
    data._loaded(torch.device("cpu")).loader._iterator = Crashing()
    data.paths[3].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"^image must be readable, got .*003.png"):
        all_images(data, 8)
