"""``multipde bench architectures``: what the library can do with networks that it has not made."""

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multipde.conversions.convert import convert
from multipde.mesh.modes import copied
from multipde.mesh.randomness import OwnRandomness
from multipde.mesh.reparametrize import bake, set_mesh_size, skipped_layers, stencil_layers
from multipde.mesh.transfer import CALIBRATED, METHODS
from multipde.networks.input_size import can_resize, check_input_size
from multipde.networks.model_spec import reparametrize_for, spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import choose_device
from multipde.runtime.table import Row, Table
from multipde.studies.bench.architecture_list import ARCHITECTURES, Architecture
from multipde.studies.study import Study

ALL_METHODS = (*METHODS, *CALIBRATED)
OPERATIONS = ("reparametrize", "set_mesh_size", "state_dict", "bake", *ALL_METHODS)
ROUNDING = 1e-3
"""Largest difference of outputs over the largest output that counts as rounding in float32, through a hundred layers
with random weights."""


def architectures_study(
    out: Path | None = None, *, arch: Sequence[str] | None = None, device: str = "auto", log: Log | None = None
) -> list[dict[str, Any]]:
    """Try 40 networks with random weights: reparametrize, set the mesh size, convert by every method, bake and save."""
    known = {each.name: each for each in ARCHITECTURES}
    if missing := [name for name in arch or () if name not in known]:
        raise ValueError(f"arch must name networks of the list ({', '.join(known)}), got {missing[0]!r}")
    study = Study(out, {"study": "architectures"}, ("arch",), log=log)
    on = choose_device(device)
    with study.log.progress(len(arch or known)) as advance:
        for (name,) in study.left([(name,) for name in arch or known], "networks"):
            row = study.add(name, **tried(known[name], on))
            study.log.say(summary(row))
            advance(1, name)
    shown = [row for row in study.rows if row["arch"] in (arch or known)]
    return study.close({"What multipde does with networks of others": architectures_table(shown)})


def tried(entry: Architecture, device: torch.device | None = None) -> dict[str, Any]:
    """The row of a network: for every operation "ok" or the reason why it is refused, and the error of the outputs."""
    began = time.perf_counter()
    with OwnRandomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays as it is stands in the row
        torch.manual_seed(0)
        net = entry.build().to(device or "cpu")
        images = {size: _images(entry, size).to(device or "cpu") for size in (entry.size, entry.new_size)}
        row = {"kind": entry.kind, "size": entry.size, "new_size": entry.new_size}
        row |= {"stencils": len(stencil_layers(net)), "left": dict(Counter(skipped_layers(net).values()))}
        row |= {"input_size": _input_size(net, entry)}
        placed = copied(net)
        row |= _on_a_mesh(net, placed, images[entry.size], entry)
        finer, start = images[max(entry.size, entry.new_size)], placed if row["reparametrize"] == "ok" else net
        row |= {method: _refusal(lambda m=method: _converted(start, entry, m, finer, images)) for method in ALL_METHODS}
    return row | {"seconds": time.perf_counter() - began}


def _images(entry: Architecture, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, entry.in_channels, *(size,) * entry.dim, generator=generator)


def _input_size(net: nn.Module, entry: Architecture) -> str:
    """Whether a network takes images of any size, is resized by its own library, or what it says at another size."""
    spec = spec_of(net).on_mesh(entry.new_size)
    answer = _refusal(lambda: check_input_size(net, spec))
    return answer if answer != "ok" else "resized" if can_resize(net) else "any"


def _on_a_mesh(net: nn.Module, placed: nn.Module, x: Tensor, entry: Architecture) -> dict[str, Any]:
    """What becomes of the outputs and of the state dict on a mesh, on another mesh and back, and baked."""
    before = _scores(net, x)

    def reparametrized() -> float:
        reparametrize_for(placed, spec_of(placed))
        return _difference(_scores(placed, x), before)

    def moved() -> float:
        set_mesh_size(placed, 1 / entry.new_size)
        set_mesh_size(placed, 1 / entry.size)
        return _difference(_scores(placed, x), before)

    def stored() -> float:
        state = copy.deepcopy(placed.state_dict())
        with torch.no_grad():
            for p in placed.parameters():
                p.zero_()
        placed.load_state_dict(state, strict=True)
        return _difference(_scores(placed, x), before)

    def baked() -> float:
        net.load_state_dict(bake(copied(placed)).state_dict(), strict=True)
        return _difference(_scores(net, x), before)

    steps = {"reparametrize": reparametrized, "set_mesh_size": moved, "state_dict": stored, "bake": baked}
    return {name: _refusal(step) for name, step in steps.items()}


def _converted(net: nn.Module, entry: Architecture, method: str, finer: Tensor, images: dict[int, Tensor]) -> None:
    """Convert there; the outputs must be finite, and a copy that is converted back must be the same network."""
    how = {"method": method, "calibration": finer if method in CALIBRATED else None}
    there = convert(net, size=entry.new_size, **how)
    if not torch.isfinite(_scores(there, images[entry.new_size])).all():
        raise ValueError("outputs must be finite, got others")
    if method == "copy" and not can_resize(net):
        back, x = convert(there, size=entry.size, method=method), images[entry.size]
        if (error := _difference(_scores(back, x), _scores(net, x))) > ROUNDING:
            raise ValueError(f"outputs must be the same on the way back, got a change by {error:.1e}")


def _refusal(step: Callable[[], float | None]) -> str:
    """The text "ok", or the error of the library, or that the outputs have changed."""
    try:
        error = step()
    except ValueError as refused:
        return " ".join(str(refused).split())
    return "ok" if error is None or error <= ROUNDING else f"outputs changed by {error:.1e}"


def _scores(net: nn.Module, x: Tensor) -> Tensor:
    """The output, or the main one of several."""
    with torch.no_grad():
        found = net(x)
    if isinstance(found, dict):
        found = found["out"]
    return found[0] if isinstance(found, tuple) else found


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def summary(row: Row) -> str:
    """One line for a row: what was done, or what was refused."""
    refused = {}
    for name in OPERATIONS:
        if row[name] != "ok":
            refused.setdefault(row[name], name)
    return f"{row['arch']}: {row['stencils']} stencils" + "".join(f"; {name}: {why}" for why, name in refused.items())


def architectures_table(rows: Sequence[Row]) -> Table:
    """A line per network: + for what is done to it, - for what is refused, with the reasons in the rows."""
    table = []
    for row in rows:
        line = {"name": str(row["arch"]), "kind": row["kind"], "stencils": str(row["stencils"])}
        size = row["input_size"]
        line["size"] = size if size in ("any", "resized") else "fixed"
        for name in OPERATIONS:
            line[name] = "+" if row[name] == "ok" else "-"
        table.append(line | {"s": f"{row['seconds']:.1f}"})
    return table
