"""``multipde bench inference``: the speed of networks in use, beside their bare convolutions and networks of others."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.exports.onnx_model import OLDEST_OPSET, OnnxNetwork, check_onnx, onnx_model
from multipde.networks.compiled_network import for_use
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.folding import folded
from multipde.networks.network import PDENet
from multipde.networks.presets import preset
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import table_of
from multipde.studies.bench.plain_networks import resnet18_3x3
from multipde.studies.bench.step_speed import recorded_convolutions
from multipde.studies.bench.timing import alternated, flops_of, random_images
from multipde.studies.study import Study

TURN_SECONDS = 0.3
"""Seconds for which calls of one kind follow each other, as they do in an evaluation."""

COLUMNS = """network: {network} | size: {size} | MFLOPs: {megaflops:.0f} | images/s: {images_per_second:.0f}
    | in use / floor: {in_use_over_floor:.2f} | as trained / floor: {as_trained_over_floor:.2f}
    | folded / floor: {folded_over_floor:.2f} | one image, ms: {one_ms:.2f} | as trained, ms: {one_as_trained_ms:.2f}"""
WITH_ONNX = " | ONNX / floor: {onnx_over_floor:.2f} | ONNX, ms: {one_onnx_ms:.2f}"


def inference_study(
    out: Path | None = None,
    *,
    dynamics: Sequence[str] = tuple(DYNAMICS),
    sizes: Sequence[int] = (8, 16, 32),
    batch: int = 125,
    repeats: int = 7,
    device: str = "auto",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Measure images per second and the time for one image, of the CIFAR-10 networks and two networks of torchvision.

    ``floor`` is the convolutions of the network alone, forwards, on tensors of its shapes. ``as trained`` is the module
    in eval mode; ``folded`` has time steps and BatchNorm in its stencils; ``in use`` is what `evaluate` and `predict`
    take, with compiled layers where that is possible; ``ONNX`` is the folded network by onnxruntime, if that is
    installed, on the processor. All are timed alternately, in float32; times are medians.
    """
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    study = Study(out, {"study": "inference"}, ("network", "size"), anew=True, log=log)
    compute = Compute.of(device, "off")
    for name, make in _networks(dynamics).items():
        for size in sizes:
            net = compute.place(make(size)).eval()
            found = _measured(net, size, batch, repeats, compute)
            study.add(name, size, batch=batch, device=compute.device.type, threads=torch.get_num_threads(), **found)
            study.log.say(f"{name}, {size}: {found['images_per_second']:g} images/s")
    title = "networks in use, in float32; times in units of the bare convolutions"
    columns = COLUMNS + WITH_ONNX * all("onnx_over_floor" in row for row in study.rows)
    return study.close({title: table_of(study.rows, columns)})


def _networks(dynamics: Sequence[str]) -> dict[str, Callable[[int], nn.Module]]:
    from torchvision.models import mobilenet_v3_small

    own: Any = {name: lambda size, name=name: PDENet(preset(f"cifar10-{name}").on_mesh(size)) for name in dynamics}
    others = {"resnet18, 3x3 opening": resnet18_3x3, "mobilenet_v3_small": mobilenet_v3_small}
    return own | {name: lambda size, make=make: make(num_classes=10) for name, make in others.items()}


def _measured(net: nn.Module, size: int, batch: int, repeats: int, compute: Compute) -> dict[str, Any]:
    device = compute.device
    ways = {"as_trained": net, "folded": folded(net), "in_use": for_use(net, 10 * batch)}
    ways = {way: compute.place(copy.deepcopy(module)) for way, module in ways.items()}
    many, one = (random_images(num, 3, size, device) for num in (batch, 1))
    if device.type == "cpu" and (model := _onnx(ways["folded"], many)) is not None:
        ways["onnx"] = model
    images = ((batch, many), (1, one))
    calls: dict[Any, Callable[[], Any]] = {("floor", num): _floor(net, x, compute) for num, x in images}
    for way, module in ways.items():
        calls |= {(way, num): lambda m=module, x=x: m(x) for num, x in images}
    with torch.no_grad():
        seconds = alternated(calls, repeats, device, TURN_SECONDS)
        row: dict[str, Any] = {"megaflops": flops_of(lambda: net(one)) / 1e6}
    row["images_per_second"] = round(batch / seconds["in_use", batch], 1)
    floor = seconds["floor", batch]
    row |= {f"{way}_over_floor": round(seconds[way, batch] / floor, 3) for way in ways}
    row |= {f"one_{way}_ms".replace("_in_use", ""): round(1000 * seconds[way, 1], 3) for way in ways}
    return row | {"floor_seconds": floor}


def _onnx(net: nn.Module, x: Tensor) -> nn.Module | None:
    try:
        check_onnx(OLDEST_OPSET)
    except ValueError:
        return None
    return OnnxNetwork(onnx_model(net, x[:2], OLDEST_OPSET, {}))


def _floor(net: nn.Module, x: Tensor, compute: Compute) -> Callable[[], None]:
    """A call that computes the convolutions of a network alone."""
    prepared = recorded_convolutions(net, x, compute)

    def call() -> None:
        for y, weight, rest, _ in prepared:
            torch.convolution(y, weight, None, *rest)

    return call
