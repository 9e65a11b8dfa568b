"""``multipde convert``: any network from disk to another size, written with its report."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multipde.conversions.external import (
    IMAGENET,
    classifier_name,
    convert_state_dict,
    read_state_dict,
    torchvision_model,
)
from multipde.data.batches import Normalize
from multipde.data.datasets import ImageData, load_data
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.conversion_report import ConversionReport
from multipde.evaluation.measured_conversion import check_conversion_method, convert_reported
from multipde.evaluation.metrics import check_classes
from multipde.mesh.modes import eval_mode
from multipde.networks.network import PDENet
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.files import write_directory
from multipde.storage.network import load, network_files
from multipde.storage.records import json_bytes
from multipde.storage.run_directory import check_new
from multipde.storage.tensors import tensor_bytes
from multipde.training.plan import recorded_split

REPORT, FIGURE, ARCHITECTURE, WEIGHTS = "report.json", "report.svg", "architecture.json", "model.safetensors"

DataSource = tuple[Any, Mapping[str, Any]]


def convert_to_directory(
    source: Path | None,
    out: Path | None,
    *,
    size: int | None = None,
    method: str = "auto",
    steps: int | str | None = None,
    arch: str | None = None,
    weights: Path | None = None,
    from_size: int = 224,
    normalize: str | None = None,
    data: DataSource | None = None,
    need_data: bool = True,
    num_images: int = 2000,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> ConversionReport | None:
    """A checkpoint, a classifier of torchvision or a bare state dict converted and written to a new directory.

    Beside the weights lie report.json and report.svg. A converted classifier of torchvision is written as
    model.safetensors with its old names and architecture.json.

    Args:
        source: a checkpoint, or a state dict file; None with ``arch``.
        from_size: image side for which ``arch`` or the state dict was trained; a checkpoint knows its own.
        normalize: ``"imagenet"`` or ``"data"`` for ``arch``; ImageNet's where left out.
        data: source and options for `load_data`; None for none.
        need_data: refuse data that cannot be read; otherwise say so and go on without.

    Returns:
        What was measured; None for a bare state dict.

    Raises:
        FileExistsError: the new directory is not empty.
        ValueError: no place to write to, no source or two, or what reading and converting raise.
    """
    log = log or Log(quiet=True)
    check_conversion_method(method)
    if out is None:
        raise ValueError("out must be given; type --out DIR")
    check_new(out)
    if (source is None) == (arch is None):
        got = "neither" if source is None else "both"
        raise ValueError(f"checkpoint or --arch must be given, got {got}; type multipde convert CHECKPOINT --size N")
    if arch is None and weights is not None:
        raise ValueError(f"weights must come with --arch, got {weights} without; type --arch resnet18, or DIR")
    if from_size < 1:
        raise ValueError(f"from_size must be positive, got {from_size}")
    if source is not None and source.is_file():
        if steps is not None or data is not None:
            what = "steps" if steps is not None else "data"
            raise ValueError(f"{what} must be left out for a bare state dict, got it; type --arch NAME --weights FILE")
        _convert_file(source, out, _needed(size), from_size, "copy" if method == "auto" else method, log)
        return None
    if steps is None or arch is not None:
        _needed(size)
    if steps is not None and arch is not None:
        raise ValueError(f"steps must be left out for a model that is no PDENet, got {steps}")
    net = torchvision_model(arch, weights) if arch else load(source)  # pyright: ignore[reportArgumentType]
    old = net.config.sizes[0] if isinstance(net, PDENet) else from_size
    new = old if size is None else size
    if min(old, new) < 1:
        raise ValueError(f"size must be positive, got {min(old, new)}")
    if isinstance(net, PDENet):
        net.config.on_mesh(new)  # a size that it cannot have is told before images are read
    if steps == "auto" and (data is None or (isinstance(net, PDENet) and net.config.dynamics == "resnet")):
        raise ValueError("steps must be a number without images, and for resnet, which has no bound, got auto")
    _check_sizes(net, old, new)
    images = _images(data, max(old, new), need_data, log)
    if images is not None:
        _check_classes(net, images)
    name = arch or str(source)
    log.say(f"{name}: size {old} -> {new}" + ("" if images is None else f", on images of {images.name}"))
    if images is None:
        log.say("no data: nothing is measured, BatchNorm keeps the statistics of the old size; type --data NAME")
    evaluator = None
    if images is not None:
        compute, split = Compute.of(device, amp), recorded_split(source)
        evaluator = Evaluator.of(images, compute, _normalization(net, normalize), split=split, num_images=num_images)
    converted, report = convert_reported(net, evaluator, old_size=old, new_size=new, method=method, steps=steps)
    _write(converted.cpu(), report, out, {"arch": arch, "size": new, "from": from_size} if arch else None)
    _tell(report, converted, log)
    log.say(f"written to {out}")
    return report


def _convert_file(source: Path, out: Path, size: int, from_size: int, method: str, log: Log) -> None:
    state, moved = convert_state_dict(read_state_dict(source), size / from_size, method)
    write_directory(out, {WEIGHTS: tensor_bytes(state)})
    log.say(f"{source}: size {from_size} -> {size} by {method}, {len(moved)} of {len(state)} tensors are stencils")
    log.say(f"a bare state dict: nothing is measured; type --arch NAME --weights FILE for a report. Written to {out}")


def _write(net: nn.Module, report: ConversionReport, out: Path, architecture: dict[str, Any] | None) -> None:
    from multipde.reports.plots import conversion_figure

    if isinstance(net, PDENet):
        files = network_files(net)
    else:
        files = {WEIGHTS: tensor_bytes(net.state_dict()), ARCHITECTURE: json_bytes(architecture or {})}
    files[REPORT] = json_bytes(report.record())
    figure = io.BytesIO()
    conversion_figure(report, figure)
    write_directory(out.resolve(), files | {FIGURE: figure.getvalue()})


def _tell(report: ConversionReport, converted: nn.Module, log: Log) -> None:
    if report.layers:
        log.table(report.layer_rows(), "What happened to the stencils")
    else:
        log.say("no stencils: every convolution is 1x1, of even width or transposed, or there is none")
    for name, reason in report.skipped.items():
        log.say(f"left alone: {name} ({reason})")
    if report.stability_after:
        log.table(report.stability_rows(), "Step bounds of the converted network, for N = 1 and measured on images")
    if report.candidates:
        log.table(report.candidate_rows(), f"What it is good for, on {report.num_images:,} test images")
    steps = f", steps {converted.config.steps}" if isinstance(converted, PDENet) else ""
    log.say(f"method {report.method}{steps}, {report.num_recalibrated} BatchNorm layers recalibrated")


def _images(data: DataSource | None, size: int, need_data: bool, log: Log) -> ImageData | None:
    if data is None:
        return None
    try:
        return load_data(data[0], size=size, **data[1])
    except ValueError as error:
        if need_data:
            raise
        log.say(f"the data of the run cannot be read ({error})")
        return None


def _check_sizes(net: nn.Module, *sizes: int) -> None:
    """Raise ValueError unless the network takes images of these sizes."""
    if isinstance(net, PDENet):
        return
    for size in sizes:
        try:
            with eval_mode(net), torch.no_grad():
                net(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"size must be one that the network can take, got {size} ({reason})") from None


def _check_classes(net: nn.Module, images: ImageData) -> None:
    """Raise ValueError unless the network has the classes of the images."""
    if isinstance(net, PDENet):
        check_classes(net.config, images)
        return
    last = classifier_name(net)
    classes = len(net.get_parameter(last)) if last else None
    if classes not in (None, len(images.class_names)):
        raise ValueError(
            f"data must have the {classes} classes of the network, got {len(images.class_names)} in {images.name}"
        )


def _normalization(net: nn.Module, normalize: str | None) -> Normalize | None:
    if isinstance(net, PDENet):
        return Normalize.of(net.config)
    return None if normalize == "data" else Normalize(*IMAGENET)


def _needed(size: int | None) -> int:
    if size is None:
        raise ValueError("size, factor or steps must be given, got none of them; type --size N")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    return size
