"""The house rules that a test can hold: imports point one way, the index is complete, files stay small."""

import ast
import importlib
import re
from collections import Counter
from graphlib import TopologicalSorter
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
    "exports",
    "training",
    "reports",
    "studies",
    "integrations",
    "cli",
)
"""Rooms from the ground up: each may import from those below it."""

MAY_IMPORT = {room: set(ORDER[: i + 1]) for i, room in enumerate(ORDER)}


def files(room: str) -> list[Path]:
    return sorted((ROOT / "cli" if room == "cli" else ROOT / "multipde" / room).rglob("*.py"))


def modules() -> list[tuple[str, Path]]:
    return [(room, path) for room in ORDER for path in files(room)]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("multipde.")}
    return rooms


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_one_way(room):
    upwards = {path: imported_rooms(path) - MAY_IMPORT[room] for path in files(room)}
    assert {path: rooms for path, rooms in upwards.items() if rooms} == {}


@pytest.mark.parametrize("room", [room for room in ORDER if room != "cli"])
def test_only_the_command_line_imports_tyro_and_only_the_log_prints(room):
    for path in files(room):
        text = path.read_text()
        assert "tyro" not in text, path
        assert "print(" not in text.replace("`print(", "").replace(">>> print(", "").replace(".print(", ""), path


def _of_one_file(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("open", "os.fdopen") and len(call.args) == 1


@pytest.mark.parametrize("room", ORDER)
def test_text_is_utf_8_whatever_the_locale_is_and_only_the_log_uses_rich(room):
    sources = {path: path.read_text() for path in files(room)}
    assert [path for path, source in sources.items() if path.name != "console.py" and "from rich" in source] == []
    nodes = [(path, node) for path, source in sources.items() for node in ast.walk(ast.parse(source))]
    for path, call in [(path, node) for path, node in nodes if isinstance(node, ast.Call)]:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        options = {option.arg for option in call.keywords}
        mode = [a for a in call.args if getattr(a, "value", None) in ("r", "w", "a", "r+", "w+", "a+")]
        opens = name in ("open", "fdopen") and (mode or _of_one_file(call))
        if name in ("read_text", "write_text") or opens or "text" in options:
            assert "encoding" in options or name == "Text", (path, ast.unparse(call))


def test_files_stay_small():
    assert [path for _, path in modules() if len(path.read_text().splitlines()) > 300] == []


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("multipde", *parts) if parts[0] == "cli" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """All ``from x import y`` of a file at run time: those inside functions too, those under TYPE_CHECKING not."""
    found = [tree] if isinstance(tree, ast.ImportFrom) else []
    is_static = isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"
    for child in tree.orelse if is_static else ast.iter_child_nodes(tree):
        found += imports(child)
    return found


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports; a name taken from the index counts as its module."""
    index, graph = multipde._index(), {}
    for module, source in sources.items():
        targets = [(node.module or "", alias.name) for node in imports(ast.parse(source)) for alias in node.names]
        named = {index.get(name, "") if home == "multipde" else home for home, name in targets}
        named |= {f"{home}.{name}" for home, name in targets}
        graph[module] = named & set(sources) - {"multipde"}
    return graph


def test_no_two_files_import_each_other():
    sources = {module_name(path): path.read_text() for _, path in modules()}
    graph = import_graph(sources)
    assert "multipde.mesh.stencil" in graph["multipde.conversions.calibration"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle


def test_circles_through_functions_and_through_the_index_are_found():
    graph = import_graph(
        {
            "multipde.training.run": "def f():\n    from multipde.a import g",
            "multipde.a": "from multipde import train\nif TYPE_CHECKING:\n    from multipde.b import h",
            "multipde.b": "from multipde import a",
        }
    )
    assert graph == {
        "multipde.training.run": {"multipde.a"},
        "multipde.a": {"multipde.training.run"},
        "multipde.b": {"multipde.a"},
    }


def test_no_two_modules_have_the_same_name():
    names = [module_name(path) for room, path in modules() if room != "cli"]
    count = Counter(name.rpartition(".")[2] for name in names)
    assert [name for name in names if count[name.rpartition(".")[2]] > 1] == []
    assert "native" in count


def test_the_index_lists_every_import_for_type_checkers():
    tree = ast.parse((ROOT / "multipde" / "__init__.py").read_text())
    static = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    for node in static.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # or type checkers take it as private
            assert multipde._index()[alias.name] == node.module
    assert multipde.__all__ == sorted(alias.name for node in static.body for alias in node.names)
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
