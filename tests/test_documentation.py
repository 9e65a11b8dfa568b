"""The pages of README.md and docs/: their code runs, every public name has a place, and every measurement a date."""

import ast
import doctest
import functools
import io
import re
import runpy
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torchvision

import multipde
from multipde.cli.bench import STUDIES
from multipde.cli.commands import COMMANDS
from multipde.cli.main import main
from tests.fixtures import narrow

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: .{10,} -->")
OF_OTHERS = {"--num", "--seed"}
"""Options of `python -m tests.faults`."""
NARROW = ("docs/start.md", "docs/how-to/all-sizes.md", "docs/how-to/smaller-size.md")
"""Pages that print no number that depends on the channels of the presets."""
DATED = re.compile(r"20\d\d-\d\d-\d\d|not run here: .{10,}")


class Code(NamedTuple):
    """A block of code: its language, the rest of its first line, its text, and the line of the page before it."""

    language: str
    title: str
    text: str
    before: str


def blocks(page: Path) -> list[Code]:
    found = re.findall(r"([^\n]*)\n\s*^```(\w*)([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Code(language, title, text, before) for before, language, title, text in found]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runs(code: Code) -> bool:
    if code.language == "python":
        return not NOT_RUN.search(code.before)
    return code.language == "console" and not DATED.search(code.title)


def resnet10(weights=None, **options):
    """A ResNet with one block of each width, in place of the two of ResNet-18."""
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], **options)


def told(expected: str, got: str) -> list[str]:
    """The lines of a console that it did not print, but for numbers."""
    wanted, found = [
        [re.sub(r"\d[\d.,]*", "#", " ".join(line.split())) for line in text.splitlines()] for text in (expected, got)
    ]
    return [line for line in wanted if line not in ("...", "", *found)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*many workers.*", "ignore:.*logging interval.*")
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(runs, blocks(page)))], ids=name)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", resnet10)
    if name(page) in NARROW:
        narrow(monkeypatch)
    names: dict = {"__name__": "__page__"}
    printed = None
    for code in blocks(page):
        if code.language == "python" and runs(code):
            exec(compile(code.text, name(page), "exec"), names)
            printed = capsys.readouterr().out
        elif code.language == "console" and runs(code):
            for command in code.text.split("$ ")[1:]:
                line, _, output = command.partition("\n")
                words = shlex.split(line)
                assert words[0] == "multipde", line
                main(words[1:])
                assert told(output, capsys.readouterr().out) == []
        elif code.language == "text" and printed is not None:
            checker = doctest.OutputChecker()
            assert checker.check_output(code.text, printed, doctest.ELLIPSIS), printed
            printed = None


def test_a_line_that_is_not_printed_is_found():
    assert told("size 8  loss 2.1\n...\nwritten to x\n", "size 16 loss 1.0\nwritten to x") == []
    assert told("written to y\n", "written to x") == ["written to y"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_is_valid_and_imports_public_names_from_the_index(page):
    nodes = [node for code in blocks(page) if code.language == "python" for node in ast.walk(ast.parse(code.text))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "multipde"]
    assert {alias.name for node in imports for alias in node.names} - {"*"} <= set(multipde.__all__)


@functools.cache
def help_of(*words: str) -> str:
    """The help of a command or a study."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page):
    for code in blocks(page):
        lines = code.text.splitlines() if code.language in ("console", "") else []
        for line in [line for line in lines if line.startswith("$ multipde ") and "COMMAND" not in line]:
            command, *options = shlex.split(line, comments=True)[2:]
            assert command in COMMANDS, line
            words = (command, options[0]) if command == "bench" else (command,)
            for option in [word.partition("=")[0] for word in options if word.startswith("--")]:
                assert re.search(rf"{option}\b", help_of(*words)), f"{line}: {option}"


@pytest.fixture(scope="module")
def all_help():
    """The help of all commands and studies."""
    return "".join(map(help_of, COMMANDS)) + "".join(help_of("bench", study) for study in STUDIES)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_within_sentences_exist(page, all_help):
    code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = [
        span
        for span in re.findall(r"`([^`\n]+)`", code)
        if not re.match(r"(\S*(python|pip|jupyter|sphinx|ruff|mlflow))", span)
    ]
    options = {option for span in spans for option in re.findall(r"--[a-z][a-z0-9-]*", span)}
    missing = {option for option in options if not re.search(rf"{option}\b", all_help)}
    assert missing <= {"--version", "--nproc-per-node", "--nnodes", "--max-restarts"} | OF_OTHERS


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "measurements").glob("*.md")), ids=name)
def test_every_measurement_has_its_date(page):
    text = page.read_text()
    if "|---|" in text and page.name != "index.md":
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    for code in blocks(page):
        assert code.language != "console" or DATED.search(code.title), code.text


def test_every_public_name_is_on_one_page_of_the_reference():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    entry = re.compile(r"^\.\. auto\w+:: multipde\.(\w+)$", re.MULTILINE)
    found = sorted(found for page in pages for found in entry.findall(page.read_text()))
    missing = sorted(set(multipde.__all__) - set(found))
    assert found == multipde.__all__, (
        f"a page of docs/reference must have `.. autofunction:: multipde.NAME` of {missing}"
    )


def test_readme_is_short_and_has_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert len([line for line in lines if line.startswith("    python3 -m venv ")]) == 2


def test_figures_and_pages_that_are_linked_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src(?:set)?=\"([^\":]+)\"", page.read_text()):
            path = page.parent / (target[0] or target[1])
            assert path.exists(), f"{name(page)}: {path}"


def test_every_command_and_study_is_on_a_page():
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "command-line").glob("*.md")}
    assert set(pages) == {*COMMANDS, "index"}
    for command in COMMANDS:
        assert f"{{command-help}} {command}\n" in pages[command]
    assert set(re.findall(r"{command-help} bench (\w+)", pages["bench"])) == set(STUDIES)


def test_figures_are_drawn_by_the_code_in_the_repository(tmp_path):
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_figures.py"), run_name="figures")
    assert {path.stem for path in (ROOT / "docs" / "figures").glob("*.svg")} == set(drawing["FIGURES"])
    drawing["main"](tmp_path)
    for path in tmp_path.glob("*.svg"):
        drawn, kept = [
            text.count("<path") for text in (path.read_text(), (ROOT / "docs" / "figures" / path.name).read_text())
        ]
        assert drawn == pytest.approx(kept, rel=0.2)  # versions of matplotlib differ
