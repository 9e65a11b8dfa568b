"""Where a run comes from: command, versions, machine, and the data, so that a difference can be explained."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from multipde.data.datasets import ImageData
from multipde.data.images import ImageSet, TensorImages
from multipde.data.streamed import StreamedImages
from multipde.training.distributed import num_processes

PACKAGES = ("multipde", "torch", "torchvision", "kornia", "numpy")


def provenance(images: ImageData, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data about a run that begins.

    Args:
        options: by which the images were read.
    """
    return {
        "command": shlex.join(sys.argv),
        "versions": versions(),
        "machine": machine(),
        "data": {"sha256": data_checksum(images), "git": git_state(options.get("root"))},
    }


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


def data_checksum(images: ImageData) -> str:
    """SHA-256 of training and test images with their labels; of names and lengths where files are streamed."""
    digest = hashlib.sha256()
    for part in (images.train, images.test):
        _feed(digest, part)
    return digest.hexdigest()


def git_state(root: Any) -> str | None:
    """Commit of the working tree in which the data are tracked; None where there is none.

    Whether they are as committed is not asked: that would run filters which a stranger's working tree may name.
    """
    if root is None or not Path(root).is_dir():
        return None
    safe = ["git", "-c", "core.fsmonitor=false", "-C", str(root)]
    try:
        commit = _output([*safe, "rev-parse", "HEAD"])
        tracked = _output([*safe, "ls-files", "--", "."])
    except (OSError, subprocess.SubprocessError):
        return None
    return commit if commit and tracked else None


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


def _feed(digest: Any, part: ImageSet) -> None:
    if isinstance(part, StreamedImages):
        for path in part.paths:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    elif isinstance(part, TensorImages):
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy())
    digest.update(part.labels.contiguous().numpy())


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


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
