"""The notebooks of examples/ run from top to bottom, here on fewer images, and print what is stored in them."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from multipde.networks import presets

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
FEWER = {
    "num_train=2000, num_test=500": "num_train=200, num_test=60",
    "8000images": "200images",
    "(3500": "(300",
    "3000": "200",
    "total_steps=480": "total_steps=32",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_printed_but_for_numbers(path, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(presets._DATA["shapes"], "channels", (4, 8, 16))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict = {"__name__": "__notebook__"}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = re.sub("|".join(map(re.escape, FEWER)), lambda found: FEWER[found[0]], "".join(cell["source"]))
            exec(compile(source, path.name, "exec"), names)
            stored = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
            printed, kept = (re.sub(r"\d[\d.]*", "#", text).split() for text in (capsys.readouterr().out, stored))
            assert printed == kept
    assert path.stat().st_size < 50_000
