"""The house rules that a test can hold: imports point one way, the index is complete, files stay small."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import multipde

ROOT = Path(__file__).parent.parent
ORDER = (
    "mesh",
    "networks",
    "runtime",
    "stability",
    "conversions",
    "data",
    "storage",
    "evaluation",
    "training",
    "reports",
    "studies",
    "cli",
)
"""Rooms from the ground up: each may import from those below it."""

MAY_IMPORT = {room: set(ORDER[: i + 1]) for i, room in enumerate(ORDER)}


def modules() -> list[tuple[str, Path]]:
    found = []
    for room in MAY_IMPORT:
        folder = ROOT / "cli" if room == "cli" else ROOT / "multipde" / room
        found += [(room, path) for path in sorted(folder.rglob("*.py"))]
    return found


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("multipde.")}
    return rooms


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: getattr(v, "stem", v))
def test_imports_point_one_way(room, path):
    assert imported_rooms(path) <= MAY_IMPORT[room]


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: getattr(v, "stem", v))
def test_only_the_command_line_imports_tyro_and_only_the_log_prints(room, path):
    text = path.read_text()
    if room != "cli":
        assert "tyro" not in text
        assert "print(" not in text.replace("`print(", "").replace(">>> print(", "").replace(".print(", "")


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: getattr(v, "stem", v))
def test_files_stay_small(room, path):
    assert len(path.read_text().splitlines()) <= 360


def test_the_index_for_editors_is_that_of_run_time():
    tree = ast.parse((ROOT / "multipde" / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    static = {a.name: n.module for n in imports for a in n.names if (n.module or "").startswith("multipde.")}
    assert static == multipde._HOME  # pyright: ignore[reportAttributeAccessIssue]
    listed = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    assert ast.literal_eval(listed) == sorted(static)
    assert (ROOT / "multipde" / "py.typed").exists()


def test_examples_and_readme_import_public_names_from_the_index():
    texts = [path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))]
    texts += re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    nodes = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes if node.module == "multipde" for alias in node.names}
    assert names - {"*"} <= set(multipde.__all__)


def test_every_public_name_is_there_and_documented():
    for name in multipde.__all__:
        assert getattr(multipde, name).__doc__, name
    assert set(multipde.__all__) <= set(dir(multipde))
    with pytest.raises(AttributeError, match="module 'multipde' has no attribute 'nothing'"):
        multipde.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    importlib.reload(multipde)
