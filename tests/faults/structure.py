"""Put every wrong type and bound into every entry of every record, and read what the commands read.

Every record is read in a child process, within five seconds of computing (and a minute in all) and a gibibyte: what
raises anything but a clean error, hangs or takes more memory is counted.
"""

import copy
import os
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.stored_records import WRONG, Json, Stored, runs, stored, wrong_values

SECONDS, BYTES = 5, 2**30


def spots(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value of a record, the whole first."""
    yield path
    for key in record if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ():
        yield from spots(record[key], (*path, key))


def changed(record: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of a record in which one value is changed."""
    box = {"record": copy.deepcopy(record)}
    node: Any = box
    keys = ("record", *path)
    for key in keys[:-1]:
        node = node[key]
    change(node, keys[-1])
    return box.get("record")


def variants(record: Any, wrong: list[Any] = WRONG) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The places of a record, and for each the numbers of its changes: wrong values, one entry less, or one more."""
    for path in spots(record):
        yield from ((path, i) for i in range(len(wrong) + 2 if path else len(wrong) + 1))


def variant(record: Any, path: tuple[Any, ...], number: int, wrong: list[Any] = WRONG) -> Any:
    """The record with one change."""

    def change(node: Any, key: Any) -> None:
        if number < len(wrong):
            node[key] = wrong[number]
        elif number > len(wrong):
            del node[key]
        elif isinstance(node[key], dict):
            node[key]["extra"] = [1]
        elif isinstance(node[key], list):
            node[key] += node[key] or [1]
        else:
            node[key] = [node[key]]

    return changed(record, path, change)


def outcome(source: Stored) -> str:
    """Read a file: "loaded", "refused", or "traceback" or "memory" with what was wrong."""
    before = _peak()
    try:
        with warnings.catch_warnings(action="ignore"):
            source.read()
        found = "loaded"
    except (ValueError, OSError) as error:
        text = str(error)
        found = "refused" if "\n" not in text and 0 < len(text) < 1000 else f"traceback: {text[:1000]!r}"
    except BaseException:
        found = f"traceback: {traceback.format_exc()[-1500:]!r}"
    return found if _peak() - before < BYTES else f"memory: {_peak() - before:,}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read_all(todo: list[Any], stream: Any) -> None:
    """Read changed records in this child, and write a line about each; the last line is missing for one that hangs."""
    for source, path, number in todo:
        source.write(variant(source.record(), path, number, wrong_values(source)))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(12 * SECONDS)
        began = time.process_time()
        said = outcome(source)
        stream.write(f"{time.process_time() - began:.2f} {said}\n")
        stream.flush()
        source.write(source.record())


def _all_changes(sources: list[Stored]) -> Iterator[tuple[Stored, Any, int]]:
    """Every change of every record; of the external network only where it differs from those of a PDE network."""
    for source in sources:
        is_other = isinstance(source, Json) and source.run.name == "resnet"
        for path, number in variants(source.record(), wrong_values(source)):
            if not is_other or "network" in path:
                yield source, path, number


def campaign(num: int, seed: int, place: Path) -> dict[str, Any]:
    """Read ``num`` records, drawn at random from all that there are.

    Returns:
        How many there are, how many were read, loaded and refused, and those that were neither.
    """
    started, counts, slowest, bad = time.perf_counter(), Counter(traceback=0, hang=0, memory=0), 0.0, []
    sources = stored(runs(place), place)
    for source in sources:
        source.write(source.record())
        source.read()
    todo = list(_all_changes(sources))
    possible = len(todo)
    random.Random(seed).shuffle(todo)
    todo = todo[:num]
    while todo:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(writer, "w") as stream:
                _read_all(todo, stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read().splitlines()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            said.append(f"{SECONDS} {'hang' if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else 'memory'}")
            source = todo[len(said) - 1][0]
            source.write(source.record())
        elif len(said) < len(todo):
            raise RuntimeError(f"reading must go on until the end, got {status}")
        for (source, path, number), line in zip(todo, said, strict=False):
            seconds, _, text = line.partition(" ")
            kind, slowest = text.partition(":")[0], max(slowest, float(seconds))
            counts[kind] += 1
            if kind not in ("loaded", "refused"):
                wrong = wrong_values(source)
                value = repr(wrong[number])[:40] if number < len(wrong) else "more or less"
                bad.append(f"{source.file.parent.name}/{source.file.name} {path} {value} {text}")
        todo = todo[len(said) :]
    took = {"slowest_seconds": round(slowest, 2), "seconds": round(time.perf_counter() - started, 1)}
    return {"possible": possible, "num": counts.total(), **counts, **took} | ({"bad": bad} if bad else {})
