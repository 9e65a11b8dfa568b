"""Labelled images that worker processes decode from files batch by batch."""

import atexit
import contextlib
import os
import signal
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multipde.data.decode import decode_image
from multipde.data.images import Batch, Key, Part
from multipde.data.tar_members import Member, TarMembers
from multipde.data.worker_failure import failure_text
from multipde.runtime.signals import SAVE, STOP
from multipde.runtime.spawning import spawning


@dataclass
class StreamedImages:
    """Images that worker processes decode from files batch by batch, at the size that is asked for.

    Only paths and labels (int64) are kept in memory, in one array each, so that large sets need little memory in every
    process. If one dies, the error names its file or the cause. With ``num_workers=0`` the calling process decodes.
    """

    paths: Sequence[Path] | TarMembers
    labels: Tensor
    num_workers: int = 2

    def __post_init__(self):
        if not isinstance(self.paths, TarMembers | _Paths):
            self.paths = _Paths(self.paths)
        self._files: _Files | None = None
        self._order = _Order()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[Part], device: torch.device, key: Key | None = None) -> Iterator[Batch]:
        self._order.parts = parts
        files, loaded = self._begun(device)
        try:
            for images, (_, index) in zip(loaded, parts, strict=True):
                yield images.to(device, non_blocking=True).float(), self.labels[index].to(device, non_blocking=True)
        except ValueError as error:  # the message holds the traceback of the worker; its last line names the file
            self.close()
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
        except RuntimeError as error:
            ended = files.ended()  # before they are closed
            self.close()
            names = [str(self.paths[i]) for pid, i in files.decoder.present.tolist() if pid in ended and i >= 0]
            if (text := failure_text(str(error), names, next(iter(ended.values()), None))) is None:
                raise
            raise ValueError(text) from None

    def take(self, indices: Tensor) -> "StreamedImages":
        paths: Any = self.paths
        return replace(self, paths=paths.take(indices), labels=self.labels[indices])

    def files(self) -> Iterator[tuple[str, str, Path]]:
        """For every file: its name, what stands before it in the checksum of the contents, and its path."""
        paths: Any = self.paths
        for path, label in zip(paths, self.labels.tolist(), strict=True):
            yield f"{path.parent.name}/{path.name}", f"{label} ", path

    def close(self) -> None:
        """End the workers; the next call of `batches` starts new ones."""
        if self._files is not None:
            self._files.close()
            self._files = None

    def _begun(self, device: torch.device) -> tuple["_Files", Iterator[Tensor]]:
        """The data loader and a pass over it; where no process can be started, this one decodes."""
        try:
            files = self._loaded(device)
            with spawning(deaf=True):
                return files, iter(files.loader)
        except (OSError, RuntimeError) as error:
            self.close()
            if not self.num_workers:
                raise
            reason = failure_text(str(error)) or " ".join(str(error).split())[:200]
            _say_once(f"images are decoded without other processes, which is slower: {reason}")
            self.num_workers = 0
            files = self._loaded(device)
            return files, iter(files.loader)

    def _loaded(self, device: torch.device) -> "_Files":
        if self._files is None or self._files.num_workers != self.num_workers:
            self.close()
            self._files = _Files(self.paths, self._order, self.num_workers, device.type == "cuda")
        return self._files


@cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


class _Paths(Sequence):
    """A sequence of paths that is stored as one array of bytes."""

    def __init__(self, paths: Sequence[Path]):
        self.names = np.array([os.fsencode(path) for path in paths])

    def take(self, indices: Tensor) -> "_Paths":
        """These paths only."""
        taken = _Paths(())
        taken.names = self.names[indices.numpy()]
        return taken

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Path(os.fsdecode(bytes(self.names[index])))


class _Order:
    """A batch sampler over the parts to be read next, which are set before every pass of the data loader."""

    def __init__(self):
        self.parts: Sequence[Part] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for size, index in self.parts:
            yield [(size, i) for i in index.tolist()]

    def __len__(self) -> int:
        return len(self.parts)


class _Decoder(torch.utils.data.Dataset):
    """Decodes images in a worker, which writes its process id and the index of its file to shared memory."""

    def __init__(self, paths: Sequence[Path | Member], num_workers: int):
        self.paths = paths
        self.present = torch.full((max(1, num_workers), 2), -1, dtype=torch.int64)
        if num_workers:
            self.present.share_memory_()

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        size, index = item
        worker = torch.utils.data.get_worker_info()
        row = self.present[worker.id if worker else 0]
        row[0], row[1] = os.getpid(), index
        image = decode_image(self.paths[index], size)
        row[1] = -1
        return image

    def __len__(self) -> int:
        return len(self.paths)


class _Files:
    """A data loader together with its decoder."""

    def __init__(self, paths: Sequence[Path | Member], order: _Order, num_workers: int, pin_memory: bool):
        from torch.utils.data import DataLoader

        self.num_workers = num_workers
        self.decoder = _Decoder(paths, num_workers)
        self.loader = DataLoader(
            self.decoder,
            batch_sampler=order,  # pyright: ignore[reportArgumentType]
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_to_the_trainer,
            multiprocessing_context="spawn" if num_workers else None,
        )
        _OPEN.add(self)

    def ended(self) -> dict[int, int]:
        """Process number and exit status of every worker that has failed."""
        workers = getattr(getattr(self.loader, "_iterator", None), "_workers", [])
        for worker in workers:
            worker.join(0.1)  # its end is known a little later than its silence
        return {worker.pid: worker.exitcode for worker in workers if worker.exitcode}

    def close(self) -> None:
        """End the workers."""
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None:
            with contextlib.suppress(RuntimeError):  # of a worker that crashes while it ends; torch ends the others
                iterator._shutdown_workers()


_OPEN: "weakref.WeakSet[_Files]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all workers before Python exits: they ignore SIGTERM, by which Python would end them."""
    for files in list(_OPEN):
        files.close()


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore signals in a worker, so that a signal to the process group does not end it before the step is finished."""
    for name in (*STOP, *SAVE):
        with contextlib.suppress(AttributeError, ValueError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
