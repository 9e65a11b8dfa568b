"""``multipde bench step``: the speed of a training step and of the bare convolutions of the same network."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multipde.conversions.recalibration import recalibrate
from multipde.mesh.reparametrize import bake, set_mesh_size
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.network import PDENet
from multipde.networks.presets import preset
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.studies.bench.timing import alternated, flops_of, matrix_product, random_images, step_of
from multipde.studies.bench.vectors import are_held, check_vectors, held_to, name_of_own
from multipde.studies.study import Study, matching
from multipde.training import precise
from multipde.training.level import Level
from multipde.training.optimizers import check_optimizer
from multipde.training.settings import TrainSettings

TURN_SECONDS = 0.3
"""Seconds for which steps of one kind follow each other, as they do in a training."""

BATCH = 125
"""Default number of images per step."""

EPOCH = 40_000
"""Training images of CIFAR-10, without those for validation."""

COLUMNS = """name: {dynamics} | size: {size} | batch: {batch} | images/s: {images_per_second:.0f}
    | times the finest: {faster:.1f} | step / floor: {step_over_floor:.2f} | share of the floor: {share:.0%}
    | GFLOP/s of the floor: {floor_gflops:.0f} | of a matrix product: {product_gflops:.0f}
    | step / baked: {step_over_baked:.3f} | moved / baked: {moved_over_baked:.3f}
    | optimizer / step: {optimizer_share:.1%} | precise / epoch: {precise_share:.1%}"""
COMPILED = " | compiled / plain: {step_over_plain:.2f}"


def step_study(
    out: Path | None = None,
    *,
    dynamics: Sequence[str] = tuple(DYNAMICS),
    sizes: Sequence[int] = (8, 16, 32),
    batch: int | str = BATCH,
    optimizer: str = "sgd",
    compile: bool = False,
    vectors: str = "widest",
    repeats: int = 7,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure the images per second of a training step of the CIFAR-10 networks, and of several variants of it.

    The lower bound, ``floor``, consists of the convolutions of the same network alone, each forward and backward on
    tensors of its shapes, in the same precision and layout. ``baked`` is the step with plain weights, ``moved`` that
    off the reference mesh, where every stencil is computed from its parameter, and ``plain``, measured with
    ``compile``, that without compiled kernels. ``product`` is a large matrix product, for the rate that the machine
    reaches in this precision, and ``precise`` the measurement of BatchNorm on a batch, of which a training does several
    after every epoch. All of them are timed alternately at all sizes; times are medians.
    """
    batches = {size: round(BATCH * (max(sizes) / size) ** 2) if isinstance(batch, str) else batch for size in sizes}
    Level(max(sizes), 1, batch=batches[max(sizes)])  # raises the errors of a batch
    check_optimizer(optimizer)
    compute = Compute.of(device, amp)
    check_vectors(vectors, compute)
    if not are_held(vectors):
        options = {"out": out, "dynamics": list(dynamics), "sizes": list(sizes), "batch": batch, "repeats": repeats}
        options |= {"optimizer": optimizer, "compile": compile, "device": device, "amp": amp}
        return held_to(vectors, f"{step_study.__module__}:step_study", options, log or Log(quiet=True))
    width = name_of_own() if compute.device.type == "cpu" else None
    product = matrix_product(compute)
    study = Study(out, {"study": "step"}, ("dynamics", "size"), anew=True, log=log)
    for name in dynamics:
        clocks: dict[int, list[float]] = {size: [] for size in batches}
        calls = {
            size: _calls(name, size, num, compute, compile, optimizer, clocks[size]) for size, num in batches.items()
        }
        together: dict[Any, Callable[[], Any]] = {"product": product}
        together |= {(size, way): call for size, ways in calls.items() for way, call in ways.items()}
        medians = alternated(together, repeats, compute.device, TURN_SECONDS)
        rate = flops_of(product) / medians["product"] / 1e9
        for size, num in batches.items():
            seconds = {way: medians[size, way] for way in calls[size]}
            ratios = [("step", "floor"), ("step", "baked"), ("moved", "baked")] + [("step", "plain")] * compile
            row = {f"{way}_seconds": value for way, value in seconds.items()}
            row["images_per_second"] = round(num / seconds["step"], 1)
            row |= {f"{a}_over_{b}": round(seconds[a] / seconds[b], 3) for a, b in ratios}
            row |= {"floor_gflops": flops_of(calls[size]["floor"]) / seconds["floor"] / 1e9, "product_gflops": rate}
            row |= {"optimizer": optimizer, "optimizer_share": statistics.median(clocks[size]) / seconds["step"]}
            times = TrainSettings.precise_images / precise.BATCH, EPOCH / num
            row["precise_share"] = times[0] * seconds["precise"] / (times[1] * seconds["step"])
            study.add(name, size, batch=num, amp=compute.amp, compiled=compile, vectors=width, **row)
            study.log.say(f"{name}, {size}: {row['images_per_second']:g} images/s")
    finest = {row["dynamics"]: row["images_per_second"] for row in matching(study.rows, size=max(sizes))}
    faster = [row["images_per_second"] / finest[row["dynamics"]] for row in study.rows]
    rows = [r | {"faster": f, "share": 1 / r["step_over_floor"]} for r, f in zip(study.rows, faster, strict=True)]
    title = f"training step of the CIFAR-10 networks, {optimizer}, amp {compute.amp}{', compiled' if compile else ''}"
    title += f", vectors of {width}" if width else ""
    return study.close({title: table_of(rows, COLUMNS + COMPILED * compile)})


