"""Convolution stencils as differential operators: networks that move between resolutions, trained coarse to fine.

This module is the index: every public name, loaded when it is first used.
"""

from importlib import import_module
from typing import Any

_INDEX = {
    "multipde.mesh.stencil": ["StencilBasis"],
    "multipde.mesh.parametrization": ["StencilParametrization"],
    "multipde.mesh.reparametrize": [
        "bake",
        "coefficients",
        "mesh_size",
        "reparametrize",
        "set_mesh_size",
        "set_reference",
        "skipped_layers",
        "stencil_layers",
    ],
    "multipde.mesh.pyramid": ["image_pyramid", "prolong_images", "resize_images", "restrict_images"],
    "multipde.mesh.transfer": ["transfer_stencil"],
    "multipde.networks.config": ["NetworkConfig"],
    "multipde.networks.presets": ["preset", "preset_names"],
    "multipde.conversions.calibration": ["calibrate", "Calibration"],
    "multipde.conversions.recalibration": ["recalibrate"],
    "multipde.networks.compilation": ["compile_layers"],
    "multipde.conversions.convert": ["Conversion", "conversion", "convert"],
    "multipde.conversions.optimizer_state": ["carry_optimizer_state"],
    "multipde.networks.dynamics": ["Block"],
    "multipde.networks.layers": ["Connector", "Opening", "ResidualLayer", "SymmetricLayer", "TVNorm"],
    "multipde.networks.network": ["count_flops", "num_weights", "PDENet"],
    "multipde.stability.energy": ["energy", "state_energies", "StateEnergy"],
    "multipde.stability.growth": ["BlockGrowth", "growth_bound", "growth_report"],
    "multipde.stability.bounds": ["stability_report", "stable_steps", "step_bound", "StepStability"],
    "multipde.stability.norms": ["operator_norm"],
    "multipde.data.datasets": ["ImageData", "load_data"],
    "multipde.data.shapes": ["render_shapes"],
    "multipde.training.level": ["Level"],
    "multipde.training.schedule": ["Schedule"],
    "multipde.storage.network": ["load", "save"],
    "multipde.evaluation.metrics": ["evaluate", "Metrics"],
    "multipde.studies.paper.experiments": ["reproduce"],
    "multipde.evaluation.attacks": ["fgsm", "pgd"],
    "multipde.evaluation.corruptions": ["corrupt"],
    "multipde.evaluation.robustness": ["Robustness", "robustness"],
    "multipde.evaluation.predict": ["predict", "Prediction"],
    "multipde.reports.page": ["report"],
    "multipde.training.run": ["resume", "Run", "train"],
    "multipde.training.settings": ["TrainSettings"],
}
_HOME = {name: module for module, names in _INDEX.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'multipde' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
