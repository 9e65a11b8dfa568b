"""The model card of a network for the Hugging Face Hub: README.md, written from the run."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from torch import nn

from multipde import __version__
from multipde.evaluation.figure_style import figure_style
from multipde.mesh.reparametrize import stencil_layers
from multipde.networks.model_spec import spec_of
from multipde.reports import run_figures as figures
from multipde.reports.page_text import page_text
from multipde.reports.plots import figure_bytes
from multipde.reports.run_record import RunRecord, data_of, loss_name

FIGURES = {"accuracy": "accuracy.png", "loss": "loss.png"}
PUBLIC = ("cifar10", "cifar100", "stl10")
"""Data sets that a card names as those of the Hub; other data may be anybody's."""


def model_card(net: nn.Module, run: RunRecord | None, repo_id: str | None) -> str:
    """The text of README.md: description, accuracy on every level, command, settings and how the network is used.

    Args:
        run: the run that has trained the network; without it the card describes the network alone.
        repo_id: user and name on the Hub, for the line that loads it.
    """
    spec = spec_of(net)
    names = spec.class_names or tuple(str(k) for k in range(spec.classes))
    title = (repo_id or "").rpartition("/")[2] or (run.directory.resolve().name if run else spec.label)
    parts = [_front_matter(run, title), f"# {title}\n"]
    text = page_text(run, None, names) if run else None
    parts += [f"{text['summary']}\n" if text else f"A {spec.label} network.\n", f"```text\n{spec.summary(net)}\n```\n"]
    if run and text:
        parts += [_accuracy(text), _figures()]
    parts += [_usage(net, repo_id)]
    if run and text:
        parts += [_training(run, text)]
    return "\n".join(parts)


def card_figures(run: RunRecord | None) -> dict[str, bytes]:
    """The figures of a card as PNG files by name: accuracy and loss over the epochs of all levels."""
    if run is None:
        return {}
    levels, loss = run.levels, loss_name(run.record)
    with figure_style():
        return {
            name: figure_bytes(figures.curve(levels, quantity, "epochs", loss), "png", dpi=120)
            for quantity, name in FIGURES.items()
        }


def _front_matter(run: RunRecord | None, title: str) -> str:
    """The YAML that the Hub reads; JSON strings are YAML, so that no name can break it."""
    lines = ["library_name: multipde", "pipeline_tag: image-classification", "tags:", "- multipde", "- pytorch"]
    if run is not None and (name := run.record.get("data")):
        shown = json.dumps(data_of(run.record))
        if name in PUBLIC:
            lines += ["datasets:", f"- {json.dumps(name)}"]
        accuracy = float(run.result["test_accuracy"])
        lines += [
            "model-index:",
            f"- name: {json.dumps(title)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {shown}",
            f"      type: {json.dumps(name)}",
            "      split: test",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {accuracy:.6f}",
        ]
    return "\n".join(["---", *lines, "---", ""])


def _accuracy(text: dict[str, Any]) -> str:
    rows = [
        (level["plan"]["size"], level["epochs"], level["accuracy"], level["loss"], level["plan"]["MFLOPs/image"])
        for level in text["levels"]
    ]
    header = ("size (pixels)", "epochs", "validation accuracy", "validation loss", "MFLOPs/image")
    lines = [f"- {value} {what}" for value, what in text["numbers"]]
    return "\n".join(["## Accuracy\n", *lines, "", "By level of the training:\n", *_table(header, rows), ""])


def _figures() -> str:
    return "\n".join(f"![{name} over the epochs of all levels]({file})" for name, file in FIGURES.items()) + "\n"


def _usage(net: nn.Module, repo_id: str | None) -> str:
    spec = spec_of(net)
    address = f"hf://{repo_id}" if repo_id else "DIRECTORY"
    is_named = not getattr(spec, "import_path", "") and not str(getattr(spec, "arch", "")).startswith("python:")
    given = "" if is_named else ", model=...)  # the module or function that makes it"
    code = [
        "import multipde",
        "",
        f'net = multipde.load("{address}"' + (")" if is_named else given),
        f"# images (N, {spec.in_channels}, {', '.join(map(str, spec.image_sizes))}) to scores (N, {spec.classes})",
    ]
    if is_named and stencil_layers(net):
        code += ["other = multipde.convert(net, size=...)  # for images of another size"]
    lines = [f"It needs multipde {__version__} with its extra `hub`.\n", "```python", *code, "```", ""]
    if spec.class_names:
        lines += [f"Classes: {', '.join(spec.class_names)}.", ""]
    return "\n".join(["## Use\n", *lines])


def _training(run: RunRecord, text: dict[str, Any]) -> str:
    command = run.record.get("provenance", {}).get("command", "")
    line = shlex.join(_without_place(word) for word in shlex.split(command))
    found = ["## Training\n"] + ([f"```bash\n{line}\n```\n"] if line else [])
    for title, pairs in text["settings"]:
        if title in ("Network", "Training", "Versions", "Machine"):
            shown = [(name, _without_place(value)) for name, value in pairs]
            found += [f"### {title}\n", *_table(("name", "value"), shown), ""]
    return "\n".join(found)


def _without_place(word: str) -> str:
    """A word of the command or a setting; of an absolute path only its last part, since a card is public."""
    option, sign, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return option + sign + (Path(value).name if os.path.isabs(value) else value)


def _table(header: tuple[str, ...], rows: Any) -> list[str]:
    """A table of Markdown; a vertical bar in a cell would end it."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *rows)]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(header), *lines[1:])]
