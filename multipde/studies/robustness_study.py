"""``multipde evaluate --robustness``: several checkpoints on the same images, as rows, tables and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multipde.data.checksum import data_checksum
from multipde.evaluation.robustness import KINDS, robustness
from multipde.evaluation.sizes import DataSource
from multipde.networks.cost import num_weights
from multipde.networks.model_spec import spec_of
from multipde.reports.plots import check_figure_file
from multipde.runtime.console import Log
from multipde.storage.provenance import tested_images
from multipde.storage.stored_network import Given, load, network_checksum
from multipde.studies.robustness_figure import robustness_figure
from multipde.studies.robustness_tables import strengths, tables
from multipde.studies.study import Study

GROUPINGS = ("checkpoint", "dynamics")


def compare_robustness(
    checkpoints: Sequence[Path],
    data: DataSource | None,
    *,
    model: Given = None,
    num_images: int | None = None,
    by: str = "checkpoint",
    out: Path | None = None,
    plot: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure the robustness of checkpoints of one image size on the same test images and noise, and print tables.

    Args:
        data: source and options for `load_data`.
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        num_images, seed: as in `robustness`.
        by: one column per ``"checkpoint"``, or per ``"dynamics"`` with mean and spread over its checkpoints.
        out: file to which rows are appended; a network with a row for the same images is not measured again.
        plot: file for a figure.
    """
    if by not in GROUPINGS:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    if plot is not None:
        check_figure_file(plot)
    if not checkpoints:
        raise ValueError("checkpoints must name at least one, got none")
    if data is None:
        raise ValueError(f"data must be given for {checkpoints[0]}, which does not name its own; type --data NAME")
    nets = {path: load(path, model) for path in checkpoints}
    sizes = {spec_of(net).image_sizes for net in nets.values()}
    if len(sizes) > 1:
        shown = " and ".join(str(s[0]) for s in sorted(sizes))
        raise ValueError(f"checkpoints must have one size to be compared, got {shown}; type multipde convert --size N")
    if by == "dynamics":
        _check_depths([spec_of(net) for net in nets.values()])
    (side, *_) = sizes.pop()
    images = tested_images(data, side, *nets)
    num = len(images.test) if num_images is None else min(num_images, len(images.test))
    shared = {"data": images.name, "images": data_checksum(images), "num_images": num, "seed": seed}
    study = Study(out, shared, ("sha256",), log=log)
    study.rows = [row for row in study.rows if strengths(row) == KINDS]
    sums = {path: network_checksum(net) for path, net in nets.items()}
    left = study.left([(sums[path],) for path in nets], "networks")
    with study.log.progress(len(left) * num) as advance:
        for (sha256,) in left:
            path = next(path for path in nets if sums[path] == sha256)
            how: dict[str, Any] = {"num_images": num_images, "device": device, "seed": seed}
            found = robustness(nets[path], images, **how, advance=lambda n, name=path.name: advance(n, name))
            network = {"dynamics": spec_of(nets[path]).label, "weights": num_weights(nets[path])}
            study.add(sha256, checkpoint=str(path), **network, **found.record())
    measured = {row["sha256"]: row for row in study.rows}
    rows = [measured[sums[path]] | {"checkpoint": str(path)} for path in nets]
    study.close(tables(rows, by), plot and (lambda file: robustness_figure(rows, file, by)), plot)
    return rows


def _check_depths(specs: Sequence[Any]) -> None:
    """Raise ValueError unless networks of one dynamics take the same steps, over which growth is averaged."""
    steps: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.has_energy and steps.setdefault(spec.label, spec.block_steps) != spec.block_steps:
            got = f"{steps[spec.label]} and {spec.block_steps} for {spec.label}"
            raise ValueError(f"networks of one dynamics must have the same steps, got {got}; type --by checkpoint")
