"""The provenance of a run: its command, package versions, machine and data, so that differences can be explained."""

import os
import platform
import shlex
import sys
import warnings
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from multipde.data.checksum import FileChecksum, data_checksum
from multipde.data.datasets import ImageData, load_data
from multipde.runtime.processes import is_rank_zero, num_processes, on_rank_zero
from multipde.storage.files import write_file
from multipde.storage.records import json_bytes, read_record
from multipde.storage.run_directory import resolved, training_record
from multipde.storage.schema import RUN

COMMAND = 10_000
"""Characters of a command that are recorded, at most, in whole words."""
PACKAGES = ("multipde", "torch", "torchvision", "kornia", "numpy")


def provenance(images: ImageData) -> dict[str, Any]:
    """Command, versions, machine and data of a new run. No program is called, since the folder may be untrusted."""
    lengths = accumulate(len(word) + 1 for word in sys.argv)
    words = [word for word, length in zip(sys.argv, lengths, strict=True) if length <= COMMAND]
    command = shlex.join(words) + " ..." * (len(words) < len(sys.argv))
    return {"command": command, "versions": versions(), "machine": machine(), "data": data_record(images)}


def data_record(images: ImageData) -> dict[str, Any]:
    """The checksum of the images, and what of them was skipped as bad."""
    return {"sha256": data_checksum(images)} | (images.skipped.record() if images.skipped else {})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and processes in use, memory, accelerator and operating system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def differences(recorded: Mapping[str, Any]) -> list[str]:
    """A line for every version or property of the machine that differs from the record and may change rounding."""
    found, present = [], {"versions": versions(), "machine": machine()}
    for part, names in (
        ("versions", (*PACKAGES, "python")),
        ("machine", ("processor", "threads", "processes", "accelerator")),
    ):
        old, new = recorded.get(part), present[part]
        for name in names:
            if isinstance(old, dict) and name in old and old[name] != new[name]:
                found.append(f"{name} was {old[name]} when the run began and is {new[name]} now")
    return found


class ChecksumWriter:
    """Writes, on rank zero, the checksum of a run's streamed files into the record ``file`` as soon as it is known."""

    def __init__(self, images: ImageData, file: Path):
        self.file, self.checksum = file, FileChecksum(images) if is_rank_zero() else None

    def update(self, wait: bool = False) -> None:
        """Write the checksum if it is known, or compare it with the recorded one; ValueError where they differ."""
        on_rank_zero(lambda: self._update(wait))

    def _update(self, wait: bool) -> None:
        found = self.checksum.result(wait) if self.checksum else None
        if found is None:
            return
        record = read_record(self.file, RUN)
        data = record.get("provenance", {}).get("data", {})
        recorded = data.get("files_sha256")
        if data and recorded is None:
            data["files_sha256"] = found
            write_file(self.file, json_bytes(record), keep_time=True)
        elif data and recorded != found:
            raise ValueError(_changed_data(recorded, found))

    def close(self) -> None:
        """Stop reading."""
        if self.checksum is not None:
            self.checksum.close()


def record_moved(images: ImageData, file: Path, root: str) -> str:
    """Write where images that have moved are now, once the contents of streamed ones are compared; returns a note."""
    with closing(ChecksumWriter(images, file)) as checksum:
        checksum.update(wait=True)
    record = read_record(file, RUN)
    options = record.get("data_options", {})
    note = f"note: the images are read from {root}, no longer from {options.get('root')}"
    options["root"] = root
    on_rank_zero(lambda: write_file(file, json_bytes(record), keep_time=True))
    return note


def check_data(record: Mapping[str, Any], images: ImageData, count_only: bool) -> None:
    """Raise ValueError for images that are not those of the recorded run, by checksum or by their number alone."""
    num = record.get("num_train")
    if len(images.train) != num:
        raise ValueError(f"data must be those of the run, {num} training images, got {len(images.train)}")
    recorded = record.get("provenance", {}).get("data", {}).get("sha256")
    if not count_only and recorded is not None and recorded != (found := data_checksum(images)):
        raise ValueError(_changed_data(recorded, found))


def tested_images(data: tuple[Any, Mapping[str, Any]], size: int, *runs: Path | None) -> ImageData:
    """The images of a source with its options, read at a size to test the networks of checkpoints.

    Raises:
        ValueError: a run has held back test images, and these are divided otherwise, from a share or folder that has
            changed: images that the network was trained on would be among those of the test. Nothing is asked of a
            checkpoint that is no run, or was trained on other data.
    """
    images = load_data(data[0], size=size, **data[1])
    for run in runs:
        if run is not None and (record := training_record(run)) is not None:
            _check_split(record, data, images, size)
    return images


def _check_split(record: Mapping[str, Any], data: tuple[Any, Mapping[str, Any]], images: ImageData, size: int) -> None:
    options = record.get("data_options", {})
    if "test_share" not in options or data[0] != record.get("data"):
        return
    share, found = options["test_share"], data[1].get("test_share")
    has_moved = "root" not in data[1] or resolved(data[1]["root"]) != options.get("root")
    if has_moved and found is None:
        return
    sides = [level["size"] * level.get("detail", 1) for level in record["levels"]]
    try:
        if share != found:
            raise ValueError(f"data must be divided as those of the run, by test_share {share}, got {found}")
        check_data(record, images, count_only=size != max(sides))
    except ValueError as error:
        if has_moved:  # they may be others, or some of those of the run among others
            text = "the test images are drawn at random from other images than those of the run"
            warnings.warn(f"{text}; where these hold some of them, the network was trained on a part", stacklevel=3)
            return
        why = "the network was trained on some of these test images, which the run held back at random"
        raise ValueError(f"{error}; {why}") from None


def _changed_data(recorded: Any, found: str) -> str:
    return (
        f"data must be those of the run, with checksum {str(recorded)[:12]}..., got {found[:12]}...: images or "
        "labels have changed"
    )


def _processor() -> str:
    """The processor's name, and its family and model, which distinguish generations of the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= known.keys():
        return f"{name}, family {known['cpu family']}, model {known['model']}"
    return name
