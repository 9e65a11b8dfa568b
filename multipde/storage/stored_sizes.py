"""Networks for several image sizes on disk: what the sizes share is stored once, the rest for every size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.mesh.randomness import OwnRandomness
from multipde.networks.all_sizes import AllSizes, check_sizes, share, shared_names
from multipde.networks.model_spec import spec_of
from multipde.storage.files import check_sums
from multipde.storage.network_record import Given, given_again, spec_from_record
from multipde.storage.records import brief, json_bytes, read_record
from multipde.storage.schema import FORMAT, SEVERAL
from multipde.storage.tensors import read_tensors, stored_shapes, tensor_bytes

SIZES, TENSORS = "sizes.json", "sizes.safetensors"
"""Names of the record and of the weights; a program that knows networks of one size alone finds none."""


def files_of_sizes(net: AllSizes) -> dict[str, bytes]:
    """The contents of the two files of a network for several sizes, by name.

    Every tensor has the name that it has in the network of one size, after ``shared:`` for one that all sizes share,
    or after the size and a colon.
    """
    largest: Any = spec_of(net.networks[-1])
    for size, each in zip(net.sizes, net.networks, strict=True):
        if largest.for_images(size) != spec_of(each):  # the record has that of the largest size alone
            what = f"at {size} pixels, which is not that of {net.sizes[-1]} pixels on another mesh"
            raise ValueError(f"networks must differ by their sizes alone to be stored together, got one {what}")
    record = {"format": FORMAT, "network": largest.record(), "sizes": list(net.sizes)}
    tensors: dict[str, Tensor] = {}
    for size, each in zip(net.sizes, net.networks, strict=True):
        tensors |= {_name(key, size, shared_names(each)): t for key, t in each.state_dict().items()}
    return {SIZES: json_bytes(record), TENSORS: tensor_bytes(tensors)}


def read_sizes(directory: Path, model: Given = None) -> AllSizes:
    """The network for several sizes in a directory, in evaluation mode; arguments and errors as for `load`."""
    check_sums(directory, SIZES, TENSORS)
    file, weights = directory / SIZES, directory / TENSORS
    record = read_record(file, SEVERAL)
    spec = given_again(spec_from_record(record["network"], file), model)
    try:
        check_sizes(record["sizes"])
        specs = [spec.for_images(size) for size in record["sizes"]]
    except ValueError as error:
        raise ValueError(f"{brief(error)} in {file}") from None
    stored = stored_shapes(weights)
    if not spec.fits(len(stored)):
        raise ValueError(f"{weights} must hold the weights that {SIZES} describes, got {len(stored)} tensors")

    def made() -> list[nn.Module]:
        networks = [each.build().float() for each in specs]
        share(networks)
        return networks

    try:
        with OwnRandomness(), torch.device("meta"):  # shapes only
            nets = dict(zip(record["sizes"], made(), strict=True))
            names = {
                size: {key: _name(key, size, shared_names(net)) for key in net.state_dict()}
                for size, net in nets.items()
            }
            shapes = {names[size][key]: t.shape for size, net in nets.items() for key, t in net.state_dict().items()}
    except (RuntimeError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{file} must describe a network that can be built, got {brief(error)}") from None
    tensors = read_tensors(weights, shapes)
    with OwnRandomness():  # reading must not move the caller's random stream
        networks = made()
    for size, net in zip(record["sizes"], networks, strict=True):
        try:
            net.load_state_dict({key: tensors[name] for key, name in names[size].items()})
        except RuntimeError as error:
            raise ValueError(f"{weights} must hold the weights that {SIZES} describes, got {brief(error)}") from None
    return AllSizes(networks).eval()


def _name(key: str, size: int, shared: set[str]) -> str:
    return f"shared:{key}" if key in shared else f"{size}:{key}"
