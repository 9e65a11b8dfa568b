"""Figures 1 to 4 of the paper from the rows of ``multipde reproduce``."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from multipde.data.datasets import ImageData
from multipde.evaluation.figure_style import PAGE, figure_style, subplots
from multipde.reports.plots import MARKERS, probability_bars, save, style
from multipde.runtime.table import Row
from multipde.studies.paper.recipes import RECIPES

Rows = Sequence[Row]
Sets = Mapping[str, ImageData]


@figure_style(PAGE)
def predictions(rows: Rows, sets: Sets, file: Path) -> None:
    """Figure 1: test images, each with the probabilities of its classes by every network; the true one is hatched."""
    nets = list(dict.fromkeys(row["dynamics"] for row in rows))
    lines = [(name, k) for name in sets for k in range(len(rows[0]["shown"]))]
    inches = (2.0 + 2.1 * len(nets), 1.9 * len(lines))
    figure, axes = subplots(len(lines), 1 + len(nets), figsize=inches, squeeze=False)
    for axes_of_line, (name, k) in zip(axes, lines, strict=True):
        own = {row["dynamics"]: row for row in rows if row["data"] == name}
        images, first = sets[name], own[nets[0]]
        (x, _), *_ = images.test.batches([(images.size, torch.tensor([first["shown"][k]]))], torch.device("cpu"))
        axes_of_line[0].imshow(x[0].permute(1, 2, 0).round().to(torch.uint8).numpy(), interpolation="nearest")
        axes_of_line[0].axis("off")
        likeliest = _likeliest([own[net]["probabilities"][k] for net in nets], first["classes"][k])
        true = likeliest.index(first["classes"][k])
        labels = [images.class_names[c] + " (true)" * (i == true) for i, c in enumerate(likeliest)]
        for i, (axis, net) in enumerate(zip(axes_of_line[1:], nets, strict=True)):
            values = [100 * own[net]["probabilities"][k][c] for c in likeliest]
            probability_bars(axis, labels if i == 0 else [""] * len(labels), values, true, linewidth=0.6)
            if (name, k) == lines[0]:
                axis.set_title(net, fontsize=9)
            if (name, k) == lines[-1]:
                axis.set_xlabel("probability (%)", fontsize=8)
    _finish(figure, rows, file)


@figure_style(PAGE)
def partial_data(rows: Rows, sets: Sets, file: Path) -> None:
    """Figure 2: test accuracy against the number of training images; validation accuracy at every epoch with 80 %."""
    figure, axes = subplots(2 * len(sets), figsize=(5, 7.0 * len(sets)))
    for left, right, name in zip(axes[::2], axes[1::2], sets, strict=True):
        own = [row for row in rows if row["data"] == name]
        for i, net in enumerate(dict.fromkeys(row["dynamics"] for row in own)):
            points = [(r["num_train"], 100 * r["test_accuracy"]) for r in own if r["dynamics"] == net and r["share"]]
            left.plot(*zip(*sorted(points), strict=True), **style(i, label=net, ms=6))
        _curves(right, [row for row in own if row["share"] is None])
        left.set(xlabel="training images, without augmentation", ylabel="test accuracy (%)")
        left.set_title(f"{name}: part of the data")
        right.set_title(f"{name}: 80 % of the data, augmented")
        left.grid()
        left.legend()
    _finish(figure, rows, file)


@figure_style(PAGE)
def confusion(rows: Rows, sets: Sets, file: Path) -> None:
    """Figure 3: confusion matrices, a row per network and a column per number of training images."""
    columns = sorted({row["num_train"] for row in rows})
    lines = list(dict.fromkeys((row["data"], row["dynamics"]) for row in rows))
    inches = (0.95 * len(columns) + 1.4, 1.2 * len(lines) + 1.2)
    figure, axes = subplots(len(lines), len(columns), figsize=inches, squeeze=False)
    for axes_of_line, (name, net) in zip(axes, lines, strict=True):
        for axis, num in zip(axes_of_line, columns, strict=True):
            found = [r for r in rows if (r["data"], r["dynamics"], r["num_train"]) == (name, net, num)]
            axis.set(xticks=[], yticks=[])
            if not found:
                axis.axis("off")
                continue
            counts = torch.tensor(found[0]["confusion"], dtype=torch.float32)
            shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
            drawn = axis.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=100)
            axis.set_xlabel(f"{100 * found[0]['test_accuracy']:.1f} %", fontsize=9)
            if (name, net) == lines[0]:
                axis.set_title(f"{num:,}\nimages", fontsize=9)
        axes_of_line[0].set_ylabel(net if len(sets) == 1 else f"{name}\n{net}", fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("share of the true class (row)\npredicted as (column), %", fontsize=9)
    names = ", ".join(next(iter(sets.values())).class_names)
    if len(sets) == 1 and len(names) < 160:
        text = textwrap.fill(f"classes from the top and from the left: {names}", 64)
        figure.text(0.5, 0.03, text, ha="center", va="top", fontsize=9)
    figure.suptitle(textwrap.fill(caption(rows), 64), fontsize=9.5)
    save(figure, file)


@figure_style(PAGE)
def convergence(rows: Rows, sets: Sets, file: Path) -> None:
    """Figure 4: validation accuracy at every epoch, a panel per data set."""
    figure, axes = subplots(len(sets), figsize=(5, 3.8 * len(sets)), squeeze=False)
    for axis, name in zip(axes[:, 0], sets, strict=True):
        _curves(axis, [row for row in rows if row["data"] == name])
        axis.set_title(name)
    _finish(figure, rows, file)


Draw = Callable[[Rows, Sets, Path], None]
FIGURES: dict[str, Draw] = {"fig1": predictions, "fig2": partial_data, "fig3": confusion, "fig4": convergence}


def caption(rows: Rows) -> str:
    """Recipe, budget and seed, and the epochs and images of each data set that the figure shows."""
    parts = []
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        epochs, images = (_range(sorted({row[key] for row in own})) for key in ("epochs", "num_train"))
        tested = f"{own[0]['num_test']:,} test images"
        parts.append(f"{name}: {epochs} epochs (the paper: {RECIPES[name].epochs}), {images} training and {tested}")
    first = rows[0]
    return f"recipe {first['recipe']}, budget {first['budget']}, seed {first['seed']}; " + "; ".join(parts)


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _likeliest(probabilities: Sequence[Sequence[float]], true: int, num: int = 5) -> list[int]:
    """The classes with the highest probabilities by any of the networks, and the true one."""
    order = sorted(range(len(probabilities[0])), key=lambda c: -max(p[c] for p in probabilities))[:num]
    return order if true in order else [*order[:-1], true]


def _curves(axis: Any, rows: Rows) -> None:
    for i, row in enumerate(rows):
        epochs = range(1, len(row["curve"]) + 1)
        marker = MARKERS[i] if len(row["curve"]) <= 20 else None
        look = style(i, marker=marker, label=row["dynamics"], ms=5)
        axis.plot(epochs, [100 * a for a in row["curve"]], **look)
    axis.set(xlabel="epoch", ylabel="validation accuracy (%)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid()
    axis.legend()


def _finish(figure: Any, rows: Rows, file: Path) -> None:
    figure.suptitle(textwrap.fill(caption(rows), 64), fontsize=9.5)
    figure.tight_layout()
    save(figure, file)
