"""The documentation: `sphinx-build -W docs site` writes it. Nothing is fetched while it is built or read."""

import io
import re
import textwrap
from contextlib import redirect_stdout, suppress

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import multipde

project, version, copyright = "multipde", multipde.__version__, "the authors of multipde, MIT"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["figures"]
highlight_language = "text"
default_role = "py:obj"  # names in single backticks of docstrings become links
myst_heading_anchors = 3
autodoc_mock_imports = ["lightning", "transformers"]  # only bases of callbacks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # or torch tells how to write a forward
add_module_names = False
python_maximum_signature_line_length = 90
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape", "Convention", "Reference"]
html_theme = "furo"
html_title = "multipde"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7fb8de", "color-brand-content": "#7fb8de"},
}


class CommandHelp(SphinxDirective):
    """The text that ``multipde WORDS --help`` prints."""

    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        from multipde.cli.commands import run

        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            run([*self.arguments, "--help"])
        lines = [textwrap.fill(line, 80) if line[:1].isalnum() else line for line in printed.getvalue().splitlines()]
        text = "\n".join(lines)
        return [nodes.literal_block(text, text, language="text")]


def mathematics(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings: | and * are what they are, and an indented paragraph that is in no section is an equation."""
    if what == "property":  # or napoleon takes what is before a colon as its type
        lines[0] = lines[0].replace(": ", " – ", 1)
    found, head, in_code, in_equation = [], "", False, False
    for line in lines:
        indented = line.startswith("    ")
        head = line if line.strip() and not indented else head
        is_equation = indented and not re.fullmatch(r"[A-Z]\w+:", head) and (in_equation or not found or not found[-1])
        if is_equation and not in_equation:
            found += ["::", ""]
        in_equation = is_equation or (in_equation and not line.strip())
        in_code = bool(line.strip()) and (in_code or line.lstrip().startswith(">>>"))
        found.append(line if in_code or is_equation else escaped(line))
    lines[:] = found


def escaped(line: str) -> str:
    parts = re.split(r"(``.*?``|`.*?`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts)


def captioned(app: Sphinx, page: str, source: list[str]) -> None:
    """Show the title of a block of code, which names the date of its run, as its caption; no line ends before a ±."""
    source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")
    source[0] = re.sub(r'^```(\w+) title="(.*)"$', r"```{code-block} \1\n:caption: \2", source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    app.connect("source-read", captioned)
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", mathematics, priority=400)  # before napoleon
