"""What `test_processes` has each of two processes do."""

# pyright: reportAttributeAccessIssue=false

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from multipde import (
    CoarseToFine,
    Level,
    NetworkConfig,
    PDENet,
    Schedule,
    TrainSettings,
    describe,
    recalibrate,
    resume,
    train,
)
from multipde.cli.main import main as command
from multipde.runtime.device import Compute
from multipde.runtime.processes import (
    broadcast_weights,
    check_batch,
    from_rank_zero,
    largest,
    mean_over_processes,
    num_processes,
    on_rank_zero,
    own_device,
    process_group,
    rank,
    rank_zero_first,
    sum_over_processes,
)
from multipde.runtime.signals import Interrupted
from multipde.runtime.sync_batchnorm import synchronized
from multipde.storage.lock import LOCK
from multipde.storage.run_directory import checkpoints_of
from multipde.training import job
from multipde.training.fine_tuning import FineTuning
from multipde.training.objective import Objective
from multipde.training.step import TrainStep
from multipde.training.trainer import Trainer

OPTIONS = {"num_train": 150, "num_test": 31}
CPU = torch.device("cpu")
NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8)
KINDS = {
    "reversible": {"memory": "reversible"},
    "checkpoint": {"dynamics": "parabolic", "memory": "checkpoint"},
    "finest": {"dynamics": "second_order", "reference": 16},
    "muon": {},
    "fine-tuned": {},
}
NORMS = ("opening.1", "connectors.?.1")
"""The BatchNorm layers, without which the parts of a batch do not depend on each other."""


