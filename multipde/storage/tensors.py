"""Tensors in safetensors files: written in a fixed order, and checked when they are read."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.networks.limits import HEADER_BYTES, TENSORS
from multipde.runtime.file_names import utf8_path
from multipde.storage.files import CONFIG
from multipde.storage.records import brief, regular

MODEL, BEST = "model.safetensors", "best.safetensors"
"""Names of the file with the weights of a network; in a checkpoint also of that with the best weights so far."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The contents of a safetensors file with these tensors; ValueError for what cannot be read again."""
    if "__metadata__" in tensors:
        raise ValueError("tensors must have other names than __metadata__, which safetensors files need themselves")
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or t.dtype not in NUMBERS:
            got = str(t.dtype) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"state must be tensors of floats, integers or truth values, got {got} in {name}")
    from safetensors.torch import save

    return save({name: t.detach().cpu().clone().contiguous() for name, t in sorted(tensors.items())})


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, read from its header alone."""
    from safetensors import SafetensorError, safe_open

    with open(regular(file), "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if HEADER_BYTES < length < file.stat().st_size:
        raise ValueError(f"{file} must have a header of at most {HEADER_BYTES:,} bytes, got {length:,}")
    try:
        with utf8_path(file) as path, safe_open(path, "pt") as stored:
            names = stored.keys()
            if len(names) > TENSORS:
                raise ValueError(f"{file} must hold at most {TENSORS:,} tensors, got {len(names):,}")
            return {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} must be a safetensors file, got {brief(error)}") from None


def constants(net: nn.Module) -> set[str]:
    """The names of buffers that are no running statistics, such as a mask of attention, which may be infinite."""
    return {name for name, _ in net.named_buffers() if not name.endswith(("running_mean", "running_var"))}


def read_tensors(
    file: Path, shapes: Mapping[str, Any], may_lack: bool = False, any_value: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a file; ValueError unless they have these names (or, if it may lack some, a subset of them) and
    shapes, and all values are finite but those of the names that may have any."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = stored_shapes(file)
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
        with utf8_path(file) as path:
            tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} must be a safetensors file, got {brief(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise ValueError(f"{file} must hold weights in float16 to float64, got {tensor.dtype} in {name}")
        if name in any_value:
            continue
        seen = tensor.float()  # as the network will hold it
        if not bool(seen.isfinite().all()):
            bad = "nan" if bool(seen.isnan().any()) else "inf"
            raise ValueError(f"{file} must hold finite weights, got {bad} in {name}")
    return tensors
