"""The start of a run: its network with first weights, on the mesh of the first level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multipde.conversions.convert import conversion
from multipde.conversions.recalibration import keep_statistics
from multipde.data.datasets import ImageData
from multipde.data.images import stream_seed
from multipde.evaluation.metrics import check_classes
from multipde.mesh.modes import unwrapped
from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.reparametrize import set_reference, stored_stencils
from multipde.networks.detail import keeps_function
from multipde.networks.external import IMAGENET, external_model, given_model
from multipde.networks.model_spec import find_spec, spec_of
from multipde.networks.presets import default_network
from multipde.runtime.processes import broadcast_weights
from multipde.storage.stored_network import Given, load
from multipde.training.fine_tuning import frozen_norms
from multipde.training.listeners import Listeners
from multipde.training.objective import Objective
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.switch import plan_move
from multipde.training.trainer import Trainer
from multipde.training.whitening import WHITENING_IMAGES, whiten_opening


@dataclass(frozen=True)
class Start:
    """The trained network from which a run starts; its path is None for a module given in Python."""

    net: nn.Module
    path: Path | None = None


def read_start(init: str | Path | Start | None, model: Given = None) -> Start | None:
    """Read the checkpoint from which a run starts, if there is one."""
    return init if init is None or isinstance(init, Start) else Start(load(init, model), Path(init))


def starting_network(
    data: str,
    dynamics: str | None,
    size: int,
    preset_name: str | None,
    start: Start | None,
    *,
    arch: str | None = None,
    memory: str | None = None,
    standardize: bool = False,
    normalize: str = "data",
) -> Any:
    """The network of a command: that of the checkpoint to start from, else of the preset, else that for the data.

    Args:
        arch: name of an external model to use instead, see `external_model`.
        memory: what is stored for the backward pass; None keeps that of the network.
        standardize: normalise every image by its own mean and standard deviation.
        normalize: with arch, ``"imagenet"`` for the mean and standard deviation of ImageNet, ``"data"`` for the data's.
    """
    if normalize != "data" and (arch is None or standardize):
        rule = "come with arch" if arch is None else "be left out with standardize"
        raise ValueError(f"normalize must {rule}, got --normalize {normalize}")
    if arch is not None:
        for name, value in (("preset", preset_name), ("dynamics", dynamics), ("memory", memory)):
            if value is not None:
                raise ValueError(f"{name} must be left out with arch, got --{name} {value}")
    if start is None or preset_name is not None:
        if arch is not None:
            mean, std = IMAGENET if normalize == "imagenet" else ((), ())
            return external_model(arch, size=size, standardize=standardize, mean=mean, std=std)
        config = replace(default_network(data, dynamics, size, preset_name), standardize=standardize)
        return config if memory is None else replace(config, memory=memory)
    spec: Any = spec_of(start.net)
    if dynamics not in (None, spec.label):
        raise ValueError(f"dynamics must be that of the checkpoint {start.path}, {spec.label}, got {dynamics}")
    if standardize and not spec.standardize:
        raise ValueError(f"standardize must be as in the checkpoint {start.path}, got --standardize; leave it out")
    return spec if memory is None else replace(spec, memory=memory)


def network_for(model: Any, schedule: Schedule, start: Start | None) -> tuple[Any, Start | None]:
    """The description of the network that will be trained, and the trained network that provides its first weights.

    The model is one that `train` accepts. ValueError if there is no network, or the checkpoint is of another one.
    """
    first = schedule.levels[0]
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model must be given before it is scripted or traced, got a ScriptModule")
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    if isinstance(model, str):
        model = external_model(model, size=first.size)
    elif isinstance(model, nn.Module) and find_spec(model) is not None:
        if start is not None:
            raise ValueError("init must be left out where a trained network is given, got both")
        start, model = Start(model), None
    elif not hasattr(model, "record") and isinstance(model, nn.Module | Callable):
        model = given_model(model, size=first.size)
    if start is None:
        if model is None:
            raise ValueError("config must be given where there is no checkpoint to start from, got None")
        if not hasattr(model, "record"):
            raise ValueError(f"config must be a network or its description, got {type(model).__name__}")
        return model, None
    found: Any = spec_of(start.net)
    for name in ("dynamics", "arch", "channels", "out_channels") if model is not None else ():
        old, new = getattr(found, name, None), getattr(model, name, None)
        if old != new:
            raise ValueError(f"{name} must be that of the checkpoint {start.path}, {old}, got {new}")
    if model is not None and hasattr(found, "memory"):
        found = replace(found, memory=model.memory)
    found = found.on_mesh(first.size, first.detail)
    return (found if first.steps is None else found.with_steps(first.steps)), start  # T is that of the checkpoint


def fit_to_data(spec: Any, images: ImageData, is_trained: bool) -> Any:
    """The description with classes, input channels and normalisation of the data; a trained network must have them."""
    if spec.dim != 2:
        raise ValueError(f"dim must be 2 for a network that is trained on images, got {spec.dim}")
    if images.dim != 2:
        raise ValueError(f"data must be images (N, C, H, W) to be trained on, got {images.dim} axes besides channels")
    if is_trained or spec.class_names:
        check_classes(spec, images)
    return replace(
        spec,
        classes=len(images.class_names),
        class_names=images.class_names,
        in_channels=len(images.mean),
        mean=() if spec.standardize else spec.mean or images.mean,
        std=() if spec.standardize else spec.std or images.std,
    )


def initial_network(spec: Any, seed: int, reference: int | None = None) -> nn.Module:
    """A network with random weights, drawn and stored on the mesh of the size ``reference``, or of the description."""
    with OwnRandomness(stream_seed(seed, "weights")):
        if reference is None:
            return spec.build().float()
        net = replace(spec, size=reference, reference=reference).build().float()
    return replace(conversion(net, size=spec.size), keep_reference=True)(net)


def new_trainer(
    plan: Schedule,
    images: ImageData,
    settings: TrainSettings,
    run_dir: Path,
    log: Listeners,
    start: Start | None,
    objective: Objective | None = None,
    checkpoints: Sequence[Path] = (),
) -> Trainer:
    """A trainer at the first of the checkpoints that is whole, or at the first level with given or random weights."""
    trainer = Trainer(plan, images, settings, run_dir, log, objective)
    if checkpoints:
        trainer.restore(checkpoints)
    elif start is not None:
        trainer.begin(_on_first_level(start.net, trainer))
        broadcast_weights(trainer.net)
    else:
        finest = max(level.size for level in plan.levels) if settings.coordinates == "finest" else None
        net = initial_network(plan.configs()[0], settings.seed, finest)
        if settings.whiten:
            level = plan.levels[0]
            drawn = trainer.samples.evaluator(0).draw(WHITENING_IMAGES, level.image_size, level.detail)
            try:
                whiten_opening(net, drawn)
            except ValueError as error:
                log.say(f"note: the network starts without whitening: {error}")
        trainer.begin(net)
    for line in trainer.step.notes():
        log.say(line)
    return trainer


def _on_first_level(net: nn.Module, trainer: Trainer) -> nn.Module:
    """A copy of the trained network on the mesh and time grid of the first level."""
    plan, settings, compute = trainer.schedule, trainer.settings, trainer.compute
    evaluator = trainer.samples.evaluator(0)
    wanted: Any = plan.configs()[0]
    is_finest = settings.coordinates == "finest"
    target = max(level.size for level in plan.levels) if is_finest else wanted.sizes[0]
    net = compute.place(conversion(net, factor=1.0)(net))
    keep_statistics(net, frozen_norms(net, settings.freeze))
    old = spec_of(net)
    if (old.sizes, old.detail, old.block_steps) != ((target,) * 2, wanted.detail, wanted.block_steps):
        level = replace(plan.levels[0], size=target, mixed=())
        same = replace(settings, coordinates="level", auto_steps=False)
        net = compute.place(plan_move(net, level, wanted.block_steps, same, evaluator)(net))
        if not keeps_function(old, spec_of(net)):
            evaluator.recalibrate(net, level.image_size, settings.calibration_images)
    if is_finest:
        _set_reference_size(net, target)
        if wanted.sizes[0] != target:
            net = compute.place(replace(conversion(net, size=wanted.size), keep_reference=True)(net))
            evaluator.recalibrate(net, wanted.sizes[0], settings.calibration_images)
        wanted = replace(wanted, reference=spec_of(net).references)
    if getattr(wanted, "memory", None) == getattr(spec_of(net), "memory", None):
        net.multipde_spec = wanted
        return net
    with OwnRandomness():
        other = wanted.build()
    other.load_state_dict(net.state_dict())
    return other


def _set_reference_size(net: nn.Module, size: int) -> None:
    """Make the mesh of a size the reference mesh of the stored stencils."""
    spec: Any = replace(spec_of(net), reference=size)
    net.multipde_spec = spec
    if stored_stencils(net):
        set_reference(net, 1 / size)
    else:
        spec.put_on_mesh(net)
