"""The report of a conversion: plain data, rows for tables, a record for JSON."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from multipde.stability.bounds import StepStability


@dataclass(frozen=True)
class LayerReport:
    """What happened to one stencil layer.

    Args:
        norm_before: Frobenius norm of all its stencils.
        consistency: |R y_fine - y_coarse| / |y_old| of what the layer gives in the old and the new network on the same
            images, the finer one restricted by cell averages; None without images.
        exponent: of the features in front of it, 1 for smooth, 0 for scale invariant, see `Calibration`; None without
            images.
    """

    layer: str
    norm_before: float
    norm_after: float
    consistency: float | None = None
    exponent: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A network for images of the new size, and what it is good for.

    Args:
        name: the method, or the rival.
        size: of the images that go through the network.
        recalibrated: whether BatchNorm was measured anew.
        validation: accuracy on training images held back from the calibration, by which ``auto`` chooses.
        accuracy: on test images.
        flops: per image, forwards.
    """

    name: str
    size: int
    recalibrated: bool
    validation: float
    accuracy: float
    loss: float
    flops: int
    images_per_second: float


@dataclass(frozen=True)
class ConversionReport:
    """All that `convert_reported` measured; ``rows`` of its parts for tables, ``record`` for JSON."""

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
        """Plain data, nan as None."""
        return _plain(asdict(self))

    def layer_rows(self) -> list[dict[str, str]]:
        """A row per layer."""
        return [
            {
                "layer": layer.layer,
                "norm before": f"{layer.norm_before:.3g}",
                "after": f"{layer.norm_after:.3g}",
                "consistency error": _number(layer.consistency),
                "exponent": _number(layer.exponent),
            }
            for layer in self.layers
        ]

    def candidate_rows(self) -> list[dict[str, str]]:
        """A row per candidate and rival."""
        return [
            {
                "name": c.name,
                "size": str(c.size),
                "accuracy": f"{c.accuracy:.1%}",
                "loss": f"{c.loss:.3f}",
                "validation": f"{c.validation:.1%}",
                "MFLOPs/image": f"{c.flops / 1e6:.1f}",
                "images/s": f"{c.images_per_second:.0f}",
            }
            for c in self.candidates
        ]

    def stability_rows(self) -> list[dict[str, str]]:
        """A row per time step of the converted network."""
        before = {(s.block, s.step): s for s in self.stability_before}
        rows = []
        for s in self.stability_after:
            old = before.get((s.block, s.step))
            rows.append(
                {
                    "block": str(s.block),
                    "step": str(s.step),
                    "|K|": ", ".join(f"{n:.2f}" for n in s.norms),
                    "dt": f"{s.dt:.3g}",
                    "bound (N = 1)": f"{s.bound:.3g}",
                    "on data": f"{s.measured:.3g}",
                    "on data before": "-" if old is None else f"{old.measured:.3g}",
                    "verdict": s.verdict,
                }
            )
        return rows


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
