"""Networks on disk: model.safetensors and config.json in a directory, with checksums."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from multipde.mesh.reparametrize import bake
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.storage.files import check_sums, write_directory
from multipde.storage.records import FORMAT, brief, from_record, json_bytes, read_json
from multipde.storage.run_directory import check_new, newest_checkpoint
from multipde.storage.tensors import BEST, CONFIG, MODEL, _stored_shapes, read_tensors, tensor_bytes

MANY_STEPS = 100_000


def save(model: PDENet, directory: str | Path) -> Path:
    """Write a network to a new directory: model.safetensors, config.json and their SHA256SUMS.

    Equal networks give equal bytes: no time, no path is stored.

    Raises:
        FileExistsError: the directory exists and is not empty.
        OSError: it cannot be written; nothing is left behind then.
    """
    directory = Path(directory).resolve()
    check_new(directory)
    model.check_mesh()
    write_directory(directory, network_files(model))
    return directory


def load(directory: str | Path) -> PDENet:
    """Read a network that `save` wrote, or the best weights at the last level of a run directory.

    Its stencils are on the mesh of its size, also where a baked network was saved. The files may come from a stranger:
    nothing in them is executed, no memory is taken before the shapes in the file are those of the config.

    Raises:
        ValueError: no such directory, not a checkpoint, or one that is damaged or whose parts do not belong together.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"checkpoint must be a directory, got {directory}")
    if (directory / MODEL).exists():
        check_sums(directory, MODEL, CONFIG)
        return _read_network(directory, MODEL)
    while (newest := newest_checkpoint(directory)) is not None:
        try:
            check_sums(newest, BEST, CONFIG)
            return _read_network(newest, BEST)
        except ValueError:
            if newest_checkpoint(directory) == newest:
                raise  # else a training in this directory has written a newer one meanwhile
    raise ValueError(f"checkpoint must hold {MODEL} and {CONFIG}, got {directory}")


def network_files(model: PDENet, name: str = MODEL) -> dict[str, bytes]:
    """The two files of a network."""
    record = {"format": FORMAT, "network": asdict(model.config)}
    return {CONFIG: json_bytes(record), name: tensor_bytes(model.state_dict())}


def read_config(directory: Path) -> NetworkConfig:
    """The network's description from config.json.

    Raises:
        ValueError: a file that is missing, not JSON, of a newer format, or with unknown or missing entries.
    """
    return network_from_record(read_json(directory / CONFIG, FORMAT).get("network"), directory / CONFIG)


def network_from_record(record: Any, file: Path) -> NetworkConfig:
    """A NetworkConfig from plain data.

    Raises:
        ValueError: unknown or missing entries, or values of the wrong kind.
    """
    return from_record(NetworkConfig, record, file, "a network")


def _read_network(directory: Path, name: str) -> PDENet:
    config, file = read_config(directory), directory / name
    stored = _stored_shapes(file)
    if max(config.block_steps) > MANY_STEPS or sum(config.block_controls) > len(stored):
        raise ValueError(f"{file} must hold the weights that {CONFIG} describes, got {len(stored)} tensors")
    plain = not any("parametrizations" in key for key in stored) and config.width > 1

    def make() -> PDENet:
        model = PDENet(config)
        return bake(model) if plain else model  # pyright: ignore[reportReturnType]

    try:
        with torch.device("meta"):  # shapes only
            shapes = {key: t.shape for key, t in make().state_dict().items()}
    except (RuntimeError, ArithmeticError, TypeError) as error:
        raise ValueError(
            f"{directory / CONFIG} must describe a network that can be built, got {brief(error)}"
        ) from None
    tensors = read_tensors(file, shapes)
    with torch.random.fork_rng(devices=[]):  # reading must not move the caller's random stream
        model = make()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file} must hold the weights that {CONFIG} describes, got {brief(error)}") from None
    if plain:
        model.put_on_mesh()
    return model.eval()
