"""Figures, one function each, from rows to a file; they can be read in grey and by the colour-blind."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from multipde.data.decode import decode_image
from multipde.evaluation.conversion_report import ConversionReport
from multipde.evaluation.figure_style import figure_style, plain, subplots
from multipde.evaluation.predict import Prediction
from multipde.storage.files import check_own, write_file
from multipde.storage.opening import make_directory

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B2A300")
MARKERS = "osD^v<>PX"
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 2)), (0, (1, 1)), "-", "--")

LEAST_SHOWN = 50.0
"""Lowest accuracy in per cent in a figure of many lines."""


def style(i: int, **other: Any) -> dict[str, Any]:
    """Colour, marker and dashes of line i as keyword arguments, which other properties may override.

    Lines whose numbers differ by a multiple of nine share their colour, but neither marker nor dashes.
    """
    again, k = divmod(i, len(COLOURS))
    shifted = (k + again) % len(COLOURS), (k + 2 * again) % len(COLOURS)
    return {"color": COLOURS[k], "marker": MARKERS[shifted[0]], "linestyle": DASHES[shifted[1]]} | other


@figure_style()
def accuracy_against_work(
    rows: Sequence[Mapping[str, Any]], file: Path, published: Sequence[tuple[str, float, float]] = ()
) -> None:
    """Draw test accuracy against work: means over the seeds with their standard deviations, joined between budgets.

    There is a panel per dynamics, and a line per arm and recipe; a recipe other than SGD is named after its arm. As
    long as there are few lines, a thin line shows the validation accuracy during the training with the first seed and
    the smallest budget, on a coarse level that on images of its size. With more lines the axis of accuracies begins at
    `LEAST_SHOWN`, and the legend tells what lies below.

    Args:
        published: name, TFLOPs and accuracy in per cent of others' trainings, marked in the first panel.
    """
    rows = [{**row, "line": _line_name(row)} for row in rows]
    most = {
        line: max(100 * r["test_accuracy"] for r in rows if r["line"] == line) for line in {r["line"] for r in rows}
    }
    names, lines = list(dict.fromkeys(r["dynamics"] for r in rows)), list(dict.fromkeys(r["line"] for r in rows))
    is_detailed = len(lines) <= len(COLOURS)
    labels = {n: n if is_detailed or a >= LEAST_SHOWN else f"{n} (below, {a:.0f} %)" for n, a in most.items()}
    ratios = [2.0] + [1.0] * (len(names) - 1)
    shape = {"figsize": (3.4 * sum(ratios), 5.0), "width_ratios": ratios}
    figure, axes = subplots(1, len(names), sharex=True, sharey=True, squeeze=False, **shape)
    for axis, name in zip(axes[0], names, strict=True):
        for i, line in enumerate(lines):
            own = [r for r in rows if r["dynamics"] == name and r["line"] == line and r["flops"]]
            own.sort(key=lambda r: (r["seed"], r["flops"]))
            if not own:
                continue
            if is_detailed:
                curve = own[0]["curve"]
                work, accuracies = [flops / 1e12 for _, flops, _ in curve], [100 * a for _, _, a in curve]
                axis.plot(work, accuracies, **style(i, linewidth=0.8, alpha=0.5, marker=None))
            budgets = [[r for r in own if r["budget"] == b] for b in dict.fromkeys(r["budget"] for r in own)]
            points = sorted(_mean_point(part) for part in budgets)
            work, means, spreads = zip(*points, strict=True)
            axis.errorbar(work, means, spreads, **style(i, label=labels[line], ms=5, linewidth=1.4, capsize=2))
        for k, (label, work, accuracy) in enumerate(published if name == names[0] else ()):
            axis.plot(work, accuracy, "*", color=COLOURS[0], markerfacecolor=("none", COLOURS[0])[k % 2], ms=10,
                      linestyle="none", label=f"{label}, as published")  # fmt: skip
        axis.set_title(name)
        axis.set_xscale("log")
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("work (TFLOPs, forwards and backwards)")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy (%)")
    if not is_detailed:
        axes[0, 0].set_ylim(bottom=max(LEAST_SHOWN, axes[0, 0].get_ylim()[0]))
    found = [axis.get_legend_handles_labels() for axis in axes[0]]
    handles = {label: h for parts in found for h, label in zip(*parts, strict=True)}
    figure.tight_layout()
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
                  fontsize=8)  # fmt: skip
    save(figure, file)


def _line_name(row: Mapping[str, Any]) -> str:
    recipe = row.get("recipe", "sgd")
    return row["arm"] if recipe in ("sgd", "own") else f"{row['arm']}, {recipe}"


def _mean_point(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """TFLOPs, mean accuracy and its standard deviation in per cent."""
    accuracies = [100 * r["test_accuracy"] for r in rows]
    spread = statistics.stdev(accuracies) if len(rows) > 1 else 0.0
    return statistics.mean(r["flops"] / 1e12 for r in rows), statistics.mean(accuracies), spread


@figure_style()
def accuracy_against_images(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw test accuracy against the number of images of the new size, for a converted network and a new one."""
    figure, axis = subplots(figsize=(7, 4.2))
    lines = list(dict.fromkeys((r["name"], r["method"]) for r in rows))
    for i, (name, method) in enumerate(lines):
        own = sorted((r for r in rows if (r["name"], r["method"]) == (name, method)), key=lambda r: r["images"])
        label = name if method == "-" else f"{method}, {name}"
        axis.plot([r["images"] for r in own], [100 * r["accuracy"] for r in own], **style(i, label=label, ms=5))
    axis.set_xscale("log")
    axis.set_xlabel("training images seen at the new size")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, file)


