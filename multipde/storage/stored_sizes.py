"""Networks for several image sizes on disk: what the sizes share is stored once, the rest for every size."""

from pathlib import Path
from typing import Any

from multipde.networks.all_sizes import AllSizes, check_sizes, share, shared_names
from multipde.networks.model_spec import spec_of
from multipde.storage.files import check_sums
from multipde.storage.network_record import Given, filled, spec_from_record
from multipde.storage.records import brief, json_bytes, read_record
from multipde.storage.schema import FORMAT, SEVERAL
from multipde.storage.tensors import tensor_bytes

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
    names = _names(net)
    tensors = {names[key]: t for key, t in net.state_dict().items()}
    return {SIZES: json_bytes(record), TENSORS: tensor_bytes(tensors)}


def read_sizes(directory: Path, model: Given = None) -> AllSizes:
    """The network for several sizes in a directory, in evaluation mode; arguments and errors as for `load`."""
    check_sums(directory, SIZES, TENSORS)
    file, weights = directory / SIZES, directory / TENSORS
    record = read_record(file, SEVERAL)
    spec = spec_from_record(record["network"], file, model)
    try:
        check_sizes(record["sizes"])
        specs = [spec.for_images(size) for size in record["sizes"]]
    except ValueError as error:
        raise ValueError(f"{brief(error)} in {file}") from None

    def made() -> AllSizes:
        networks = [each.build().float() for each in specs]
        share(networks)
        return AllSizes(networks)

    return filled(made, spec, weights, file, _names).eval()


def _names(net: AllSizes) -> dict[str, str]:
    """The names of the tensors in the file by those in the state dict."""
    names: dict[str, str] = {}
    for size, each in net.by_size.items():
        shared = shared_names(each)
        names |= {f"by_size.{size}.{k}": f"{'shared' if k in shared else size}:{k}" for k in each.state_dict()}
    return names
