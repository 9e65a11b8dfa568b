"""The file of Python beside an exported state dict: it makes the module, and imports nothing of this library."""

import ast
import sys
from pathlib import Path
from pprint import pformat
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from multipde.mesh.reparametrize import composed_layers
from multipde.networks import normalized, plain
from multipde.networks.external import LIBRARIES, PYTHON
from multipde.networks.folding import plain_arguments
from multipde.networks.input_size import can_resize
from multipde.networks.model_spec import spec_of
from multipde.networks.network import PDENet

TAIL = '''
CLASSES = {classes}

WEIGHTS = Path(__file__).with_name({weights!r})


def network():
    """The network without its weights."""
{make}
    return net


def load(weights=WEIGHTS):
    """The network with its weights, in evaluation mode, for images {images}."""
    net = network()
    net.load_state_dict({read})
{wrap}    return net.eval()
'''

NORMALIZED = "mean", "std", "dim", "standardize", "detail"
"""Fields of a description that `Normalized` has as arguments."""


def python_source(model: nn.Module, weights: str, normalize: bool) -> str:
    """The source of a file with the functions ``network()`` and ``load()``, which reads the weights beside it.

    Args:
        weights: name of the file with the weights.
        normalize: whether ``load()`` puts the normalisation in front of the network.

    Raises:
        ValueError: the network was given in Python, and a file cannot name its code; or the file of Python would have
            the name of a module that is imported.
    """
    spec: Any = spec_of(model)
    imports, make = {"from pathlib import Path", "import torch"}, []
    modules: list[ModuleType] = []
    if type(model) is PDENet:
        modules.append(plain)
        make += ["net = PlainNet(", *(f"    {key}={value!r}," for key, value in plain_arguments(model).items()), ")"]
    else:
        make += _external(model, spec, imports)
    read = "torch.load(weights, weights_only=True)"
    if weights.endswith(".safetensors"):
        imports.add("from safetensors.torch import load_file")
        read = "load_file(weights)"
    images, wrap = "that are normalised", ""
    if normalize:
        modules.append(normalized)
        images = "of grey values 0 to 255"
        own = "\n".join(f"        {name}={getattr(spec, name)!r}," for name in NORMALIZED)
        wrap = f"    net = Normalized(\n        net,\n{own}\n    )\n"
    bodies = [_without_imports(module.__file__ or "", imports) for module in modules]
    tail = TAIL.format(
        classes=pformat(spec.class_names or tuple(map(str, range(spec.classes))), width=110, compact=True),
        weights=weights,
        make="\n".join("    " + line for line in make),
        images=f"(N, {spec.in_channels}, {', '.join(map(str, spec.image_sizes))}) {images}",
        read=read,
        wrap=wrap,
    )
    roots = sorted({line.split()[1].partition(".")[0] for line in imports})
    own = Path(weights).stem
    if own in roots or own in sys.stdlib_module_names:  # the file would take the place of that module
        raise ValueError(f"out must not have the name of a module of Python, got {weights}; type another name")
    needed = " and ".join(name for name in roots if name not in sys.stdlib_module_names)
    header = f'"""The module for the weights beside it: load() reads them. It needs {needed} alone."""\n'
    return "\n".join([header, *sorted(imports), *bodies, tail])


def _external(model: nn.Module, spec: Any, imports: set[str]) -> list[str]:
    """The lines that make a network of a library or an import path, with its opening as it is at its detail."""
    kind, _, name = getattr(spec, "arch", f"{PYTHON}:{type(model).__name__}").partition(":")
    if kind == PYTHON:
        raise ValueError(f"format must be onnx or pt2 for a network that was given in Python, got state_dict of {name}")
    arguments = "".join(f", {key}={value!r}" for key, value in spec.call()[1].items())
    if kind in LIBRARIES:
        imports.add({"torchvision": "import torchvision", "timm": "import timm"}[kind])
        make = {"torchvision": "torchvision.models.get_model", "timm": "timm.create_model"}[kind]
        lines = [f"net = {make}({name!r}{arguments})"]
    else:
        imports.add(f"import {kind}")
        lines = [f"net = {kind}.{name}({arguments[2:]})"]
    if can_resize(model):
        lines.append(f"net.set_input_size(img_size={spec.image_sizes!r})")
    if found := composed_layers(model):
        imports.add("from torch import nn")
    return lines + [f"net.set_submodule({path!r}, {_convolution(layer)})" for path, layer in found.items()]


def _convolution(layer: _ConvNd) -> str:
    own = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    rest = f"groups={layer.groups}, bias={layer.bias is not None}, padding_mode={layer.padding_mode!r}"
    return f"nn.Conv{len(layer.kernel_size)}d({', '.join(map(repr, own))}, {rest})"


def _without_imports(file: str, imports: set[str]) -> str:
    """The source of a file after its docstring and its imports, which are added to the set."""
    text = Path(file).read_text(encoding="utf-8")
    nodes = ast.parse(text).body
    rest = next(i for i, node in enumerate(nodes) if i and not isinstance(node, ast.Import | ast.ImportFrom))
    imports.update(ast.unparse(node) for node in nodes[1:rest])
    return "\n" + "".join(text.splitlines(keepends=True)[nodes[rest].lineno - 1 :])
