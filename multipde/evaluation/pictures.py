"""Figures that a training writes while it runs: the stencils of the opening, the confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multipde.evaluation.figure_style import plain, subplots

BLUE = (0.0, 0.447, 0.698)
COLUMNS = 16
"""Largest number of stencils side by side."""

MANY_NUMBERS, MANY_NAMES = 20, 40
"""Numbers of classes beyond which a confusion matrix is drawn without numbers, and without names."""


def stencil_mosaic(stencils: Tensor) -> Tensor:
    """All stencils (out, in, w, w) in one picture (rows, columns): input channels in rows, NaN in the gaps."""
    num_out, num_in, height, width = stencils.shape
    columns = min(num_out, COLUMNS)
    bands = math.ceil(num_out / columns)
    tile = num_in * (height + 1)
    mosaic = torch.full((bands * (tile + 2) - 3, columns * (width + 1) - 1), math.nan)
    for k in range(num_out):
        for c in range(num_in):
            top, left = k // columns * (tile + 2) + c * (height + 1), k % columns * (width + 1)
            mosaic[top : top + height, left : left + width] = stencils[k, c]
    return mosaic


def stencil_figure(stencils: Tensor) -> Any:
    """A matplotlib figure of stencils (out channels, in channels, w, w): black negative, grey zero, white positive."""
    num_out, num_in, height, width = stencils.shape
    mosaic, largest = stencil_mosaic(stencils), stencils.abs().max().item() or 1.0
    columns, tile = min(num_out, COLUMNS), num_in * (height + 1)
    bands = math.ceil(num_out / columns)
    figure, axis = subplots(figsize=(4.9, 0.55 + 3.9 * len(mosaic) / mosaic.shape[1]), layout="constrained")
    style: dict[str, Any] = {"cmap": "gray", "vmin": -largest, "vmax": largest, "interpolation": "none"}
    image = axis.imshow(mosaic.numpy(), **style)
    axis.set_xticks([k * (width + 1) + (width - 1) / 2 for k in range(columns)], [str(k) for k in range(columns)])
    starts = [b * (tile + 2) + c * (height + 1) for b in range(bands) for c in range(num_in)]
    names = ["red", "green", "blue"] if num_in == 3 else [f"input {c}" for c in range(num_in)]
    axis.set_yticks([s + (height - 1) / 2 for s in starts], names * bands)
    axis.set_xlabel("channel" + (f", {columns} more in the next row" if bands > 1 else ""))
    bar = figure.colorbar(image, ax=axis, ticks=[-largest, 0, largest], aspect=12, pad=0.02, shrink=0.9)
    bar.ax.set_yticklabels([f"−{largest:.2g}", "0", f"+{largest:.2g}"])
    for one in (axis, bar.ax):
        one.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def confusion_figure(confusion: Tensor, names: Sequence[str]) -> Any:
    """A matplotlib figure of a confusion matrix with the names of its classes, in per cent of the images of each class.

    The grey value is the square root of the share.
    """
    num = len(confusion)
    share = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    side = min(9.0, 1.6 + 0.36 * num)
    figure, axis = subplots(figsize=(side, side), layout="constrained")
    picture = torch.cat([torch.tensor(BLUE).expand(num, num, 3), share.float().sqrt()[:, :, None]], 2)
    axis.imshow(picture.numpy(), interpolation="none")
    if num <= MANY_NUMBERS:
        for i, row in enumerate((100 * share).tolist()):
            for j, value in enumerate(row):
                if (text := f"{value:.0f}") != "0":
                    number = axis.text(j, i, text, ha="center", va="center", fontsize=9)
                    if value > 50:
                        number.set_color("white")
    labels = [plain(name) for name in names] if len(names) == num <= MANY_NAMES else []
    if labels:
        axis.set_xticks(range(num), labels, rotation=90 if num > 6 else 0, fontsize=9)
        axis.set_yticks(range(num), labels, fontsize=9)
    axis.set_xticks([k - 0.5 for k in range(num + 1)], minor=True)
    axis.set_yticks([k - 0.5 for k in range(num + 1)], minor=True)
    axis.tick_params(which="both", length=0)
    axis.grid(which="minor", alpha=0.25, linewidth=0.6)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("taken for")
    axis.set_ylabel("true class")
    return figure
