"""State dicts from files of other libraries: read without running code, loaded into a network, or converted alone."""

import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.mesh.transfer import transfer_stencil
from multipde.networks.external import external_model
from multipde.networks.limits import HEADER_BYTES, RECORD_BYTES, TENSORS


def network_with_weights(arch: str, weights: Path | None, **described: Any) -> nn.Module:
    """The network of a name with the weights of a file and as many classes as they have; None for random weights."""
    spec, state = external_model(arch, **described), None
    with torch.random.fork_rng(devices=[]):
        if weights is not None:
            state = read_state_dict(weights)
            with torch.device("meta"):
                last = classifier_name(spec.build())
            spec = replace(spec, classes=len(state[last])) if last in state else spec
        torch.manual_seed(0)
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


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt or .pth file by name; no pickled code is run.

    If the file has a dict under "state_dict" or "model", this is read; a prefix "module." of all names is removed.
    """
    if not file.is_file():
        raise ValueError(f"weights must be a file, got {file}")
    try:
        state = _loaded(file)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"weights must be a state dict in .safetensors or .pt, got {file} ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not tensors or not state:
        raise ValueError(f"weights must hold tensors by name, got something else in {file}")
    _check_plain_tensors(state, file)
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): t for name, t in state.items()}


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
    state: dict[str, Tensor], factor: float, method: str = "copy"
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a state dict without its network: every tensor that has the shape of stencils of odd width above 1x1.

    Without the network, transposed convolutions cannot be recognised and nothing can be measured, so the method must
    need no calibration. Returns the state dict and the names of the tensors that were converted.
    """
    moved = {}
    for name, tensor in state.items():
        width, is_stencil = tensor.shape[2:], tensor.dim() in (3, 4, 5) and tensor.is_floating_point()
        if is_stencil and all(w % 2 for w in width) and any(w > 1 for w in width):
            moved[name] = transfer_stencil(tensor, method, factor, dim=len(width))
    return {**state, **moved}, list(moved)
