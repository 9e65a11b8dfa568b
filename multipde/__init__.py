"""Convolution stencils as differential operators: networks that move between resolutions, trained coarse to fine.

This module is the index: every public name. Editors and type checkers read the imports; at run time a name is loaded
when it is first used, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multipde.conversions.calibration import Calibration, calibrate
    from multipde.conversions.convert import Conversion, conversion, convert
    from multipde.conversions.optimizer_state import carry_optimizer_state
    from multipde.conversions.recalibration import recalibrate
    from multipde.data.datasets import load_data
    from multipde.data.image_data import ImageData
    from multipde.data.shapes import render_shapes
    from multipde.evaluation.attacks import fgsm, pgd
    from multipde.evaluation.corruptions import corrupt
    from multipde.evaluation.metrics import Metrics, evaluate
    from multipde.evaluation.predict import Prediction, predict
    from multipde.evaluation.robustness import Robustness, robustness
    from multipde.mesh.parametrization import StencilParametrization
    from multipde.mesh.pyramid import image_pyramid, prolong_images, resize_images, restrict_images
    from multipde.mesh.reparametrize import (
        bake,
        coefficients,
        mesh_size,
        reparametrize,
        set_mesh_size,
        set_reference,
        skipped_layers,
        stencil_layers,
    )
    from multipde.mesh.stencil import StencilBasis
    from multipde.mesh.transfer import transfer_stencil
    from multipde.networks.compilation import compile_layers
    from multipde.networks.config import NetworkConfig
    from multipde.networks.cost import count_flops, num_weights
    from multipde.networks.dynamics import Block
    from multipde.networks.external import ExternalModel, describe, external_model
    from multipde.networks.layers import Connector, Opening, ResidualLayer, SymmetricLayer, TVNorm
    from multipde.networks.model_spec import ModelSpec
    from multipde.networks.network import PDENet
    from multipde.networks.presets import preset, preset_names
    from multipde.reports.page import report
    from multipde.stability.bounds import StepStability, stability_report, stable_steps, step_bound
    from multipde.stability.energy import StateEnergy, energy, state_energies
    from multipde.stability.growth import BlockGrowth, growth_bound, growth_report
    from multipde.stability.norms import operator_norm
    from multipde.storage.network import load, save
    from multipde.studies.paper.experiments import reproduce
    from multipde.training.level import Level
    from multipde.training.run import Run, resume, train
    from multipde.training.schedule import Schedule
    from multipde.training.settings import TrainSettings
else:
    _INDEX = {
        "conversions.calibration": "Calibration calibrate",
        "conversions.convert": "Conversion conversion convert",
        "conversions.optimizer_state": "carry_optimizer_state",
        "conversions.recalibration": "recalibrate",
        "data.datasets": "load_data",
        "data.image_data": "ImageData",
        "data.shapes": "render_shapes",
        "evaluation.attacks": "fgsm pgd",
        "evaluation.corruptions": "corrupt",
        "evaluation.metrics": "Metrics evaluate",
        "evaluation.predict": "Prediction predict",
        "evaluation.robustness": "Robustness robustness",
        "mesh.parametrization": "StencilParametrization",
        "mesh.pyramid": "image_pyramid prolong_images resize_images restrict_images",
        "mesh.reparametrize": "bake coefficients mesh_size reparametrize set_mesh_size set_reference skipped_layers "
        "stencil_layers",
        "mesh.stencil": "StencilBasis",
        "mesh.transfer": "transfer_stencil",
        "networks.compilation": "compile_layers",
        "networks.config": "NetworkConfig",
        "networks.dynamics": "Block",
        "networks.layers": "Connector Opening ResidualLayer SymmetricLayer TVNorm",
        "networks.cost": "count_flops num_weights",
        "networks.external": "ExternalModel describe external_model",
        "networks.model_spec": "ModelSpec",
        "networks.network": "PDENet",
        "networks.presets": "preset preset_names",
        "reports.page": "report",
        "stability.bounds": "StepStability stability_report stable_steps step_bound",
        "stability.energy": "StateEnergy energy state_energies",
        "stability.growth": "BlockGrowth growth_bound growth_report",
        "stability.norms": "operator_norm",
        "storage.network": "load save",
        "studies.paper.experiments": "reproduce",
        "training.level": "Level",
        "training.run": "Run resume train",
        "training.schedule": "Schedule",
        "training.settings": "TrainSettings",
    }
    _HOME = {name: f"multipde.{module}" for module, names in _INDEX.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'multipde' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*globals(), *__all__]


# fmt: off
__all__ = [
    "Block",
    "BlockGrowth",
    "Calibration",
    "Connector",
    "Conversion",
    "ExternalModel",
    "ImageData",
    "Level",
    "Metrics",
    "ModelSpec",
    "NetworkConfig",
    "Opening",
    "PDENet",
    "Prediction",
    "ResidualLayer",
    "Robustness",
    "Run",
    "Schedule",
    "StateEnergy",
    "StencilBasis",
    "StencilParametrization",
    "StepStability",
    "SymmetricLayer",
    "TVNorm",
    "TrainSettings",
    "bake",
    "calibrate",
    "carry_optimizer_state",
    "coefficients",
    "compile_layers",
    "conversion",
    "convert",
    "corrupt",
    "count_flops",
    "describe",
    "energy",
    "evaluate",
    "external_model",
    "fgsm",
    "growth_bound",
    "growth_report",
    "image_pyramid",
    "load",
    "load_data",
    "mesh_size",
    "num_weights",
    "operator_norm",
    "pgd",
    "predict",
    "preset",
    "preset_names",
    "prolong_images",
    "recalibrate",
    "render_shapes",
    "reparametrize",
    "report",
    "reproduce",
    "resize_images",
    "restrict_images",
    "resume",
    "robustness",
    "save",
    "set_mesh_size",
    "set_reference",
    "skipped_layers",
    "stability_report",
    "stable_steps",
    "state_energies",
    "stencil_layers",
    "step_bound",
    "train",
    "transfer_stencil",
]
# fmt: on
__version__ = "0.1.0"
