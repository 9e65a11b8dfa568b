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
    "multipde.networks.config": ["NetworkConfig", "preset", "preset_names"],
    "multipde.networks.calibration": ["Calibration", "calibrate", "recalibrate"],
    "multipde.networks.compilation": ["compile_layers"],
    "multipde.networks.convert": ["Conversion", "conversion", "convert"],
    "multipde.networks.momentum": ["carry_optimizer_state"],
    "multipde.networks.dynamics": ["Block"],
    "multipde.networks.layers": ["Connector", "Opening", "ResidualLayer", "SymmetricLayer", "TVNorm"],
    "multipde.networks.network": ["PDENet", "count_flops", "num_weights"],
    "multipde.networks.energies": ["StateEnergy", "state_energies"],
    "multipde.networks.growth": ["BlockGrowth", "growth_bound", "growth_report"],
    "multipde.networks.stability": [
        "StepStability",
        "energy",
        "operator_norm",
        "stability_report",
        "stable_steps",
        "step_bound",
    ],
    "multipde.data.datasets": ["ImageData", "load_data"],
    "multipde.data.shapes": ["render_shapes"],
    "multipde.training.schedule": ["Level", "Schedule"],
    "multipde.training.checkpoint": ["load", "save"],
    "multipde.training.evaluate": ["Metrics", "evaluate"],
    "multipde.analysis.experiments": ["reproduce"],
    "multipde.analysis.attacks": ["fgsm", "pgd"],
    "multipde.analysis.corruptions": ["corrupt"],
    "multipde.analysis.robustness": ["Robustness", "robustness"],
    "multipde.analysis.predict": ["Prediction", "predict"],
    "multipde.analysis.report": ["report"],
    "multipde.training.run": ["Run", "resume", "train"],
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
