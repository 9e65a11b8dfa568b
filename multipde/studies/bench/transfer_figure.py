"""The figure of ``multipde bench transfer``."""

import statistics
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from multipde.evaluation.figure_style import PAGE, figure_style
from multipde.reports.plots import COLOURS, label_ends, save, style
from multipde.studies.bench.equal_work import work_text

LEAST_SHOWN = 50.0
"""Lowest accuracy in per cent on the axis of equal work; a lower one is an arrowhead at its end, and a number."""

Rows = Sequence[Mapping[str, Any]]


@figure_style(PAGE)
def accuracy_against_work(rows: Rows, file: Path, published: Sequence[tuple[str, float, float]] = ()) -> None:
    """Draw test accuracy against work, and below it the arms with equal work: means and deviations over the seeds.

    A line joins the budgets of an arm of the first dynamics; a recipe other than SGD is named after the arm. An arm
    with one budget is in a panel of that budget, which there is for every dynamics.

    Args:
        published: name, TFLOPs and accuracy in per cent of others' trainings.
    """
    rows = [row for row in rows if row["flops"]]
    first = rows[0]["dynamics"]
    lines = _lines([row for row in rows if row["dynamics"] == first])
    shown = {(first, name) for name in lines}
    groups = _groups(rows, shown) or ({} if lines else _groups(rows, shown, least=1))
    figure, axes = _stacked([2.8] * bool(lines) + [0.26 * len(own) for own in groups.values()])
    if lines:
        _work_panel(axes.pop(0), lines, published, first)
    best = max((mean for own in groups.values() for mean, _ in own.values()), default=100.0)
    for axis, (title, own) in zip(axes, groups.items(), strict=True):
        axis.set_xlim(LEAST_SHOWN - 1, max(best, LEAST_SHOWN) + 1)
        _equal_work_panel(axis, title, own)
    if groups:
        axes[-1].set_xlabel("test accuracy (%)")
    save(figure, file)


def _stacked(heights: Sequence[float], gap: float = 0.8) -> tuple[Any, list[Any]]:
    """A figure of axes one below the other, of heights in inches, with room for labels at their sides."""
    from matplotlib.figure import Figure

    width, total = 5.0, sum(heights) + gap * len(heights)
    figure, axes, top = Figure(figsize=(width, total)), [], total
    for height in heights:
        top -= height + gap
        axes.append(figure.add_axes((0.45, top / total, 0.4, height / total)))
    return figure, axes


def _lines(rows: Rows) -> dict[str, list[tuple[float, float, float]]]:
    """For every arm with several budgets its points: TFLOPs, mean and deviation of the accuracy in per cent."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for name in dict.fromkeys(_name(row) for row in rows):
        own = [row for row in rows if _name(row) == name]
        budgets = [[row for row in own if row["budget"] == budget] for budget in {row["budget"] for row in own}]
        points = [(statistics.mean(row["flops"] / 1e12 for row in part), *_accuracy(part)) for part in budgets]
        if len(points) > 1:
            lines[name] = sorted(points)
    return lines


def _groups(rows: Rows, shown: Set[tuple[str, str]], least: int = 2) -> dict[str, dict[str, tuple[float, float]]]:
    """For every dynamics and budget with ``least`` arms, not all of them shown: their accuracies, the best first."""
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for dynamics, budget in dict.fromkeys((row["dynamics"], row["budget"]) for row in rows):
        own = [row for row in rows if (row["dynamics"], row["budget"]) == (dynamics, budget)]
        names = dict.fromkeys(_name(row) for row in own)
        if len(names) < least or {(dynamics, name) for name in names} <= shown:
            continue
        recipes = {row["recipe"] for row in own} - {"own"}
        shared = f", {next(iter(recipes))}" if len(recipes) == 1 else ""
        found = {name.removesuffix(shared): _accuracy([row for row in own if _name(row) == name]) for name in names}
        best_first = sorted(found.items(), key=lambda item: -item[1][0])
        groups[f"{dynamics}, {work_text(budget)}{shared.replace('sgd', 'SGD')}"] = dict(best_first)
    return groups


def _name(row: Mapping[str, Any]) -> str:
    return row["arm"] if row["recipe"] in ("sgd", "own") else f"{row['arm']}, {row['recipe']}"


def _accuracy(rows: Rows) -> tuple[float, float]:
    accuracies = [100 * row["test_accuracy"] for row in rows]
    return statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def _work_panel(axis: Any, lines: Mapping[str, Any], published: Sequence[tuple[str, float, float]], title: str) -> None:
    ends = []
    for i, (name, points) in enumerate(lines.items()):
        look = style(i, ms=6, capsize=2)
        work, means, spreads = zip(*points, strict=True)
        axis.errorbar(work, means, spreads, **look)
        ends.append((work[-1], means[-1], name, look["color"]))
    for k, (name, work, accuracy) in enumerate(published):
        face = ("none", COLOURS[0])[k % 2]
        axis.plot(work, accuracy, "*", color=COLOURS[0], markerfacecolor=face, ms=11, linestyle="none")
        ends.append((work, accuracy, name, COLOURS[0]))
    place = axis.get_position()
    axis.set_position((0.1, place.y0, 0.55, place.height))  # its labels stand on the other side
    axis.set_xscale("log")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    title += "; stars: published by others" if published else ""
    axis.set(title=title, xlabel="work (TFLOPs)", ylabel="test accuracy (%)")
    axis.grid()
    label_ends(axis, ends, space=0.1)


def _equal_work_panel(axis: Any, title: str, arms: Mapping[str, tuple[float, float]]) -> None:
    for place, (mean, spread) in enumerate(arms.values()):
        look = {"color": COLOURS[1], "marker": "o"} if mean >= LEAST_SHOWN else {"color": COLOURS[2], "marker": "<"}
        axis.errorbar(max(mean, LEAST_SHOWN), place, xerr=spread or None, ms=6, capsize=2, **look)
        text = f"{mean:.1f}" + f" ± {spread:.1f}" * bool(spread)
        axis.text(1.03, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=10.5)
    axis.set_yticks(range(len(arms)), list(arms), fontsize=10.5)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_title(title)
    axis.grid(axis="x")
