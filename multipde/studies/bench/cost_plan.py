"""``multipde bench plan``: what a training on ImageNet costs on many GPUs, from parts that are measured here."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.data.shapes import FINE_SIZE, render_shapes
from multipde.mesh.pyramid import prolong_images
from multipde.networks.cost import count_flops, num_weights
from multipde.networks.external import external_model
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.studies.bench.input import write_jpegs, write_shards
from multipde.studies.bench.timing import alternated, random_images
from multipde.studies.study import Study
from multipde.training.checkpoint import write_checkpoint
from multipde.training.settings import TrainSettings
from multipde.training.state import TrainState
from multipde.training.step import TrainStep

IMAGES, VALIDATION, CLASSES = 1_281_167, 50_000, 1000
"""Numbers of ImageNet."""
PICTURE = (375, 500)
"""Assumed height and width of an image."""
GRAIN = 18
"""Standard deviation of the noise that gives JPEG files of about 110 kB, as those of ImageNet have in the mean."""
CORES = 12
"""Assumed cores per GPU that decode."""
TFLOPS = 60.0
"""Assumed sustained rate of a GPU in bfloat16, TFLOP/s."""
BANDWIDTH = 12.5
"""Assumed GB/s that a GPU sends to others."""

PARTS = "name: {what} | size: {shown} | value: {value:,.4g} | unit: {unit} | how: {how}"
TOTALS = """name: {name} | GPUs: {gpus} | hours: {hours:.2f} | GPU hours: {gpu_hours:.1f}
    | images/s: {images_per_second:,.0f} | computing: {compute:.0%} | waiting for images: {input:.0%}
    | all-reduce: {communication:.0%} | checkpoints: {checkpoints:.1%} | bottleneck: {bottleneck}"""


@dataclass(frozen=True)
class Rates:
    """What is needed to compute the duration of a training.

    Args:
        flops: floating point operations of a training step per image, by size.
        rate: floating point operations per second of a GPU.
        images: decoded images per second and core, by size.
        cores: cores per GPU that decode.
        gradient_bytes: bytes of the gradients.
        bandwidth: bytes per second that a GPU sends.
        checkpoint_seconds: duration of writing a checkpoint, for which the training waits.
        batch: images per GPU and step.
    """

    flops: dict[int, float]
    rate: float
    images: dict[int, float]
    cores: int
    gradient_bytes: float
    bandwidth: float
    checkpoint_seconds: float
    batch: int

    def step(self, size: int, gpus: int) -> dict[str, float]:
        """Seconds of a step: computing, all-reduce, and waiting for images, which are decoded meanwhile.

        A ring sends 2 (n - 1) / n of the gradients' bytes from every GPU. That it can overlap with the backward pass is
        left out, so that the time is an upper bound.
        """
        compute = self.batch * self.flops[size] / self.rate
        communication = 2 * (gpus - 1) / gpus * self.gradient_bytes / self.bandwidth
        decoding = self.batch / (self.cores * self.images[size])
        return {
            "compute": compute,
            "communication": communication,
            "input": max(0.0, decoding - compute - communication),
        }

    def training(self, levels: Sequence[tuple[int, float]], gpus: int, every: float) -> dict[str, Any]:
        """Hours of a training, the share of each part, and the largest part.

        Args:
            levels: pairs of size and epochs.
            every: minutes between checkpoints; every epoch ends with one, too.
        """
        spent: dict[str, float] = dict.fromkeys(("compute", "input", "communication"), 0.0)
        for size, epochs in levels:
            steps = epochs * math.ceil(IMAGES / (self.batch * gpus))
            for part, seconds in self.step(size, gpus).items():
                spent[part] += steps * seconds
            forward = VALIDATION / gpus * self.flops[size] / 3 / self.rate  # a forward pass is a third of a step
            decoding = VALIDATION / gpus / (self.cores * self.images[size])
            spent["compute"] += epochs * forward
            spent["input"] += epochs * max(0.0, decoding - forward)
        epochs = sum(num for _, num in levels)
        spent["checkpoints"] = self.checkpoint_seconds * (epochs + sum(spent.values()) / (60 * every))
        total = sum(spent.values())
        names = {"compute": "computing", "input": "images", "communication": "all-reduce", "checkpoints": "checkpoints"}
        return {
            "hours": total / 3600,
            "gpu_hours": gpus * total / 3600,
            "images_per_second": IMAGES * epochs / total,
            **{part: seconds / total for part, seconds in spent.items()},
            "bottleneck": names[max(spent, key=lambda part: spent[part])],
        }


def plan_study(
    out: Path | None = None,
    *,
    arch: str = "resnet50",
    sizes: Sequence[int] = (112, 160, 224),
    epochs: Sequence[float] = (30, 30, 30),
    gpus: Sequence[int] = (1, 8, 64),
    batch: int = 256,
    tflops: float | None = None,
    bandwidth: float = BANDWIDTH,
    cores: int = CORES,
    measured_batch: int = 2,
    measured_images: int = 16,
    repeats: int = 3,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """What a training on ImageNet costs, coarse to fine and at the last size alone, and where its bottleneck is.

    On this machine are measured: the training step at every size, the images that a core decodes from shards, and the
    seconds of a checkpoint. Work of the processor is measured in seconds of processor time, so that other programs
    matter little, and that of a step is divided by the number of threads. From these, the FLOPs, the weights and the
    stated assumptions, hours are computed; a row says how its value came about. Learning is no part of this: whether as
    many epochs at coarse sizes, or batches as large as those of many GPUs, reach the same accuracy, has to be trained.

    Args:
        measured_batch: images of the step that is measured.
        measured_images: images of the shards whose decoding is measured.

    Raises:
        ValueError: a number is not positive, or sizes and epochs differ in length.
    """
    if len(sizes) != len(epochs):
        raise ValueError(f"epochs must have one entry per size ({len(sizes)}), got {len(epochs)}")
    numbers = {"batch": batch, "tflops": tflops or 1, "bandwidth": bandwidth, "cores": cores}
    for name, value in {**numbers, "gpus": min(gpus), "sizes": min(sizes), "epochs": min(epochs)}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    compute = Compute.of(device, amp)
    study = Study(out, {"study": "plan", "arch": arch}, ("what", "size", "gpus"), anew=True, log=log)
    specs = {size: external_model(arch, size=size, classes=CLASSES) for size in dict.fromkeys(sizes)}
    flops = {size: float(count_flops(spec, training=True)) for size, spec in specs.items()}
    nets = {size: compute.place(spec.build().float()) for size, spec in specs.items()}
    where = f"measured here, {compute.device.type}, amp {compute.amp}"
    seconds = _step_seconds(nets, measured_batch, compute, repeats)
    images, kilobytes = _decoded_per_second(list(specs), measured_images, repeats)
    net = nets[max(sizes)]
    checkpoint_bytes, checkpoint_seconds = _checkpoint(net)
    is_gpu = compute.device.type == "cuda"
    finest = max(sizes)
    own = measured_batch * flops[finest] / seconds[finest]
    rate, source = (own, where) if tflops is None and is_gpu else ((tflops or TFLOPS) * 1e12, "assumed, --tflops")

    def part(what: str, value: float, unit: str, how: str, size: int | None = None, gpus: int | None = None) -> None:
        study.add(what, size, gpus, value=value, unit=unit, how=how)

    for size in specs:
        taken, here = rate / flops[size], measured_batch * flops[size] / seconds[size]
        part("FLOPs of a training step per image", flops[size] / 1e9, "GFLOP", "computed from the shapes", size)
        part("step per image", seconds[size] / measured_batch * 1e3, "ms", f"{where}, batch {measured_batch}", size)
        part("rate of this machine", here / 1e12, "TFLOP/s", where, size)
        decoded = f"measured here, files of {kilobytes:.0f} kB"
        part("images that a core decodes from shards", images[size], "1/s", decoded, size)
        part("images that a GPU takes", taken, "1/s", "computed: rate of a GPU / FLOPs", size)
        part("images for a GPU", cores * images[size], "1/s", "computed: cores per GPU x images per core", size)
        part("cores per GPU that suffice", taken / images[size], "", "computed: taken by a GPU / per core", size)
    part("rate of a GPU", rate / 1e12, "TFLOP/s", source)
    part("cores per GPU", cores, "", "assumed, --cores")
    part("bandwidth per GPU", bandwidth, "GB/s", "assumed, --bandwidth")
    part("gradients", 4 * num_weights(net) / 1e6, "MB", "computed: 4 bytes per weight")
    for num in gpus:
        sent = 2 * (num - 1) / num * 4 * num_weights(net) / 1e6
        part("all-reduce per step and GPU", sent, "MB", "computed: 2 (n - 1) / n x gradients", gpus=num)
    part("checkpoint", checkpoint_bytes / 1e6, "MB", "measured here")
    part("writing a checkpoint", checkpoint_seconds, "s", "measured here, with fsync")
    rates = Rates(flops, rate, images, cores, 4 * num_weights(net), bandwidth * 1e9, checkpoint_seconds, batch)
    coarse_to_fine = list(zip(sizes, epochs, strict=True))
    every, totals = TrainSettings().checkpoint_every, []
    for name, levels in (("coarse to fine", coarse_to_fine), ("last size alone", [(sizes[-1], sum(epochs))])):
        for num in gpus:
            found = rates.training(levels, num, every)
            how = f"computed, {batch} images per GPU and step, checkpoints every {every:g} min and epoch"
            totals.append({"name": name, **study.add(name, None, num, levels=levels, how=how, **found)})
    parts = [r | {"shown": r["size"] or (f"{r['gpus']} GPUs" if r["gpus"] else "")} for r in study.rows if "value" in r]
    text = ", ".join(f"{num:g} at {size}" for size, num in coarse_to_fine)
    title = f"ImageNet, {arch}, epochs {text}; {batch} images per GPU and step; computed from the parts above"
    return study.close({"Parts": table_of(parts, PARTS), title: table_of(totals, TOTALS)})


def _step_seconds(nets: dict[int, nn.Module], batch: int, compute: Compute, repeats: int) -> dict[int, float]:
    """Median seconds of a training step at every size."""

    def call(size: int) -> Any:
        step = TrainStep(nets[size].train(), TrainSettings.of_recipe("paper"), compute)
        x = random_images(batch, 3, size, compute.device)
        labels = torch.arange(batch, device=compute.device)
        return lambda: step(x, labels, 0.0)  # the weights stay, and so nothing can diverge

    calls = {size: call(size) for size in nets}
    if compute.device.type != "cpu":
        return alternated(calls, repeats, compute.device)
    seconds = alternated(calls, repeats, compute.device, clock=time.process_time)  # of all threads together
    return {size: value / torch.get_num_threads() for size, value in seconds.items()}


def _decoded_per_second(sizes: Sequence[int], num: int, repeats: int) -> tuple[dict[int, float], float]:
    """Images per second of processor time that are decoded from a shard of JPEG files, and their kilobytes."""
    pictures, labels = render_shapes(num, FINE_SIZE)
    noise = torch.Generator().manual_seed(0)

    def enlarged(picture: Tensor) -> Tensor:
        large = prolong_images(picture[None].float(), PICTURE[1], order=1)[0, :, : PICTURE[0]]
        return (large + GRAIN * torch.randn(large.shape, generator=noise)).clamp(0, 255).to(torch.uint8)

    with tempfile.TemporaryDirectory() as directory:
        paths = write_jpegs(map(enlarged, pictures), Path(directory))
        kilobytes = sum(path.stat().st_size for path in paths) / num / 1e3
        images, cpu = write_shards(paths, labels, Path(directory)), torch.device("cpu")

        def call(size: int) -> Any:
            return lambda: sum(1 for _ in images.batches([(size, torch.arange(num))], cpu))

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the processes that decode for a training
        try:
            seconds = alternated({size: call(size) for size in sizes}, repeats, cpu, clock=time.process_time)
        finally:
            torch.set_num_threads(threads)
    return {size: num / value for size, value in seconds.items()}, kilobytes


def _checkpoint(net: nn.Module) -> tuple[int, float]:
    """Bytes of a checkpoint with momentum, and the seconds in which it is written to disk."""
    momentum = {name: torch.zeros_like(p, device="cpu") for name, p in net.named_parameters()}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        started = time.perf_counter()
        write_checkpoint(Path(directory), 1, net, {}, TrainState().record(), momentum)
        seconds = time.perf_counter() - started
        return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()), seconds
