"""Folders as torchvision reads them, with a note on what is left out; and the cache of what was decoded."""

import os
import shutil
import stat
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from multipde import load_data
from multipde.data import decode, decoded_cache
from multipde.data.decoded_cache import DecodedCache, cache_directory
from multipde.data.folder import ENDINGS
from tests.fixtures import write_folder


def small(root, value=50):
    """Two classes with a picture each, in train and test."""
    for part in ("train", "test"):
        for k, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (value + k, 0, 0)).save(root / part / name / "0.png")
    return root


def reds(images):
    return images.images[:, 0, 0, 0].tolist()


@pytest.fixture(autouse=True)
def _own_cache_per_test(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))


def test_what_is_an_image_is_what_torchvision_takes(tmp_path):
    assert ENDINGS == IMG_EXTENSIONS
    root = small(tmp_path / "d")
    deep = root / "train/b/deeper/still"
    deep.mkdir(parents=True)
    for path in (deep / "1.PNG", root / "train/a/x.png", root / "train/a/x.b.Jpeg"):
        Image.new("RGB", (4, 4)).save(path, "png" if path.suffix.lower() == ".png" else "jpeg")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere/l.png")
    (root / "train/b/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "train/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "test/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "train/a/none.jfif").touch()
    data, theirs = load_data("folder", root=root, stream_files=True), ImageFolder(str(root / "train"))
    expected = sorted((label, path) for path, label in theirs.imgs)
    assert sorted(zip(data.train.labels.tolist(), map(str, data.train.paths), strict=True)) == expected  # pyright: ignore
    assert data.class_names == tuple(theirs.classes)


def test_a_note_says_how_many_files_are_left_out_and_why(tmp_path):
    root = small(tmp_path / "d")
    (root / "train/.git").mkdir()
    (root / "test/.cache").mkdir()
    for name in (
        "train/a/._0.png",
        "train/a/x.jfif",
        "train/b/y.jfif",
        "test/b/z.webp.tmp",
        "train/b/README",
        "train/l.txt",
    ):
        (root / name).touch()
    for streamed in (True, False, False):
        data = load_data("folder", root=root, stream_files=streamed)
        assert data.notes[0] == (
            f"left out of {root}: 3 hidden, 2 with the ending .jfif, 1 beside the folders of the classes, "
            "1 with the ending .tmp, 1 without an ending"
        )
        assert (data.class_names, len(data.train), len(data.test)) == (("a", "b"), 2, 2)
    assert load_data("folder", root=small(tmp_path / "clean")).notes == ()


def test_the_same_is_said_of_a_folder_to_be_classified(tmp_path, capsys):
    from multipde import NetworkConfig, PDENet, predict, save
    from multipde.cli.main import main

    root = small(tmp_path / "d")
    (root / "train/a/x.jfif").touch()
    net = save(PDENet(NetworkConfig("parabolic", (2,), 2, steps=1, size=4, classes=2)), tmp_path / "net")
    assert [p.file.name for p in predict(net, [root / "train"], device="cpu")] == ["0.png", "0.png"]
    main(["predict", str(net), str(root / "train"), "--json", "--device", "cpu"])
    captured = capsys.readouterr()
    assert captured.err == f"note: left out of {root / 'train'}: 1 with the ending .jfif\n"
    assert captured.out.count("\n") == 2


def test_links_that_lead_back_end(tmp_path):
    root = small(tmp_path / "d")
    for name, target in (("train/a/up", ".."), ("train/a/top", "../.."), ("train/b/self", "."), ("train/b/all", "/")):
        (root / name).symlink_to(target, target_is_directory=True)
    data = load_data("folder", root=root, stream_files=True)
    assert len(data.train) == 2
    assert data.notes[0] == f"left out of {root}: 4 links to a folder that they are in"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/back").symlink_to(root / "train/b", target_is_directory=True)
    (root / "train/b/there").symlink_to(tmp_path / "other", target_is_directory=True)
    assert len(load_data("folder", root=root, stream_files=True).train) == 2


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root, scandir = small(tmp_path / "d"), os.scandir

    def refusing(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match="^image folder must be readable, got .*/train/b: Permission denied$"):
        load_data("folder", root=root, stream_files=True)


def test_val_is_the_test_part_where_there_is_no_other(tmp_path):
    root = small(tmp_path / "d")
    shutil.copytree(root / "test", root / "val")
    assert load_data("folder", root=root).notes == (f"left out of {root}: 1 folder val",)
    shutil.rmtree(root / "test")
    data = load_data("folder", root=root)
    assert (len(data.test), data.notes) == (2, (f"the test images are those in {root / 'val'}",))
    (root / "val/b").rename(root / "val/c")
    with pytest.raises(ValueError, match="the same classes in train and val, got 'b' in only one"):
        load_data("folder", root=root)


def test_broken_links_and_empty_classes_are_named(tmp_path):
    root = small(tmp_path / "d")
    (root / "train/a/gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="^image must be readable, got .*gone.png: No such file or directory$"):
        load_data("folder", root=root)
    (root / "train/a/gone.png").unlink()
    (root / "train/a/0.png").rename(root / "train/a/0.jfif")
    with pytest.raises(ValueError, match=r"got none in .*/a \(left out of .*: 1 with the ending .jfif\)$"):
        load_data("folder", root=root)


def test_other_contents_of_the_same_path_length_and_time_are_decoded_anew(tmp_path, monkeypatch):
    root = small(tmp_path / "one")
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert reds(load_data("folder", root=root).train) == [50, 51]
    shutil.rmtree(root)
    small(root, 70)
    for path, time in times.items():
        os.utime(path, ns=(time, time))
    assert reds(load_data("folder", root=root).train) == [70, 71]
    for name, value in (("p", 30), ("q", 40)):  # two projects with the same relative path
        small(tmp_path / name / "data", value)
        monkeypatch.chdir(tmp_path / name)
        assert reds(load_data("folder", root="data").train) == [value, value + 1]


def test_the_same_contents_elsewhere_are_not_decoded_again(tmp_path, monkeypatch):
    root = small(tmp_path / "one")
    first = load_data("folder", root=root)
    shutil.copytree(root, tmp_path / "two")
    monkeypatch.setattr(decode, "decode_image", None)
    assert torch.equal(load_data("folder", root=tmp_path / "two").train.images, first.train.images)


def cached(root):
    return DecodedCache([path for part in ("train", "test") for path in sorted((root / part).rglob("*.png"))], None)


def rewritten(images, notes="[]", checksum=None):
    """Another file in the place of the cached one."""

    def write(file):
        from safetensors.torch import save_file

        save_file({"images": images}, file, {"notes": notes, "sha256": checksum or decoded_cache._checksum(images)})

    return write


def flipped(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def of_others(file):
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(file, 12345, 12345)


def a_link(file):
    file.rename(file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved"))


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        of_others,
        a_link,
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b""),
        lambda file: file.chmod(0o666),
        rewritten(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), checksum="0" * 64),
        rewritten(torch.zeros(3, 3, 4, 4, dtype=torch.uint8)),
        rewritten(torch.zeros(4, 1, 4, 4, dtype=torch.uint8)),
        rewritten(torch.zeros(4, 3, 4, 2, dtype=torch.uint8)),
        rewritten(torch.zeros(4, 3, 4, 4)),
        rewritten(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), notes="[1]"),
        rewritten(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), notes="7"),
    ],
)
def test_anything_odd_in_the_cache_is_decoded_anew(tmp_path, change):
    root = small(tmp_path / "d")
    load_data("folder", root=root)
    file = cached(root).file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert cached(root).read() is not None
    change(file)
    assert cached(root).read() is None
    assert reds(load_data("folder", root=root).train) == [50, 51]
    assert cached(root).read() is not None  # and kept again


