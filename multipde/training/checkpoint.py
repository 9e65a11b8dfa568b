"""Networks on disk: model.safetensors and config.json in a directory, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multipde.mesh.reparametrize import bake
from multipde.networks.config import NetworkConfig
from multipde.networks.network import PDENet

FORMAT = 1
MODEL, CONFIG, TRAINER, BEST = "model.safetensors", "config.json", "trainer.pt", "best.safetensors"


def save(model: PDENet, directory: str | Path) -> Path:
    """Write a network to a new directory: model.safetensors and config.json.

    Equal networks give equal bytes: no time, no path is stored.

    Raises:
        FileExistsError: the directory exists and is not empty.
    """
    directory = Path(directory).resolve()
    check_new(directory)
    model.check_mesh()
    write_directory(directory, lambda partial: write_network(model, partial))
    return directory


def check_new(directory: Path, advice: str = "") -> None:
    """Raise FileExistsError for a directory in which something would be overwritten."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"directory must be new or empty, got {directory}{advice}")


def load(directory: str | Path) -> PDENet:
    """Read a network that `save` wrote, or the best weights at the last level of a run directory.

    Its stencils are on the mesh of its size, also where a baked network was saved.

    Raises:
        ValueError: no such directory, not a checkpoint, or one whose parts do not belong together.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"checkpoint must be a directory, got {directory}")
    if (directory / MODEL).exists():
        return _read_network(directory, MODEL)
    if (newest := newest_checkpoint(directory)) is not None:
        return _read_network(newest, BEST)
    raise ValueError(f"checkpoint must hold {MODEL} and {CONFIG}, got {directory}")


def write_network(model: PDENet, directory: Path, name: str = MODEL) -> None:
    """Write the two files of a network into a directory that is there, each whole, the weights last."""
    record = {"format": FORMAT, "network": asdict(model.config)}
    write_text(directory / CONFIG, json.dumps(record, indent=1) + "\n")
    partial = directory / f".{name}.partial-{os.getpid()}"
    write_tensors(model.state_dict(), partial)
    os.replace(partial, directory / name)


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """A state dict as a safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}, file)
    except SafetensorError as error:
        raise OSError(f"{file} must be writable, got {error}") from None


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory under another name, then rename it: it is there whole or not at all."""
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for file in partial.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, file)


def read_config(directory: Path) -> NetworkConfig:
    """The network's description from config.json.

    Raises:
        ValueError: a file that is missing, not JSON, of a newer format, or with unknown or missing entries.
    """
    file = directory / CONFIG
    record = read_json(file)
    return network_from_record(record.get("network"), file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON record of ours.

    Raises:
        ValueError: a file that is missing, not a JSON record, or of a newer format.
    """
    try:
        record = json.loads(file.read_text())
    except OSError:
        raise ValueError(f"checkpoint must hold {file.name}, got none in {file.parent}") from None
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise ValueError(f"{file} must be a record of multipde, got no format number")
    if record["format"] > FORMAT:
        raise ValueError(f"{file} must have format {FORMAT} or older, got {record['format']}; update multipde")
    return record


def network_from_record(record: Any, file: Path) -> NetworkConfig:
    """A NetworkConfig from plain data.

    Raises:
        ValueError: unknown or missing entries, or values of the wrong kind.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{file} must describe a network, got {type(record).__name__}")
    unknown = sorted(set(record) - {f.name for f in fields(NetworkConfig)})
    if unknown:
        raise ValueError(f"{file} must hold known entries only, got {unknown[0]!r}")
    try:
        return NetworkConfig(**record)
    except TypeError as error:
        raise ValueError(f"{file} must describe a network, got {error}") from None


def newest_checkpoint(run: Path) -> Path | None:
    """The newest trainer checkpoint of a run directory."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def write_checkpoint(run: Path, number: int, model: PDENet, best: dict[str, Tensor], trainer: dict[str, Any]) -> None:
    """Write checkpoint-NNNN with the present and the best weights and the trainer's state, then drop older ones."""

    def write(partial: Path) -> None:
        write_network(model, partial)
        write_tensors(best, partial / BEST)
        torch.save(trainer, partial / TRAINER)

    directory = run / f"checkpoint-{number:04d}"
    write_directory(directory, write)
    for older in run.glob("checkpoint-*"):
        if older != directory:
            shutil.rmtree(older)


def read_checkpoint(directory: Path) -> tuple[PDENet, dict[str, Tensor], dict[str, Any]]:
    """The network, the best weights and the trainer's state."""
    model = _read_network(directory, MODEL)
    best = _read_tensors(directory / BEST)
    try:
        trainer = torch.load(directory / TRAINER, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(f"{directory / TRAINER} must be readable, got {str(error).splitlines()[0]}") from None
    return model, best, trainer


def _read_network(directory: Path, name: str) -> PDENet:
    with torch.random.fork_rng(devices=[]):  # reading must not move the caller's random stream
        model = PDENet(read_config(directory))
    tensors = _read_tensors(directory / name)
    plain = not any("parametrizations" in key for key in tensors) and model.config.width > 1
    if plain:
        bake(model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ValueError(f"{directory / name} must hold the weights that {CONFIG} describes, got {detail}") from None
    if plain:
        model.put_on_mesh()
    return model.eval()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except FileNotFoundError:
        raise ValueError(f"checkpoint must hold {file.name}, got none in {file.parent}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} must be a safetensors file, got {error}") from None
