"""Short versions of the campaigns; ``python -m tests.faults`` runs the whole ones."""

# pyright: reportOperatorIssue=false, reportArgumentType=false

import json
import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multipde import NetworkConfig, load_data
from multipde.data.decode import decode_image
from multipde.data.streamed import StreamedImages
from multipde.storage.stored_network import spec_from_record
from multipde.training.checkpoint import write_checkpoint
from multipde.training.state import TrainState
from tests.faults import environments, exact, foreign, fuzz, load, reorder, structure
from tests.faults.deadly import DeadlyPaths

QUICK = settings(max_examples=50, deadline=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
CONFIG = {"dynamics": "hamiltonian", "channels": [4], "out_channels": 4, "size": 8}


def outcome(read):
    """What it reads, or the text of its ValueError."""
    try:
        return read()
    except ValueError as error:
        return str(error)


def kill(place: Path) -> None:
    """Kill a training twice, and write what has been counted."""
    from tests.faults.kill import campaign

    torch.set_num_threads(1)
    (place / "counts.json").write_text(json.dumps(campaign(2, 0, place)))


def test_a_killed_training_loses_nothing(tmp_path):
    """In a process of its own: forking one that has computed is not safe."""
    process = multiprocessing.get_context("spawn").Process(target=kill, args=(tmp_path,))
    process.start()
    process.join(200)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["killed"] == 2
    assert (counts["lost"], counts["different"], counts["failed"]) == (0, 0, 0)


def test_an_operation_that_fails_loses_nothing(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=fail_operations, args=(tmp_path,))
    process.start()
    process.join(200)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["operations"] > 100
    assert (counts["unclean"], counts["lost"], counts["different"]) == (0, 0, 0)


def fail_operations(place: Path) -> None:
    from tests.faults.operations import campaign

    torch.set_num_threads(1)
    (place / "counts.json").write_text(json.dumps(campaign(place, every=1000, seed=173)))


def test_a_training_stopped_anywhere_is_the_undisturbed_one(tmp_path):
    counts = exact.campaign(tmp_path, ("copy",), every=5)
    assert counts["tried"] == 3  # in the first step, in the last one of the first level, and in the very last
    assert counts["different"] == 0


def test_damaged_files_give_a_clean_error_or_are_right(tmp_path):
    counts = fuzz.campaign(100, 0, tmp_path)
    assert counts["refused"] + counts["loaded"] == 100
    assert counts["slowest_seconds"] < 10


def test_foreign_images_labels_and_containers_are_right_or_refused(tmp_path):
    counts = foreign.campaign(400, 0, tmp_path)
    assert counts["right"] + counts["refused"] == 400
    assert min(counts["right"], counts["refused"]) > 100


@QUICK
@given(key=st.sampled_from(sorted(NetworkConfig.__dataclass_fields__)), value=VALUES)
def test_any_value_in_a_config_is_taken_or_refused(key, value):
    found = outcome(lambda: spec_from_record(CONFIG | {key: value}, Path("config.json")))
    assert isinstance(found, NetworkConfig) or "\n" not in found


@QUICK
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"P6 ", b"BM"]))
def test_any_bytes_are_an_image_or_refused(data, start):
    file = Path(os.environ["MULTIPDE_CACHE"] + "-image.png")
    file.write_bytes(start + data)
    found = outcome(lambda: decode_image(file, 4))
    assert "\n" not in found if isinstance(found, str) else found.shape == (3, 4, 4)


def test_decompression_bombs_are_refused_before_memory_is_taken(tmp_path):
    file = tmp_path / "bomb.png"
    for width, height in ((60_000, 60_000), (9_000, 9_000)):
        file.write_bytes(fuzz.bomb(width, height))
        started = time.perf_counter()
        with pytest.raises(ValueError, match=r"image must be readable, got .*bomb.png: "):
            decode_image(file, 8)
        assert time.perf_counter() - started < 2
    assert fuzz.bomb(8, 8)[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_pipe_among_images_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"image must be readable, got .*p.png: not a regular file"):
        decode_image(tmp_path / "p.png")