def steps(kind: str) -> dict[str, torch.Tensor]:
    """Two steps in float64 on this process's slice of the batches: losses, gradients, weights, statistics."""
    torch.manual_seed(0)
    net = PDENet(NetworkConfig(**(vars(NETWORK) | KINDS[kind]))).double().train()
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(0, 0.3)  # away from the kink of ReLU, on which rounding decides
    tuned = {"accumulate": 2, "clip_norm": 0.3, "freeze": NORMS, "rate": {"head": 0.05, "blocks": 0.2}}
    wishes = {"finest": {"coordinates": "finest"}, "muon": {"optimizer": "muon"}, "fine-tuned": tuned}
    wishes = wishes.get(kind, {"box": 0.4})
    settings = TrainSettings(**{"optimizer": "sgd"} | wishes)  # pyright: ignore[reportArgumentType]
    tuning, objective = FineTuning.of(settings, [Level(8, 1)], 0), None
    if kind == "fine-tuned":
        objective = Objective(class_weights=torch.arange(10, dtype=torch.float64) / 3)
    step, found = TrainStep(net, settings, Compute(CPU), objective, tuning), {}
    step.frozen.train_mode()
    for i in range(2):
        x, labels = 3 + torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.randint(10, (12,))
        part = slice(12 * rank() // num_processes(), 12 * (rank() + 1) // num_processes())
        found[f"loss {i}"], scores = step(x[part], labels[part], 0.05, own_statistics=i == 0)
        assert len(scores) == 12 // num_processes()
        found |= {f"gradient {i} {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: t.clone() for name, t in net.state_dict().items() if isinstance(t, torch.Tensor)}
    batches = [1 + torch.randn(num, 3, 8, 8, dtype=torch.float64) for num in (12, 2, 6)]
    with synchronized(net):
        recalibrate(net, [x[len(x) * rank() // num_processes() :][: len(x) // num_processes()] for x in batches])
    return found | {f"recalibrated {name}": b for name, b in net.named_buffers()}


def trained(directory: Path, batch: int = 20, **settings) -> list[dict]:
    """A training through two levels; the rows of its metrics."""
    plan = Schedule([Level(size, epochs, batch=batch, policy="one_cycle") for size, epochs in ((4, 2), (8, 1.5))])
    sgd = {"optimizer": "sgd"}  # orthogonalisation amplifies rounding
    chosen = TrainSettings(device="cpu", calibration_images=60, validation=0.17, **sgd | settings)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS).metrics


def disturbed(directory: Path) -> list[str]:
    """The same, one of the processes being told to stop in its fifth step; then taken up."""
    original, calls = TrainStep.__call__, []

    def step(self, *args):
        calls.append((directory / LOCK).read_text())
        if len(calls) == 5 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    TrainStep.__call__ = step
    try:
        trained(directory)
    except Interrupted as stop:
        message = str(stop)
    TrainStep.__call__ = original
    resume(directory)
    return [message, calls[-1]]


def error_of(call) -> str:
    """What it says."""
    try:
        call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def poisoned(directory: Path, **settings) -> None:
    """A training in which one process meets images that are not numbers in the third step."""
    original, calls = TrainStep.__call__, []

    def step(self, x, *args):
        calls.append(1)
        return original(self, x * float("nan") if rank() == 1 and len(calls) == 3 else x, *args)

    TrainStep.__call__ = step
    try:
        trained(directory, **settings)
    finally:
        TrainStep.__call__ = original


def by_the_clock(directory: Path) -> int:
    """Epochs of a training that is given so much time."""
    plan = Schedule([Level(4, None, batch=20, policy="warm_up"), Level(8, None, batch=20, policy="cool_down")])
    settings = TrainSettings(device="cpu", calibration_images=60, budget="0.02min", max_epochs=3)
    return len(train(NETWORK, plan, "shapes", directory, settings=settings, data_options=OPTIONS, quiet=True).metrics)


def told_by_one() -> None:
    """An error that only the writer has."""

    def fail() -> None:
        raise FileExistsError(f"found by {rank()}")

    on_rank_zero(fail)


def command_fails(directory: Path) -> list:
    """Exit status of a command that must not write into a directory, and what this process says of it."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            command(["train", "--run", str(directory), "--batch", "124"])
        except SystemExit as stop:
            return [stop.code, said.getvalue()]
    return [0, said.getvalue()]


def in_turn(file: Path) -> str:
    """The writer makes a file, the other one finds it."""

    def look() -> str:
        there = file.exists()
        file.touch()
        return "found" if there else "made"

    return rank_zero_first(look)


def without_saving(directory: Path) -> None:
    """A training whose directory goes away under the writer."""
    original = Trainer._write_checkpoint

    def write(self) -> None:
        self.run_dir = directory / "gone"
        original(self)

    Trainer._write_checkpoint = write
    try:
        trained(directory)
    finally:
        Trainer._write_checkpoint = original


def best_of_both() -> float | None:
    """The metric by which levels are as long as it grows, where each process has its own."""
    growing = CoarseToFine([(4, 1), (8, 1)], "reports", method="copy")
    growing.report(float(rank()))
    return growing.best


def agreed(directory: Path) -> list:
    """The checkpoint that both read, though one of them sees the newest a little later, or sees none."""
    plan = Schedule([Level(4, 2, batch=20), Level(8, 1.5, batch=20)], NETWORK)
    original, calls = job.read_newest, []

    def late(checkpoints, schedule):
        calls.append(1)
        if rank() == 1 and len(calls) < 3:
            raise ValueError("not there yet")
        return original(checkpoints, schedule)

    def never(checkpoints, schedule):
        return late([] if rank() == 1 else checkpoints, schedule)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "read_newest", late)
        *_, state, _, note = job.read_agreed(checkpoints_of(directory), plan)
        patch.setattr(job, "PATIENCE", 0.1)
        patch.setattr(job, "read_newest", never)
        return [state.checkpoints, note, error_of(lambda: job.read_agreed(checkpoints_of(directory), plan))]


def unused() -> None:
    """A step of a network with a parameter that the loss does not depend on."""
    net = describe(Unused(), size=4, classes=3)
    TrainStep(net, TrainSettings(), Compute(CPU))(torch.randn(4, 3, 4, 4), torch.zeros(4, dtype=torch.long), 0.1)


class Unused(torch.nn.Module):
    """A network with a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def more_than_devices(device: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        own_device(torch.device(device))


def main(out: Path) -> None:
    """All of it, the findings of each process in a file of its own."""
    with process_group():
        mine = torch.tensor([float(rank() + 1)])
        net = torch.nn.Linear(1, 1, bias=False)
        net.weight.data.fill_(rank())
        broadcast_weights(net)
        found = {
            "processes": num_processes(),
            "sum": sum_over_processes(mine).item(),
            "mean": mean_over_processes(mine).item(),
            "largest": largest(rank(), 3 - rank()),
            "writer": from_rank_zero({"rank": rank()}),
            "process": f"process {os.getpid()}",
            "taken": net.weight.item(),
            "turn": in_turn(out / "file"),
            "told": error_of(told_by_one),
            "taken directory": error_of(lambda: trained(out)),
            "command": command_fails(out),
            "uneven": error_of(lambda: check_batch(125, num_processes())),
            "uneven training": error_of(lambda: trained(out / "c", 25)),
            "devices": error_of(lambda: more_than_devices("cuda")),
            "one device": error_of(lambda: more_than_devices("cuda:0")),
            "metal": error_of(lambda: own_device(torch.device("mps"))),
            "best": best_of_both(),
        }
        for kind in KINDS:
            torch.save(steps(kind), out / f"{kind}-{rank()}.pt")
        found["rows"] = trained(out / "a")
        found["stopped"] = disturbed(out / "b")
        found["nan"] = error_of(lambda: poisoned(out / "d"))
        found["rolled back"] = error_of(lambda: poisoned(out / "r", on_divergence="rollback"))
        found["epochs"] = by_the_clock(out / "t")
        found["agreed"] = agreed(out / "a")
        found["unused"] = error_of(unused)
        found["disk"] = error_of(lambda: without_saving(out / "e"))
        (out / f"{rank()}.json").write_text(json.dumps(found))


def process(out: Path, number: int, port: int) -> None:
    """All of it in the process of this rank, which writes what it says into files beside its findings."""
    ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(out / stream.name.strip("<>"), os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream.fileno())
    main(out)
