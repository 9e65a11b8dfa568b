"""Networks on disk: a directory with model.safetensors, config.json and checksums."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from multipde.mesh.modes import ordinary_tensors, unwrapped
from multipde.mesh.reparametrize import bake
from multipde.networks.all_sizes import AllSizes, networks_of
from multipde.networks.model_spec import check_mesh, spec_of
from multipde.storage.files import CONFIG, check_network_sums, write_directory
from multipde.storage.hub_download import local_directory
from multipde.storage.network_record import Given, filled, spec_from_record
from multipde.storage.records import json_bytes, read_record
from multipde.storage.run_directory import check_new, is_unfinished, newest_checkpoint
from multipde.storage.schema import FORMAT, NETWORK
from multipde.storage.stored_sizes import SIZES, files_of_sizes, read_sizes
from multipde.storage.tensors import BEST, MODEL, stored_shapes, tensor_bytes


@ordinary_tensors()
def save(model: nn.Module, directory: str | Path) -> Path:
    """Write a network to a new directory: model.safetensors, config.json and their SHA256SUMS.

    One for several sizes becomes sizes.safetensors, in which what the sizes share stands once, and sizes.json.

    Equal networks give equal bytes, since no time or path is stored.

    Args:
        model: a `PDENet`, or any network with a description, see `describe`; or an `AllSizes`.
        directory: a directory that does not exist or is empty.

    Returns:
        The absolute path of the directory.

    Raises:
        FileExistsError: the directory exists and is not empty.
        ValueError: the module has no description, or its stencils are not on the mesh of the size it describes.
        OSError: the directory cannot be written; nothing is left behind.
    """
    model, directory = unwrapped(model), Path(directory).resolve()
    check_new(directory)
    for net in networks_of(model):
        check_mesh(net)
    write_directory(directory, network_files(model))
    return directory


@ordinary_tensors()
def load(directory: str | Path, model: Given = None) -> Any:
    """Read a network that `save` wrote, or the network of a run directory with its best weights on the last level.

    Of a run that is unfinished it is the best network of the newest checkpoint, and a warning says so.
    Its stencils get the mesh size of its image size, even if it was baked before it was saved. Untrusted files are safe
    to read: nothing in them is executed or imported, and shapes are checked before memory is allocated.

    Args:
        directory: a directory that `save` wrote, or of a run, a checkpoint or a converted network; or
            ``"hf://user/name"``, perhaps followed by ``@revision``, for a network on the Hugging Face Hub, which is
            downloaded with ``huggingface_hub``. A plain path never is, whether it exists or not.
        model: only for a network that was given in Python or by an import path, because files cannot name code to be
            run: the same module, function or import path again.

    Returns:
        A `PDENet`, or the external network, in evaluation mode and in float32, whatever the precision in the file; an
        `AllSizes` where it was saved for several sizes.

    Raises:
        ValueError: there is no such directory or no network in it, a file is damaged or does not match the others, or
            ``model`` is needed or differs from the recorded one.
    """
    directory = local_directory(directory)
    if not directory.is_dir():
        raise ValueError(f"checkpoint must be a directory, got {directory}")
    if (directory / SIZES).exists():
        return read_sizes(directory, model)
    if (directory / MODEL).exists() and not (is_unfinished(directory) and newest_checkpoint(directory)):
        check_network_sums(directory, MODEL, CONFIG)
        return read_network(directory, MODEL, model)
    while (newest := newest_checkpoint(directory)) is not None:
        try:
            check_network_sums(newest, BEST, CONFIG)
            net = read_network(newest, BEST, model)
        except ValueError:
            if newest_checkpoint(directory) == newest:
                raise  # otherwise a running training has replaced it by a newer one
        else:
            if is_unfinished(directory):
                what = f"{directory} is not finished; this is its best network up to {newest.name}"
                warnings.warn(what, stacklevel=3)
            return net
    raise ValueError(f"checkpoint must hold {MODEL} and {CONFIG}, got {directory}")


def network_files(model: nn.Module, name: str = MODEL) -> dict[str, bytes]:
    """The contents of the two files of a network, by name; those for several sizes have names of their own."""
    if isinstance(model, AllSizes):
        return files_of_sizes(model)
    record = {"format": FORMAT, "network": spec_of(model).record()}
    return {CONFIG: json_bytes(record), name: tensor_bytes(model.state_dict())}


def network_checksum(model: nn.Module) -> str:
    """SHA-256 of the weights and of the description of a network."""
    digest = hashlib.sha256()
    for name, data in sorted(network_files(model).items()):
        digest.update(name.encode() + data)
    return digest.hexdigest()


def read_spec(directory: Path, model: Given = None) -> Any:
    """The description of the network from config.json, with its arguments and errors as in `load`."""
    file = directory / CONFIG
    return spec_from_record(read_record(file, NETWORK)["network"], file, model)


def read_network(directory: Path, name: str, model: Given = None) -> nn.Module:
    """The network of a directory with the weights of one of its files, see `load`."""
    spec, file = read_spec(directory, model), directory / name
    has_meshes = any("parametrizations" in key for key in stored_shapes(file))
    is_baked = False

    def made() -> nn.Module:
        nonlocal is_baked
        net = spec.build()
        is_baked = not has_meshes and any("parametrizations" in key for key in net.state_dict())
        return (bake(net) if is_baked else net).float()

    net = filled(made, spec, file, directory / CONFIG)
    if is_baked:
        spec.put_on_mesh(net)
    return net.eval()
