"""The reliability diagram of a report: how often answers of a given confidence are right."""

from typing import Any

from torch import Tensor

from multipde.reports.plots import COLOURS
from multipde.reports.run_figures import INK, PANEL


def reliability_figure(bins: Tensor) -> Any:
    """Draw the accuracy of the images by the confidence of their answer, beside the share of the images.

    A bar stands at the mean confidence of its images; a well calibrated network has all of them on the diagonal.

    Args:
        bins: sums by confidence, see `multipde.evaluation.reliability.reliability_bins`.

    Reference: Guo et al. (2017), On calibration of modern neural networks, figure 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL, layout="constrained")
    axis, low = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
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
