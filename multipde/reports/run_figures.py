"""The figures of a report as SVG, for a page with light and dark colours, from plain data."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multipde.evaluation.figure_style import figure_style, subplots
from multipde.mesh.spectrum import order_rms
from multipde.networks.dynamics import Block
from multipde.reports.plots import COLOURS, DASHES, MARKERS, figure_bytes
from multipde.reports.run_record import move_sizes
from multipde.stability.energy import StateEnergy
from multipde.training.level import size_text

PANEL = (4.9, 3.3)
"""Width and height of a figure in inches."""

INK = "#1a1c1f"
THEME: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("grid.color", "lines.color", "patch.edgecolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    **dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize", "axes.titlesize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8.5),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
}
VARIABLES = {INK: "currentColor"} | {COLOURS[k].lower(): f"var(--colour-{k})" for k in range(1, 6)}
"""Colours of matplotlib and what the page calls them."""

ORDERS = ("reaction", "convection", "diffusion")


def svg(make: Callable[[], Any], name: str, alt: str) -> str:
    """A figure as an HTML element that uses the colours of the page, and identifiers that no other figure has.

    Args:
        make: function that draws the figure.
        name: identifier on the page, of letters and digits.
        alt: text for screen readers.
    """
    with figure_style(THEME), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the page has other fonts
        drawn = figure_bytes(make(), "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", drawn, flags=re.DOTALL)
    text = text[text.index("<svg") :]
    text = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{name}-", text)
    for colour, variable in VARIABLES.items():
        text = re.sub(rf"(?<=[:\s]){colour}\b", variable, text)
    head, body = text.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    wide = math.ceil(float(width[1]) * 4 / 3) if width else 480
    head = re.sub(r'\s(width|height)="[\d.]+pt"', "", head)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}" style="max-width: {wide}px">{body}'


def curve(levels: Sequence[Sequence[Mapping[str, Any]]], quantity: str, against: str, loss: str) -> Any:
    """Draw accuracy or loss on training and validation images, with marks where the level changes.

    Args:
        levels: rows of each level.
        quantity: ``"accuracy"`` or ``"loss"``.
        against: ``"epochs"`` or ``"work"``.
        loss: what the loss is called, see `loss_name`.
    """
    figure, axis = panel()
    scale, label = (100, "accuracy (%)") if quantity == "accuracy" else (1, loss)
    numbers = iter(range(1, 1 + sum(len(level) for level in levels)))
    places = [[row["total_flops"] / 1e12 if against == "work" else next(numbers) for row in level] for level in levels]
    for i, part in enumerate(("train", "validation"), start=1):
        name = {"train": "training", "validation": "validation"}[part]
        for k, (level, place) in enumerate(zip(levels, places, strict=True)):
            values = [scale * row[f"{part}_{quantity}"] for row in level]
            style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": DASHES[i - 1], "ms": 4}
            axis.plot(place, values, label=name if k == 0 else None, linewidth=1.5, **style)
    marks = [place[-1] + (0.5 if against == "epochs" else 0) for place in places[:-1]]
    if against == "epochs":
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("work (TFLOPs, forwards and backwards)" if against == "work" else "epochs, all levels")
    axis.set_ylabel(label)
    left, right = axis.get_xlim()
    names = [f"{size_text(level[0]['size'], level[0].get('image_size'))} px" for level in levels]
    _name_spans(axis, names, [left, *marks, right], least=0.07)
    axis.set_xlim(left, right)
    legend(figure)
    return figure


def switches(moves: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the validation accuracy before and after every change of level."""
    figure, axis = panel()
    names = ("before", "after the move", "BatchNorm recalibrated")
    keys = ("accuracy_before", "accuracy_moved", "accuracy_recalibrated")
    for i, (name, key) in enumerate(zip(names, keys, strict=True)):
        places = [k + 0.27 * (i - 1) for k in range(len(moves))]
        values = [100 * move[key] for move in moves]
        hatch = ("", "////", "....")[i]
        bars = axis.bar(places, values, 0.24, label=name, facecolor="none", edgecolor=COLOURS[i + 1], hatch=hatch)
        axis.bar_label(bars, [f"{v:.1f}" for v in values], padding=2, fontsize=8)
    axis.set_xticks(range(len(moves)), [f"{' → '.join(move_sizes(m))} px" for m in moves])
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.6, len(moves) - 0.4)
    axis.set_ylim(0, 108)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("validation accuracy (%)")
    legend(figure)
    return figure


def spectrum(net: nn.Module) -> Any:
    """Draw the root mean square of the coefficients β of every layer, by order of the derivative."""
    figure, axis = panel()
    layers = order_rms(net)
    num_orders = max(len(rms) for rms in layers.values())
    for k in range(num_orders):
        label = f"{ORDERS[k]} ({k})" if k < len(ORDERS) else f"order {k}"
        style: dict[str, Any] = {"color": COLOURS[1 + k % 5], "marker": MARKERS[k % len(MARKERS)], "ms": 4}
        values = [max(rms[k], 1e-12) if k < len(rms) else math.nan for rms in layers.values()]
        axis.plot(range(len(layers)), values, label=label, linewidth=0.7, linestyle=DASHES[k % len(DASHES)], **style)
    axis.set_yscale("log")
    _mark_blocks(axis, [_block_of(name) for name in layers])
    axis.set_ylabel("rms of β (unit: the layer's mesh)")
    legend(figure)
    return figure


