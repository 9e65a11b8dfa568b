"""The figure of ``multipde evaluate --robustness``."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipde.evaluation.corruptions import CORRUPTIONS
from multipde.evaluation.figure_style import INK, PAGE, figure_style, plain, subplots
from multipde.reports.plots import save, style
from multipde.runtime.table import Row
from multipde.studies.robustness_tables import energy_ratios, grouped, mean_ratio, strengths


@figure_style(PAGE)
def robustness_figure(rows: Sequence[Row], file: Path, by: str = "checkpoint") -> None:
    """Draw accuracy / clean accuracy against the strength of every perturbation, growth through the blocks, and energy.

    A line stands for a network, or with ``by="dynamics"`` for the mean over its networks, with their range.
    """
    groups, kinds = grouped(rows, by), list(rows[0]["accuracy"])
    panels = (len(kinds) + 3) // 2
    figure, axes = subplots(panels, 2, figsize=(5.4, 2.5 * panels))
    styles = {name: style(i) for i, name in enumerate(groups)}
    for axis, kind in zip(axes.flat, kinds, strict=False):
        _accuracy_panel(axis, groups, styles, kind)
    for axis in axes[: len(kinds) // 2, 0]:
        axis.set_ylabel("accuracy / clean")
    _growth_panel(axes.flat[len(kinds)], groups, styles)
    _energy_panel(axes.flat[len(kinds) + 1], groups, styles)
    for axis in axes.flat:
        axis.grid()
    handles, _ = axes.flat[0].get_legend_handles_labels()
    labels = [f"{plain(n)} ({100 * statistics.mean(r['clean'] for r in own):.1f} % clean)" for n, own in groups.items()]
    figure.tight_layout()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0)
    save(figure, file)


def _accuracy_panel(axis: Any, groups: Mapping[str, Any], styles: Mapping[str, Any], kind: str) -> None:
    corruption = CORRUPTIONS.get(kind)
    none = 0.0 if corruption is None else corruption.none
    for name, own in groups.items():
        ratios = {s: mean_ratio(own, kind, s) for s in strengths(own[0])[kind]}
        axis.plot([none, *ratios], [1.0, *ratios.values()], label=name, ms=5, **styles[name])
        for s in ratios:
            each = [mean_ratio([row], kind, s) for row in own]
            axis.plot([s, s], [min(each), max(each)], color=styles[name]["color"], linewidth=1)
    label = "ε in 1/255" if corruption is None else corruption.unit
    axis.set(xlabel=label, title=kind, ylim=(0, 1.05))
    if none == 1:
        axis.invert_xaxis()


def _growth_panel(axis: Any, groups: Mapping[str, Any], styles: Mapping[str, Any]) -> None:
    for i, (name, own) in enumerate(groups.items()):
        num = len(own[0]["growth"])
        at = [k + 0.08 * (i - (len(groups) - 1) / 2) for k in range(num)]
        worst = [max(v for r in own for v in r["growth"][k]["worst"]) for k in range(num)]
        bound = [max(v for r in own for v in r["growth"][k]["measured_bound"]) for k in range(num)]
        look = styles[name] | {"linestyle": "none"}
        for x, low, high in zip(at, worst, bound, strict=True):
            axis.plot([x, x], [low, high], color=look["color"], linewidth=0.8)
        axis.plot(at, worst, ms=6, **look)
        axis.plot(at, bound, ms=6, markerfacecolor="none", **look)
        axis.set_xticks(range(num))
    axis.axhline(1, color=INK, linewidth=0.8)
    title, label = "growth (hollow: bound)", "|δY(T)| / |δY(0)|"
    axis.set(yscale="log", xlabel="block", ylabel=label, title=title)


def _energy_panel(axis: Any, groups: Mapping[str, Any], styles: Mapping[str, Any]) -> None:
    hyperbolic = {name: own for name, own in groups.items() if own[0]["energy"]}
    axis.set_title("energy (12)" if hyperbolic else "energy (12): none")
    for name, own in hyperbolic.items():
        start = 0
        for k in range(len(own[0]["growth"])):
            ratios = energy_ratios(own, k)
            axis.plot(range(start, start + len(ratios)), ratios, ms=5, **styles[name])
            start += len(ratios)
    axis.axhline(1, color=INK, linewidth=0.8)
    axis.set(xlabel="time steps of all blocks", ylabel="energy / at start")
