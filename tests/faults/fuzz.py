"""Damage files of every kind and read them: a clean error or a correct load, nothing else."""

import io
import json
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from multipde import Level, NetworkConfig, PDENet, Schedule, TrainSettings, load, save, share_stencils, train
from multipde.conversions.state_dict import convert_state_dict, read_state_dict
from multipde.data.decode import decode_image
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import newest_checkpoint, read_run_record, recorded_data
from multipde.training.checkpoint import read_checkpoint
from multipde.training.plan import recorded_plan, recorded_split
from multipde.training.state import state_from_record
from tests.fixtures import as_format_1

NETWORK = NetworkConfig("hamiltonian", (4,), 4, steps=2, size=8)
NASTY = [
    *(None, True, -1, 0, 1, 0.5, 10**30, 10**400, -(2**63), 1e308, float("nan"), float("inf"), "", "\x1b[31m", "\0"),
    *("../../etc/passwd", "x" * 10**5, [], {}, [[]], {"a": {}}, [None], [1e308] * 3, [10**9] * 4, ["a"] * 10),
]


@dataclass(frozen=True)
class Base:
    """Files of one kind, and how they are read.

    Args:
        directory: holds them.
        names: of those that are damaged.
        read: takes the directory; what it returns is compared.
        sealed: with checksums, so that what can be read must be what was written.
    """

    kind: str
    directory: Path
    names: tuple[str, ...]
    read: Callable[[Path], Any]
    sealed: bool = False


