"""Networks in the layout of the Hugging Face Hub: written, read and pushed, as ``PyTorchModelHubMixin`` does."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from multipde.networks.model_spec import check_mesh
from multipde.reports.model_card import card_figures, model_card
from multipde.reports.run_record import RunRecord, read_run
from multipde.storage.files import SUMS, checksums, recorded_sums, write_directory, write_file
from multipde.storage.hub_download import ADDRESS, CARD, NAME, downloaded, hub, is_address
from multipde.storage.records import brief
from multipde.storage.run_directory import RECORD, RESULT
from multipde.storage.stored_network import Given, load, network_files


def save_pretrained(
    model: nn.Module | str | Path,
    save_directory: str | Path,
    *,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    arch: Given = None,
    **push_to_hub_kwargs: Any,
) -> str | None:
    """Write a network in the layout of the Hub: config.json, model.safetensors and their SHA256SUMS, and README.md.

    README.md is a model card. For the directory of a finished run it holds the data, the accuracy on every level, the
    command, settings and figures; for any other network its description. An existing card is kept, and so are files
    that are not this library's, as with ``PyTorchModelHubMixin.save_pretrained``.

    Args:
        model: a network with a description, see `describe`; or the directory of a run or of a network.
        save_directory: directory to write to; it is made where it is missing.
        repo_id: user and name on the Hub, by default that of the directory.
        push_to_hub: push the network too, by `push_to_hub`.
        arch: for a directory of a network that was given in Python or by an import path, the same again, as in `load`.
        push_to_hub_kwargs: further arguments of `push_to_hub`.

    Returns:
        The address of the commit if it was pushed, else None.

    Raises:
        ValueError: the module has no description, or `load` fails; the directory holds a run, a checkpoint, or a
            network with a report, whose files would no longer belong together; or as for `push_to_hub`.
    """
    if push_to_hub_kwargs and not push_to_hub:
        raise ValueError(f"push_to_hub must be True with {next(iter(push_to_hub_kwargs))}, got False")
    directory = Path(save_directory).resolve()
    net, run = _network(model, arch)
    _write(net, run, directory, repo_id)
    return push(net, run, repo_id or directory.name, **push_to_hub_kwargs) if push_to_hub else None


def from_pretrained(
    pretrained_model_name_or_path: str | Path,
    *,
    model: Given = None,
    revision: str | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Any:
    """Read a network from a local directory, or from the Hub if there is no such directory.

    `load` reads the same from a directory, and never asks the Hub for a plain name.

    Args:
        pretrained_model_name_or_path: a directory, or user/name on the Hub (``hf://user/name``, too).
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        revision, force_download, token, cache_dir, local_files_only: as in ``huggingface_hub.snapshot_download``.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: there is no such directory and no such network on the Hub, or it is damaged, see `load`.
    """
    name = str(pretrained_model_name_or_path)
    if os.path.isdir(name):
        return load(name, model)
    address = ADDRESS.fullmatch(name)
    repo_id, wanted = (address[1], address[2]) if address else (name, None)
    if not re.fullmatch(f"{NAME}/{NAME}", repo_id):
        raise ValueError(f"network must be a directory, or user/name on the Hub, got {name!r}")
    how = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
    found = downloaded(repo_id, revision=revision or wanted, local_files_only=local_files_only, **how)
    return load(found, model)


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    arch: Given = None,
    **how: Any,
) -> str:
    """Write a network with its model card to the Hub, into a new or existing repository; return the commit's address.

    Args:
        model, arch: as for `save_pretrained`.
        repo_id: user and name, or the name alone for the user who is logged in.
        how: ``commit_message``, ``private``, ``token``, ``branch`` and ``create_pr``, with their meaning on the Hub.

    Raises:
        ValueError: huggingface_hub is missing, the Hub refuses, an argument is unknown, or as for `save_pretrained`.
    """
    return push(*_network(model, arch), repo_id, **how)


def push(
    net: nn.Module,
    run: RunRecord | None,
    repo_id: str,
    *,
    commit_message: str = "Push model using multipde.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Push a network with the card of its run; arguments as for `push_to_hub`."""
    library = hub()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "network"
        try:
            api = library.HfApi(token=token)
            repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            _write(net, run, directory, repo_id)
            more = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
            found = api.upload_folder(repo_id=repo_id, repo_type="model", folder_path=directory, **more)
        except ValueError:
            raise
        except Exception as error:  # network and server fail in many ways
            raise ValueError(f"Hub must accept the network, got for {repo_id}: {brief(error)}") from None
    return str(found)


def _network(model: nn.Module | str | Path, arch: Given) -> tuple[nn.Module, RunRecord | None]:
    """The network, and the run if it is the directory of a finished one."""
    if isinstance(model, nn.Module):
        return model, None
    directory = Path(model)
    if not is_address(model) and (directory / RECORD).exists() and (directory / RESULT).exists():
        run = read_run(directory, arch)
        return run.net, run
    return load(model, arch), None


def _write(net: nn.Module, run: RunRecord | None, directory: Path, repo_id: str | None) -> None:
    """Write the network, in a new directory whole or not at all, and its card."""
    check_mesh(net)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"save_directory must be a directory, got the file {directory}")
    own = network_files(net)
    others = [name for name in (RECORD, *recorded_sums(directory)) if name not in own and (directory / name).exists()]
    if others:
        raise ValueError(f"save_directory must be a directory of its own, got {directory}, which holds {others[0]}")
    beside = card_figures(run)
    if not (directory / CARD).exists():
        beside[CARD] = model_card(net, run, repo_id).encode(errors="backslashreplace")
    if directory.exists():
        for name, data in (own | {SUMS: checksums(own)}).items():
            write_file(directory / name, data)
    else:
        write_directory(directory, own)
    for name, data in beside.items():
        write_file(directory / name, data)