def test_only_the_formats_of_a_folder_are_tried(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode_image(tmp_path / "a.png")


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_no_pickle_is_executed(tmp_path):
    from multipde.conversions.state_dict import read_state_dict

    trap, sprung = Trap(tmp_path / "sprung"), tmp_path / "sprung"
    torch.save({"a": trap}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="weights must be a state dict"):
        read_state_dict(tmp_path / "w.pt")
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        (batches / name).write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="root must hold cifar10, got none in .*type --download"):
        load_data("cifar10", root=tmp_path)
    assert not sprung.exists()
    pickle.loads((batches / "test_batch").read_bytes())
    assert sprung.exists()  # the trap works


def test_memory_and_open_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(StreamedImages.__init__, "__defaults__", (1,))  # one worker for each set of images
    counts = load.campaign(600, tmp_path)
    assert counts["trainer_mib_late"] < 1.1 * counts["trainer_mib_early"]
    assert counts["open_files_late"] <= counts["open_files_early"]


@pytest.fixture
def grey_files(tmp_path):
    """Twelve images of one grey each, and a deadly one."""
    paths = [tmp_path / (f"{i}.png" if i < 12 else "deadly.png") for i in range(13)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(path)
    return paths


def test_an_abandoned_pass_does_not_disturb_the_next(grey_files):
    streamed = StreamedImages(grey_files, torch.arange(13))
    parts = [(4, torch.arange(k, k + 3)) for k in range(0, 12, 3)]
    next(iter(streamed.batches(parts, torch.device("cpu"))))
    passes = [list(streamed.batches(parts, torch.device("cpu"))) for _ in range(2)]
    for found in passes:
        assert torch.cat([labels for _, labels in found]).tolist() == list(range(12))
        assert torch.cat([x[:, 0, 0, 0] for x, _ in found]).tolist() == [20.0 * i for i in range(12)]
    streamed.close()


@pytest.mark.usefixtures("spawned")
def test_a_file_that_takes_its_worker_down_is_named(grey_files):
    streamed = StreamedImages(grey_files, torch.arange(13), num_workers=1)
    streamed.paths = DeadlyPaths(streamed.paths)
    message = r"^image must not crash the process that decodes it, got /\S*/deadly.png$"
    with pytest.raises(ValueError, match=message):
        list(streamed.batches([(4, torch.arange(9, 12)), (4, torch.arange(11, 13))], torch.device("cpu")))
    streamed.close()


def test_every_wrong_value_in_a_record_is_refused_or_read(tmp_path):
    counts = structure.campaign(20, 0, tmp_path)
    assert "bad" not in counts
    assert counts["num"] == 20


def test_the_power_may_be_lost_at_any_moment(tmp_path):
    counts = reorder.campaign(tmp_path, every=121, keep=1)
    assert counts["broken"] == 0, counts
    assert counts["states"] > 20


def test_the_law_of_power_loss_needs_every_sync(tmp_path, monkeypatch):
    """Where checkpoints are not synced, a checkpoint that was promised can be lost."""
    net, journal = reorder.NETWORK.build(), reorder.Journal(tmp_path / "a")
    (tmp_path / "a").mkdir()
    monkeypatch.setattr("multipde.storage.files.sync_directory", lambda directory: None)
    with journal.recording():
        write_checkpoint(tmp_path / "a", 1, net, {}, TrainState().record(), {})
    left = [journal.tree(kept) for kept in journal.kept(journal.time, random.Random(0))]
    assert any("checkpoint-0001/trainer.json" not in tree for tree in left)
    assert any("checkpoint-0001/trainer.json" in tree for tree in left)


def test_commands_work_or_refuse_in_hostile_surroundings(tmp_path):
    counts = environments.campaign(1, 0, tmp_path, commands=("completion",))
    assert counts.get("as always", 0) + counts.get("refused", 0) == counts["num"] == 1, counts
