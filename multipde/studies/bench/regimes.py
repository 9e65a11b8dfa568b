"""``multipde bench regimes``: gain of each method over copying, against the measured smoothness of the features."""

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.datasets import ImageData, data_label, load_data
from multipde.data.images import TensorImages
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.corruptions import blur
from multipde.evaluation.measured_conversion import AUTO_METHODS, convert_reported
from multipde.evaluation.sizes import DataSource
from multipde.networks.presets import preset
from multipde.reports.plots import gain_against_exponent
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.table import Row, Table, table_of
from multipde.studies.bench.consistency import consistency
from multipde.studies.study import Study
from multipde.training.level import Level
from multipde.training.run import train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

NETS = {"relu": {}, "tanh": {"activation": "tanh", "norm": "none"}}
"""The network of the shapes preset as it is, and with smooth functions only: tanh and no pixelwise norm."""

CASES = tuple((blur, net) for net in NETS for blur in (0.0, 1.0, 2.0, 4.0))
"""Standard deviation of the Gaussian in pixels of the full size, and the network."""

WAVES = tuple((frequency, depth) for depth in (1, 3) for frequency in (1, 2, 4, 8, 12))
"""Frequencies and depths for `consistency`."""


def regimes_study(
    data: DataSource,
    out: Path,
    *,
    size: int = 32,
    epochs: int = 3,
    num_images: int = 2000,
    cases: Sequence[tuple[float, str]] = CASES,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train at half the size on blurred images, convert to the full size by every method, and compare.

    Args:
        epochs: number of epochs at half the size.
        num_images: number of test images.
        cases: pairs of the standard deviation of the blur and the kind of network, see `CASES`.
    """
    label = data_label(data[0], data[1].get("root"))
    study = Study(out, {"size": size}, ("data", "blur", "net", "epochs"), log=log)
    waves = Study(out, {"data": "waves"}, ("frequency", "depth"), first=("data", "exponent"))
    left = study.left([(label, *case, epochs) for case in cases], "cases")
    images = load_data(data[0], size=size, **data[1]) if left else None
    for task in waves.left(WAVES, "wave fields"):
        waves.add(*task, **consistency(*task))
    for task in left:
        assert images is not None
        _, width, net, _ = task
        found = _measure(NETS[net], blurred(images, width), size, epochs, num_images, device, amp)
        study.add(*task, **found)
        exponents = f"exponent {found['exponent']:.2f} (opening {found['opening']:.2f})"
        best = max(AUTO_METHODS, key=found["accuracy"].__getitem__)
        study.log.say(f"{label}, blur {width:g}, {net}: {exponents}, best {best}")
    rows = waves.rows + study.rows
    columns = "name: {frequency} waves, {depth} layers | exponent: {exponent:.2f}"
    errors = table_of(waves.rows, columns + "".join(f" | {m}: {{error[{m}]:.3f}}" for m in AUTO_METHODS))
    shown = {"Random tanh networks on waves: error of the converted network at twice the size": errors}
    shown[f"Accuracy at {size} pixels, trained at {size // 2}, BatchNorm recalibrated"] = table(study.rows)
    study.close(shown, lambda file: gain_against_exponent(rows, file))
    return rows


def blurred(data: ImageData, sigma: float) -> ImageData:
    """The same data with all images blurred by a Gaussian of standard deviation ``sigma`` in pixels, as float32.

    Images that are rounded to whole grey values are not smooth: their high derivatives are those of the rounding.
    """
    if sigma == 0:
        return data
    if not isinstance(data.train, TensorImages) or not isinstance(data.test, TensorImages):
        raise ValueError("data must be kept in memory to be blurred, got streamed files; type --no-stream")

    def soft(images: Tensor) -> Tensor:
        return torch.cat([255 * blur(x.float() / 255, sigma) for x in images.split(2048)])

    parts = [TensorImages(soft(part.images), part.labels) for part in (data.train, data.test)]
    return replace(data, train=parts[0], test=parts[1])


def table(rows: Sequence[Row]) -> Table:
    """A line per case: exponents, and the accuracy by every method."""
    return [
        {"name": f"{r['data']}, blur {r['blur']:g}, {r['net']}"}
        | {name: f"{r[name]:.2f}" for name in ("opening", "exponent")}
        | {name: f"{100 * value:.1f}" for name, value in {"coarse %": r["coarse"], **r["accuracy"]}.items()}
        for r in rows
    ]


def _measure(
    net: Mapping[str, Any], data: ImageData, size: int, epochs: int, num_images: int, device: str, amp: str
) -> dict[str, Any]:
    config = replace(preset("shapes-hamiltonian"), **net).on_mesh(size // 2)
    settings = TrainSettings.of_recipe("paper", device=device, amp=amp)
    plan = Schedule([Level(size // 2, epochs, policy="one_cycle")])
    with tempfile.TemporaryDirectory() as place:
        run = train(config, plan, data, Path(place) / "run", settings=settings, quiet=True)
    evaluator = Evaluator.of(data, Compute.of(device, amp), num_images=num_images)
    _, report = convert_reported(run.model, evaluator, old_size=size // 2, new_size=size)
    exponents = [e for layer in report.layers if (e := layer.exponent) is not None and not math.isnan(e)]
    found = {c.name: c for c in report.candidates}
    return {
        "opening": exponents[0],
        "exponent": statistics.mean(exponents),
        "coarse": found[f"original at {size // 2}"].accuracy,
        "resized": found[f"original, {size} -> {size // 2}"].accuracy,
        "moved": {m: found[m].accuracy for m in AUTO_METHODS},
        "accuracy": {m: found[f"{m}, recalibrated"].accuracy for m in AUTO_METHODS},
    }
