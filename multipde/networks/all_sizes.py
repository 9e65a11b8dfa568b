"""One network for images of several sizes: shared stencils, and normalisation layers of their own for every size."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from multipde.networks.layers import TVNorm
from multipde.networks.model_spec import spec_of

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, TVNorm)
"""The layers of which every size has its own: running statistics, scale and bias."""


class AllSizes(nn.Module):
    """A classifier for images of several sizes, which are told apart by their number of pixels.

    For every size there is a whole network, `at`, on the mesh of that size. All parameters outside of the normalisation
    layers are the same objects in all of them; `share_stencils` makes such a network from a trained one. It has no
    description of its own: what is done with a network of one size is done with `at`.

    Args:
        networks: one network per size with its description, in any order; their parameters are shared, see `share`.

    Shape:
        - x: (N, in_channels, *size), where the side is one of the `sizes`; images normalised by the mean and std
        - result: (N, classes), scores before the softmax

    Raises:
        ValueError: images have another size; the message names those that there are.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        found = {spec_of(net).image_sizes[0]: net for net in networks}
        check_sizes(tuple(spec_of(net).image_sizes[0] for net in networks))
        self.by_size = nn.ModuleDict({str(size): found[size] for size in sorted(found)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the images in pixels, the smallest first."""
        return tuple(map(int, self.by_size))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks in the order of the sizes."""
        return tuple(self.by_size.values())

    def at(self, size: int) -> nn.Module:
        """The network for images of a size, with its description; its stencils are those of all sizes, not copies."""
        if size not in self.sizes:
            raise ValueError(f"size must be one that was trained, {_listed(self.sizes)}, got {size}")
        return self.by_size[str(size)]

    def forward(self, x: Tensor) -> Tensor:
        dim = spec_of(self.networks[0]).dim
        sides = set(x.shape[2:])
        if x.dim() != dim + 2 or len(sides) != 1 or not sides <= set(self.sizes):
            got = "x".join(map(str, x.shape[2:])) or f"shape {tuple(x.shape)}"
            raise ValueError(f"images must have a size that was trained, {_listed(self.sizes)}, got {got}")
        return self.at(sides.pop())(x)

    @property
    def multipde_spec(self) -> NoReturn:
        """A network of several sizes has no description of one size; ValueError for all that ask for it."""
        raise ValueError(
            f"network must be of one size, got a checkpoint of the sizes {_listed(self.sizes)}; "
            f"in Python .at({self.sizes[-1]}) is the network of one of them"
        )

    def __repr__(self) -> str:
        largest = self.networks[-1]
        return f"AllSizes for images of {_listed(self.sizes)} pixels; at {self.sizes[-1]}: {largest!r}"


def share(networks: Sequence[nn.Module]) -> None:
    """Make the parameters outside of the normalisation layers those of the first network, in all of them, in place."""
    first, *others = networks
    for other in others:
        for name, module in _outside_norms(other):
            for own, p in first.get_submodule(name)._parameters.items():
                if p is not None:
                    _check_shape(f"{name}.{own}", p, module._parameters.get(own))
                    setattr(module, own, p)


def _check_shape(name: str, p: nn.Parameter, other: nn.Parameter | None) -> None:
    """Raise ValueError for a parameter that has another shape at another size, as a position table has."""
    if other is None or other.shape != p.shape:
        shapes = f"{tuple(p.shape)} and {None if other is None else tuple(other.shape)}"
        raise ValueError(f"networks of several sizes must share their parameters, got the shapes {shapes} of {name}")


def shared_names(net: nn.Module) -> set[str]:
    """The names of the parameters outside of the normalisation layers of a network."""
    inner = ((f"{name}." if name else "", module) for name, module in _outside_norms(net))
    return {prefix + own for prefix, module in inner for own, p in module._parameters.items() if p is not None}


def num_norms(net: nn.Module) -> int:
    """Number of normalisation layers of a network."""
    return sum(isinstance(m, NORMS) for m in net.modules())


def at_size(model: nn.Module, size: int | None = None) -> nn.Module:
    """The network of a size where a model is for several, ValueError without one; any other model as it is."""
    if not isinstance(model, AllSizes):
        return model
    if size is None:
        raise ValueError(
            f"size must be given for a network of the sizes {_listed(model.sizes)}, got none; type --size N"
        )
    return model.at(size)


def networks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The networks of all sizes, the smallest first, of one for several sizes; any other network alone."""
    return model.networks if isinstance(model, AllSizes) else (model,)


def check_sizes(sizes: Sequence[int]) -> None:
    """Raise ValueError unless the sizes are different positive whole numbers, at least one."""
    if not sizes or len(set(sizes)) != len(sizes) or not all(type(s) is int and s > 0 for s in sizes):
        raise ValueError(f"sizes must be different positive numbers of pixels, got {_listed(sizes) or 'none'}")


def _outside_norms(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network by name, without the normalisation layers and what is inside them."""
    norms = tuple(f"{name}." for name, m in net.named_modules() if isinstance(m, NORMS))
    for name, module in net.named_modules():
        if not isinstance(module, NORMS) and not name.startswith(norms or ("\0",)):
            yield name, module


def _listed(sizes: Sequence[Any]) -> str:
    return ", ".join(map(str, sizes))
