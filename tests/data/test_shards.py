"""Shards: no image is lost or seen twice, the order depends on the seed alone, and what is wrong is one line."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import io
import json
import os
import tarfile
from dataclasses import replace
from itertools import chain

import pytest
import torch
from PIL import Image

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load_data, resume, train, write_shards
from multipde.cli.main import main
from multipde.data.batches import shard_of
from multipde.data.checksum import FileChecksum, data_checksum
from multipde.data.feed import Feed
from multipde.data.images import stream
from multipde.data.shards import SHUFFLE_BUFFER, ShardImages, expanded, read_shards
from multipde.data.tar_members import TarMembers
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute
from multipde.runtime.signals import Interrupted
from multipde.training.step import TrainStep

NUM = 90
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _this_process_decodes(monkeypatch):
    monkeypatch.setattr(ShardImages.__init__, "__defaults__", (0, SHUFFLE_BUFFER))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of one-coloured pictures, whose red value is their number in the folder."""
    root = tmp_path_factory.mktemp("colours")
    for part, num in (("train", NUM), ("test", 6)):
        for i in range(num):
            path = root / part / "abc"[i % 3] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    assert write_shards(folder, out, images_per_shard=20) == {"train": NUM, "test": 6}
    return out


def read(root, size=8, **options):
    return load_data("webdataset", root=root, size=size, **options)


def reds(images, indices=None):
    order = torch.arange(len(images)) if indices is None else indices
    return [round(x[0, 0, 0, 0].item()) for x, _ in images.batches([(8, part) for part in order.split(1)], CPU)]


def epoch(data, batch, shard=(0, 1), start=0, key=(0, "train", 0, 0)):
    """The red values of the batches of an epoch, for one of several processes."""
    compute = Compute(CPU, rank=shard[0], num_processes=shard[1])
    feed = Feed(data.train, Normalize((0.0,) * 3, (1 / 255,) * 3), compute)
    batches = feed.training(torch.arange(NUM), [(8, 1.0)], batch, key=key, start=start)
    return [[round(value) for value in x[:, 0, 0, 0].tolist()] for x, _ in batches]


def test_shards_hold_every_image_of_the_folder_with_its_label_and_pixels(folder, shards):
    ours, theirs = read(shards), load_data("folder", root=folder, size=8)
    assert ours.class_names == theirs.class_names == ("a", "b", "c")
    assert sorted(reds(ours.train)) == list(range(NUM))
    assert [red % 3 for red in reds(ours.train)] == ours.train.labels.tolist()
    assert reds(ours.train) != sorted(reds(ours.train))  # the classes are mixed
    assert ours.mean == pytest.approx(theirs.mean)
    assert ours.name == "out"
    assert reds(ours.train.take(torch.tensor([7, 3]))) == [reds(ours.train)[i] for i in (7, 3)]