def _calls(
    name: str, size: int, batch: int, compute: Compute, compile: bool, optimizer: str, clock: list[float]
) -> dict[str, Callable[[], Any]]:
    config, x = preset(f"cifar10-{name}").on_mesh(size), random_images(batch, 3, size, compute.device)
    ways = ("step", "baked", "moved", *(("plain",) if compile else ()))
    nets = {way: compute.place(PDENet(config)).train() for way in ways}
    floor = bare_convolutions(nets["step"], x, compute)
    bake(nets["baked"])
    set_mesh_size(nets["moved"], 0.5 / size)
    images = random_images(precise.BATCH, 3, size, compute.device)

    def measure() -> None:
        with compute.autocast():
            recalibrate(nets["step"], [images])

    return {"floor": floor, "precise": measure} | {
        way: step_of(net, x, compute, compile and way != "plain", optimizer, clock if way == "step" else None)
        for way, net in nets.items()
    }


def bare_convolutions(net: PDENet, x: Tensor, compute: Compute) -> Callable[[], None]:
    """A call that computes the convolutions of a training step alone, forwards and backwards."""
    prepared = recorded_convolutions(net, x, compute)
    with torch.no_grad():
        results = [torch.convolution(y, w, None, *rest) for y, w, rest, _ in prepared]
    for y, w, _, needs_grad in prepared:
        y.requires_grad_(needs_grad)
        w.requires_grad_()

    def call() -> None:
        for (y, w, rest, _), result in zip(prepared, results, strict=True):
            y.grad = w.grad = None
            torch.convolution(y, w, None, *rest).backward(result)

    return call


def recorded_convolutions(net: nn.Module, x: Tensor, compute: Compute) -> list[tuple[Tensor, Tensor, tuple, bool]]:
    """For every convolution of a network random numbers in the shape of its input, its weight, its other arguments, and
    whether its input needs a gradient."""
    with ConvolutionRecorder() as seen, compute.autocast(), torch.no_grad():
        net(x)
    prepared = []
    for shape, dtype, weight, rest, needs_grad in seen.found:
        y = torch.randn(shape, device=x.device).to(dtype)
        y = y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y
        prepared.append((y, weight.detach().clone(), rest, needs_grad))
    return prepared


class ConvolutionRecorder(TorchDispatchMode):
    """Records the convolutions that are computed within the context; the first needs no gradient of its input."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[torch.Size, torch.dtype, Tensor, tuple, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            y, weight, _, *rest = args
            self.found.append((y.shape, y.dtype, weight, tuple(rest), bool(self.found)))
        return func(*args, **(kwargs or {}))
