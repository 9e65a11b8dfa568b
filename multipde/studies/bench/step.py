"""``multipde bench step``: a training step against the bare convolutions of the same network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from multipde.mesh.reparametrize import bake, set_mesh_size
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.network import PDENet
from multipde.networks.presets import preset
from multipde.runtime.console import Log
from multipde.runtime.device import autocast, choose_amp, choose_device, place
from multipde.studies.bench.timing import alternated, recorded
from multipde.training.settings import TrainSettings
from multipde.training.step import TrainStep

TURN_SECONDS = 0.3
"""In training a step follows a step, and not its rivals."""


def step_study(
    out: Path | None,
    *,
    dynamics: Sequence[str] | None = None,
    sizes: Sequence[int] = (8, 16, 32),
    batch: int = 125,
    balance: bool = False,
    compiled: bool = False,
    repeats: int = 7,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Images per second of a training step of the CIFAR-10 networks, beside the floor; prints a table.

    The floor is the convolutions of the same network alone, each forwards and backwards on tensors of its shapes, in
    the same precision and layout. ``baked`` is the step with plain weights, ``moved`` the step off the reference mesh,
    where every stencil is computed from its parameter. Compiled norms have another rival, ``plain``, the step without.
    All of them, of all sizes, are timed in turn; times are medians.

    Args:
        dynamics: which; None for all.
        batch: images in a step.
        balance: that for the largest size, at the others as many as have as many pixels.
        compiled: norms compiled, see `compile_layers`.
        out: file to which the rows are appended; None for none.

    Returns:
        A row per dynamics and size.
    """
    log, where, rows = log or Log(quiet=True), choose_device(device), []
    amp = choose_amp(where, amp)
    for name in dynamics or DYNAMICS:
        batches = {size: round(batch * (max(sizes) / size) ** 2) if balance else batch for size in sizes}
        calls = {size: _calls(name, size, num, where, amp, compiled) for size, num in batches.items()}
        together = {(size, way): call for size, ways in calls.items() for way, call in ways.items()}
        found = alternated(together, repeats, where, TURN_SECONDS)
        for size, num in batches.items():
            seconds = {way: found[size, way] for way in calls[size]}
            row = {
                "study": "step",
                "dynamics": name,
                "size": size,
                "batch": num,
                "amp": amp,
                "compiled": compiled,
                **{f"{key}_seconds": value for key, value in seconds.items()},
                "images_per_second": round(num / seconds["step"], 1),
                "step_over_floor": round(seconds["step"] / seconds["floor"], 3),
                "step_over_baked": round(seconds["step"] / seconds["baked"], 3),
                "moved_over_baked": round(seconds["moved"] / seconds["baked"], 3),
            }
            if compiled:
                row["step_over_plain"] = round(seconds["step"] / seconds["plain"], 3)
            rows.append(recorded(row, out))
    finest = {r["dynamics"]: r["images_per_second"] for r in rows if r["size"] == max(sizes)}
    how = f"amp {amp}, compiled" if compiled else f"amp {amp}"
    log.table([_row(row, finest[row["dynamics"]]) for row in rows], f"training step of the CIFAR-10 networks, {how}")
    return rows


def _calls(
    name: str, size: int, batch: int, device: torch.device, amp: str, compiled: bool
) -> dict[str, Callable[[], Any]]:
    config = preset(f"cifar10-{name}").on_mesh(size)
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % config.classes
    ways = ("step", "baked", "moved", *(("plain",) if compiled else ()))
    nets = {way: place(PDENet(config), device).train() for way in ways}
    floor = bare_convolutions(nets["step"], x, amp)
    bake(nets["baked"])
    set_mesh_size(nets["moved"], 0.5 / size)
    settings = {way: TrainSettings(amp=amp, compile=compiled and way != "plain") for way in ways}
    steps = {way: TrainStep(net, settings[way], device) for way, net in nets.items()}
    return {"floor": floor} | {way: lambda s=step: s(x, labels, 0.01) for way, step in steps.items()}


def bare_convolutions(net: PDENet, x: Tensor, amp: str) -> Callable[[], None]:
    """A call that does nothing but the convolutions of a training step, forwards and backwards."""
    with _Recorder() as seen, autocast(x.device, amp), torch.no_grad():
        net(x)
    prepared = []
    for shape, dtype, weight, rest, needs_grad in seen.found:
        y = torch.randn(shape, device=x.device).to(dtype)
        if y.dim() == 4:
            y = y.contiguous(memory_format=torch.channels_last)
        w = weight.detach().clone().requires_grad_()
        prepared.append((y.requires_grad_(needs_grad), w, rest))
    with torch.no_grad():
        results = [torch.convolution(y, w, None, *rest) for y, w, rest in prepared]

    def call() -> None:
        for (y, w, rest), result in zip(prepared, results, strict=True):
            y.grad = w.grad = None
            torch.convolution(y, w, None, *rest).backward(result)

    return call


class _Recorder(TorchDispatchMode):
    """Notes the convolutions that are computed inside; the first one needs no gradient of its input."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[torch.Size, torch.dtype, Tensor, tuple, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            y, weight, _, *rest = args
            self.found.append((y.shape, y.dtype, weight, tuple(rest), bool(self.found)))
        return func(*args, **(kwargs or {}))


def _row(row: dict[str, Any], finest: float) -> dict[str, str]:
    return {
        "name": row["dynamics"],
        "size": str(row["size"]),
        "batch": str(row["batch"]),
        "images/s": f"{row['images_per_second']:.0f}",
        "times the finest": f"{row['images_per_second'] / finest:.1f}",
        "step / floor": f"{row['step_over_floor']:.2f}",
        "share of the floor": f"{1 / row['step_over_floor']:.0%}",
        "step / baked": f"{row['step_over_baked']:.3f}",
        "moved / baked": f"{row['moved_over_baked']:.3f}",
    } | ({"compiled / plain": f"{row['step_over_plain']:.2f}"} if row["compiled"] else {})
