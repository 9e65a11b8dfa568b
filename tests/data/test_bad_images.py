"""What is damaged is one line, or skipped and counted: with --skip-bad nothing that is whole is lost."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from multipde import load_data, write_shards
from multipde.cli.main import main
from multipde.data import bad_images
from multipde.data.shards import SHUFFLE_BUFFER, ShardImages
from multipde.data.streamed import StreamedImages
from tests.data.test_shards import archive, picture

NUM = 60
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _this_process_decodes(monkeypatch, tmp_path):
    monkeypatch.setattr(ShardImages.__init__, "__defaults__", (0, SHUFFLE_BUFFER))
    monkeypatch.setattr(StreamedImages.__init__, "__defaults__", (0,))
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three classes of one-coloured pictures, whose red value is their number in the folder."""
    for part, num in (("train", NUM), ("test", 9)):
        for i in range(num):
            path = tmp_path / "folder" / part / "abc"[i % 3] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    return tmp_path / "folder"


@pytest.fixture
def shards(folder, tmp_path):
    write_shards(folder, tmp_path / "shards", images_per_shard=20)
    return tmp_path / "shards"


def read(root, **options):
    return load_data("webdataset", root=root, size=8, skip_bad=True, **options)


def reds(images):
    return [
        round(x[0, 0, 0, 0].item())
        for x, _ in images.batches([(8, torch.tensor([i])) for i in range(len(images))], CPU)
    ]


def note(data):
    (found,) = [text for text in data.notes if text.startswith("skipped as bad")]
    assert "\n" not in found
    return found


def test_where_nothing_is_bad_nothing_changes(shards, folder):
    plain, data = load_data("webdataset", root=shards, size=8), read(shards)
    assert reds(data.train) == reds(plain.train)
    assert data.notes == plain.notes
    assert not data.skipped
    files = load_data("folder", root=folder, size=8, skip_bad=True)
    assert torch.equal(files.train.images, load_data("folder", root=folder, size=8).train.images)


def test_of_a_shard_that_was_cut_off_all_whole_images_are_used(shards):
    whole = reds(read(shards).train)
    os.truncate(shards / "train-000001.tar", 20 * 512)  # a sample takes four blocks of 512 bytes
    data = read(shards)
    assert reds(data.train) == whole[:20] + whole[20:24] + whole[40:]
    assert (
        "skipped as bad: what could not be read of 1 shard, 53 images are left; the first: shard must be a whole tar"
        in note(data)
    )
    assert "it ends too early (4 of its images are used)" in note(data)
    (shards / "index.json").unlink()
    assert reds(read(shards).train) == whole[:20] + whole[20:24] + whole[40:]


def test_a_missing_shard_is_skipped_whether_for_training_or_for_the_test(shards):
    whole = reds(read(shards).train)
    (shards / "train-000000.tar").unlink()
    data = read(f"{shards}/train-{{000000..000002}}.tar")
    assert reds(data.train) == whole[20:]
    assert "train-000000.tar: no such file (0 of its images are used)" in note(data)
    assert data.skipped.record()["skipped_shards"] == 1
    (shards / "test-000000.tar").unlink()
    with pytest.raises(ValueError, match="shard must hold images, got none in .*test-000000.tar: .* no such file"):
        read(shards)


def test_members_and_samples_that_are_bad_are_counted_and_named(tmp_path):
    good, cut = picture("JPEG", 64), picture("JPEG", 64)[:-200]  # the header of the second is whole
    files = [("a.jpg", good), ("a.cls", b"0"), ("b.jpg", b"text"), ("b.cls", b"0"), ("c.jpg", cut), ("c.cls", b"1")]
    files += [("d.jpg", good), ("e.cls", b"1"), ("f.jpg", good), ("f.cls", b"cat"), ("g.png", good), ("g.jpg", good)]
    archive(tmp_path / "train-0.tar", *files, ("g.cls", b"1"), ("h.jpg", good), ("h.cls", b"1"))
    archive(tmp_path / "test-0.tar", ("a.jpg", good), ("a.cls", b"0"))
    with pytest.raises(ValueError, match=r"got d without a class in .*train-0.tar"):
        load_data("webdataset", root=tmp_path, size=8)
    data = read(tmp_path)
    assert data.train.labels.tolist() == [0, 1]
    assert len(list(data.train.batches([(8, torch.arange(2))], CPU))) == 1
    assert [text.partition(", got ")[2].partition(" ")[0] for text in data.skipped.images] == [
        "d", "e", "'cat'", "g.jpg", "b.jpg", "c.jpg",
    ]  # fmt: skip
    assert "skipped as bad: 6 images, 3 images are left; the first: sample must be an image and its class" in note(data)
    assert data.skipped.record()["skipped_images"] == 6


