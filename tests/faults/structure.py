"""Put every wrong type and bound into every entry of every record, and read what the commands read.

The records are read in child processes, each in five seconds of computing (and a minute in all) and a gibibyte: what
raises anything but a clean error, hangs or takes more memory is counted.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, train
from multipde.networks.external import external_model
from multipde.reports.page_text import page_text
from multipde.reports.run_record import read_run
from multipde.storage.provenance import differences
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import checkpoints_of, read_result, read_run_record, recorded_data
from multipde.training.checkpoint import read_newest
from multipde.training.plan import recorded_plan, recorded_split
from tests.conftest import as_format_1

SECONDS, BYTES = 5, 2**30
WRONG = [
    *(None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e-9, 10**7, 10**9, 2**31, 2**53, 2**63, 2**64, -(2**31), 10**30),
    *(10**400, 1e308, 1e9, -1e308, float("nan"), float("inf"), -float("inf"), "", "x", "\x1b[31m", "[/x]", "\0"),
    *("../../etc/passwd", "x" * 10**5, "torchvision:resnet18", "a.b:c", "1e9min", [], {}, [[]], {"a": {}}, {"": None}),
    *([None], [0], [1], [-1], [1e308] * 3, [10**9] * 4, [10**7], ["a"] * 10, [1] * 1000, ["a", "a"], [["x", 1]]),
    *([[1, 0.5], [2, 0.5]], [True], {"format": 1}, {"sha256": 5}, {"x": [1]}, [[[[[[[[[[[[[[1]]]]]]]]]]]]]]),
]
NETWORK = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)


def runs(place: Path) -> list[Path]:
    """A finished and an unfinished run of a PDE network, and a finished run of another network, of format 1.

    Records of format 1 need no checksums, which would notice every change.
    """
    found = []
    for name, network, size in (
        ("pde", NETWORK, 8),
        ("resnet", external_model("mobilenet_v2(width_mult=0.1)", size=32), 32),
    ):
        plan = Schedule([Level(size, 1, batch=20), Level(2 * size, 1, batch=20)])
        settings = TrainSettings(device="cpu", calibration_images=20, keep=1)
        data = {"num_train": 50, "num_test": 20}
        run = train(network, plan, "shapes", place / name, settings=settings, data_options=data, quiet=True).directory
        found.append(as_format_1(run))
    unfinished = Path(shutil.copytree(found[0], place / "unfinished"))
    for name in ("result.json", "model.safetensors", "config.json"):
        (unfinished / name).unlink()
    return [found[0], unfinished, found[1]]


def read_everything(run: Path) -> None:
    """All that the commands read of a run."""
    record = read_run_record(run)
    plan, _, _ = recorded_plan(record, run / "run.json")
    recorded_data(run)
    recorded_split(run)
    differences(record.get("provenance", {}))
    json.dumps(read_metrics(run / "metrics.jsonl"))
    str(plan.rows())
    read_newest(checkpoints_of(run), plan)
    net = load(run)
    if (run / "result.json").exists():
        read_result(run)
        seen = read_run(run)
        json.dumps(page_text(seen, None, [str(k) for k in range(10**4)]))
    with torch.no_grad():
        spec: Any = net.multipde_spec
        if max(spec.image_sizes) <= 64:
            net(torch.zeros(2, spec.in_channels, *spec.image_sizes))


def records(run: Path) -> list[Path]:
    """The files of a run that hold records."""
    return sorted([*run.rglob("*.json"), *run.glob("metrics.jsonl")])


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


def variants(record: Any) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The places of a record, and for each the numbers of its changes: wrong values, one entry less, or one more."""
    for path in spots(record):
        yield from ((path, i) for i in range(len(WRONG) + 2 if path else len(WRONG) + 1))


def variant(record: Any, path: tuple[Any, ...], number: int) -> Any:
    """The record with one change."""

    def change(node: Any, key: Any) -> None:
        if number < len(WRONG):
            node[key] = WRONG[number]
        elif number > len(WRONG):
            del node[key]
        elif isinstance(node[key], dict):
            node[key]["extra"] = [1]
        elif isinstance(node[key], list):
            node[key] += node[key] or [1]
        else:
            node[key] = [node[key]]

    return changed(record, path, change)


def outcome(run: Path) -> str:
    """Read a run: "loaded", "refused", or "traceback" or "memory" with what was wrong."""
    before = _peak()
    try:
        with warnings.catch_warnings(action="ignore"):
            read_everything(run)
        found = "loaded"
    except (ValueError, OSError) as error:
        text = str(error)
        found = "refused" if "\n" not in text and 0 < len(text) < 1000 else f"traceback: {text[:1000]!r}"
    except BaseException:
        found = f"traceback: {traceback.format_exc()[-1500:]!r}"
    return found if _peak() - before < BYTES else f"memory: {_peak() - before:,}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read_all(todo: list[Any], contents: dict[Path, list[str]], place: Path, stream: Any) -> None:
    """Read changed records in this child, and write a line about each; the last line is missing for one that hangs."""
    for run, file, path, number in todo:
        lines = contents[file]
        text = json.dumps(variant(json.loads(lines[0]), path, number))
        file.write_text("\n".join([text, *lines[1:], ""]))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(12 * SECONDS)
        began = time.process_time()
        said = outcome(run)
        stream.write(f"{time.process_time() - began:.2f} {said}\n")
        stream.flush()
        file.write_text("\n".join(lines) + "\n")


def campaign(num: int, seed: int, place: Path) -> dict[str, Any]:
    """Read ``num`` records, evenly spread over all that there are.

    Returns:
        How many there are, how many were read, loaded and refused, and those that were neither.
    """
    started, counts, slowest, bad = time.perf_counter(), Counter(traceback=0, hang=0, memory=0), 0.0, []
    contents, todo = {}, []
    for run in runs(place):
        read_everything(run)
        for file in records(run):
            contents[file] = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            is_new = run.name != "external" or "network" in contents[file][0]  # its other records are as those of pde
            spots_in = variants(json.loads(contents[file][0])) if is_new else ()
            todo += [(run, file, *which) for which in spots_in if run.name != "external" or "network" in which[0]]
    possible = len(todo)
    random.Random(seed).shuffle(todo)
    todo = todo[:num]
    while todo:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(writer, "w") as stream:
                _read_all(todo, contents, place, stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read().splitlines()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            said.append(f"{SECONDS} {'hang' if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else 'memory'}")
            file = todo[len(said) - 1][1]
            file.write_text("\n".join(contents[file]) + "\n")
        elif len(said) < len(todo):
            raise RuntimeError(f"reading must go on until the end, got {status}")
        for (run, file, path, number), line in zip(todo, said, strict=False):
            seconds, _, text = line.partition(" ")
            kind, slowest = text.partition(":")[0], max(slowest, float(seconds))
            counts[kind] += 1
            if kind not in ("loaded", "refused"):
                value = str(WRONG[number])[:40] if number < len(WRONG) else "more or less"
                bad.append(f"{run.name}/{file.name} {path} {value!r} {text}")
        todo = todo[len(said) :]
    took = {"slowest_seconds": round(slowest, 2), "seconds": round(time.perf_counter() - started, 1)}
    return {"possible": possible, "num": counts.total(), **counts, **took} | ({"bad": bad} if bad else {})
