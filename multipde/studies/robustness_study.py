"""``multipde evaluate --robustness``: several checkpoints on the same pictures, as rows, tables and a figure."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipde.data.datasets import load_data
from multipde.evaluation.corruptions import CORRUPTIONS
from multipde.evaluation.robustness import ATTACKS, KINDS, robustness
from multipde.evaluation.sizes import DataSource
from multipde.networks.network import num_weights
from multipde.reports.plots import check_figure_file
from multipde.runtime.console import Log
from multipde.storage.network import load
from multipde.storage.rows import read_metrics
from multipde.storage.tensors import tensor_bytes
from multipde.studies.bench.timing import recorded
from multipde.studies.bench.transfer_study import mean_and_spread

GROUPINGS = ("checkpoint", "dynamics")


def compare_robustness(
    checkpoints: Sequence[Path],
    data: DataSource | None,
    *,
    num_images: int | None = None,
    by: str = "checkpoint",
    out: Path | None = None,
    plot: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure checkpoints of one image size on the same test images with the same draws; prints tables.

    Args:
        data: source and options for `load_data`.
        by: one column per ``"checkpoint"``, or per ``"dynamics"`` with mean and spread over its checkpoints.
        out: file of rows, appended to; a network that it has, on as many images, is not measured again.
        plot: file for a figure.

    Returns:
        A row per checkpoint.

    Raises:
        ValueError: no checkpoint, no data, checkpoints of different sizes, or what `load` and `robustness` raise.
    """
    log = log or Log(quiet=True)
    if by not in GROUPINGS:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    if plot is not None:
        check_figure_file(plot)
    if not checkpoints:
        raise ValueError("checkpoints must name at least one, got none")
    if data is None:
        raise ValueError(f"data must be given for {checkpoints[0]}, which does not name its own; type --data NAME")
    nets = {path: load(path) for path in checkpoints}
    sizes = {net.config.sizes for net in nets.values()}
    if len(sizes) > 1:
        shown = " and ".join(str(s[0]) for s in sorted(sizes))
        raise ValueError(f"checkpoints must have one size to be compared, got {shown}; type multipde convert --size N")
    images = load_data(data[0], size=sizes.pop()[0], **data[1])
    num = len(images.test) if num_images is None else min(num_images, len(images.test))
    done = {_key(row): row for row in (read_metrics(out) if out else []) if _strengths(row) == KINDS}
    rows: list[dict[str, Any]] = []
    with log.progress(len(nets) * num) as advance:
        for path, net in nets.items():
            row = {
                "checkpoint": str(path),
                "dynamics": net.config.dynamics,
                "weights": num_weights(net),
                "sha256": hashlib.sha256(tensor_bytes(net.state_dict())).hexdigest(),
                "data": images.name,
                "num_images": num,
                "seed": seed,
            }
            if _key(row) not in done:
                found = robustness(
                    net,
                    images,
                    num_images=num_images,
                    device=device,
                    seed=seed,
                    advance=lambda n, name=path.name: advance(n, name),
                )
                done[_key(row)] = recorded(row | found.record(), out)
            rows.append(done[_key(row)] | {"checkpoint": str(path)})
    for title, table in tables(rows, by).items():
        log.table(table, title)
    if plot is not None:
        from multipde.studies.robustness_figure import robustness_figure

        robustness_figure(rows, plot, by)
        log.say(f"figure in {plot}")
    return rows


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("sha256", "data", "num_images", "seed"))