def bases(place: Path) -> list[Base]:
    """One of every kind of file that the library reads."""
    net = save(PDENet(NETWORK), place / "net")
    plan = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)])
    settings = TrainSettings(device="cpu", calibration_images=20)
    options = {"num_train": 50, "num_test": 20}
    run = train(NETWORK, plan, "shapes", place / "run", settings=settings, data_options=options, quiet=True).directory
    for name in ("result.json", "model.safetensors", "config.json", "SHA256SUMS"):
        (run / name).unlink()
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    inside = tuple(f"{checkpoint.name}/{path.name}" for path in sorted(checkpoint.iterdir()))
    found = [
        Base("network", net, ("model.safetensors", "config.json", "SHA256SUMS"), _read_network, sealed=True),
        Base("run", run, ("run.json", "metrics.jsonl", *inside), _read_run, sealed=True),
    ]
    for base in (found[0], found[1]):
        bare = Path(shutil.copytree(base.directory, place / f"bare-{base.kind}"))
        as_format_1(bare)
        names = tuple(name for name in base.names if "SHA256" not in name)
        found.append(Base(f"{base.kind} without checksums", bare, names, base.read))
    weights = place / "weights"
    weights.mkdir()
    state = {"conv.weight": torch.randn(4, 3, 3, 3), "bn.running_var": torch.ones(4), "fc.weight": torch.randn(5, 4)}
    save_file(state, weights / "w.safetensors")
    torch.save(state, weights / "w.pt")
    found += [Base("state dict", weights, (name,), _reads_state(name)) for name in ("w.safetensors", "w.pt")]
    several = save(share_stencils(PDENet(NETWORK), (4, 8)), place / "several")
    names = ("sizes.safetensors", "sizes.json", "SHA256SUMS")
    found.append(Base("network for several sizes", several, names, _read_network, sealed=True))
    images = place / "images"
    images.mkdir()
    pixels = torch.randint(256, (24, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "ppm"):
        Image.fromarray(pixels.numpy()).save(images / f"i.{suffix}")
        found.append(Base("image", images, (f"i.{suffix}",), _decodes(f"i.{suffix}")))
    return found


def _read_network(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load(directory).state_dict())


def _read_run(directory: Path) -> Any:
    """All that resuming reads."""
    record = read_run_record(directory)
    plan, _, _ = recorded_plan(record, directory / "run.json")
    recorded_data(directory)
    recorded_split(directory)
    for row in read_metrics(directory / "metrics.jsonl"):
        json.dumps(row)
    newest = newest_checkpoint(directory)
    if newest is None:
        return {}
    net, best, state, momentum = read_checkpoint(newest)
    state_from_record(state, plan, newest)
    return {**dict(net.state_dict()), **{f"best.{k}": t for k, t in best.items()}, **momentum}


def _reads_state(name: str) -> Callable[[Path], Any]:
    def read(directory: Path) -> dict[str, torch.Tensor]:
        return convert_state_dict(read_state_dict(directory / name), 0.5)[0]

    return read


def _decodes(name: str) -> Callable[[Path], Any]:
    def read(directory: Path) -> torch.Tensor:
        return decode_image(directory / name, 8)

    return read


def damage(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One random damage to the bytes of a file."""
    kind = rng.choice(("cut", "flip", "span", "insert", "delete", "double", "empty", "swap", "header", "json", "json"))
    at = rng.randrange(len(data) + 1)
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == "span":
        return data[:at] + rng.randbytes(min(rng.randrange(1, 40), len(data) - at)) + data[at + 40 :]
    if kind == "insert":
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    if kind == "delete":
        return data[:at] + data[at + rng.randrange(1, 40) :]
    if kind == "double":
        return data + data
    if kind == "empty":
        return b""
    if kind == "swap":
        return other
    if kind == "header":
        return rng.randbytes(8) + data[8:] if rng.random() < 0.5 else (2**40).to_bytes(8, "little") + data[8:]
    return _damage_json(data, rng)


def _damage_json(data: bytes, rng: random.Random) -> bytes:
    """Another value, a key less or a key more somewhere in a record, also in the header of a safetensors file."""
    start, end = 0, len(data)
    if data[8:9] == b"{":
        start, end = 8, 8 + int.from_bytes(data[:8], "little")
    try:
        record = json.loads(data[start:end])
    except ValueError:
        return rng.randbytes(len(data))
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(record)
    if not spots:
        return b"null"
    node, key = rng.choice(spots)
    action = rng.choice(("value", "value", "value", "less", "more"))
    if action == "value":
        node[key] = rng.choice(NASTY)
    elif action == "less":
        del node[key]
    elif isinstance(node, dict):
        node[rng.choice(("extra", "../x", ""))] = rng.choice(NASTY)
    else:
        node.append(rng.choice(NASTY))
    text = json.dumps(record).encode()
    return data[: start - 8] + len(text).to_bytes(8, "little") + text + data[end:] if start else text


def campaign(num: int, seed: int, place: Path) -> dict[str, int | float]:
    """Damage and read ``num`` files.

    Returns:
        Counts: files by kind, refused, loaded, and those that were neither, which must be none.

    Raises:
        AssertionError: something else than a clean error or a correct load, with the seed and number of the file.
    """
    rng, counts, started = random.Random(seed), Counter(), time.perf_counter()
    kinds = bases(place)
    expected = {id(base): base.read(base.directory) for base in kinds if base.sealed}
    files = [(base, name) for base in kinds for name in base.names]
    contents = {(base.kind, name): (base.directory / name).read_bytes() for base, name in files}
    others = list(contents.values())
    slowest = 0.0
    for number in range(num):
        base, name = files[number % len(files)]
        file = base.directory / name
        good = contents[base.kind, name]
        file.write_bytes(damage(good, rng, rng.choice(others)))
        began = time.perf_counter()
        try:
            with warnings.catch_warnings(action="ignore"):
                found = base.read(base.directory)
            counts["loaded"] += 1
            if base.sealed:
                _check_same(found, expected[id(base)], f"seed {seed}, number {number}, {base.kind} {name}")
        except (ValueError, OSError) as error:
            counts["refused"] += 1
            if "\n" in str(error) or not 0 < len(str(error)) < 1000:
                raise AssertionError(f"seed {seed}, number {number}, {base.kind} {name}: {error}") from error
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, number {number}, {base.kind} {name}: {type(error).__name__}: {error}"
            ) from error
        slowest = max(slowest, time.perf_counter() - began)
        counts[base.kind] += 1
        file.write_bytes(good)
    seconds = round(time.perf_counter() - started, 1)
    return {**counts, "num": num, "slowest_seconds": round(slowest, 2), "seconds": seconds}


def _check_same(found: Any, expected: Any, what: str) -> None:
    assert set(found) == set(expected), what
    assert all(torch.equal(found[name], expected[name]) for name in expected), what


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims more pixels than it is wise to decode."""
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)
