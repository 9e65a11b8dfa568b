"""Power loss as a law: whatever the disk has kept of the operations that were not synced, a whole checkpoint is left.

The file operations of a training are logged and replayed: for every moment, everything that was synced is there, and of
the rest any subset, since a disk may reorder what nobody has waited for.
"""

import fcntl
import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, train
from multipde.storage.run_directory import check_new_run, checkpoints_of, read_result, read_run_record
from multipde.training import trainer as trainer_module
from multipde.training.checkpoint import read_newest
from multipde.training.plan import recorded_plan

NETWORK = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)
MANY_FREE = 8
"""Up to so many operations that are not synced, all subsets are replayed; of more, a sample."""


@dataclass(frozen=True)
class Effect:
    """What an operation changes: the bytes of a file, or the entries of a directory, and when it happened.

    Args:
        target: the file or directory that has to be synced for the effect to last.
        entries: name to file, or to None for a name that is removed.
        data: (offset, bytes) that are written, or (length, None) for a file that is cut there.
    """

    time: int
    target: int
    entries: tuple[tuple[str, int | None], ...] = ()
    data: tuple[int, bytes | None] | None = None


@dataclass
class Journal:
    """The file operations below a directory, in order; files and directories have numbers, the directory itself 0."""

    root: Path
    effects: list[Effect] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[int, Any]] = field(default_factory=list)
    directories: set[int] = field(default_factory=lambda: {0})
    time: int = 0
    _names: dict[Path, int] = field(default_factory=dict)
    _handles: dict[int, int] = field(default_factory=dict)

    def mark(self, what: Any) -> None:
        """Note what has been promised to be on the disk by now."""
        self.marks.append((self.time, what))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Log all operations of `os` within the context."""
        originals = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "mkdir", "unlink")}
        originals |= {name: getattr(os, name) for name in ("rmdir", "ftruncate", "close")}
        self._names[self.root] = 0

        def hooked(name: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                before = self._before(name, args)
                result = originals[name](*args, **options)
                self._after(name, args, result, before)
                return result

            return call

        try:
            for name in originals:
                setattr(os, name, hooked(name))
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _known(self, path: Any) -> int | None:
        return self._names.get(Path(path)) if isinstance(path, str | Path) else None

    def _before(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "open":
            return Path(args[0]).exists()
        if name == "write" and args[0] in self._handles:
            appends = fcntl.fcntl(args[0], fcntl.F_GETFL) & os.O_APPEND
            return os.fstat(args[0]).st_size if appends else os.lseek(args[0], 0, os.SEEK_CUR)
        return None

    def _after(self, name: str, args: tuple[Any, ...], result: Any, before: Any) -> None:
        self.time += 1
        now, path = self.time, args[0]
        if name in ("open", "mkdir"):
            parent = self._known(Path(path).parent)
            if parent is None and self._known(path) is None:
                return
            if name == "mkdir" or not before:
                assert parent is not None
                number = self._names[Path(path)] = now
                self.effects.append(Effect(now, parent, ((Path(path).name, number),)))
                if name == "mkdir":
                    self.directories.add(number)
            if name == "open":
                self._handles[result] = self._names[Path(path)]
        elif name == "write" and path in self._handles:
            self.effects.append(Effect(now, self._handles[path], data=(before, bytes(args[1])[:result])))
        elif name == "ftruncate" and path in self._handles:
            self.effects.append(Effect(now, self._handles[path], data=(args[1], None)))
        elif name == "fsync" and path in self._handles:
            self.syncs.append((now, self._handles[path]))
        elif name == "close":
            self._handles.pop(path, None)
        elif name in ("unlink", "rmdir") and (parent := self._known(Path(path).parent)) is not None:
            self._names.pop(Path(path), None)
            self.effects.append(Effect(now, parent, ((Path(path).name, None),)))
        elif name == "replace" and (parent := self._known(Path(path).parent)) is not None:
            old, new = Path(path), Path(args[1])
            assert old.parent == new.parent
            moved = {new / p.relative_to(old): n for p, n in self._names.items() if p == old or old in p.parents}
            for gone in [p for p in self._names if p == old or old in p.parents]:
                del self._names[gone]
            self._names |= moved
            self.effects.append(Effect(now, parent, ((old.name, None), (new.name, moved[new]))))

    def moments(self) -> Iterator[int]:
        """The times after which the power may be lost."""
        yield from sorted({0, *(effect.time for effect in self.effects), *(time for time, _ in self.syncs)})

    def kept(self, time: int, rng: random.Random) -> Iterator[tuple[Effect, ...]]:
        """What may be on the disk if the power is lost after a moment: all that was synced, and any of the rest."""
        synced: dict[int, int] = {}
        for at, target in self.syncs:
            if at <= time:
                synced[target] = at
        done = [effect for effect in self.effects if effect.time <= time]
        free = [effect for effect in done if effect.time > synced.get(effect.target, 0)]
        fixed = [effect for effect in done if effect.time <= synced.get(effect.target, 0)]
        if len(free) <= MANY_FREE:
            subsets = [s for n in range(len(free) + 1) for s in itertools.combinations(free, n)]
        else:
            few = [(), tuple(free), *((e,) for e in free), *(tuple(f for f in free if f != e) for e in free)]
            subsets = few + [tuple(e for e in free if rng.random() < 0.5) for _ in range(2**MANY_FREE)]
        for subset in subsets:
            yield tuple(sorted((*fixed, *subset), key=lambda effect: effect.time))

    def tree(self, kept: tuple[Effect, ...]) -> dict[str, bytes | None]:
        """The paths of these effects: the bytes of every file, None for every directory."""
        entries: dict[int, dict[str, int]] = {number: {} for number in self.directories}
        files: dict[int, bytearray] = {}
        for effect in kept:
            for name, number in effect.entries:
                if number is None:
                    entries[effect.target].pop(name, None)
                else:
                    entries[effect.target][name] = number
            if effect.data is not None:
                content, (at, data) = files.setdefault(effect.target, bytearray()), effect.data
                content.extend(bytes(max(0, at - len(content))))
                content[at : at + len(data or b"") if data is not None else None] = data or b""
        found: dict[str, bytes | None] = {}
        left = [("", 0)]
        while left:
            base, directory = left.pop()
            for name, number in entries[directory].items():
                path = f"{base}{name}"
                if number in self.directories:
                    found[path] = None
                    left.append((f"{path}/", number))
                else:
                    found[path] = bytes(files.get(number, b""))
        return found


def write_tree(tree: dict[str, bytes | None], place: Path) -> None:
    """Make a directory with these files."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path in sorted(tree):
        if (data := tree[path]) is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(data)