def test_files_of_a_folder_and_of_a_list_are_skipped_too(folder, tmp_path):
    (folder / "train/a/000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image must be readable, got .*000.png"):
        load_data("folder", root=folder, size=8)
    for stream_files in (False, True):
        data = load_data("folder", root=folder, size=8, stream_files=stream_files, skip_bad=True)
        assert sorted(reds(data.train)) == list(range(1, NUM))
        assert "skipped as bad: 1 image, 68 images are left; the first: image must be readable, got " in note(data)
    rows = [f"folder/train/b/{i:03d}.png,{i % 2},train" for i in (1, 4, 7, 99)] + ["folder/test/a/000.png,0,test"]
    (tmp_path / "list.csv").write_text("file,label,split\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"list.csv must list files that exist, got .*099.png"):
        load_data("csv", root=tmp_path / "list.csv")
    assert reds(load_data("csv", root=tmp_path / "list.csv", skip_bad=True).train) == [1, 4, 7]
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="images must be readable, got none that is: image must be readable, got"):
        load_data("folder", root=folder, size=8, skip_bad=True)


def test_every_image_is_decoded_once_and_not_again_at_the_next_start(shards, monkeypatch):
    first = read(shards)
    monkeypatch.setattr(bad_images, "decode_image", lambda *_: pytest.fail("decoded again"))
    assert reds(read(shards).train) == reds(first.train)
    os.utime(shards / "train-000001.tar")
    with pytest.raises(pytest.fail.Exception):
        read(shards)


@pytest.mark.parametrize("data", ["shapes", ((torch.zeros(4, 3, 8, 8), [0, 1] * 2),) * 2])
def test_where_nothing_can_be_skipped_it_is_refused(data):
    with pytest.raises(
        ValueError, match="skip_bad must come with the data folder, csv, webdataset, got '?(shapes|tuple)"
    ):
        load_data(data, skip_bad=True)


@pytest.mark.usefixtures("narrow_presets")
def test_the_command_says_what_it_skips_and_the_record_and_the_report_have_it(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("multipde.reports.run_figures.svg", lambda make, name, alt: "")  # no figure is asked for
    os.truncate(shards / "train-000001.tar", 20 * 512)
    options = f"--data webdataset --root {shards} --sizes 4 --epochs 1 --batch 8 --device cpu --run {tmp_path}/run"
    with pytest.raises(SystemExit) as ended:
        main(["train", *options.split()])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "train-000001.tar must have" in line
    assert "type --skip-bad" in line
    assert not (tmp_path / "run").exists()
    main(["train", *options.split(), "--skip-bad"])
    assert "note: skipped as bad: what could not be read of 1 shard" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data_options"]["skip_bad"]
    assert record["provenance"]["data"]["skipped_shards"] == 1
    assert "skipped_shards" in (tmp_path / "run/report.html").read_text()
    main(["evaluate", str(tmp_path / "run"), "--device", "cpu"])
    assert "skipped as bad" in "".join(capsys.readouterr())
    main(["train", "--run", f"{tmp_path}/run", "--resume", "--skip-bad"])
    with pytest.raises(SystemExit):
        main(["train", "--run", f"{tmp_path}/run", "--resume", "--shuffle-buffer", "7"])


def test_the_note_counts_images_and_shards():
    found = replace(bad_images.Skipped(), shards=["s: cut off"], images=["a", "b"])
    assert found.notes(1000) == [
        "skipped as bad: 2 images and what could not be read of 1 shard, 1,000 images are left; the first: s: cut off"
    ]
    assert bad_images.Skipped().notes(1000) == []
