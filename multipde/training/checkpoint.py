"""Networks on disk: model.safetensors and config.json in a directory, with checksums, and the state of a training."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.mesh.reparametrize import bake
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet
from multipde.training.files import (
    brief,
    check_sums,
    from_record,
    is_scratch,
    read_json,
    regular,
    write_directory,
)

FORMAT = 1
MODEL, CONFIG, BEST = "model.safetensors", "config.json", "best.safetensors"
TRAINER, MOMENTUM = "trainer.json", "momentum.safetensors"
MANY_STEPS = 100_000
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


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


def check_new(directory: Path, advice: str = "") -> None:
    """Raise FileExistsError for a directory in which something would be overwritten; a lock or half a file may be."""
    if directory.exists() and (not directory.is_dir() or any(not is_scratch(path) for path in directory.iterdir())):
        raise FileExistsError(f"directory must be new or empty, got {directory}{advice}")


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


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as JSON; numbers come back exactly."""
    return (json.dumps(record, indent=1) + "\n").encode()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file."""
    from safetensors.torch import save

    return save({name: t.detach().cpu().clone().contiguous() for name, t in sorted(tensors.items())})


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


def newest_checkpoint(run: Path) -> Path | None:
    """The newest trainer checkpoint of a run directory."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def write_checkpoint(
    run: Path,
    number: int,
    model: PDENet,
    best: Mapping[str, Tensor],
    state: Mapping[str, Any],
    momentum: Mapping[str, Tensor],
) -> None:
    """Write checkpoint-NNNN with the present and the best weights and the trainer's state, then drop older ones.

    Raises:
        OSError: it cannot be written; the checkpoint before is still there.
    """
    directory = run / f"checkpoint-{number:04d}"
    files = network_files(model) | {
        BEST: tensor_bytes(best or model.state_dict()),
        TRAINER: json_bytes({"format": FORMAT, "state": state}),
        MOMENTUM: tensor_bytes(momentum),
    }
    if not run.is_dir():
        raise OSError(f"run directory must stay where it is while it is trained, got none at {run}")
    write_directory(directory, files)
    for older in run.glob("checkpoint-*"):
        if older != directory:
            shutil.rmtree(older, ignore_errors=True)


def read_checkpoint(directory: Path) -> tuple[PDENet, dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The network, the best weights, the record of the trainer's state, and the momentum by name of the parameter.

    Raises:
        ValueError: as `load`.
    """
    check_sums(directory, MODEL, CONFIG, BEST, TRAINER, MOMENTUM)
    model = _read_network(directory, MODEL)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    best = read_tensors(directory / BEST, {name: t.shape for name, t in model.state_dict().items()})
    momentum = read_tensors(directory / MOMENTUM, shapes, may_lack=True)
    state = read_json(directory / TRAINER, FORMAT).get("state")
    if not isinstance(state, dict):
        raise ValueError(f"{directory / TRAINER} must hold the state of a training, got {type(state).__name__}")
    return model, best, state, momentum


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


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(file), "pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} must be a safetensors file, got {brief(error)}") from None


def read_tensors(file: Path, shapes: Mapping[str, Any], may_lack: bool = False) -> dict[str, Tensor]:
    """The tensors of a file that must have these names and shapes, each finite.

    Args:
        may_lack: not all names need be there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = _stored_shapes(file)
    lacking = set() if may_lack else set(shapes) - set(stored)
    for name in sorted(set(stored) - set(shapes)) + sorted(lacking):
        word = "no" if name in lacking else "an unknown"
        raise ValueError(f"{file} must hold the weights that {CONFIG} describes, got {word} tensor {name[:200]!r}")
    for name, shape in stored.items():
        if shape != tuple(shapes[name]):
            raise ValueError(
                f"{file} must hold the weights that {CONFIG} describes, got {name} of shape {shape} "
                f"instead of {tuple(shapes[name])}"
            )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} must be a safetensors file, got {brief(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise ValueError(f"{file} must hold weights in float16 to float64, got {tensor.dtype} in {name}")
        seen = tensor.float()  # as the network will hold it
        if not bool(seen.isfinite().all()):
            bad = "nan" if bool(seen.isnan().any()) else "inf"
            raise ValueError(f"{file} must hold finite weights, got {bad} in {name}")
    return tensors
