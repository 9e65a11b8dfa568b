"""The mesh of a converted network: the factor that leads to a size, and the size to which a factor leads."""

from collections.abc import Sequence

from torch import nn

from multipde.mesh.reparametrize import mesh_parametrizations
from multipde.mesh.separable import per_axis
from multipde.mesh.transfer import check_factor
from multipde.networks.model_spec import ModelSpec, find_spec


def factor_to(model: nn.Module, size: int | Sequence[int]) -> tuple[float, ...]:
    """The new size divided by that of the model, per axis; ValueError for a model whose mesh is not known."""
    spec = find_spec(model)
    if spec is not None:
        new = per_axis(size, spec.dim, "size")
        return tuple(n / s for n, s in zip(new, spec.sizes, strict=True))
    if not (found := mesh_parametrizations(model)):
        raise ValueError("factor must be given for a plain module, whose mesh is not known, got size")
    h = next(iter(found.values())).mesh_size
    return tuple(n * v for n, v in zip(per_axis(size, len(h), "size"), h, strict=True))


def size_after(spec: ModelSpec, factor: float | Sequence[float]) -> int | tuple[int, ...]:
    """The size of the mesh after a conversion by this factor; ValueError if it is no whole number of pixels."""
    sizes = [s * f for s, f in zip(spec.sizes, check_factor(factor, spec.dim), strict=True)]
    if any(abs(s - round(s)) > 1e-6 for s in sizes):
        raise ValueError(f"factor must give a whole number of pixels, got {factor} for {spec.sizes}")
    rounded = tuple(round(s) for s in sizes)
    return rounded[0] if len(set(rounded)) == 1 else rounded
