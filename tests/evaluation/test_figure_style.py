"""Figures have their own style: nothing of the host, and no file of the working directory, changes them."""

import os
import subprocess
import sys

import pytest

from multipde.evaluation.figure_style import figure_style, plain, subplots

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
