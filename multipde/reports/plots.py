"""Figures, one function each, from rows to a file; readable in grey, by the colour-blind, on white and dark pages."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipde.data.decode import decode_image
from multipde.evaluation.conversion_report import ConversionReport
from multipde.evaluation.figure_style import INK, PAGE, figure_style, plain, subplots
from multipde.evaluation.predict import Prediction
from multipde.storage.files import check_own, write_file
from multipde.storage.opening import make_directory

COLOURS = (INK, "#2F86C6", "#D9691E", "#159A72", "#C4679E", "#AE8300", "#3F96C8", "#8C6FC4", "#7F8A1E")
MARKERS = "osD^v<>PX"
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 2)), (0, (1, 1)), "-", "--")
BARS = 5
"""Number of classes of which a prediction is drawn."""


def style(i: int, **other: Any) -> dict[str, Any]:
    """Colour, marker and dashes of line i as keyword arguments, which other properties may override.

    Lines whose numbers differ by a multiple of nine share their colour, but neither marker nor dashes.
    """
    again, k = divmod(i, len(COLOURS))
    shifted = (k + again) % len(COLOURS), (k + 2 * again) % len(COLOURS)
    return {"color": COLOURS[k], "marker": MARKERS[shifted[0]], "linestyle": DASHES[shifted[1]]} | other


def label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]], space: float = 0.08) -> None:
    """Write labels beside the last points of lines, to the right of the axes and clear of each other.

    Call it when the limits of the axes are final.

    Args:
        ends: for every line the last point in data coordinates, the label, and the colour.
        space: least distance of two labels as a share of the height of the axes.
    """
    to_axes = axis.transData + axis.transAxes.inverted()
    found = sorted((float(to_axes.transform((x, y))[1]), (x, y), text, colour) for x, y, text, colour in ends)
    places = [place for place, *_ in found]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + space)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], 1 - space * (len(places) - 1 - i))
    for place, (_, end, text, colour) in zip(places, found, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5)}
        axis.annotate(text, end, (1.03, place), textcoords="axes fraction", va="center", color=colour, arrowprops=line)


@figure_style(PAGE)
def accuracy_against_images(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw test accuracy against the number of images of the new size, for a converted network and a new one."""
    figure, axis = subplots(figsize=(4, 3.6))
    lines, ends = list(dict.fromkeys((r["name"], r["method"]) for r in rows)), []
    for i, (name, method) in enumerate(lines):
        own = sorted((r for r in rows if (r["name"], r["method"]) == (name, method)), key=lambda r: r["images"])
        look = style(i, ms=6)
        axis.plot([r["images"] for r in own], [100 * r["accuracy"] for r in own], **look)
        label = name if method == "-" else f"{method},\n{name}"
        ends.append((own[-1]["images"], 100 * own[-1]["accuracy"], label, look["color"]))
    axis.set(xscale="log", xlabel="training images seen at the new size", ylabel="test accuracy (%)")
    axis.grid()
    label_ends(axis, ends, space=0.14)
    save(figure, file)