def controls_in_time(net: nn.Module) -> Any:
    """Draw the root mean square of the stencils θ(t) against time in each block, a line for every layer of a step."""
    figure, axis = panel()
    start, edges = 0.0, [0.0]
    blocks: list[Block] = list(net.blocks)  # pyright: ignore
    for block in blocks:
        final, num = block.dt * block.steps, len(block.controls)
        for i in range(block.scheme.num_layers):
            layers = [node[i].controls()[0] for node in block.controls]  # pyright: ignore
            values = [theta.detach().square().mean().sqrt().item() for theta in layers]
            times = [start + final * j / num for j in range(num)]
            style: dict[str, Any] = {"color": COLOURS[1 + i], "linewidth": 1.5, "linestyle": DASHES[i]}
            axis.plot([*times, start + final], [*values, values[-1]], **style)  # held after the last node
            label = f"K{i + 1}" if block.scheme.num_layers > 1 else "K"
            axis.plot(times, values, MARKERS[1 + i], color=COLOURS[1 + i], ms=5, label=label if start == 0 else None)
        start += final
        edges.append(start)
    _mark_times(axis, edges)
    axis.set_ylim(0)
    axis.set_ylabel("rms of the stencils θ(t)")
    legend(figure)
    return figure


def energy_along(points: Sequence[StateEnergy]) -> Any:
    """Draw size and energy of the features against time through all blocks."""
    figure, axis = panel()
    start, edges, named = 0.0, [0.0], False
    for k in sorted({p.block for p in points}):
        own = [p for p in points if p.block == k]
        times = [start + p.time for p in own]
        axis.plot(times, [p.features for p in own], "s-", color=COLOURS[1], ms=4, label=None if named else "½ |y|²")
        if own[0].energy is not None:
            label = None if named else "energy E of the dynamics"
            axis.plot(times, [p.energy for p in own], "o--", color=COLOURS[2], ms=4, label=label)
        named, start = True, times[-1]
        edges.append(start)
    axis.set_yscale("log")
    _mark_times(axis, edges)
    axis.set_ylabel("per pixel, mean over images")
    legend(figure)
    return figure


def reliability_figure(bins: Tensor) -> Any:
    """Draw the accuracy of the images by the confidence of their answer, beside the share of the images.

    A bar stands at the mean confidence of its images; a well calibrated network has all of them on the diagonal.

    Args:
        bins: sums by confidence, see `multipde.evaluation.reliability.reliability_bins`.

    Reference: Guo et al. (2017), On calibration of modern neural networks, figure 1.
    """
    figure, (axis, low) = subplots(2, figsize=PANEL, layout="constrained", sharex=True, height_ratios=(3, 1))
    found = [(p / n, right / n, n) for n, p, right in bins.tolist() if n]
    total, width = sum(n for _, _, n in found), 100 / len(bins)
    for k, (confidence, accuracy, num) in enumerate(found):
        own: dict[str, Any] = {"facecolor": "none", "edgecolor": COLOURS[1]}
        axis.bar(100 * confidence, 100 * accuracy, 0.8 * width, label=None if k else "accuracy", **own)
        low.bar(100 * confidence, 100 * num / total, 0.8 * width, **own | {"hatch": "////"})
    axis.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":", label="accuracy = confidence")
    axis.set_ylim(0, 102)
    axis.set_ylabel("accuracy (%)")
    low.set_xlim(0, 102)
    low.set_ylabel("images (%)")
    low.set_xlabel("confidence: probability of the answer (%)")
    for each in (axis, low):
        each.grid(axis="y")
    axis.legend(loc="upper left")
    return figure


def panel() -> tuple[Any, Any]:
    """A new figure of one panel, and its axes."""
    figure, axis = subplots(figsize=PANEL, layout="constrained")
    axis.grid(axis="y")
    return figure, axis


def legend(figure: Any) -> None:
    """Place the legend below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=2.2)


def _mark_times(axis: Any, edges: Sequence[float]) -> None:
    """Write the names of the blocks above the axes, and mark the end of each by a line."""
    _name_spans(axis, [f"block {k}" for k in range(len(edges) - 1)], edges)
    axis.set_xlabel("time t, block after block")


def _mark_blocks(axis: Any, blocks: Sequence[str]) -> None:
    starts = [i for i, name in enumerate(blocks) if i == 0 or blocks[i - 1] != name]
    edges = [s - 0.5 for s in starts] + [len(blocks) - 0.5]
    _name_spans(axis, [blocks[s] for s in starts], edges)
    axis.set_xticks([])
    axis.set_xlabel("layers in the order of execution, the opening first")


def _name_spans(axis: Any, names: Sequence[str], edges: Sequence[float], least: float = 0.12) -> None:
    """Draw a line at every inner edge, and write its name above each span of more than this share of the width."""
    for edge in edges[1:-1]:
        axis.axvline(edge, color=INK, linewidth=0.8, linestyle=":")
    width = edges[-1] - edges[0]
    for name, left, right in zip(names, edges[:-1], edges[1:], strict=True):
        if right - left > least * width:
            where = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axis.text((left + right) / 2, 1.01, name, fontsize=8.5, **where)


def _block_of(layer: str) -> str:
    parts = layer.split(".")
    return f"block {parts[1]}" if parts[0] == "blocks" else parts[0]
