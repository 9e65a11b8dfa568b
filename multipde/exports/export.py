"""``multipde export``: a trained network in a file that needs nothing of this library, compared with the network."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.convert import convert
from multipde.data.datasets import load_data
from multipde.evaluation.metrics import check_classes
from multipde.exports.measured import Examples, checked_difference, images_per_second, noise
from multipde.exports.onnx_model import OnnxNetwork, check_onnx, following, onnx_model, quantized, quietly
from multipde.exports.source import python_source
from multipde.mesh.modes import copied, unwrapped
from multipde.networks.all_sizes import AllSizes, at_size
from multipde.networks.architectures import working_directory_first
from multipde.networks.cost import count_flops
from multipde.networks.folding import folded
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.networks.normalized import Normalized
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.files import write_file
from multipde.storage.tensors import tensor_bytes

FORMATS = ("onnx", "pt2", "state_dict")
BATCH = 32
"""Number of images on which the exported network is compared and timed."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """An exported network as it was measured on the processor.

    Args:
        files: what was written: the network, and for ``"state_dict"`` the file of Python with its module.
        difference: largest difference from the scores of the network / its largest score, before the quantisation.
        images_per_second: rate of the network in torch, ``"torch"``; of the exported one, ``"exported"``; and with int8
            of the quantised one, ``"int8"``.
        accuracy: with int8 the shares of the test images that ``"exported"`` and ``"int8"`` classify correctly.
    """

    files: tuple[Path, ...]
    difference: float
    images_per_second: dict[str, float]
    accuracy: dict[str, float]


def export(
    model: nn.Module,
    file: str | Path,
    *,
    format: str = "onnx",
    size: int | None = None,
    normalize: bool = False,
    opset: int = 18,
    int8: bool = False,
    data: Any = None,
    data_options: Mapping[str, Any] | None = None,
    split: tuple[int, float] = (0, 0.2),
    num_images: int | None = None,
    log: Log | None = None,
) -> Exported:
    """Write a network for use without this library: stencils baked, for batches of any length.

    The scores of the exported network are compared with those of the network before anything is written.

    Args:
        model: a network with a description, see `describe`, or for several sizes; it is not changed.
        file: a file that does not exist.
        format: ``"onnx"``; ``"pt2"``, a program of `torch.export`; or ``"state_dict"``, a file .pt or .safetensors with
            a file of Python beside it, whose ``load()`` makes the plain module with these weights.
        size: image side in pixels, to which the network is converted by copying its stencils; None for its own. Of a
            network for several sizes it is the one that is exported.
        normalize: whether the exported network normalises the images, which then are grey values 0 to 255, uint8.
        opset: version of the operators of ONNX.
        int8: whether convolutions and matrix products compute with integers of eight bits, see `quantized`; ONNX only.
        data, data_options: labelled images for int8, as in `evaluate`.
        split: seed and share of the training images that are held back, and not used for the quantisation.
        num_images: number of test images for the accuracy, a fixed random subset; None for all.

    Raises:
        ValueError: a package is missing, an argument is invalid, or the scores differ by more than 1e-4 of the largest
            score. Then nothing is written.
    """
    log, file = log or Log(quiet=True), Path(file)
    _check(file, format, opset, int8, data)
    net = _on_processor(model, size)
    spec: Any = spec_of(net)
    examples = (
        Examples(load_data(data, size=spec.image_sizes[0], **(data_options or {})), spec, normalize) if int8 else None
    )
    if examples is not None:
        check_classes(spec, examples.data)
    grey = noise(spec, BATCH)
    normalized = Normalize.of(spec)(grey.float())
    taken = grey if normalize else normalized
    files, run = _contents(net, taken[:2], file.name, format, opset, normalize)
    with torch.no_grad():
        difference = checked_difference(run, taken, net(normalized))
    placed = Compute(torch.device("cpu")).place(net)
    timed = {"torch": (placed, normalized), "exported": (run, taken)}
    accuracy = {}
    if examples is not None:
        files[file.name] = quantized(files[file.name], examples.calibration(split))
        nets = {"exported": run, "int8": OnnxNetwork(files[file.name])}
        accuracy = {name: examples.accuracy(each, num_images) for name, each in nets.items()}  # pyright: ignore
        timed["int8"] = nets["int8"], taken
    rates = images_per_second(timed)
    for name, content in files.items():
        write_file(file.with_name(name), content)
    result = Exported(tuple(file.with_name(name) for name in files), difference, rates, accuracy)
    _tell(result, spec, normalize, log)
    return result


def _check(file: Path, format: str, opset: int, int8: bool, data: Any) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "onnx":
        check_onnx(opset)
    if int8 and format != "onnx":
        raise ValueError(f"int8 must come with the format onnx, got {format}")
    if int8 and data is None:
        raise ValueError("int8 must have images for the quantisation, got none; type --data NAME")
    if format == "state_dict" and file.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"out must end in .pt or .safetensors for a state_dict, got {file}")
    for path in (file, file.with_suffix(".py")) if format == "state_dict" else (file,):
        if path.exists():
            raise FileExistsError(f"out must be a new file, got {path}, which exists; type another name or remove it")
    if not file.parent.is_dir():
        raise ValueError(f"out must be a file in a directory that exists, got {file}")


def _on_processor(model: nn.Module, size: int | None) -> nn.Module:
    """A copy in float32 and in evaluation mode, at another image size if one is given."""
    model = unwrapped(model)
    if isinstance(model, AllSizes):
        model, size = at_size(model, size), None
    spec: Any = spec_of(model)
    net = copied(model) if size is None else convert(model, size=spec.for_images(size).size, method="copy")
    count_flops(spec_of(net))  # raises for a size that the network cannot have
    return net.cpu().float().eval()


def _contents(
    net: nn.Module, example: Tensor, name: str, format: str, opset: int, normalize: bool
) -> tuple[dict[str, bytes], Run]:
    """The contents of the files by name, and a function that computes scores by what is in them."""
    spec: Any = spec_of(net)
    plain = Compute(torch.device("cpu")).place(folded(net))
    if format == "state_dict":
        return _state_dict(net, plain, name, normalize)
    whole = plain
    if normalize:
        whole = Normalized(plain, spec.mean, spec.std, spec.dim, spec.standardize, spec.detail).eval()
    notes = {"images": _input_text(spec, normalize), "class_names": json.dumps(spec.class_names)}
    if format == "onnx":
        content = onnx_model(whole, example, opset, notes)
        return {name: content}, OnnxNetwork(content)
    with quietly(), following(net):
        program = torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    stream = io.BytesIO()
    with quietly():
        torch.export.save(program, stream, extra_files={f"{key}.txt": value for key, value in notes.items()})
        stream.seek(0)
        return {name: stream.getvalue()}, torch.export.load(stream).module()


def _state_dict(net: nn.Module, plain: nn.Module, name: str, normalize: bool) -> tuple[dict[str, bytes], Run]:
    """A state dict and the source of its module, which is run once to make the module and to load the weights."""
    stream, source = io.BytesIO(), Path(name).with_suffix(".py").name
    torch.save(plain.state_dict(), stream)
    content = stream.getvalue() if name.endswith(".pt") else tensor_bytes(plain.state_dict())
    files = {name: content, source: python_source(net, name, normalize).encode()}
    with TemporaryDirectory() as folder, working_directory_first(), torch.random.fork_rng(devices=[]):
        for each, written in files.items():
            (Path(folder) / each).write_bytes(written)
        namespace: dict[str, Any] = {"__file__": str(Path(folder) / source), "__name__": "exported"}
        exec(compile(files[source], source, "exec"), namespace)
        return files, namespace["load"]()


def _input_text(spec: Any, normalize: bool) -> str:
    shape = f"(batch, {spec.in_channels}, {', '.join(map(str, spec.image_sizes))})"
    if normalize:
        return f"{shape}, uint8, grey values 0 to 255"
    if spec.standardize:
        return f"{shape}, float32, each image with mean 0 and standard deviation 1"
    return f"{shape}, float32, grey values / 255" + (f" minus {spec.mean} over {spec.std}" if spec.mean else "")


def _tell(result: Exported, spec: Any, normalize: bool, log: Log) -> None:
    for file in result.files:
        log.say(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    log.say(f"images {_input_text(spec, normalize)}; scores (batch, {spec.classes})")
    log.say(f"largest difference / largest score: {result.difference:.1e}, on {BATCH} images")
    rows = []
    for name, rate in result.images_per_second.items():
        row = {"name": name, "images/s": f"{rate:,.0f}"}
        rows.append(row | ({"accuracy": _percent(result.accuracy.get(name))} if result.accuracy else {}))
    log.table(rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
