"""State dicts from files of other libraries: read without running code, loaded into a network, or converted alone."""

import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.left_alone import matching
from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.transfer import transfer_stencil
from multipde.networks.external import external_model
from multipde.networks.limits import HEADER_BYTES, RECORD_BYTES, TENSORS


def network_with_weights(arch: str, weights: Path | None, **described: Any) -> nn.Module:
    """The network of a name with the weights of a file and as many classes as they have; None for random weights."""
    spec, state = external_model(arch, **described), None
    with OwnRandomness():
        if weights is not None:
            with torch.device("meta"):
                example = spec.build()
            state, last = read_state_dict(weights, set(example.state_dict())), classifier_name(example)
            spec = replace(spec, classes=len(state[last])) if last in state else spec
        net = spec.build()
    try:
        if state is not None:
            net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"weights must be those of {arch}, got {weights} ({reason})") from None
    return net.eval()


def classifier_name(model: nn.Module) -> str | None:
    """Name of the last linear or convolutional layer, which in torchvision's networks has one output per class."""
    names = [name for name, p in model.named_parameters() if p.dim() >= 2]
    return names[-1] if names else None


NESTED = ("state_dict", "model_state_dict", "model")
"""Names under which training scripts store a state dict beside other things."""

PREFIXES = ("_orig_mod.", "module.", "model.")
"""What torch.compile, DataParallel and its kin, and modules of Lightning put in front of the names."""


def read_state_dict(file: Path, wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt or .pth file by name; no pickled code is run.

    A dict under one of the names `NESTED` is read instead of its surroundings, and prefixes of wrappers that all names
    share are removed, one after the other, until the names are those that are wanted.
    """
    state = stored_state(file)[0]
    while not (wanted and set(wanted) <= set(state)):
        names = set(state) - {"n_averaged"}  # the counter of an AveragedModel
        prefix = next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): state[name] for name in state if name in names}
    return state


def stored_state(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by name, as it has them, and the names `NESTED` under which they were found.

    Raises:
        ValueError: there is no such file, or it holds anything but tensors by name.
    """
    if not file.is_file():
        raise ValueError(f"weights must be a file, got {file}")
    try:
        state = _loaded(file)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:120]
        if "weights_only" in str(error):  # pickled or scripted modules
            scripted = "TorchScript" in str(error)
            way = "torch.jit.load(FILE)" if scripted else "torch.load(FILE, weights_only=False)"
            reason = f"it holds code; if you trust it, save its weights: torch.save({way}.state_dict(), NEW)"
        raise ValueError(f"weights must be a state dict in .safetensors or .pt, got {file} ({reason})") from None
    under: list[str] = []
    while isinstance(state, dict) and (key := next((k for k in NESTED if isinstance(state.get(k), dict)), None)):
        state = state[key]
        under.append(key)
    tensors = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not tensors or not state:
        raise ValueError(f"weights must hold tensors by name, got something else in {file}")
    _check_plain_tensors(state, file)
    return state, under


def _loaded(file: Path) -> Any:
    """The contents of a file; ValueError before memory is taken for one that would take more than it is long."""
    length = file.stat().st_size
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        with file.open("rb") as handle:
            header = int.from_bytes(handle.read(8), "little")
        if HEADER_BYTES < header < length:
            raise ValueError(f"a header of more than {HEADER_BYTES:,} bytes")
        return load_file(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > length:
            raise ValueError("compressed or overlapping parts")
        if any(part.file_size > RECORD_BYTES for part in parts if part.filename.endswith(".pkl")):
            raise ValueError(f"a record of more than {RECORD_BYTES:,} bytes")
    with warnings.catch_warnings(action="ignore"):  # what the file holds is told in one line
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_plain_tensors(state: dict[str, Tensor], file: Path) -> None:
    """Raise ValueError unless all tensors are dense numbers in memory that take no more of it than the file is long."""
    if len(state) > TENSORS:
        raise ValueError(f"weights must hold at most {TENSORS:,} tensors, got {len(state):,} in {file}")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
            raise ValueError(f"weights must be dense tensors, got {name[:80]!r}, which is not, in {file}")
    if sum(t.numel() * t.element_size() for t in state.values()) > 4 * file.stat().st_size:
        raise ValueError(f"weights must take as much memory as their file, got tensors that repeat values in {file}")


def convert_state_dict(
    state: dict[str, Tensor], factor: float, method: str = "copy", skip: Sequence[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a state dict without its network: every weight that has the shape of stencils of odd width above 1x1.

    A weight is a tensor with a name that ends in ``weight`` and no bias but one per output channel; position embeddings
    and the directions of ``weight_norm`` are none. Of weights of several dimensions, those of the most frequent one are
    stencils. Without the network, transposed convolutions cannot be recognised and nothing can be measured, so the
    method must need no calibration. Returns the state dict and the names of the tensors that were converted.

    Raises:
        ValueError: there is no such weight, or a name or pattern of ``skip`` matches none.
    """
    weights = {n: t for n, t in state.items() if t.dim() in (3, 4, 5) and _is_weight(n, t, state)}
    dims = Counter(t.dim() for t in weights.values())
    most = max(dims, key=lambda d: (dims[d], d), default=0)
    stencils = {n: t for n, t in weights.items() if t.dim() == most and max(t.shape[2:]) > 1}
    stencils = {n: t for n, t in stencils.items() if all(w % 2 for w in t.shape[2:])}
    left = set(matching(skip, [name.rpartition(".")[0] or name for name in stencils]))
    moved = {n: t for n, t in stencils.items() if (n.rpartition(".")[0] or n) not in left}
    if not moved:
        raise ValueError(f"weights must hold stencils of odd width above one, got none among {len(state)} tensors")
    new = {name: transfer_stencil(t, method, factor, dim=most - 2) for name, t in moved.items()}
    for name in moved:
        if (record := state.get(_record_of(name))) is not None:
            meshes = 2 * (most - 2)
            new[_record_of(name)] = torch.cat([record[:meshes] / factor, record[meshes:]])
    return {**state, **new}, list(moved)


def _record_of(name: str) -> str:
    """The name of the record of the mesh to which a stored stencil of a reparametrised layer belongs."""
    return name.removesuffix("original") + "0._extra_state"


def _is_weight(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if name.endswith("weight.original") and (record := state.get(_record_of(name))) is not None:
        mesh, reference, others = record.split([tensor.dim() - 2] * 2 + [2])
        return torch.equal(mesh, reference) and not others.any()  # the stencils themselves are stored
    if not (name == "weight" or name.endswith(".weight")):
        return False
    bias = state.get(name.removesuffix("weight") + "bias")
    return bias is None or bias.shape in (tensor.shape[:1], tensor.shape[1:2])