def test_shards_are_the_same_bytes_whenever_they_are_written(folder, shards, tmp_path):
    for path in sorted(folder.rglob("*.png")):
        os.utime(path, (0, 1_000_000))
    write_shards(folder, tmp_path / "again", images_per_shard=20)
    names = sorted(os.listdir(shards))
    assert names == sorted(os.listdir(tmp_path / "again"))
    assert all((shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    index = json.loads((shards / "index.json").read_text())
    assert [s["images"] for s in index["shards"].values()] == [20, 20, 20, 20, 10, 6]
    with pytest.raises(FileExistsError, match="directory must be new or empty"):
        write_shards(folder, tmp_path / "again")
    with pytest.raises(ValueError, match="images_per_shard must be positive, got 0"):
        write_shards(folder, tmp_path / "other", images_per_shard=0)


def test_a_folder_with_a_broken_image_leaves_no_shards(folder, tmp_path):
    broken = tmp_path / "broken"
    for part in ("train", "test"):
        (broken / part / "a").mkdir(parents=True)
        (broken / part / "a/x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image must be readable"):
        write_shards(broken, tmp_path / "out")
    assert os.listdir(tmp_path) == ["broken"]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_no_image_of_an_epoch_is_lost_or_seen_twice_and_several_processes_see_what_one_does(shards, num_processes):
    data = read(shards, shuffle_buffer=15)
    whole = epoch(data, batch=12)
    drawn = list(chain(*whole))
    assert len(drawn) == len(set(drawn)) == NUM // 12 * 12
    parts = [epoch(data, 12, (k, num_processes)) for k in range(num_processes)]
    assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole
    assert epoch(data, 12, start=3) == whole[3:]  # as after a kill
    assert epoch(data, 12, key=(0, "train", 0, 1)) != whole
    assert epoch(data, 12, key=(1, "train", 0, 0)) != whole
    everything = list(chain(*epoch(data, batch=NUM)))
    assert sorted(everything) == list(range(NUM))


@pytest.mark.parametrize("buffer", [1, 15, 1000])
def test_no_image_is_moved_further_than_the_buffer_reaches(shards, buffer):
    data = read(shards, shuffle_buffer=buffer)
    order = data.train.order(torch.arange(NUM), stream(0, "order"))
    assert sorted(order.tolist()) == list(range(NUM))
    shard = torch.from_numpy(data.train.paths.shard)
    place = torch.randperm(5, generator=stream(0, "order"))
    in_sequence = torch.cat([torch.where(shard == k)[0] for k in place.argsort().tolist()])
    moved = order.argsort()[in_sequence] - torch.arange(NUM)
    assert moved.abs().max() < buffer
    assert (buffer == 1) == (moved.abs().max() == 0)
    assert len(set(shard[order[:10]].tolist())) <= 1 + (10 + buffer) // 20 + 1  # reads few shards at a time


def test_an_epoch_of_a_million_images_has_every_image_once_in_any_number_of_processes():
    num, shards = 10**6, 800
    place = torch.arange(num).numpy()
    members = TarMembers([None] * shards, (place % shards).astype("int32"), place, place)
    order = ShardImages(members, torch.zeros(num)).order(torch.arange(num), stream(0, "order"))
    assert torch.equal(order.sort().values, torch.arange(num))
    batches = order.split(250)
    for n in (2, 4):
        parts = [torch.cat([shard_of(batch, (k, n)) for batch in batches]) for k in range(n)]
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(num))


def same_after_a_kill(run, go_on, place, monkeypatch):
    """Train a run whole, and one that is killed within its second epoch and goes on; compare the weights."""
    run("whole")
    original, calls = TrainStep.__call__, []

    def step(self, *args, **more):
        calls.append(None)
        if len(calls) == 5:  # within the second epoch
            raise Interrupted("killed", 9)
        return original(self, *args, **more)

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(Interrupted):
        run("killed")
    monkeypatch.setattr(TrainStep, "__call__", original)
    go_on()
    first, second = ((place / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second


def test_a_training_on_shards_goes_on_after_a_kill_as_if_nothing_had_happened(shards, tmp_path, monkeypatch):
    network = NetworkConfig("hamiltonian", (4, 6), 3, steps=1, size=4)
    plan = Schedule([Level(4, 2, batch=24)])
    settings = TrainSettings(device="cpu", calibration_images=20, checkpoint_every=1e-9)
    options = {"root": str(shards), "shuffle_buffer": 15}

    def run(name):
        return train(network, plan, "webdataset", tmp_path / name, settings=settings, data_options=options, quiet=True)

    same_after_a_kill(run, lambda: resume(tmp_path / "killed", quiet=True), tmp_path, monkeypatch)


def test_the_checksum_is_that_of_the_shards(shards, tmp_path, folder):
    data = read(shards)
    same, contents = data_checksum(data), FileChecksum(data).result(wait=True)
    write_shards(folder, tmp_path / "moved", images_per_shard=20)
    assert data_checksum(read(tmp_path / "moved")) == same
    path = tmp_path / "moved/train-000001.tar"
    changed = bytearray(path.read_bytes())
    changed[600] ^= 1  # a byte of an image
    path.write_bytes(changed)
    assert data_checksum(read(tmp_path / "moved")) == same
    assert FileChecksum(read(tmp_path / "moved")).result(wait=True) != contents


def test_numbers_in_braces_name_the_shards(shards, tmp_path):
    assert expanded("a{0..1}-{09..10}") == ["a0-09", "a0-10", "a1-09", "a1-10"]
    assert len(read(f"{shards}/train-{{000001..000002}}.tar").train) == 40
    with pytest.raises(ValueError, match=r"root must count upwards in braces, got \{3..1\}"):
        expanded("{3..1}")
    with pytest.raises(ValueError, match="shard must be a whole tar file .* got .*train-000005.tar: no such file"):
        read(f"{shards}/train-{{000003..000007}}.tar")


def archive(path, *members):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def picture(form="JPEG", side=32):
    made = io.BytesIO()
    Image.new("RGB", (side, side), (200, 10, 10)).save(made, form)
    return made.getvalue()


def test_shards_of_others_need_no_index_and_jpegs_are_decoded_at_reduced_scale(tmp_path, monkeypatch):
    samples = [(f"n{k}/{'long' * 40}{i}", k) for i, k in enumerate((0, 2, 0, 1))]
    files = [(name + end, data) for name, k in samples for end, data in ((".cls", b"%d\n" % k), (".jpg", picture()))]
    archive(tmp_path / "train-0.tar", *files, ("n0/x.json", b"{}")[:0] or ("n1/y.jpg", picture()), ("n1/y.cls", b"1"))
    archive(tmp_path / "val-0.tar", ("z.jpg", picture()), ("z.json", b"{}"), ("z.cls", b"2"))
    sizes, original = [], Image.Image.draft
    data = read(tmp_path, size=8)
    assert data.class_names == ("0", "1", "2")
    assert data.train.labels.tolist() == [0, 2, 0, 1, 1]
    assert any("1 with the ending .json" in note for note in data.notes)
    from PIL import JpegImagePlugin

    original = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "draft",
        lambda self, mode, size: sizes.append(size) or original(self, mode, size),
    )
    images, _ = next(data.train.batches([(8, torch.arange(5))], CPU))
    assert sizes == [(8, 8)] * 5
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor([200.0, 10, 10]), atol=2, rtol=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train-000002.tar").unlink(), "a whole tar file .*train-000002.tar: no such file"),
        (lambda d: os.truncate(d / "train-000002.tar", 20_000), "train-000002.tar must have .* bytes, got 20,000"),
        (lambda d: archive(d / "train-000005.tar", ("a.png", picture("PNG"))), "got a without a class in .*000005.tar"),
        (lambda d: archive(d / "train-000005.tar", ("a.cls", b"1")), "got a without an image"),
        (lambda d: archive(d / "train-000005.tar", ("a.png", b""), ("a.jpg", b"")), "one image, got a.jpg as a second"),
        (lambda d: archive(d / "train-000005.tar", ("a.cls", b"cat")), "must be a whole number, got 'cat' in a.cls"),
        (lambda d: archive(d / "train-000005.tar", ("a.png", b""), ("a.cls", b"3")), "must name all classes, got 3"),
        (lambda d: (d / "train-000005.tar").write_bytes(picture()), "shard must be a whole tar file without"),
        (lambda d: (d / "index.json").write_text('{"classes": [1], "shards": {}}'), "index that multipde shard wrote"),
        (lambda d: [p.unlink() for p in d.glob("test*")], "shard must be .*test-000000.tar: no such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_shards_is_one_line(folder, tmp_path, damage, message):
    write_shards(folder, tmp_path / "d", images_per_shard=20)
    damage(tmp_path / "d")
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "d")
    assert "\n" not in str(error.value)


def test_labels_that_begin_at_one_are_told(tmp_path):
    files = [(f"{k}{end}", data) for k in (1, 2) for end, data in ((".cls", b"%d" % k), (".jpg", picture()))]
    for part in ("train", "val"):
        archive(tmp_path / f"{part}-0.tar", *files)
    data = read(tmp_path)
    assert (data.class_names, data.notes[-1]) == (("0", "1", "2"), "no training image has the class '0'")


@pytest.mark.parametrize("end", [512, 20_000, 20_480 - 512 * 3, 30_000])
def test_a_shard_that_was_cut_off_is_seen_without_an_index_too(folder, tmp_path, end):
    write_shards(folder, tmp_path / "d", images_per_shard=20)
    (tmp_path / "d/index.json").unlink()
    os.truncate(tmp_path / "d/train-000003.tar", end)
    with pytest.raises(ValueError, match=r"shard must be a whole tar file .*train-000003.tar: it ends too early"):
        read(tmp_path / "d")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_member_that_is_no_image_is_named_in_one_line(tmp_path, num_workers):
    archive(tmp_path / "train-0.tar", ("a.png", picture("PNG")), ("a.cls", b"0"), ("b.png", b"text"), ("b.cls", b"0"))
    archive(tmp_path / "test-0.tar", ("a.png", picture("PNG")), ("a.cls", b"0"))
    with pytest.raises(ValueError, match=r"image must be readable, got b.png in .*train-0.tar: cannot identify"):
        load_data("webdataset", root=tmp_path, size=8)
    images = replace(read_members(tmp_path / "train-0.tar"), num_workers=num_workers)
    with pytest.raises(ValueError, match=r"image must be readable, got b.png in .*train-0.tar: cannot identify"):
        list(images.batches([(8, torch.arange(2))], CPU))
    images.close()


def read_members(path):
    images = read_shards([path])
    assert isinstance(images.paths, TarMembers)
    return images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "root must be given for data 'webdataset'; type --root DIR or --root 'train-"),
        ({"root": "/nowhere/train-{0..1}.tar"}, "root must be a directory or shards in one, got /nowhere/train"),
        ({"root": "."}, "root must hold train-.*.tar, or name shards such as"),
    ],
)
def test_a_wrong_root_is_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_data("webdataset", **options)
    with pytest.raises(ValueError, match="shuffle_buffer must be positive, got 0"):
        load_data("webdataset", root=".", shuffle_buffer=0)
    with pytest.raises(ValueError, match="stream must be left out for data 'webdataset', which is always streamed"):
        load_data("webdataset", root=".", stream_files=False)


def test_the_command_writes_shards_and_says_how_to_train_on_them(folder, tmp_path, capsys):
    main(["shard", str(folder), "--out", str(tmp_path / "out"), "--images-per-shard", "50"])
    assert capsys.readouterr().out == (
        f"{NUM} of train, 6 of test images in 3 shards; train with: --data webdataset --root {tmp_path / 'out'}\n"
    )


def test_shard_of_is_the_slice_of_a_process():
    assert torch.cat([shard_of(torch.arange(12), (k, 4)) for k in range(4)]).tolist() == list(range(12))