def _strengths(row: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {kind: tuple(s for s, _ in pairs) for kind, pairs in row["accuracy"].items()}


def grouped(rows: Sequence[Mapping[str, Any]], by: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by what they are called: the dynamics, or the last part of the checkpoint's path, or all of it."""
    if by == "dynamics":
        names = [row["dynamics"] for row in rows]
    else:
        paths = [Path(row["checkpoint"]) for row in rows]
        lasts = [path.name for path in paths]
        names = [p.name if lasts.count(p.name) == 1 else str(p) for p in paths]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in zip(names, rows, strict=True):
        groups.setdefault(name, []).append(row)
    return groups


def accuracies(group: Sequence[Mapping[str, Any]], kind: str) -> dict[float, list[float]]:
    """Accuracy of every network of a group by strength."""
    found: dict[float, list[float]] = {}
    for row in group:
        for strength, accuracy in row["accuracy"][kind]:
            found.setdefault(strength, []).append(accuracy)
    return found


def mean_ratio(group: Sequence[Mapping[str, Any]], kind: str, strength: float) -> float:
    """Accuracy over clean accuracy, each network by its own, the mean of the group."""
    values = accuracies(group, kind)[strength]
    return statistics.mean(a / max(row["clean"], 1e-9) for a, row in zip(values, group, strict=True))


def tables(rows: Sequence[Mapping[str, Any]], by: str = "checkpoint") -> dict[str, list[dict[str, str]]]:
    """Accuracy by kind and strength with its ratio to the clean one; growth through the blocks; energy along time."""
    groups = grouped(rows, by)
    table = [{"name": "clean"} | {g: mean_and_spread([100 * r["clean"] for r in own]) for g, own in groups.items()}]
    for kind, strengths in _strengths(rows[0]).items():
        for strength in strengths:
            cells = {
                g: f"{mean_and_spread([100 * a for a in accuracies(own, kind)[strength]])} "
                f"({mean_ratio(own, kind, strength):.2f})"
                for g, own in groups.items()
            }
            table.append({"name": strength_name(kind, strength)} | cells)
    result = {
        f"Accuracy in % (ratio to clean) on {rows[0]['num_images']:,} test images of {rows[0]['data']}": table,
        "Growth of perturbations through the blocks, at features of test images": _growth_table(groups),
    }
    energies = {g: own for g, own in groups.items() if own[0]["energy"]}
    if energies:
        result["Energy (12) along time over that at the start of the block"] = _energy_table(energies)
    return result


def strength_name(kind: str, strength: float) -> str:
    """A kind of perturbation at a strength with its unit."""
    return f"{kind} {strength:g}/255" if kind in ATTACKS else f"{kind}, {CORRUPTIONS[kind].unit} {strength:g}"


def _growth_table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """A row per block; over the networks of a group the mean of the random growth, the largest of all else."""
    table = []
    for name, own in groups.items():
        for k in range(len(own[0]["growth"])):
            blocks = [row["growth"][k] for row in own]
            table.append(
                {
                    "name": name,
                    "block": str(k),
                    "random": f"{statistics.mean(v for b in blocks for v in b['random']):.2f}",
                    "worst, median": f"{statistics.median(v for b in blocks for v in b['worst']):.3g}",
                    "worst": f"{max(v for b in blocks for v in b['worst']):.3g}",
                    "bound on data": f"{max(v for b in blocks for v in b['measured_bound']):.3g}",
                    "bound (N = 1)": f"{max(b['bound'] for b in blocks):.3g}",
                }
            )
    return table


def _energy_table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """A row per block, a column per time; the mean over the networks of a group."""
    table = []
    paths = [(name, k, energy_ratios(own, k)) for name, own in groups.items() for k in range(len(own[0]["growth"]))]
    for name, k, ratios in paths:
        cells = {
            f"step {j}": f"{ratios[j]:.2f}" if j < len(ratios) else "-" for j in range(max(len(p[2]) for p in paths))
        }
        table.append({"name": name, "block": str(k)} | cells)
    return table


def energy_ratios(group: Sequence[Mapping[str, Any]], block: int) -> list[float]:
    """Energy at every time in a block over that at its start, the mean over the networks of a group."""
    paths = [[e["energy"] for e in row["energy"] if e["block"] == block] for row in group]
    return [statistics.mean(path[j] / path[0] for path in paths) for j in range(len(paths[0]))]
