"""Where which transfer is right: the gain over copying against the measured smoothness of the features."""

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.data.datasets import ImageData, data_label, load_data
from multipde.data.images import TensorImages
from multipde.evaluation.candidates import Evaluator
from multipde.evaluation.measured_conversion import AUTO_METHODS, convert_reported
from multipde.networks.presets import preset
from multipde.reports.plots import gain_against_exponent
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.rows import append_row, read_metrics
from multipde.studies.bench.consistency import consistency_rows
from multipde.training.level import Level
from multipde.training.run import train
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

NETS = {"relu": {}, "tanh": {"activation": "tanh", "norm": "none"}}
"""The network of the shapes preset as it is, and with smooth functions only: tanh and no pixelwise norm."""


@dataclass(frozen=True)
class Case:
    """A network trained at half the size on blurred images.

    Args:
        blur: standard deviation of the Gaussian in pixels of the full size.
        net: a key of `NETS`.
    """

    blur: float
    net: str


CASES = tuple(Case(blur, net) for net in NETS for blur in (0.0, 1.0, 2.0, 4.0))


def regimes_study(
    data: str,
    options: Mapping[str, Any],
    out: Path,
    *,
    size: int = 32,
    epochs: int = 3,
    num_images: int = 2000,
    cases: Sequence[Case] = CASES,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train at half the size, convert to the full one by every method, and compare; tables and a figure.

    Args:
        out: file of rows, appended to; what it has is not done again. The figure lies beside it.
        epochs: at half the size.
        num_images: test images.

    Returns:
        The rows of the file that belong to this size.

    Raises:
        ValueError: a number of epochs that is not positive, images that are not kept in memory.
    """
    log = log or Log(quiet=True)
    label = data_label(data, options.get("root"))
    earlier = read_metrics(out)
    done = {(r["data"], r["blur"], r["net"], r["epochs"]) for r in earlier if r.get("size") == size}
    left = [case for case in cases if (label, case.blur, case.net, epochs) not in done]
    log.say(f"{len(cases) - len(left)} of {len(cases)} cases are in {out}; {len(left)} to do")
    images = load_data(data, size=size, **options) if left else None
    out.parent.mkdir(parents=True, exist_ok=True)
    if not any("error" in r for r in earlier):
        for row in consistency_rows():
            append_row(out, row)
    for case in left:
        assert images is not None
        row = {"data": label, **asdict(case), "epochs": epochs, "size": size}
        row |= _measure(case, blurred(images, case.blur), size, epochs, num_images, device, amp)
        append_row(out, row)
        log.say(
            f"{label}, blur {case.blur:g}, {case.net}: exponent {row['exponent']:.2f} (opening {row['opening']:.2f}), "
            f"best {max(AUTO_METHODS, key=lambda m: row['accuracy'][m])}"
        )
    rows = [r for r in read_metrics(out) if "error" in r or r["size"] == size]
    log.table(consistency_table(rows), "Random tanh networks on waves: error of the moved network at twice the size")
    log.table(table(rows), f"Accuracy at {size} pixels, trained at {size // 2}, BatchNorm recalibrated")
    gain_against_exponent(rows, out.with_suffix(".svg"))
    log.say(f"rows in {out}, figure in {out.with_suffix('.svg')}")
    return rows


def blurred(data: ImageData, sigma: float) -> ImageData:
    """The same data with all images blurred by a Gaussian of that many pixels, as float32.

    Rounded to whole grey values they would not be smooth: the highest derivatives would see the rounding only.

    Raises:
        ValueError: streamed images.
    """
    if sigma == 0:
        return data
    if not isinstance(data.train, TensorImages) or not isinstance(data.test, TensorImages):
        raise ValueError("data must be kept in memory to be blurred, got streamed files; type --no-stream")
    from torchvision.transforms.v2.functional import gaussian_blur

    width = 2 * math.ceil(3 * sigma) + 1

    def blur(images: Tensor) -> Tensor:
        room = min(width // 2, images.shape[-1] - 1)  # the reflected border must fit into the image
        return torch.cat([gaussian_blur(x.float(), [2 * room + 1] * 2, [sigma] * 2) for x in images.split(2048)])

    parts = [TensorImages(blur(part.images), part.labels) for part in (data.train, data.test)]
    return replace(data, train=parts[0], test=parts[1])


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row per case: exponents, and the accuracy by every method."""
    return [
        {
            "name": f"{r['data']}, blur {r['blur']:g}, {r['net']}",
            "opening": f"{r['opening']:.2f}",
            "exponent": f"{r['exponent']:.2f}",
            "coarse %": f"{100 * r['coarse']:.1f}",
            **{m: f"{100 * r['accuracy'][m]:.1f}" for m in AUTO_METHODS},
        }
        for r in rows
        if "accuracy" in r
    ]


def consistency_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row per frequency and depth: the exponent, and the error by every method."""
    return [
        {
            "name": f"{r['frequency']} waves, {r['depth']} layers",
            "exponent": f"{r['exponent']:.2f}",
            **{m: f"{r['error'][m]:.3f}" for m in AUTO_METHODS},
        }
        for r in rows
        if "error" in r
    ]


def _measure(
    case: Case, data: ImageData, size: int, epochs: int, num_images: int, device: str, amp: str
) -> dict[str, Any]:
    config = replace(preset("shapes-hamiltonian"), **NETS[case.net]).on_mesh(size // 2)
    settings = TrainSettings(device=device, amp=amp)
    with tempfile.TemporaryDirectory() as place:
        plan = Schedule([Level(size // 2, epochs, policy="one_cycle")])
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
        "torch": torch.__version__,
    }
