"""Processes that decode images: what ends them is told apart, and nothing of the user's runs in them."""

import os
import re
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

from multipde.data.streamed import StreamedImages
from multipde.data.worker_failure import failure_text

KILLED = "DataLoader worker (pid 7) is killed by signal: {}. "
SHARED = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
)


@pytest.mark.parametrize(
    ("message", "files", "line"),
    [
        (KILLED.format("Killed"), ["a.png"], "must not be killed, got SIGKILL, .* type a smaller --batch"),
        (KILLED.format("Segmentation fault"), ["a.png"], "image must not crash the process that decodes it, got a.png"),
        (KILLED.format("Aborted"), [], "must run until the end, got one that SIGABRT has ended; type --resume"),
        (SHARED, [], r"shared memory must hold a few batches .* --stream False, or docker run --shm-size 1g"),
        (SHARED, ["a.bmp"], "image must not crash the process that decodes it, got a.bmp"),
        ("unable to open shared memory object </torch_1> in read-write mode: Read-only file system (30)", [],
         r"shared memory must hold .*Read-only file system \(30\)"),
        ("Caught RuntimeError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\nRuntime"
         "Error: unable to allocate shared memory(shm) for file </torch_7_31_0>: No space left on device (28)\n", [],
         r"free \(unable to allocate shared memory\(shm\): No space left on device \(28\)\); type --stream False"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly with exit code 1. Details", [], "got exit status 1; type"),
    ],
)  # fmt: skip
def test_every_cause_has_its_line(message, files, line):

    found = failure_text(message, files)
    assert found is not None
    assert re.search(line, found)
    assert "\n" not in found


def test_an_error_of_another_kind_is_none_of_these():
    assert failure_text("CUDA error: device-side assert triggered") is None


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(found):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(path)
    return found


@pytest.mark.parametrize("error", [RuntimeError("unable to open shared memory object: 30"), OSError(30, "Read-only")])
def test_without_shared_memory_this_process_decodes_and_says_so(error, paths, monkeypatch):
    def share_memory_(self):
        raise error

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    images = StreamedImages(paths, torch.arange(3))
    with pytest.warns(UserWarning, match=r"images are decoded without other processes, .*(30|Read-only)"):
        ((x, labels),) = images.batches([(4, torch.arange(3))], torch.device("cpu"))
    assert (x[:, 0, 0, 0].tolist(), labels.tolist()) == ([0.0, 20.0, 40.0], [0, 1, 2])
    with warnings.catch_warnings(action="error"):  # it is said once
        list(StreamedImages(paths, torch.arange(3)).batches([(4, torch.arange(3))], torch.device("cpu")))


SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
import torch
from multipde.data.streamed import StreamedImages

for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda *given: None)
    threading.Timer(0.3, os.killpg, (os.getpgrp(), name)).start()
images = StreamedImages([Path(name) for name in sys.argv[1:]], torch.arange(3), num_workers=1)
print([x.shape[0] for x, _ in images.batches([(4, torch.arange(3))], torch.device("cpu"))])
"""


def test_a_worker_runs_neither_script_nor_working_directory_and_hears_no_signal(paths, tmp_path):
    """The script has no guard for ``__main__``, its directory names of libraries, and its group gets signals."""
    place, script = tmp_path / "place", tmp_path / "script.py"
    place.mkdir()
    for name in ("multiprocessing", "torch", "random"):
        (place / f"{name}.py").write_text("raise SystemExit('code of the working directory')")
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), *map(str, paths)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = started.communicate(timeout=120)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert (started.returncode, out, errors) == (0, "[3]\n", "")
