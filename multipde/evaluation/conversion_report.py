"""The report of a conversion: plain data, rows for tables, a record for JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from multipde.evaluation.metrics import Metrics
from multipde.runtime.console import finite
from multipde.runtime.table import Table, table_of
from multipde.stability.bounds import StepStability

LAYER_COLUMNS = """layer: {layer} | norm before: {norm_before:.3g} | after: {norm_after:.3g}
    | consistency error: {error} | exponent: {power}"""
CANDIDATE_COLUMNS = """name: {name} | size: {size} | accuracy: {accuracy:.1%} | loss: {loss:.3f}
    | validation: {validation:.1%} | learned from: {num_learned} | seconds: {seconds:.1f}
    | MFLOPs/image: {mflops:.1f} | images/s: {images_per_second:.0f}"""
STABILITY_COLUMNS = """block: {block} | step: {step} | |K|: {norm} | dt: {dt:.3g} | bound (no norm): {bound:.3g}
    | on data: {measured:.3g} | on data before: {before} | verdict: {verdict}"""


@dataclass(frozen=True)
class LayerReport:
    """The change of one stencil layer by a conversion.

    Args:
        layer: name of the layer.
        norm_before, norm_after: Frobenius norm of all its stencils.
        consistency: |R y_fine - y_coarse| / |y_old|, where y are the outputs of the layer in the old and in the new
            network on the same images and R restricts the finer one by cell averages; None without images.
        exponent: how smooth the input of the layer is: 1 for smooth features, 0 for scale-invariant ones, see
            `Calibration`; None without images.
    """

    layer: str
    norm_before: float
    norm_after: float
    consistency: float | None = None
    exponent: float | None = None


@dataclass(frozen=True)
class Candidate:
    """The measurements of one network for images of the new size.

    Args:
        name: the method of conversion, or the name of the baseline.
        size: size of the images that go through the network.
        recalibrated: whether the running statistics of BatchNorm were measured anew.
        validation: accuracy on training images held back from the calibration, by which ``auto`` chooses.
        accuracy, loss: accuracy in [0, 1] and mean cross entropy on test images.
        flops: floating point operations of the forward pass for one image.
        metrics: all that was measured on the test images; not part of a record.
        num_learned: number of training images that were used to make it from the old network, repetitions included.
        seconds: wall time of making it from the old network.
    """

    name: str
    size: int
    recalibrated: bool
    validation: float
    accuracy: float
    loss: float
    flops: int
    images_per_second: float
    metrics: Metrics = field(repr=False, compare=False)
    num_learned: int = 0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The measurements as plain data for JSON, with None in place of nan, and without the metrics."""
        return finite({name: value for name, value in vars(self).items() if name != "metrics"})


@dataclass(frozen=True)
class ConversionReport:
    """Everything that `convert_reported` measured; its methods give rows for tables and a record for JSON."""

    old_size: int
    new_size: int
    method: str
    layers: list[LayerReport]
    skipped: dict[str, str]
    num_recalibrated: int = 0
    num_images: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    stability_before: list[StepStability] = field(default_factory=list)
    stability_after: list[StepStability] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The report as plain data for JSON, with None in place of nan."""
        rows = [each.record() for each in self.candidates]
        return finite(asdict(replace(self, candidates=[])) | {"candidates": rows})

    def layer_rows(self) -> Table:
        """A row per layer."""
        rows = [vars(r) | {"error": _number(r.consistency), "power": _number(r.exponent)} for r in self.layers]
        return table_of(rows, LAYER_COLUMNS)

    def stability_rows(self) -> Table:
        """A row per time step of the converted network."""
        before = {(s.block, s.step): f"{s.measured:.3g}" for s in self.stability_before}
        rows = [
            vars(s) | {"norm": ", ".join(f"{n:.2f}" for n in s.norms), "before": before.get((s.block, s.step), "-")}
            | {"verdict": s.verdict}
            for s in self.stability_after
        ]  # fmt: skip
        return table_of(rows, STABILITY_COLUMNS)


def candidate_rows(candidates: Sequence[Candidate]) -> Table:
    """A row per candidate and baseline."""
    return table_of([vars(c) | {"mflops": c.flops / 1e6} for c in candidates], CANDIDATE_COLUMNS)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
