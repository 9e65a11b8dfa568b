"""The files whose records `structure` changes: JSON files, headers of safetensors files, and .pt files."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load, train
from multipde.conversions.state_dict import convert_state_dict, read_state_dict
from multipde.networks.external import external_model
from multipde.reports.page_text import page_text
from multipde.reports.run_record import read_run
from multipde.storage.provenance import differences
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import checkpoints_of, read_result, read_run_record, recorded_data
from multipde.training.checkpoint import read_newest
from multipde.training.plan import recorded_plan, recorded_split
from tests.fixtures import as_format_1

WRONG = [
    *(None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e-9, 10**7, 10**9, 2**31, 2**53, 2**63, 2**64, -(2**31), 10**30),
    *(10**400, 1e308, 1e9, -1e308, float("nan"), float("inf"), -float("inf"), "", "x", "\x1b[31m", "[/x]", "\0"),
    *("../../etc/passwd", "x" * 10**5, "torchvision:resnet18", "a.b:c", "1e9min", [], {}, [[]], {"a": {}}, {"": None}),
    *([None], [0], [1], [-1], [1e308] * 3, [10**9] * 4, [10**7], ["a"] * 10, [1] * 1000, ["a", "a"], [["x", 1]]),
    *([[1, 0.5], [2, 0.5]], [True], {"format": 1}, {"sha256": 5}, {"x": [1]}, [[[[[[[[[[[[[[1]]]]]]]]]]]]]]),
]
with warnings.catch_warnings(action="ignore"):  # torch tells that these kinds are old or new
    ODD_TENSORS = [
        *(torch.empty(3, 2, 3, 3, device="meta"), torch.eye(3).to_sparse(), torch.zeros(3, 2, 3, 3).to_sparse_csr()),
        torch.quantize_per_tensor(torch.zeros(3, 2, 3, 3), 0.1, 0, torch.qint8),
        *(torch.zeros(1).expand(10**10), torch.zeros(3, 2, 0, 3), torch.zeros(()), torch.zeros(1, 1, 501, 501)),
        *(torch.full((3, 2, 3, 3), torch.nan), torch.zeros(3, 2, 3, 3).bool(), torch.zeros(3, 2, 2, 2)),
        *(torch.zeros(3, 2, 3, 3, dtype=dtype) for dtype in (torch.complex64, torch.float8_e4m3fn, torch.int64)),
    ]
NETWORK = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)
OTHER = "mobilenet_v2(width_mult=0.1, inverted_residual_setting=((1, 16, 1, 1), (6, 24, 1, 2)))"
"""The first two stages of a network of another library."""


def runs(place: Path) -> list[Path]:
    """A finished and an unfinished run of a PDE network, and a finished run of another network, of format 1.

    Records of format 1 need no checksums, which would notice every change.
    """
    found = []
    for name, network, size in (
        ("pde", NETWORK, 8),
        ("resnet", external_model(OTHER, size=8), 8),
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
    with warnings.catch_warnings(action="ignore"):  # one of the runs is not finished
        net = load(run)
    if (run / "result.json").exists():
        read_result(run)
        seen = read_run(run)
        json.dumps(page_text(seen, None, [str(k) for k in range(10**4)]))
    with torch.no_grad():
        spec: Any = net.multipde_spec
        if max(spec.image_sizes) <= 64:
            net(torch.zeros(2, spec.in_channels, *spec.image_sizes))


class Json(NamedTuple):
    """A file of JSON whose first line is changed, or which is changed as a whole; it belongs to a run."""

    run: Path
    file: Path
    lines: tuple[str, ...]

    def record(self) -> Any:
        return json.loads(self.lines[0])

    def write(self, record: Any) -> None:
        self.file.write_text("\n".join([json.dumps(record), *self.lines[1:], ""]))

    def read(self) -> None:
        read_everything(self.run)


class Header(NamedTuple):
    """The header of the safetensors file with the weights of a run."""

    run: Path
    file: Path
    text: bytes
    data: bytes

    def record(self) -> Any:
        return json.loads(self.text)

    def write(self, record: Any) -> None:
        text = json.dumps(record).encode()
        self.file.write_bytes(len(text).to_bytes(8, "little") + text + self.data)

    def read(self) -> None:
        read_everything(self.run)
        convert_state_dict(read_state_dict(self.file), 2.0)


class Pickled(NamedTuple):
    """What a training script of somebody else has stored by torch.save."""

    file: Path

    def record(self) -> Any:
        conv = torch.nn.Conv2d(2, 3, 3).state_dict()
        return {"epoch": 3, "args": {"lr": [0.1, 0.2]}, "state_dict": {f"module.{k}": v for k, v in conv.items()}}

    def write(self, record: Any) -> None:
        torch.save(record, self.file)

    def read(self) -> None:
        convert_state_dict(read_state_dict(self.file), 2.0)


Stored = Json | Header | Pickled


def stored(runs: list[Path], place: Path) -> list[Stored]:
    """All files whose records are changed."""
    found: list[Stored] = []
    for run in runs:
        for file in sorted([*run.rglob("*.json"), *run.glob("metrics.jsonl")]):
            text = file.read_text()
            found.append(Json(run, file, tuple(text.splitlines()) if file.suffix == ".jsonl" else (text,)))
    run, file = runs[0], runs[0] / "model.safetensors"
    contents = file.read_bytes()
    end = 8 + int.from_bytes(contents[:8], "little")
    return [*found, Header(run, file, contents[8:end], contents[end:]), Pickled(place / "weights.pt")]


def wrong_values(source: Stored) -> list[Any]:
    """The wrong values for the places of a record."""
    return WRONG + ODD_TENSORS if isinstance(source, Pickled) else WRONG
