"""Checkpoints at other sizes: converted, recalibrated, tested beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.conversions.convert import convert
from multipde.conversions.recalibration import recalibrate
from multipde.conversions.sample_sizes import CALIBRATION_IMAGES, RECALIBRATION_IMAGES
from multipde.data.batches import drawn_images, drawn_indices, evaluation_batches
from multipde.data.datasets import ImageData, load_data
from multipde.evaluation.metrics import Metrics, check_classes, evaluate_batches, normalization
from multipde.mesh.transfer import CALIBRATED
from multipde.networks.network import PDENet, count_flops
from multipde.runtime.console import Log
from multipde.runtime.device import choose_device, place
from multipde.storage.network import load

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
    for size, m in wanted:
        if m != "-":
            net.config.on_mesh(size)  # a size that it cannot have is told before images are read
    images = _data_for(net, data, max(*chosen, own))
    nets = {(size, m): net if m == "-" else _converted(net, images, size, m) for size, m in wanted}
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


def _converted(net: PDENet, images: ImageData, size: int, method: str) -> PDENet:
    calibration = None
    if method in CALIBRATED:
        finer = max(size, net.config.sizes[0])
        device, key = next(net.parameters()).device, (0, "calibrate")
        drawn = drawn_images(images.train, None, CALIBRATION_IMAGES, finer, device, normalization(net.config), key)
        calibration = torch.cat(list(drawn))
    return convert(net, size=size, method=method, calibration=calibration)  # pyright: ignore[reportReturnType]


def _calibration_images(net: PDENet, images: ImageData, size: int, device: torch.device) -> Iterator[Tensor]:
    num = RECALIBRATION_IMAGES
    return drawn_images(images.train, None, num, size, device, normalization(net.config), (0, "calibrate"))


def _data_for(net: PDENet, data: DataSource, size: int) -> ImageData:
    source, options = data
    images = load_data(source, size=size, **options)
    check_classes(net.config, images)
    return images


def _test(net: Any, images: ImageData, indices: Tensor, size: int, device: torch.device, amp: str) -> Metrics:
    """Accuracy and speed after one batch to warm up."""
    place(net, device)
    for part in (indices[:250], indices):
        batches = evaluation_batches(images.test, part, size, 250, device, normalization(net.config))
        metrics = evaluate_batches(net, batches, device, amp)
    return metrics


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
