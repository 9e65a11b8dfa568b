"""What all figures share: matplotlib's own defaults, and no window, backend or setting of the host program."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from multipde.runtime.text import printable

INK = "#787878"
"""A grey that can be read on white and on black."""

LONGEST = 24
"""Number of characters beyond which a name is shortened."""

PAGE: Mapping[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "savefig.transparent": True,
}
"""The style of figures on pages, light or dark, of which a telephone shows about five inches side by side."""


@contextmanager
def figure_style(theme: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within the context, or a function that it decorates, figures have matplotlib's defaults and those of a theme.

    A file ``matplotlibrc`` of the user or of the working directory has no effect; equal figures give equal bytes.
    """
    matplotlib = _imported()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "multipde"} | dict(theme or {}))
        yield


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: Any = None, **options: Any
) -> tuple[Any, Any]:
    """A figure that belongs to nobody else, and its axes; further options are those of ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **options)


def plain(name: str) -> str:
    """A name from a file as matplotlib can show it: without characters of mathematical text, and shortened."""
    short = printable(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
    return short.replace("$", r"\$")


@cache
def _imported() -> Any:
    """The module matplotlib; while it is imported, it does not see a matplotlibrc in the working directory."""
    exists = os.path.exists
    os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
    try:
        import matplotlib
    finally:
        os.path.exists = exists
    return matplotlib
