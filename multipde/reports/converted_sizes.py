"""``multipde convert --sizes`` and ``train --all-sizes``: one checkpoint for several image sizes, with its report."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from multipde.conversions.shared_stencils import share_stencils
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.conversion_report import Candidate, candidate_rows
from multipde.networks.all_sizes import AllSizes, num_norms
from multipde.networks.model_spec import spec_of
from multipde.reports.conversion_input import ConversionInput
from multipde.reports.converted_network import REPORT
from multipde.reports.finished_conversion import ConversionFinish
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.files import write_directory
from multipde.storage.records import json_bytes
from multipde.storage.run_directory import training_files
from multipde.storage.schema import FORMAT
from multipde.storage.stored_network import network_files
from multipde.training.finish import finest_side
from multipde.training.finish_settings import SEVERAL_RATE


def convert_to_sizes(given: ConversionInput, sizes: Sequence[int], *, log: Log | None = None) -> list[Candidate]:
    """Make one checkpoint for several sizes from a trained network, and write it to a new directory with a report.

    The old network teaches it at all sizes together, see `finish`; where the images have labels, these and the mean
    answer of the sizes do. The directory contains the measurements, too, as report.json.

    Args:
        sizes: sides of the images in pixels.

    Returns:
        The measurements on test images: at every size before the finish and after it; none without images.
    """
    log = log or Log(quiet=True)
    budget, source, arch, out = given.budget(), given.source, given.arch, given.out
    assert out is not None
    if (source is None and arch is None) or (source is not None and source.is_file()):
        raise ValueError(f"sizes must come with a checkpoint or --arch, got {source or 'neither'}")
    old = given.network()
    new = share_stencils(old, sizes)
    compute = Compute.of(given.device, given.amp)
    images, other = given.images(old, finest_side(old, new), compute, log)
    own = spec_of(old).image_sizes[0]
    log.say(f"{source or arch}: size {own} -> one checkpoint for {', '.join(map(str, new.sizes))}")
    if not num_norms(old):
        log.say("note: the network has no normalisation layers, so that all of its weights are those of every size")
    rows: list[Candidate] = []
    if images is None:
        if budget is not None:
            raise ValueError(f"finish {given.finish} must have images, got none; type --data NAME or --images DIR")
        log.say("no data: nothing is measured or finished, and BatchNorm keeps the statistics of the old size")
    else:
        if source is None and given.normalize == "data":
            _normalize_by(images, old, new)
        evaluator = given.evaluator(spec_of(old), images, compute)
        settings = given.settings(budget, label_share=0.0 if given.unlabelled else 1.0, learning_rate=SEVERAL_RATE)
        wanted = None if given.finish == "none" else ConversionFinish(evaluator, settings, other)
        new, rows = _finished(evaluator, wanted, old, new, log)
    record = {"format": FORMAT, "size": own, "sizes": list(new.sizes), "candidates": [row.record() for row in rows]}
    others = training_files(source) | {REPORT: json_bytes(record)}
    write_directory(out.resolve(), network_files(new.cpu()) | others)
    if rows:
        log.table(candidate_rows(rows), f"Accuracy and cost on {len(evaluator.tested):,} test images")
    log.say(f"written to {out}")
    return rows


def _finished(
    evaluator: Evaluator, finish: ConversionFinish | None, old: Any, new: AllSizes, log: Log
) -> tuple[AllSizes, list[Candidate]]:
    """The network after BatchNorm is measured at other sizes than that of the old one, and after its finish."""
    compute, own = evaluator.compute, spec_of(old).image_sizes[0]
    for net in (old, new):
        compute.place(net)
    rows = [evaluator.candidate(f"original at {own}", old, own)]
    for size in new.sizes:
        if size != own:
            num = evaluator.recalibrate(new.at(size), size)
            row = evaluator.candidate("shared" + ", recalibrated" * bool(num), new.at(size), size)
            rows.append(replace(row, recalibrated=bool(num)))
    found = None if finish is None else finish.trained(old, copy.deepcopy(new), finish.settings, log)
    if found is None:
        return new, rows
    net: Any = found.net
    learned = {"recalibrated": True, "num_learned": found.num_images, "seconds": found.seconds}
    after = [replace(evaluator.candidate("shared, finished", net.at(n), n), **learned) for n in net.sizes]
    others = [row for row in after if row.size != own] or after  # at its own size the old network agrees with itself
    compared = after if finish and finish.settings.label_share else others
    was = {row.size: row.validation for row in rows}
    before, now = (mean(values) for values in zip(*((was[r.size], r.validation) for r in compared), strict=True))
    what = f"{len(evaluator.held_back):,} held-back images, the mean over {len(compared)} sizes"
    if now <= before:
        log.say(f"finish: nothing gained, {now:.1%} right of {what}, and {before:.1%} before it")
        return new, rows
    log.say(f"finish: {now:.1%} right of {what}, and {before:.1%} before it")
    return net, [*rows, *after]


def _normalize_by(images: Any, old: Any, new: AllSizes) -> None:
    """Give all networks the mean and the standard deviation of the images."""
    each: Any
    for each in (old, *new.networks):
        each.multipde_spec = replace(spec_of(each), mean=images.mean, std=images.std)  # pyright: ignore