@figure_style()
def gain_against_exponent(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the gain of each method over copying against the mean exponent of the layers, see `Calibration`.

    Left: error of random networks on waves, divided by the error of copying; filled for one layer, hollow for more.
    Right: gain in accuracy of trained networks in percentage points; filled for the first data set, hollow for others.
    """
    figure, axes = subplots(1, 2, figsize=(11, 4.2))
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
    axes[0].set_ylabel("error over that of copy")
    axes[0].set_title("random tanh networks on waves (hollow: three layers)", fontsize=9)
    axes[1].set_ylabel("accuracy gained over copy (points)")
    axes[1].set_title("trained networks", fontsize=9)
    for axis in axes:
        axis.set_xlabel("measured exponent (1 smooth, 0 scale invariant)")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save(figure, file)


@figure_style()
def prediction_figure(predictions: Sequence[Prediction], file: Path, num_bars: int = 5) -> None:
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
        ranking = p.ranking[:num_bars]
        if p.true is not None and p.true not in dict(ranking):
            ranking[-1] = (p.true, p.probabilities[p.true])
        names = [name for name, _ in ranking]
        bars.axis("on")
        drawn = bars.barh(range(len(names)), [100 * value for _, value in ranking], color=COLOURS[6], edgecolor="black")
        for name, bar in zip(names, drawn, strict=True):
            if name == p.true:
                bar.set_hatch("////")
        labels = [plain(name) + " (true)" * (name == p.true) for name in names]
        bars.set_yticks(range(len(names)), labels, fontsize=7)
        bars.invert_yaxis()
        bars.set_xlim(0, 100)
        bars.tick_params(axis="x", labelsize=7)
        if k + columns >= len(shown):
            bars.set_xlabel("probability (%)", fontsize=7)
        bars.spines[["top", "right"]].set_visible(False)
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


def save(figure: Any, file: Path | BinaryIO) -> None:
    """Write a figure to a file, or as SVG to a stream; equal figures give equal bytes."""
    kind = check_figure_file(file) if isinstance(file, Path) else "svg"
    metadata = {MARKS[kind][0]: "multipde"} | ({"Date": None} if kind == "svg" else {})
    stream = io.BytesIO() if isinstance(file, Path) else file
    figure.savefig(stream, format=kind, bbox_inches="tight", metadata=metadata, dpi=150)
    if isinstance(file, Path):
        make_directory(file.parent)
        write_file(file, stream.getvalue())  # pyright: ignore[reportAttributeAccessIssue]


@figure_style()
def conversion_figure(report: ConversionReport, file: Path | BinaryIO) -> None:
    """Draw exponent, consistency error and change of the norm of every layer, and accuracy against FLOPs of candidates.

    Without images the figure shows only the change of the norm.
    """
    measured = bool(report.candidates)
    height = max(3.2, 0.22 * len(report.layers) + 1.2)
    figure, axes = subplots(1, 4 if measured else 1, figsize=(15 if measured else 6, height), squeeze=False)
    columns = [("norm after / before", [layer.norm_after / max(layer.norm_before, 1e-30) for layer in report.layers])]
    if measured:
        columns += [
            ("consistency error", [layer.consistency for layer in report.layers]),
            ("exponent (1 smooth, 0 scale invariant)", [layer.exponent for layer in report.layers]),
        ]
    rows = range(len(report.layers))
    for i, (axis, (title, values)) in enumerate(zip(axes[0], columns, strict=False)):
        axis.barh(rows, [math.nan if v is None else v for v in values], color=COLOURS[1], height=0.7)
        axis.set_yticks(rows, [layer.layer for layer in report.layers] if i == 0 else ["" for _ in rows], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    if measured:
        axis = axes[0, 3]
        names = list(dict.fromkeys(c.name.removesuffix(", recalibrated") for c in report.candidates))
        for c in report.candidates:
            i = names.index(c.name.removesuffix(", recalibrated"))
            again = any(other.name == f"{c.name}, recalibrated" for other in report.candidates)
            face = {"markerfacecolor": "none"} if again else {"label": names[i]}
            axis.plot(c.flops / 1e6, 100 * c.accuracy, **style(i, linestyle="none", **face))
        axis.set_xlabel("MFLOPs per image")
        axis.set_ylabel("test accuracy (%)")
        axis.set_title("hollow: BatchNorm not recalibrated", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"size {report.old_size} to {report.new_size}, method {report.method}", y=1.0)
    figure.tight_layout()
    save(figure, file)
