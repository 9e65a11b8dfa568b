"""Comparison of image sizes: a checkpoint is converted to each size, recalibrated and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multipde.data.datasets import ImageData
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.metrics import check_classes
from multipde.evaluation.views import with_views
from multipde.networks.all_sizes import AllSizes
from multipde.networks.cost import count_flops
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.storage.provenance import tested_images
from multipde.storage.stored_network import Given, load

DataSource = tuple[Any, Mapping[str, Any]]
COLUMNS = """size: {size} | method: {by} | accuracy: {accuracy} | recalibrated: {recalibrated_accuracy}
    | loss: {last_loss:.3f} | MFLOPs/image: {mflops:.1f} | images/s: {images_per_second:.0f}"""


def evaluate_sizes(
    checkpoint: Path,
    data: DataSource | None,
    *,
    model: Given = None,
    sizes: Sequence[int] | None = None,
    methods: Sequence[str] = ("copy",),
    split: tuple[int, float] = (0, 0.2),
    num_images: int | None = None,
    device: str = "auto",
    amp: str = "off",
    views: int = 1,
    json: bool = False,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Convert a checkpoint to each size by each method, test it before and after recalibration, and print a table.

    A checkpoint for several sizes is tested at those sizes, without any conversion.

    Args:
        data: source and options of the data set for `load_data`.
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        split: seed and share of the training images that are held back for validation and not used for calibration.
        num_images: use only this many test images, a fixed random subset; None for all.
        views: 2 for a second record of every size and method, with ``"views": 2``: the network as it is at last, with
            the mean of the scores of every image and of its mirror image.
        json: print the records as JSON, with `Metrics.record` of the last network of every row, instead of the table.

    Returns:
        For every row of the table a record of size, method, accuracy and loss before and after recalibration, FLOPs per
        image and images per second.
    """
    loaded, compute = load(checkpoint, model), Compute.of(device, amp)
    with_views(loaded, views)  # raises for another number
    several = isinstance(loaded, AllSizes)
    net = loaded.networks[-1] if several else loaded
    spec = spec_of(net)
    own = spec.image_sizes[0]
    trained = {size: loaded.at(size) for size in sizes or loaded.sizes} if several else {own: net}
    if several and tuple(methods) != ("copy",):
        raise ValueError(f"method must be left out for a checkpoint of several sizes, got {' '.join(methods)}")
    chosen = tuple(sizes or trained)
    wanted = {(size, "-" if size in trained else method): None for size in chosen for method in methods}
    for size in chosen:
        count_flops(spec.for_images(size))  # raises for a size that the network cannot have, before images are read
    images = images_for(spec, checkpoint, data, max(*chosen, own))
    notes = images.skipped.notes(len(images.train) + len(images.test)) + images.enlarged(chosen)
    for note in () if log is None else notes:
        Log(stream="stderr").say(f"note: {note}")
    evaluator = Evaluator.of(images, compute, Normalize.of(spec), split=split, num_images=num_images)
    evaluator = replace(evaluator, held_back=evaluator.held_back[:0])
    compute.place(loaded)
    records: list[dict[str, Any]] = []
    measured: list[dict[str, Any]] = []
    for size, method in wanted:
        is_own, moved = method == "-", trained.get(size, net)
        if is_own:
            found = [evaluator.candidate("-", moved, size)]
        else:
            converted = evaluator.convert(net, own, size, method)
            moved, found = converted.net, converted.measured
        record = {"size": size, "method": method, "accuracy": found[0].accuracy, "loss": found[0].loss}
        if not is_own:
            record |= {"recalibrated_accuracy": found[-1].accuracy, "recalibrated_loss": found[-1].loss}
        records.append(record | {"flops": found[-1].flops, "images_per_second": found[-1].images_per_second})
        last = [found[-1].metrics]
        if views > 1:
            both, kind = evaluator.candidate(method, with_views(moved, views), size), "" if is_own else "recalibrated_"
            record = {"size": size, "method": method, "views": views}
            record |= {f"{kind}accuracy": both.accuracy, f"{kind}loss": both.loss}
            records.append(record | {"flops": both.flops, "images_per_second": both.images_per_second})
            last.append(both.metrics)
        measured += [m.record(images.class_names) for m in last]
    if log is not None and json:
        rows = [record | {"test": found} for record, found in zip(records, measured, strict=True)]
        log.json({"checkpoint": str(checkpoint), "data": images.name, "rows": rows})
    elif log is not None:
        title = f"{checkpoint} on {len(evaluator.tested):,} test images of {images.name}"
        log.table(table_of(map(_shown, records), COLUMNS), title)
    return records


def images_for(spec: ModelSpec, checkpoint: Path, data: DataSource | None, size: int) -> ImageData:
    """The images of a source at a size for the network of a checkpoint.

    ValueError if there is no source, or if the images have other classes or channels than the network.
    """
    if data is None:
        raise ValueError(f"data must be given for {checkpoint}, which does not name its own; type --data NAME")
    images = tested_images(data, size, checkpoint)
    check_classes(spec, images)
    return images


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    share = {key: f"{record[key]:.2%}" if key in record else "-" for key in ("accuracy", "recalibrated_accuracy")}
    return {
        **record,
        **share,
        "by": record["method"] + (f", {record['views']} views" if "views" in record else ""),
        "last_loss": record.get("recalibrated_loss", record.get("loss")),
        "mflops": record["flops"] / 1e6,
    }