@figure_style(PAGE)
def gain_against_exponent(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the gain of each method over copying against the mean exponent of the layers, see `Calibration`.

    Above: error of random networks on waves, divided by the error of copying; filled for one layer, hollow for more.
    Below: gain in accuracy of trained networks in percentage points; filled for the first data set, hollow for others.
    """
    figure, axes = subplots(2, figsize=(5, 7))
    trained, waves = [r for r in rows if "accuracy" in r], [r for r in rows if "error" in r]
    methods = [m for m in (trained or waves)[0]["accuracy" if trained else "error"] if m != "copy"]
    axes[0].axhline(1, color=COLOURS[0], linewidth=1, label="copy")
    axes[1].axhline(0, color=COLOURS[0], linewidth=1)
    for i, method in enumerate(methods, start=1):
        for hollow in (False, True):
            face = style(i, linestyle="none", ms=6) | ({"markerfacecolor": "none"} if hollow else {"label": method})
            own = [r for r in waves if (r["depth"] > 1) == hollow]
            ratios = [r["error"][method] / r["error"]["copy"] for r in own]
            axes[0].plot([r["exponent"] for r in own], ratios, **face)
            own = [r for r in trained if (r["data"] != trained[0]["data"]) == hollow]
            gains = [100 * (r["accuracy"][method] - r["accuracy"]["copy"]) for r in own]
            axes[1].plot([r["exponent"] for r in own], gains, **face)
    axes[0].set_yscale("log")
    axes[0].set_yticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
    axes[0].minorticks_off()
    axes[0].set_ylabel("error over that of copy")
    axes[0].set_title("random tanh networks on waves\n(hollow: three layers)")
    axes[1].set_ylabel("accuracy gained over copy (points)")
    axes[1].set_title("trained networks")
    for axis in axes:
        axis.set_xlabel("measured exponent (1 smooth, 0 scale invariant)")
        axis.grid()
    axes[0].legend()
    figure.tight_layout()
    save(figure, file)


def probability_bars(
    axis: Any, labels: Sequence[str], percents: Sequence[float], true: int | None, linewidth: float = 1.0
) -> None:
    """Draw the probabilities of classes as bars, one below the other; that of the true class, if known, is hatched."""
    drawn = axis.barh(range(len(labels)), percents, color=COLOURS[6], edgecolor=INK, linewidth=linewidth)
    if true is not None:
        drawn[true].set_hatch("////")
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.tick_params(axis="x", labelsize=7)


@figure_style(PAGE)
def prediction_figure(predictions: Sequence[Prediction], file: Path) -> None:
    """Draw at most 24 images with bars for their most probable classes; the true class, if known, is hatched."""
    shown = predictions[:24]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = subplots(rows, 2 * columns, figsize=(4.2 * columns, 1.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for k, p in enumerate(shown):
        picture, bars = axes[k // columns, 2 * (k % columns) : 2 * (k % columns) + 2]
        pixels: Any = decode_image(p.file) if p.file is not None else p.pixels
        picture.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest", cmap="gray")
        picture.set_title(plain((p.file.name if p.file else p.name)[-24:]), fontsize=7)
        ranking = p.ranking[:BARS]
        if p.true is not None and p.true not in dict(ranking):
            ranking[-1] = (p.true, p.probabilities[p.true])
        names = [name for name, _ in ranking]
        bars.axis("on")
        labels = [plain(name) + " (true)" * (name == p.true) for name in names]
        true = names.index(p.true) if p.true is not None else None
        probability_bars(bars, labels, [100 * value for _, value in ranking], true)
        if k + columns >= len(shown):
            bars.set_xlabel("probability (%)", fontsize=7)
    figure.tight_layout()
    save(figure, file)


MARKS = {
    "png": ("Software", b"Software\0multipde"),
    "svg": ("Creator", b"<dc:title>multipde</dc:title>"),
    "pdf": ("Creator", b"/Creator (multipde)"),
}
"""For every kind of figure the entry of its metadata that names us, and the bytes by which it is known again."""


def check_figure_file(file: Path) -> str:
    """The kind of a figure by the ending of its file; ValueError for another, FileExistsError for a foreign file."""
    kind = file.suffix.removeprefix(".").lower()
    if kind not in MARKS:
        raise ValueError(f"plot must end in one of .{', .'.join(MARKS)}, got {file}")
    check_own(file, MARKS[kind][1], "a figure")
    return kind


def figure_bytes(figure: Any, kind: str, dpi: int = 150) -> bytes:
    """The contents of the file of a figure, of a kind in `MARKS`; equal figures give equal bytes."""
    metadata = {MARKS[kind][0]: "multipde"} | ({"Date": None} if kind == "svg" else {})
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, bbox_inches="tight", metadata=metadata, dpi=dpi)
    return stream.getvalue()


def save(figure: Any, file: Path) -> None:
    """Write a figure to a file, of the kind that its ending names."""
    data = figure_bytes(figure, check_figure_file(file))
    make_directory(file.parent)
    write_file(file, data)


@figure_style(PAGE)
def conversion_figure(report: ConversionReport, kind: str = "svg") -> bytes:
    """Draw the accuracy of candidates, and change of the norm, consistency error and exponent of every layer.

    Without images the figure shows only the change of the norm.
    """
    from matplotlib.figure import Figure

    measured = bool(report.candidates)
    columns = [("norm,\nafter / before", [layer.norm_after / max(layer.norm_before, 1e-30) for layer in report.layers])]
    if measured:
        columns += [
            ("consistency\nerror", [layer.consistency for layer in report.layers]),
            ("exponent,\n1 is smooth", [layer.exponent for layer in report.layers]),
        ]
    names = list(dict.fromkeys(c.name.removesuffix(", recalibrated") for c in report.candidates))
    heights = [0.3 * len(names) + 1.2] * measured + [0.2 * len(report.layers) + (1.1 if measured else 1.7)]
    figure = Figure(figsize=(5.2 if measured else 3.2, sum(heights)))
    grid = figure.add_gridspec(len(heights), len(columns), height_ratios=heights)
    rows = range(len(report.layers))
    for i, (title, values) in enumerate(columns):
        axis = figure.add_subplot(grid[-1, i])
        axis.barh(rows, [math.nan if v is None else v for v in values], color=COLOURS[1], height=0.7)
        labels = [plain(layer.layer.removesuffix(".conv")) for layer in report.layers]
        axis.set_yticks(rows, labels if i == 0 else [""] * len(rows))
        axis.tick_params(axis="y", labelsize=8.5)
        axis.tick_params(axis="x", labelsize=9.5)
        axis.locator_params(axis="x", nbins=2)
        axis.invert_yaxis()
        axis.set_xlabel(title, fontsize=9)
        axis.grid(axis="x")
    if measured:
        _candidates_panel(figure.add_subplot(grid[0, :]), report, names)
    figure.suptitle(f"size {report.old_size} to {report.new_size}, method {report.method}", fontsize=11.5)
    figure.tight_layout()
    return figure_bytes(figure, kind)


def _candidates_panel(axis: Any, report: ConversionReport, names: Sequence[str]) -> None:
    """Accuracy of every candidate, with and without BatchNorm measured anew."""
    found = {c.name for c in report.candidates}
    costs = {c.name.removesuffix(", recalibrated"): c.flops / 1e6 for c in report.candidates}
    for c in report.candidates:
        face = "none" if f"{c.name}, recalibrated" in found else COLOURS[1]
        place = names.index(c.name.removesuffix(", recalibrated"))
        axis.plot(100 * c.accuracy, place, "o", color=COLOURS[1], markerfacecolor=face, ms=7)
    axis.set_yticks(range(len(names)), [f"{name}, {costs[name]:.3g} MFLOPs" for name in names], fontsize=10)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("test accuracy (%)" + "; hollow: old BatchNorm" * any(", recal" in name for name in found))
    axis.grid()
