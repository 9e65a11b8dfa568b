"""Convolution stencils as differential operators: networks that move between resolutions, trained coarse to fine.

This module is the index: the imports below are the list of all public names. Type checkers and editors read them; at
run time the same statements are parsed, and a name is imported when it is first used, so that `import multipde` does
not import torch.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multipde.conversions.calibration import Calibration as Calibration
    from multipde.conversions.calibration import calibrate as calibrate
    from multipde.conversions.convert import Conversion as Conversion
    from multipde.conversions.convert import conversion as conversion
    from multipde.conversions.convert import convert as convert
    from multipde.conversions.in_place import convert_ as convert_
    from multipde.conversions.optimizer_state import carry_optimizer_state as carry_optimizer_state
    from multipde.conversions.recalibration import recalibrate as recalibrate
    from multipde.conversions.shared_stencils import share_stencils as share_stencils
    from multipde.data.datasets import load_data as load_data
    from multipde.data.image_data import ImageData as ImageData
    from multipde.data.shapes import render_shapes as render_shapes
    from multipde.evaluation.attacks import fgsm as fgsm
    from multipde.evaluation.attacks import pgd as pgd
    from multipde.evaluation.corruptions import corrupt as corrupt
    from multipde.evaluation.metrics import Metrics as Metrics
    from multipde.evaluation.metrics import evaluate as evaluate
    from multipde.evaluation.predict import Prediction as Prediction
    from multipde.evaluation.predict import predict as predict
    from multipde.evaluation.robustness import Robustness as Robustness
    from multipde.evaluation.robustness import robustness as robustness
    from multipde.exports.export import Exported as Exported
    from multipde.exports.export import export as export
    from multipde.mesh.parametrization import StencilParametrization as StencilParametrization
    from multipde.mesh.pyramid import image_pyramid as image_pyramid
    from multipde.mesh.pyramid import prolong_images as prolong_images
    from multipde.mesh.pyramid import resize_images as resize_images
    from multipde.mesh.pyramid import restrict_images as restrict_images
    from multipde.mesh.reparametrize import bake as bake
    from multipde.mesh.reparametrize import coefficients as coefficients
    from multipde.mesh.reparametrize import mesh_size as mesh_size
    from multipde.mesh.reparametrize import reparametrize as reparametrize
    from multipde.mesh.reparametrize import set_mesh_size as set_mesh_size
    from multipde.mesh.reparametrize import set_reference as set_reference
    from multipde.mesh.reparametrize import skipped_layers as skipped_layers
    from multipde.mesh.reparametrize import stencil_layers as stencil_layers
    from multipde.mesh.stencil import StencilBasis as StencilBasis
    from multipde.mesh.transfer import transfer_stencil as transfer_stencil
    from multipde.networks.all_sizes import AllSizes as AllSizes
    from multipde.networks.compilation import compile_layers as compile_layers
    from multipde.networks.config import NetworkConfig as NetworkConfig
    from multipde.networks.cost import count_flops as count_flops
    from multipde.networks.cost import num_weights as num_weights
    from multipde.networks.detail import with_detail as with_detail
    from multipde.networks.dynamics import Block as Block
    from multipde.networks.external import ExternalModel as ExternalModel
    from multipde.networks.external import describe as describe
    from multipde.networks.external import external_model as external_model
    from multipde.networks.folding import folded as folded
    from multipde.networks.layers import Connector as Connector
    from multipde.networks.layers import Opening as Opening
    from multipde.networks.layers import ResidualLayer as ResidualLayer
    from multipde.networks.layers import SymmetricLayer as SymmetricLayer
    from multipde.networks.layers import TVNorm as TVNorm
    from multipde.networks.model_spec import ModelSpec as ModelSpec
    from multipde.networks.network import PDENet as PDENet
    from multipde.networks.presets import preset as preset
    from multipde.networks.presets import preset_names as preset_names
    from multipde.reports.page import report as report
    from multipde.reports.shared_network import from_pretrained as from_pretrained
    from multipde.reports.shared_network import push_to_hub as push_to_hub
    from multipde.reports.shared_network import save_pretrained as save_pretrained
    from multipde.stability.bounds import StepStability as StepStability
    from multipde.stability.bounds import stability_report as stability_report
    from multipde.stability.bounds import stable_steps as stable_steps
    from multipde.stability.bounds import step_bound as step_bound
    from multipde.stability.energy import StateEnergy as StateEnergy
    from multipde.stability.energy import energy as energy
    from multipde.stability.energy import state_energies as state_energies
    from multipde.stability.growth import BlockGrowth as BlockGrowth
    from multipde.stability.growth import growth_bound as growth_bound
    from multipde.stability.growth import growth_report as growth_report
    from multipde.stability.norms import operator_norm as operator_norm
    from multipde.storage.shard_writer import write_shards as write_shards
    from multipde.storage.stored_network import load as load
    from multipde.storage.stored_network import save as save
    from multipde.studies.paper.experiments import reproduce as reproduce
    from multipde.training.coarse_to_fine import CoarseToFine as CoarseToFine
    from multipde.training.finish import finish as finish
    from multipde.training.finish_settings import Finished as Finished
    from multipde.training.finished_run import Run as Run
    from multipde.training.level import Level as Level
    from multipde.training.muon import Muon as Muon
    from multipde.training.optimizers import make_optimizer as make_optimizer
    from multipde.training.run import resume as resume
    from multipde.training.run import train as train
    from multipde.training.schedule import Schedule as Schedule
    from multipde.training.settings import TrainSettings as TrainSettings
else:

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            value = sorted(_index())
        elif name in _index():
            value = getattr(import_module(_index()[name]), name)
        else:
            raise AttributeError(f"module 'multipde' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_index()})

    @cache
    def _index() -> dict[str, str]:
        """The module of every public name, from the statements above."""
        import ast

        with open(__file__, encoding="utf-8") as source:
            nodes = [node for node in ast.walk(ast.parse(source.read())) if isinstance(node, ast.ImportFrom)]
        return {alias.asname: node.module or "" for node in nodes for alias in node.names if alias.asname}


__version__ = "0.2.0"
