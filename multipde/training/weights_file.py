"""The start of a training from the weights of a file, which may have been trained for other classes."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.state_dict import stored_state
from multipde.data.checksum import file_digest
from multipde.networks.model_spec import spec_of
from multipde.training.parameter_groups import head_name
from multipde.training.start import Start, initial_network

WITHOUT = ("num_batches_tracked",)
"""Buffers that a file may lack, since nothing depends on them: old files of torch have none."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights from which a training starts, a state dict in .safetensors, .pt or .pth.

    Args:
        file: the file; no code in it is run.
        from_size: see `train`.
        digest: SHA-256 that the file must have; None for any.
    """

    file: Path
    from_size: int | None = None
    digest: str | None = None

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "WeightsFile":
        """The file that the record of a run names."""
        return cls(Path(record["file"]), record.get("from_size"), record["digest"])

    def record(self) -> dict[str, Any]:
        """The file as plain data, with its digest."""
        return {"file": str(self.file.resolve()), "from_size": self.from_size, "digest": file_digest(self.file).hex()}

    def start(self, spec: Any, seed: int, say: Callable[[str], None]) -> Start:
        """The network of a description with the weights of the file, and a new head where the classes differ.

        Args:
            spec: the description of the network on the first level, for the classes that are to be learned.
            seed: seed of the weights of a new head.
            say: is told what was taken, left out and made anew.

        Raises:
            ValueError: the file cannot be read, or holds the weights of another network.
        """
        if self.from_size is not None:
            spec = spec.for_images(self.from_size)
        state, under = stored_state(self.file)
        if self.digest is not None and file_digest(self.file).hex() != self.digest:
            raise ValueError(f"weights must be those with which the run began, got another file at {self.file}")
        net = initial_network(spec, seed)
        own = {_plain(name): t for name, t in net.state_dict().items() if not name.endswith(STATE)}
        taken, prefix = fitting(_stencils(state, self.file), own, self.file)
        head, both = head_name(net), [name for name in taken if name in own]
        num = _num_classes(taken.get(f"{head}.weight"))
        new = {name for name in both if _differs_in_classes(taken[name], own[name], num, spec.classes)}
        others = sorted(set(taken) - set(own))
        shapes = [name for name in both if name not in new and taken[name].shape != own[name].shape]
        lacking = sorted(name for name in set(own) - set(taken) if not name.endswith(WITHOUT))
        if lacking or shapes or others:
            raise ValueError(_another(self.file, spec.label, own, taken, lacking, shapes, others))
        taken = {name: taken[name] for name in own if name in taken}  # in the order of the network
        _check_finite(taken, self.file)
        with torch.no_grad():
            for name, tensor in taken.items():
                if name not in new:
                    own[name].copy_(tensor)
        removed = [f"read under {key}" for key in under] + ([f"without the prefix {prefix}"] if prefix else [])
        say(_told(self.file, removed, len(own), taken, new, state, net, head))
        return Start(net)


def weights_given(weights: str | Path | None, from_size: int | None, init: Any) -> WeightsFile | None:
    """The file that `train` is given; ValueError for arguments that contradict each other."""
    if weights is None:
        if from_size is not None:
            raise ValueError(f"from_size must come with weights, got {from_size}")
        return None
    if init is not None:
        raise ValueError(f"weights must be left out with init, got {weights}")
    if from_size is not None and from_size < 1:
        raise ValueError(f"from_size must be positive, got {from_size}")
    return WeightsFile(Path(weights), from_size)


STATE = "_extra_state"
"""End of the names of the records of meshes, see `StencilParametrization`, which belong to the network and not to its
weights."""


def fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state dict by the names of a network, and the prefix of wrappers that was removed from them.

    Of all prefixes in front of a dot, such as ``module.`` or ``model._orig_mod.``, that one is removed with which most
    names are those of the network; tensors that do not begin with it are left out. ValueError for two equally good
    ones, such as ``student.`` and ``teacher.``.
    """
    cuts = [(name, i + 1) for name in state for i, c in enumerate(f".{name}") if c == "."]
    known = Counter(name[: i - 1] for name, i in cuts if name[i - 1 :] in own)
    most = max(known.values(), default=0)
    best = [prefix for prefix, num in known.items() if num == most] or [""]
    if "" not in best and len(best) > 1:
        raise ValueError(f"weights must be of one network, got {' and '.join(best[:3])} in {file}; save one alone")
    prefix = "" if "" in best else best[0]
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, prefix


def _plain(name: str) -> str:
    return name.replace("parametrizations.weight.original", "weight")


def _stencils(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors under the names of plain layers; ValueError for stencils that are stored for another mesh."""
    for name, record in state.items():
        if name.endswith(STATE):
            mesh, reference, others = record.split([(len(record) - 2) // 2] * 2 + [2])
            if not torch.equal(mesh, reference) or others.any():
                raise ValueError(f"weights must be stencils on their own mesh, got others in {file}; type --init DIR")
    return {_plain(name): t for name, t in state.items() if not name.endswith(STATE)}


def _num_classes(head: Tensor | None) -> int:
    """The number of classes of the head that a file holds; 0 where it holds none."""
    return 0 if head is None or not head.dim() else len(head)


def _differs_in_classes(given: Tensor, own: Tensor, num: int, classes: int) -> bool:
    """Whether two tensors have the same shape but for the number of classes, which is ``num`` in the file."""
    return (
        given.dim() == own.dim() > 0
        and given.shape[1:] == own.shape[1:]
        and (len(given), len(own)) == (num, classes)
        and num != classes
    )


def _check_finite(taken: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in taken.items():
        if not bool(tensor.float().isfinite().all()):
            raise ValueError(f"weights must be finite, got nan or inf in {name} in {file}")


def _another(
    file: Path,
    label: str,
    own: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    lacking: list[str],
    shapes: list[str],
    others: list[str],
) -> str:
    """One line that says how the tensors of a file differ from those of a network."""
    parts = []
    if lacking:
        parts.append(f"{len(lacking)} of its {len(own)} tensors are missing ({_some(lacking)})")
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} have another shape ({name}: {tuple(taken[name].shape)} instead of {tuple(own[name].shape)})"
        )
    if others:
        parts.append(f"{len(others)} are of no layer of it ({_some(others)})")
    return f"weights must be those of {label}, got {file}, in which {', '.join(parts)}"


def _told(
    file: Path,
    removed: list[str],
    num: int,
    taken: Mapping[str, Tensor],
    new: set[str],
    state: Mapping[str, Tensor],
    net: nn.Module,
    head: str,
) -> str:
    """One line about what was taken from a file."""
    parts = [f"{len(taken) - len(new)} of {num} tensors of {spec_of(net).label} from {file}"]
    parts += removed
    left = len([name for name in state if not name.endswith(STATE)]) - len(taken)
    if left:
        parts.append(f"{left} others are left out")
    if new:
        parts.append(f"new head {head} for {spec_of(net).classes} classes instead of {len(taken[f'{head}.weight'])}")
    else:
        parts.append(f"head {head} is kept for its {spec_of(net).classes} classes")
    return f"weights: {', '.join(parts)}"


def _some(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:2]) + (", ..." if len(names) > 2 else "")
