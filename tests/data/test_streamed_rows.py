"""Streams of Hugging Face: no row is lost or seen twice, in any number of processes, and a training is resumed."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportMissingImports=false

import io
import os
import re
from itertools import chain

import pytest
import torch
from PIL import Image

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load_data, resume, train
from multipde.data.shards import SHUFFLE_BUFFER, ShardImages
from multipde.data.streamed_rows import load_streams
from tests.data.test_shards import epoch, reds, same_after_a_kill

datasets = pytest.importorskip("datasets")
NUM = 90
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _this_process_decodes(monkeypatch, tmp_path):
    monkeypatch.setattr(ShardImages.__init__, "__defaults__", (0, SHUFFLE_BUFFER))
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Parquet files with one-coloured pictures of three classes, whose red value is their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee", "cat"]))
    for part, num in (("train", NUM), ("test", 6)):
        for k, numbers in enumerate(torch.arange(num).split(25)):
            rows = []
            for i in numbers.tolist():
                file = io.BytesIO()
                Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "PNG")
                rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": i % 3})
            pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), place / f"{part}-{k}.parquet")
    return place


def streams(files):
    parts = {part: str(files / f"{part}-*.parquet") for part in ("train", "test")}
    return datasets.load_dataset("parquet", data_files=parts, streaming=True, cache_dir=str(files / "cache"))


def numbered(first, num):
    """Rows without features, whose pictures are decoded."""
    for i in range(first, first + num):
        yield {"img": Image.new("L", (8, 8), i), "label": "abc"[i % 3]}


def test_a_stream_has_every_image_once_in_an_order_of_the_seed_that_processes_share(files):
    data = load_data(streams(files), size=8, shuffle_buffer=15)
    assert data.class_names == ("ant", "bee", "cat")
    assert reds(data.train) == list(range(NUM))
    assert [red % 3 for red in reds(data.train)] == data.train.labels.tolist()
    assert reds(data.test) == list(range(6))
    assert "96 images streamed from 5 shards" in data.notes[-1]
    whole = epoch(data, batch=12)
    assert len(set(chain(*whole))) == NUM // 12 * 12
    assert sorted(chain(*epoch(data, batch=NUM))) == list(range(NUM))
    for num_processes in (2, 4):
        parts = [epoch(data, 12, (k, num_processes)) for k in range(num_processes)]
        assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole
    assert epoch(data, 12, start=3) == whole[3:]  # as after a kill
    assert epoch(data, 12, key=(0, "train", 0, 1)) != whole


def test_a_training_on_a_stream_goes_on_after_a_kill_as_if_nothing_had_happened(files, tmp_path, monkeypatch):
    network, plan = NetworkConfig("hamiltonian", (4, 6), 3, steps=1, size=4), Schedule([Level(4, 2, batch=24)])
    settings = TrainSettings(device="cpu", calibration_images=20, checkpoint_every=1e-9)
    options = {"shuffle_buffer": 15}

    def run(name):
        return train(
            network, plan, streams(files), tmp_path / name, settings=settings, data_options=options, quiet=True
        )

    same_after_a_kill(run, lambda: resume(tmp_path / "killed", streams(files), quiet=True), tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="data must be those of the run"):
        resume(tmp_path / "killed", load_data(streams(files)["train"], test_share=0.5), extend=[(4, 1)], quiet=True)


def test_a_store_keeps_no_more_than_its_limit_and_copies_again_what_it_needs(files):
    data = load_streams((streams(files)["train"], streams(files)["test"]), 8, None, limit=1)
    place = data.train.paths.store.place
    assert [len(list(place.glob(f"*.{end}"))) for end in ("rows", "json", "partial")] == [1, 4, 0]
    assert reds(data.train) == list(range(NUM))
    assert len(list(place.glob("*.rows"))) == 1


def test_a_stream_of_decoded_pictures_and_names_and_one_without_test_images():
    stream = datasets.IterableDataset.from_generator(numbered, gen_kwargs={"first": 10, "num": 30})
    stream = stream.map(lambda row: row)  # which pickle does not take
    data = load_data(stream, test_share=0.2)
    assert data.class_names == ("a", "b", "c")
    assert sorted(reds(data.train) + reds(data.test)) == list(range(10, 40))
    assert len(data.test) == 6
    assert [red % 3 for red in reds(data.train)] == data.train.labels.tolist()
    again = load_data({"train": stream}, test_share=0.2)
    assert reds(again.test) == reds(data.test)


def test_what_is_wrong_with_a_stream_is_one_line(files, tmp_path):
    train_stream = streams(files)["train"]
    for wrong, message in (
        (train_stream, "data must have test images, got a stream alone; type --test-share"),
        ((train_stream, (torch.zeros(2, 3, 8, 8), [0, 1])), "train and test must both be streams"),
        ((train_stream.remove_columns("label"), train_stream), "row 0 of shard 0 of the stream must have one entry"),
        ((train_stream.take(0), train_stream), "train must hold images, got none"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            load_data(wrong)
        assert "\n" not in str(error.value)
    given = {"first": [0], "num": [4]}
    stream = datasets.IterableDataset.from_generator(changing, gen_kwargs={"file": str(tmp_path / "times"), **given})
    data = load_streams((stream, stream), 8, None, limit=1)
    data.train.paths.store._rows(0).unlink()
    with pytest.raises(ValueError, match="stream must give the same rows whenever it is read, got others in shard 0"):
        reds(data.train)


def changing(file, first, num):
    """Other rows whenever they are read."""
    with open(file, "a") as times:
        times.write(".")
    yield from numbered(os.path.getsize(file), num[0])
