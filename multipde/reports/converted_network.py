"""``multipde convert``: converts a network from disk to another size, and writes it with its report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from multipde.conversions.left_alone import layers_to_leave, mark
from multipde.conversions.state_dict import convert_state_dict, read_state_dict
from multipde.evaluation.conversion_report import ConversionReport, candidate_rows
from multipde.evaluation.measured_conversion import check_conversion_method, convert_reported
from multipde.mesh.reparametrize import check_movable, composed_layers, stencil_layers
from multipde.networks.cost import count_flops
from multipde.networks.input_size import can_resize
from multipde.networks.model_spec import spec_of
from multipde.reports.conversion_input import ConversionInput
from multipde.reports.finished_conversion import ConversionFinish
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.files import write_directory
from multipde.storage.records import brief, json_bytes
from multipde.storage.run_directory import training_files
from multipde.storage.stored_network import network_files
from multipde.storage.tensors import tensor_bytes
from multipde.training.level import size_text

REPORT, FIGURE, WEIGHTS = "report.json", "report.svg", "model.safetensors"


def convert_to_directory(
    given: ConversionInput,
    *,
    size: int | None = None,
    detail: int | None = None,
    method: str = "auto",
    steps: int | str | None = None,
    rivals: bool = False,
    skip: Sequence[str] = (),
    log: Log | None = None,
) -> ConversionReport | None:
    """Convert a checkpoint, a network by name or a state dict, and write it to a new directory with a report.

    The directory also contains the measurements, as report.json and report.svg.

    Args:
        size, detail, method, steps: see `convert_reported`, but the size is that of the mesh; None keeps it.
        rivals: test also what else could be done with the same images in the same number of steps.
        skip: stencils that keep their numbers, see `convert`.

    Returns:
        The measurements; None for a state dict without its network.
    """
    log = log or Log(quiet=True)
    check_conversion_method(method)
    budget, source, arch = given.budget(), given.source, given.arch
    out, data, unlabelled = given.out, given.data, given.unlabelled
    assert out is not None
    if rivals and (given.finish == "none" or unlabelled is not None):
        got = f"--images {unlabelled}" if unlabelled else "--finish none"
        raise ValueError(f"rivals must come with a finish on labelled images, got {got}; type --data NAME")
    if source is None and arch is None:
        raise ValueError("checkpoint or --arch must be given, got neither; type multipde convert CHECKPOINT --size N")
    if given.from_size < 1:
        raise ValueError(f"from_size must be positive, got {given.from_size}")
    if source is not None and source.is_file():
        others = {"steps": steps, "data": data, "arch": arch, "detail": detail, "images": unlabelled, "finish": budget}
        if what := next((name for name, value in others.items() if value is not None), None):
            raise ValueError(f"{what} must be left out without a network, got it; type --arch NAME --weights FILE")
        _convert_file(source, out, _needed(size), given.from_size, "copy" if method == "auto" else method, skip, log)
        return None
    if source is None or (steps is None and detail is None):
        _needed(size)
    net = given.network()
    spec: Any = spec_of(net)
    if size is not None:
        _needed(size)
    wanted = spec.on_mesh(spec.size if size is None else size, detail)
    for each in (spec, wanted):
        count_flops(each)  # raises for a size that the network cannot have, before images are read
    old, new, is_moved = spec.image_sizes[0], wanted.image_sizes[0], wanted.sizes != spec.sizes
    if steps == "auto" and (data is None or not spec.has_step_bounds):
        raise ValueError(f"steps must be a number without images, and for {spec.label} if it has no bound, got auto")
    if isinstance(steps, int):
        spec.with_steps(steps)
    compute = Compute.of(given.device, given.amp)
    mark(net, layers_to_leave(net, skip, None))
    if is_moved and not can_resize(net):
        check_movable(net, {**composed_layers(net), **stencil_layers(net)})
    images, other = given.images(net, max(old, new), compute, log)
    if images is not None and source is None and given.normalize == "data":
        spec = net.multipde_spec = replace(spec, mean=images.mean, std=images.std)
    name = str(source or arch)
    sizes = " -> ".join(size_text(each.sizes[0], each.image_sizes[0]) for each in (spec, wanted))
    log.say(f"{name}: size {sizes}" + ("" if images is None else f", on images of {images.name}"))
    if images is None:
        if budget is not None or rivals:
            what = f"finish {given.finish}" if budget else "rivals"
            raise ValueError(f"{what} must have images, got none; type --data NAME")
        log.say(
            "no data: nothing is measured or finished, BatchNorm keeps the statistics of the old size;"
            " type --data NAME, or --images DIR"
        )
        if is_moved and method in ("auto", "copy"):
            what = "the mesh and the time steps change" if steps else "the mesh changes"
            log.say(f"the stencils are copied, so that only {what}; type --data NAME for a calibrated conversion")
    evaluator = None if images is None else given.evaluator(spec, images, compute)
    how = {"old_size": old, "new_size": new, "method": method, "steps": steps, "detail": detail}
    converted, report = convert_reported(net, evaluator, **how)
    if evaluator is not None and given.finish != "none":
        finish = ConversionFinish(evaluator, given.settings(budget), other, rivals)
        converted, report = finish(net, converted, report, log)
    _write(converted.cpu(), report, out, training_files(source), log)
    _tell(report, converted, log)
    log.say(f"written to {out}")
    return report


def _convert_file(
    source: Path, out: Path, size: int, from_size: int, method: str, skip: Sequence[str], log: Log
) -> None:
    state, moved = convert_state_dict(read_state_dict(source), size / from_size, method, skip)
    write_directory(out, {WEIGHTS: tensor_bytes(state)})
    log.say(f"{source}: size {from_size} -> {size} by {method}, {len(moved)} of {len(state)} tensors are stencils")
    log.say(f"converted: {', '.join(moved)}")
    log.say(f"nothing is measured without a network; type --arch NAME --weights FILE for a report. Written to {out}")


def _write(net: nn.Module, report: ConversionReport, out: Path, others: dict[str, bytes], log: Log) -> None:
    """Write the network with its report, and with the figure, unless drawing fails."""
    from multipde.reports.plots import conversion_figure

    files = network_files(net) | others | {REPORT: json_bytes(report.record())}
    try:
        files[FIGURE] = conversion_figure(report)
    except Exception as error:  # the network is what was wanted, and matplotlib can fail in any way
        log.say(f"note: {FIGURE} is not written: {brief(error)}")
    write_directory(out.resolve(), files)


def _tell(report: ConversionReport, converted: nn.Module, log: Log) -> None:
    if report.layers:
        log.table(report.layer_rows(), "Change of the stencils")
    else:
        log.say("no stencils: every convolution is 1x1, of even width or transposed, or there is none")
    for name, reason in report.skipped.items():
        log.say(f"not converted: {name} ({reason})")
    if report.stability_after:
        log.table(report.stability_rows(), "Step bounds of the converted network, without norms and measured on images")
    if report.candidates:
        log.table(candidate_rows(report.candidates), f"Accuracy and cost on {report.num_images:,} test images")
    blocks = spec_of(converted).block_steps
    steps = f", steps {blocks[0] if len(set(blocks)) == 1 else blocks}" if blocks else ""
    log.say(f"method {report.method}{steps}, {report.num_recalibrated} BatchNorm layers recalibrated")


def _needed(size: int | None) -> int:
    if size is None:
        raise ValueError("size, factor, steps or detail must be given, got none of them; type --size N")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    return size
