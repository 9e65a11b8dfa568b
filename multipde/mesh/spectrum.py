"""The size of a network's coefficients β, by order of the derivative."""

import math

from torch import nn

from multipde.mesh.reparametrize import coefficients, stencil_layers, stencil_parametrization


def order_rms(module: nn.Module, physical: bool = False) -> dict[str, list[float]]:
    """Root mean square of the coefficients β of every layer, for each total order 0, 1, ... of the derivative.

    With ``physical`` these are coefficients of dᵏ/dxᵏ on the unit square; otherwise β_k/hᵏ, the coefficients of
    hᵏ dᵏ/dxᵏ, where h is the mesh size of the layer.
    """
    result = {}
    layers = stencil_layers(module)
    for name, beta in coefficients(module).items():
        basis = stencil_parametrization(layers[name]).basis()  # pyright: ignore[reportOptionalMemberAccess]
        sums: dict[int, list[float]] = {}
        for order, values in zip(basis.orders, beta.flatten(-basis.dim).unbind(-1), strict=True):
            scale = 1.0 if physical else math.prod(h**-k for h, k in zip(basis.mesh_size, order, strict=True))
            sums.setdefault(sum(order), []).append((values * scale).square().mean().item())
        result[name] = [math.sqrt(sum(v) / len(v)) for _, v in sorted(sums.items())]
    return result
