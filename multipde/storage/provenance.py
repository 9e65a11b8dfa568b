"""Where a run comes from: command, versions, machine, and the data, so that a difference can be explained."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from multipde.data.checksum import FileChecksum, data_checksum
from multipde.data.datasets import ImageData
from multipde.runtime.processes import num_processes
from multipde.storage.files import write_file
from multipde.storage.records import FORMAT, json_bytes, read_json

PACKAGES = ("multipde", "torch", "torchvision", "kornia", "numpy")


def provenance(images: ImageData) -> dict[str, Any]:
    """Plain data about a run that begins. No program is asked: folders of images and runs may come from strangers."""
    return {
        "command": shlex.join(sys.argv),
        "versions": versions(),
        "machine": machine(),
        "data": data_record(images),
    }


def data_record(images: ImageData) -> dict[str, Any]:
    """What the images are."""
    return {"sha256": data_checksum(images)}


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and processes in use, memory, and accelerator."""
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


def differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the run began and may change the last bits of its numbers, a line each."""
    found = []
    for part, names in (
        ("versions", (*PACKAGES, "python")),
        ("machine", ("processor", "threads", "processes", "accelerator")),
    ):
        old, new = recorded.get(part), present[part]
        for name in names:
            if isinstance(old, dict) and name in old and old[name] != new[name]:
                found.append(f"{name} was {old[name]} when the run began and is {new[name]} now")
    return found


class RecordedFiles:
    """The checksum of the streamed files of a run, written into its record as soon as it is known.

    Args:
        images: of the run.
        file: the record.
    """

    def __init__(self, images: ImageData, file: Path):
        self.file, self.checksum = file, FileChecksum(images)

    def settle(self, wait: bool = False) -> None:
        """Write the checksum down if it is known, or compare it with the one that is written down.

        Args:
            wait: until it is known.

        Raises:
            ValueError: the files are not those with which the run began, or cannot be read.
        """
        found = self.checksum.result(wait)
        if found is None:
            return
        record = read_json(self.file, FORMAT)
        origin = record.get("provenance")
        data = origin.get("data") if isinstance(origin, dict) else None
        if not isinstance(data, dict):
            return
        if (recorded := data.get("files_sha256")) is None:
            data["files_sha256"] = found
            write_file(self.file, json_bytes(record))
        elif recorded != found:
            raise ValueError(changed_data(recorded, found))

    def close(self) -> None:
        """Give up what is not read yet."""
        self.checksum.close()


def changed_data(recorded: Any, found: str) -> str:
    """What is said where the images of a run are not those with which it began."""
    return (
        f"data must be those of the run, with checksum {str(recorded)[:12]}..., got {found[:12]}...: images or "
        "labels have changed"
    )


def _processor() -> str:
    """Its name, and family and model where there is one, which tell generations of the same name apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= known.keys():
        return f"{name}, family {known['cpu family']}, model {known['model']}"
    return name
