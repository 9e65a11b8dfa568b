"""The tables of ``multipde evaluate --robustness``, and the means over networks that its figure shows too."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from multipde.evaluation.corruptions import CORRUPTIONS
from multipde.evaluation.robustness import ATTACKS
from multipde.runtime.table import Row, Table
from multipde.studies.study import mean_and_spread


def strengths(row: Row) -> dict[str, tuple[float, ...]]:
    """The strengths of every kind of perturbation at which a row was measured."""
    return {kind: tuple(s for s, _ in pairs) for kind, pairs in row["accuracy"].items()}


def grouped(rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    """Rows grouped by dynamics, or by the last part of the checkpoint's path (all of it where that is ambiguous)."""
    lasts = [Path(row["checkpoint"]).name for row in rows]
    groups: dict[str, list[Row]] = {}
    for row, last in zip(rows, lasts, strict=True):
        name = last if lasts.count(last) == 1 else row["checkpoint"]
        groups.setdefault(row["dynamics"] if by == "dynamics" else name, []).append(row)
    return groups


def accuracies(group: Sequence[Row], kind: str, strength: float) -> list[float]:
    """Accuracy of every network of a group under one perturbation."""
    return [dict(row["accuracy"][kind])[strength] for row in group]


def mean_ratio(group: Sequence[Row], kind: str, strength: float) -> float:
    """The mean over a group of the ratio accuracy / clean accuracy of each network; NaN where no image is right."""
    pairs = zip(accuracies(group, kind, strength), group, strict=True)
    ratios = [accuracy / row["clean"] for accuracy, row in pairs if row["clean"]]
    return statistics.mean(ratios) if ratios else math.nan


def tables(rows: Sequence[Row], by: str = "checkpoint") -> dict[str, Table]:
    """The tables of accuracy by perturbation (with its ratio to the clean accuracy), of growth, and of energy."""
    groups = grouped(rows, by)
    table = [{"name": "clean"} | {g: mean_and_spread([100 * r["clean"] for r in own]) for g, own in groups.items()}]
    for kind, strength in [(kind, strength) for kind, found in strengths(rows[0]).items() for strength in found]:
        line = {"name": strength_name(kind, strength)}
        for name, own in groups.items():
            accuracy = mean_and_spread([100 * a for a in accuracies(own, kind, strength)])
            ratio = mean_ratio(own, kind, strength)
            line[name] = f"{accuracy} ({'-' if math.isnan(ratio) else f'{ratio:.2f}'})"
        table.append(line)
    result = {f"Accuracy in % (ratio to clean) on {rows[0]['num_images']:,} test images of {rows[0]['data']}": table}
    if growth := _growth_table(groups):
        result["Growth of perturbations through the blocks, at features of test images"] = growth
    if energies := {g: own for g, own in groups.items() if own[0]["energy"]}:
        result["Energy (12) along time over that at the start of the block"] = _energy_table(energies)
    return result


def strength_name(kind: str, strength: float) -> str:
    """A kind of perturbation at a strength with its unit."""
    return f"{kind} {strength:g}/255" if kind in ATTACKS else f"{kind}, {CORRUPTIONS[kind].unit} {strength:g}"


def _growth_table(groups: Mapping[str, Sequence[Row]]) -> Table:
    """A row per block: the mean of the random growth over the networks of a group, the maximum of the other values."""
    table = []
    for name, own in groups.items():
        for k in range(len(own[0]["growth"])):
            blocks = [row["growth"][k] for row in own]
            line = {"name": name, "block": str(k)}
            line["random"] = f"{statistics.mean(v for b in blocks for v in b['random']):.2f}"
            line["worst, median"] = f"{statistics.median(v for b in blocks for v in b['worst']):.3g}"
            line["worst"] = f"{max(v for b in blocks for v in b['worst']):.3g}"
            line["bound on data"] = f"{max(v for b in blocks for v in b['measured_bound']):.3g}"
            table.append(line | {"bound (no norm)": f"{max(b['bound'] for b in blocks):.3g}"})
    return table


def _energy_table(groups: Mapping[str, Sequence[Row]]) -> Table:
    """A row per block, a column per time; the mean over the networks of a group."""
    paths = [(name, k, energy_ratios(own, k)) for name, own in groups.items() for k in range(len(own[0]["growth"]))]
    longest = max(len(ratios) for _, _, ratios in paths)
    return [
        {"name": name, "block": str(k)}
        | {f"step {j}": f"{ratios[j]:.2f}" if j < len(ratios) else "-" for j in range(longest)}
        for name, k, ratios in paths
    ]


def energy_ratios(group: Sequence[Row], block: int) -> list[float]:
    """The energy at every time in a block divided by that at its start, as a mean over the networks of a group."""
    paths = [[e["energy"] for e in row["energy"] if e["block"] == block] for row in group]
    return [statistics.mean(path[j] / path[0] for path in paths) for j in range(len(paths[0]))]