def test_images_from_the_cache_do_not_change_with_its_file(tmp_path):
    root = small(tmp_path / "d")
    load_data("folder", root=root)
    data = load_data("folder", root=root)
    cached(root).file.write_bytes(b"")  # a tensor mapped from it would end the process
    assert reds(data.train) == [50, 51]


def test_files_that_change_while_they_are_decoded_are_not_kept(tmp_path, monkeypatch):
    root = small(tmp_path / "d")
    decoded = decode.decode_images

    def changing(paths, size):
        images = decoded(paths, size)
        Image.new("RGB", (4, 4), (9, 9, 9)).save(paths[0])
        return images

    monkeypatch.setattr("multipde.data.folder.decode_images", changing)
    notes = load_data("folder", root=root).notes
    assert notes == ("the decoded images are not kept for the next start: the files changed while they were decoded",)


@pytest.mark.parametrize("place", ["file", "full", "homeless"])
def test_a_cache_that_cannot_be_had_is_a_note(tmp_path, monkeypatch, place):
    root = small(tmp_path / "d")
    if place == "file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "file"))
    elif place == "full":
        monkeypatch.setattr("safetensors.torch.save_file", lambda *args: (_ for _ in ()).throw(OSError(28, "No space")))
    else:
        for name in ("MULTIPDE_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user id without an entry
    data = load_data("folder", root=root)
    assert reds(data.train) == [50, 51]
    assert data.notes[0].startswith("the decoded images are not kept for the next start: ")
    assert list(tmp_path.rglob("*.partial")) == []


def test_the_cache_may_be_named_from_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MULTIPDE_CACHE", "~/c")
    assert cache_directory() == tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    load_data("folder", root=small(tmp_path / "d"))
    assert len(list((tmp_path / "c").iterdir())) == 1
    assert not (tmp_path / "~").exists()


def test_two_starts_at_once_keep_one_whole_file(tmp_path):
    root = write_folder(tmp_path / "d", 10, 5)
    threads = [threading.Thread(target=load_data, args=("folder",), kwargs={"root": root}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(cache_directory().iterdir())) == 1
    assert cached(root).read() is not None


def test_twelve_bits_in_files_of_sixteen_are_noticed(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            values = np.arange(0, 4096, 256, dtype=np.uint16).reshape(4, 4)
            Image.fromarray(values).save(tmp_path / "d" / part / name / "0.tif")
    (note,) = load_data("folder", root=tmp_path / "d", size=4).notes
    assert note.startswith("the values of 2 images lie between 0 and 15 of 255: rescale images of 12 bits")
    assert load_data("folder", root=small(tmp_path / "bright"), size=4).notes == ()
