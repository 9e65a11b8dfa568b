"""Checkpoints at other sizes: converted, recalibrated, tested beside each other, written anew."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.batches import Normalize, evaluation_batches
from multipde.data.datasets import ImageData, load_data
from multipde.data.seeds import stream
from multipde.networks.convert import convert, recalibrate
from multipde.networks.network import PDENet, count_flops
from multipde.training.checkpoint import check_new, load, save
from multipde.training.evaluate import Metrics, choose_device, evaluate_batches
from multipde.training.log import Log

CALIBRATION_IMAGES = 2000
"""Training images on which BatchNorm is measured anew."""

DataSource = tuple[Any, Mapping[str, Any]]


def evaluate_sizes(
    checkpoint: Path,
    data: DataSource | None,
    *,
    sizes: Sequence[int] | None = None,
    methods: Sequence[str] = ("copy",),
    num_images: int | None = None,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """A checkpoint converted to each size by each method, as it comes and recalibrated; prints a table.

    Args:
        data: source and options for `load_data`.
        num_images: only so many test images, drawn at random.

    Returns:
        A record per row: size, method, accuracy, loss, and the same after recalibration, FLOPs, images per second.

    Raises:
        ValueError: no data, or what `load` and `convert` raise.
    """
    net, where = load(checkpoint), choose_device(device)
    if data is None:
        raise ValueError(f"data must be given for {checkpoint}, which is no run; type --data NAME")
    own = net.config.sizes[0]
    chosen = tuple(sizes or (own,))
    nets = {(size, m): net if size == own else convert(net, size=size, method=m) for size in chosen for m in methods}
    images = _data_for(net, data, max(*chosen, own))
    test = torch.randperm(len(images.test), generator=stream(0, "test"))[:num_images]
    records: list[dict[str, Any]] = []
    for (size, method), candidate in nets.items():
        if size == own and any(r["size"] == own for r in records):
            continue
        raw = _test(candidate, images, test, size, where, amp)
        record = {"size": size, "method": "-" if size == own else method, "accuracy": raw.accuracy, "loss": raw.loss}
        best = raw
        if size != own:
            recalibrate(candidate, calibration_images(candidate, images, size, where))
            best = _test(candidate, images, test, size, where, amp)
            record |= {"recalibrated_accuracy": best.accuracy, "recalibrated_loss": best.loss}
        flops = count_flops(candidate.config)  # pyright: ignore[reportArgumentType]
        records.append(record | {"flops": flops, "images_per_second": best.images_per_second})
    if log is not None:
        log.table([_row(r) for r in records], f"{checkpoint} on {len(test):,} test images of {images.name}")
    return records


def convert_checkpoint(
    checkpoint: Path,
    out: Path | None,
    *,
    size: int | None = None,
    method: str = "copy",
    steps: int | None = None,
    data: DataSource | None = None,
    log: Log | None = None,
) -> PDENet:
    """A checkpoint converted and written to a new directory, BatchNorm recalibrated where there are data.

    Raises:
        FileExistsError: the new directory is not empty.
        ValueError: no place to write to, or what `load` and `convert` raise.
    """
    log = log or Log(quiet=True)
    if out is None:
        raise ValueError("out must be given; type --out DIR")
    check_new(out)
    net = load(checkpoint)
    old = net.config.sizes[0]
    new: PDENet = convert(net, size=size, method=method, steps=steps)  # pyright: ignore[reportAssignmentType]
    target = new.config.sizes[0]
    log.say(f"{checkpoint}: size {old} -> {target}, steps {net.config.steps} -> {new.config.steps}, method {method}")
    if data is None:
        log.say("no data: BatchNorm keeps the statistics of the old size; --data NAME measures them anew")
    else:
        images, device = _data_for(net, data, max(old, target)), torch.device("cpu")
        test = torch.randperm(len(images.test), generator=stream(0, "test"))[:2000]
        before = _test(net, images, test, old, device, "off").accuracy
        moved = _test(new, images, test, target, device, "off").accuracy
        num = recalibrate(new, calibration_images(new, images, target, device))
        after = _test(new, images, test, target, device, "off").accuracy
        log.say(
            f"test accuracy {before:.1%} before, {moved:.1%} after, {after:.1%} with {num} BatchNorm layers "
            f"recalibrated ({len(test):,} images)"
        )
    save(new, out)
    log.say(f"written to {out}")
    return new


def calibration_images(net: PDENet, images: ImageData, size: int, device: torch.device) -> Iterator[Tensor]:
    """Training images as the network takes them, drawn at random but always the same."""
    order = torch.randperm(len(images.train), generator=stream(0, "calibrate"))[:CALIBRATION_IMAGES]
    for x, _ in evaluation_batches(images.train, order, size, 250, device, _normalize(net)):
        yield x


def _data_for(net: PDENet, data: DataSource, size: int) -> ImageData:
    source, options = data
    images = load_data(source, size=size, **options)
    names = net.config.class_names
    if len(images.class_names) != net.config.classes or (names and images.class_names != names):
        raise ValueError(
            f"data must have the classes of the checkpoint ({', '.join(names[:3]) or net.config.classes}, ...), "
            f"got {', '.join(images.class_names[:3])}, ..."
        )
    return images


def _test(net: Any, images: ImageData, indices: Tensor, size: int, device: torch.device, amp: str) -> Metrics:
    net.to(device)
    if net.config.dim == 2:
        net.to(memory_format=torch.channels_last)
    batches = evaluation_batches(images.test, indices, size, 250, device, _normalize(net))
    return evaluate_batches(net, batches, device, amp)


def _normalize(net: PDENet) -> Normalize:
    return Normalize(net.config.mean, net.config.std)


def _row(record: Mapping[str, Any]) -> dict[str, str]:
    again = record.get("recalibrated_accuracy")
    return {
        "size": str(record["size"]),
        "method": record["method"],
        "accuracy": f"{record['accuracy']:.2%}",
        "recalibrated": "-" if again is None else f"{again:.2%}",
        "loss": f"{record.get('recalibrated_loss', record['loss']):.3f}",
        "MFLOPs/image": f"{record['flops'] / 1e6:.1f}",
        "images/s": f"{record['images_per_second']:.0f}",
    }