def check_run(run: Path, promised: int, is_finished: bool) -> str:
    """What is wrong with what is left of a run that was promised to have this checkpoint; empty if nothing."""
    try:
        if not (run / "run.json").exists():
            if promised:
                return "no record of the run"
            check_new_run(run, "")
            return ""
        plan, _, _ = recorded_plan(read_run_record(run), run / "run.json")
        if is_finished:
            load(run)
            read_result(run)
        if not (found := checkpoints_of(run)):
            return f"no checkpoint instead of {promised}" if promised else ""
        _, _, state, _, note = read_newest(found, plan)
        if state.checkpoints < promised:
            return f"checkpoint {state.checkpoints} instead of {promised}: {note}"
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def journal_of_training(place: Path, **settings: Any) -> Journal:
    """The journal of a short training, with a mark for every checkpoint and for its end."""
    plan = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)])
    chosen = TrainSettings(device="cpu", calibration_images=20, transfer="copy", checkpoint_every=1e-9, **settings)
    journal, write = Journal(place), trainer_module.write_checkpoint
    place.mkdir()

    def marked(run: Path, number: int, *args: Any, **options: Any) -> dict[str, str]:
        written = write(run, number, *args, **options)
        journal.mark(number)
        return written

    trainer_module.write_checkpoint = marked
    try:
        with journal.recording():
            data = {"num_train": 50, "num_test": 20}
            train(NETWORK, plan, "shapes", place / "run", settings=chosen, data_options=data, quiet=True)
            journal.mark("finished")
    finally:
        trainer_module.write_checkpoint = write
    return journal


def campaign(place: Path, seed: int = 0, every: int = 1, **settings: Any) -> dict[str, Any]:
    """Replay the operations of a training, and look at what is left at every so many-th moment.

    Returns:
        The numbers of operations, of syncs, of different states of the disk, and of those that break the law.
    """
    started, rng = time.perf_counter(), random.Random(seed)
    journal = journal_of_training(place / "journal", **settings)
    known: set[tuple[Any, ...]] = set()
    broken: list[str] = []
    for moment in list(journal.moments())[::every]:
        promised = max((mark for at, mark in journal.marks if at <= moment and mark != "finished"), default=0)
        is_finished = any(mark == "finished" for at, mark in journal.marks if at <= moment)
        for kept in journal.kept(moment, rng):
            tree = journal.tree(kept)
            key = (
                promised,
                is_finished,
                *sorted((path, hash(data)) for path, data in tree.items() if not path.endswith("/.lock")),
            )
            if key in known:
                continue
            known.add(key)
            write_tree(tree, place / "left")
            if (place / "left/run").exists() or promised:
                wrong = check_run(place / "left/run", promised, is_finished)
                broken += [f"after operation {moment}: {wrong}"] if wrong else []
    counts = {"operations": len(journal.effects), "syncs": len(journal.syncs), "states": len(known)}
    row = {**counts, "broken": len(broken), "seconds": round(time.perf_counter() - started, 1)}
    return row | ({"first": broken[0]} if broken else {})
