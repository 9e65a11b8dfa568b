"""Checkpoints at other sizes: converted, recalibrated, tested beside each other, written anew."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.batches import Normalize, drawn_images, drawn_indices, evaluation_batches
from multipde.data.datasets import ImageData, load_data
from multipde.networks.calibration import recalibrate
from multipde.networks.convert import convert
from multipde.networks.network import PDENet, count_flops
from multipde.training.checkpoint import check_new, load, save
from multipde.training.evaluate import Metrics, check_classes, choose_device, evaluate_batches, place
from multipde.training.log import Log
from multipde.training.loop import MOVE_IMAGES
from multipde.training.settings import TrainSettings

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
        num_images: only so many test images, drawn at random but always the same.

    Returns:
        A record per row: size, method, accuracy, loss, and the same after recalibration, FLOPs, images per second.

    Raises:
        ValueError: no data, or what `load` and `convert` raise.
    """
    net, where = load(checkpoint), choose_device(device)
    if data is None:
        raise ValueError(f"data must be given for {checkpoint}, which does not name its own; type --data NAME")
    own = net.config.sizes[0]
    chosen = tuple(sizes or (own,))
    wanted = {(size, "-" if size == own else method): None for size in chosen for method in methods}
    nets = {(size, m): net if m == "-" else convert(net, size=size, method=m) for size, m in wanted}
    images = _data_for(net, data, max(*chosen, own))
    test = drawn_indices(len(images.test), num_images, (0, "test"))
    records: list[dict[str, Any]] = []
    for (size, method), candidate in nets.items():
        found = _test(candidate, images, test, size, where, amp)
        record = {"size": size, "method": method, "accuracy": found.accuracy, "loss": found.loss}
        if method != "-":
            recalibrate(candidate, _calibration_images(net, images, size, where))
            found = _test(candidate, images, test, size, where, amp)
            record |= {"recalibrated_accuracy": found.accuracy, "recalibrated_loss": found.loss}
        flops = count_flops(candidate.config)  # pyright: ignore[reportArgumentType]
        records.append(record | {"flops": flops, "images_per_second": found.images_per_second})
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
    need_data: bool = True,
    log: Log | None = None,
) -> PDENet:
    """A checkpoint converted and written to a new directory, BatchNorm recalibrated where there are data.

    Args:
        data: source and options for `load_data`.
        need_data: refuse data that cannot be read; otherwise say so and go on without.

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
    images = None
    try:
        images = None if data is None else _data_for(net, data, max(old, target))
    except ValueError as error:
        if need_data:
            raise
        log.say(f"the data of the run cannot be read ({error})")
    log.say(f"{checkpoint}: size {old} -> {target}, steps {net.config.steps} -> {new.config.steps}, method {method}")
    if images is None:
        log.say("no data: BatchNorm keeps the statistics of the old size; --data NAME measures them anew")
    else:
        device = torch.device("cpu")
        test = drawn_indices(len(images.test), MOVE_IMAGES, (0, "test"))
        before = _test(net, images, test, old, device, "off").accuracy
        moved = _test(new, images, test, target, device, "off").accuracy
        num = recalibrate(new, _calibration_images(net, images, target, device))
        after = _test(new, images, test, target, device, "off").accuracy
        log.say(
            f"test accuracy {before:.1%} before, {moved:.1%} after, {after:.1%} with {num} BatchNorm layers "
            f"recalibrated ({len(test):,} images)"
        )
    save(new, out)
    log.say(f"written to {out}")
    return new


def _calibration_images(net: PDENet, images: ImageData, size: int, device: torch.device) -> Iterator[Tensor]:
    num = TrainSettings().calibration_images
    return drawn_images(images.train, None, num, size, device, _normalize(net), (0, "calibrate"))


def _data_for(net: PDENet, data: DataSource, size: int) -> ImageData:
    source, options = data
    images = load_data(source, size=size, **options)
    check_classes(net.config, images)
    return images


def _test(net: Any, images: ImageData, indices: Tensor, size: int, device: torch.device, amp: str) -> Metrics:
    """Accuracy and speed after one batch to warm up."""
    place(net, device)
    for part in (indices[:250], indices):
        batches = evaluation_batches(images.test, part, size, 250, device, _normalize(net))
        metrics = evaluate_batches(net, batches, device, amp)
    return metrics


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
