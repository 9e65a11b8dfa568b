"""Figures have their own style: nothing of the host, and no file of the working directory, changes them."""

import os
import subprocess
import sys

import pytest

from multipde.evaluation.figure_style import INK, figure_style, plain, subplots
from multipde.reports.plots import COLOURS

DRAW = """
import hashlib, io
from multipde.evaluation.figure_style import figure_style, subplots
with figure_style():
    figure, axis = subplots(figsize=(2, 1))
    axis.plot([0, 1], [1, 100], label="x")
    figure.savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_a_matplotlibrc_of_the_working_directory_or_the_user_changes_nothing(tmp_path):
    found = []
    for name, text in (("plain", None), ("broken", b"\xff\xfe"), ("other", b"text.usetex: True\nlines.linewidth: 9\n")):
        place = tmp_path / name
        place.mkdir()
        environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "config")}
        if text is not None:
            (place / "matplotlibrc").write_bytes(text)
        if name == "other":
            (tmp_path / "config/matplotlibrc").write_bytes(text)
        command = [sys.executable, "-c", DRAW]
        found.append(subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True))
    assert len({done.stdout for done in found}) == 1
    assert {done.stderr for done in found} == {""}


def test_the_host_keeps_its_settings():
    import matplotlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matplotlib.rcParams, "lines.linewidth", 7.0)
        with figure_style({"axes.linewidth": 0.25}):
            assert matplotlib.rcParams["lines.linewidth"] == 1.5
            assert matplotlib.rcParams["axes.linewidth"] == 0.25
        assert matplotlib.rcParams["lines.linewidth"] == 7.0


@pytest.mark.parametrize("name", ["r$in_g", r"$\\frac{", "$x$", "\x1b[31m\udce9", "100 % [x] :car:"])
def test_every_name_can_be_drawn(name):
    with figure_style():
        figure, axis = subplots(figsize=(2, 1))
        axis.set_title(plain(name))
        figure.savefig(os.devnull, format="svg")


@pytest.mark.parametrize("colour", [INK, *COLOURS])
@pytest.mark.parametrize("ground", ["#ffffff", "#131416", "#0d1117"])
def test_colours_can_be_read_on_white_and_on_dark_pages(colour, ground):
    def luminance(colour: str) -> float:
        """Relative luminance of WCAG 2.2."""
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(colour), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3
