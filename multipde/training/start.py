"""The beginning of a run: which network, with which weights, on which mesh."""

from dataclasses import replace
from pathlib import Path

import torch

from multipde.conversions.convert import conversion
from multipde.conversions.recalibration import recalibrate
from multipde.data.datasets import ImageData
from multipde.data.seeds import stream_seed
from multipde.evaluation.metrics import check_classes
from multipde.mesh.reparametrize import set_reference
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.networks.presets import default_network
from multipde.runtime.device import place
from multipde.runtime.processes import broadcast_weights
from multipde.storage.network import load
from multipde.training.log import TrainingLog
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings
from multipde.training.switch import plan_move
from multipde.training.trainer import Trainer


def starting_network(
    data: str,
    dynamics: str | None,
    size: int,
    preset_name: str | None,
    init: str | Path | None,
    *,
    memory: str | None = None,
    standardize: bool = False,
) -> NetworkConfig:
    """The network that a user means: that of the checkpoint to start from, else of the preset, else for the data.

    Args:
        memory: what training keeps for the way back; None leaves it to the network.
        standardize: every image by its own mean and standard deviation; a checkpoint has that settled.

    Raises:
        ValueError: a checkpoint of another dynamics or standardisation, or an unknown preset.
    """
    if init is None or preset_name is not None:
        config = replace(default_network(data, dynamics, size, preset_name), standardize=standardize)
        return config if memory is None else replace(config, memory=memory)
    config = load(init).config
    config = config if memory is None else replace(config, memory=memory)
    if dynamics not in (None, config.dynamics):
        raise ValueError(f"dynamics must be that of the checkpoint {init}, {config.dynamics}, got {dynamics}")
    if standardize and not config.standardize:
        raise ValueError(f"standardize must be as in the checkpoint {init}, got --standardize; leave it out")
    return config


def network_for(config: NetworkConfig | None, schedule: Schedule, init: str | Path | None) -> NetworkConfig:
    """The network that will be trained: the given one, or that of the checkpoint to start from.

    Raises:
        ValueError: a checkpoint of another dynamics or other channels.
    """
    if init is None:
        if config is None:
            raise ValueError("config must be given where there is no checkpoint to start from, got None")
        return config
    found = load(init).config
    for name in ("dynamics", "channels", "out_channels") if config else ():
        if getattr(found, name) != getattr(config, name):
            raise ValueError(
                f"{name} must be that of the checkpoint {init}, {getattr(found, name)}, got {getattr(config, name)}"
            )
    first = schedule.levels[0]
    found = replace(found, memory=config.memory) if config else found
    found = found.on_mesh(first.size)
    return found if first.steps is None else found.with_steps(first.steps)  # T is that of the checkpoint


def suited(config: NetworkConfig, images: ImageData, init: str | Path | None) -> NetworkConfig:
    """Classes, input channels and normalisation from the data; a checkpoint must have these classes already."""
    if config.dim != 2:
        raise ValueError(f"dim must be 2 for a network that is trained on images, got {config.dim}")
    if init is not None or config.class_names:
        check_classes(config, images)
    return replace(
        config,
        classes=len(images.class_names),
        class_names=images.class_names,
        in_channels=len(images.mean),
        mean=() if config.standardize else config.mean or images.mean,
        std=() if config.standardize else config.std or images.std,
    )


def initial_network(config: NetworkConfig, seed: int, reference: int | None = None) -> PDENet:
    """A network with the weights that the seed draws.

    Args:
        reference: size on whose mesh the stencils are drawn, and to which the stored parameter belongs from then on;
            None for that of the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        if reference is None:
            return PDENet(config)
        net = PDENet(replace(config, size=reference, reference=reference))
    move = replace(conversion(net, size=config.size), keep_reference=True)
    return move(net)  # pyright: ignore[reportReturnType]


def new_trainer(
    plan: Schedule, images: ImageData, settings: TrainSettings, run_dir: Path, log: TrainingLog, init: str | Path | None
) -> Trainer:
    """At the first level, with the weights that the seed draws or those of a checkpoint."""
    start = plan.configs()[0]
    reference = max(level.size for level in plan.levels) if settings.coordinates == "finest" else None
    trainer = Trainer(initial_network(start, settings.seed, reference), plan, images, settings, run_dir, log)
    if init is not None:
        trainer.net.load_state_dict(_taken_up(init, start, trainer).state_dict())
        broadcast_weights(trainer.net)
    return trainer


def _taken_up(init: str | Path, start: NetworkConfig, trainer: Trainer) -> PDENet:
    """The checkpoint on the mesh and time grid of the first level."""
    net = place(load(init), trainer.device)
    is_finest = trainer.settings.coordinates == "finest"
    target = max(level.size for level in trainer.schedule.levels) if is_finest else start.sizes[0]
    if net.config.sizes != (target,) * 2 or net.config.block_steps != start.block_steps:
        settings = replace(trainer.settings, coordinates="level", auto_steps=False)
        level = replace(trainer.schedule.levels[0], size=target, mixed=())
        move = plan_move(net, level, start.block_steps, settings, trainer.draw(0))
        net = place(move(net), trainer.device)  # pyright: ignore[reportArgumentType]
        recalibrate(net, trainer.calibration_images(target, 0))
    if is_finest:
        set_reference(net, 1 / target)
        net.config = replace(net.config, reference=target)
        if start.sizes[0] != target:
            down = replace(conversion(net, size=start.size), keep_reference=True)
            net = place(down(net), trainer.device)  # pyright: ignore[reportArgumentType]
            recalibrate(net, trainer.calibration_images(start.sizes[0], 0))
    return net
