"""Calibration: the factor by which a conversion multiplies every derivative term, measured on images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from multipde.conversions.layer_inputs import WatchedCopy
from multipde.mesh.modes import ordinary_tensors
from multipde.mesh.pyramid import resize_images
from multipde.mesh.reparametrize import stencil_layers
from multipde.mesh.separable import precise
from multipde.mesh.stencil import StencilBasis, check_condition
from multipde.mesh.transfer import CALIBRATED, check_factor, map_stencil, scaling_matrix
from multipde.networks.inputs import ImageBatch, network_inputs, one_batch
from multipde.networks.model_spec import find_spec

SHARED_SWEEPS = 8
"""Number of fixed-point iterations for networks that use a layer more than once."""


@dataclass(frozen=True)
class Calibration:
    """The maps of all stencils for one conversion, measured on images; `calibrate` makes it, `Conversion` applies it.

    Args:
        factor: new size / old size per axis.
        scales: for every layer by name, s_k = (root mean square of derivative term k on the old mesh) / (the same on
            the new mesh), in the shape of the stencil; nan where the term vanishes.
        matrices: for every layer by name, the map M of the n taps, θ' = M θ, of shape (n, n) in float64.
    """

    factor: tuple[float, ...]
    scales: dict[str, Tensor] = field(repr=False)
    matrices: dict[str, Tensor] = field(repr=False)

    def exponents(self) -> dict[str, float]:
        """How smooth the input of each layer is: 1 where the converted stencil keeps β, 0 where it keeps its taps.

        The exponent is the slope e of the least-squares fit log s_k = c + e Σ_a k_a log(factor_a) over the orders k; it
        is nan if no s_k is finite.
        """
        return {name: _exponent(scales, self.factor) for name, scales in self.scales.items()}


@ordinary_tensors()
@torch.no_grad()
def calibrate(
    model: nn.Module, factor: float | Sequence[float], images: ImageBatch, method: str = "calibrated"
) -> Calibration:
    """Measure on images how the derivative terms of every stencil must be scaled to keep the size of their responses.

        s_k = rms_old(term k) / rms_new(term k),    θ' = A diag(s) A⁻¹ θ

    rms is the root mean square over images, channels and interior pixels of derivative term k (with h = 1) applied to
    the input of the layer, and A is the matrix of `StencilBasis`. Both networks get the same images, each on its own
    mesh; layers are visited in the order of execution, so that the new network is already converted in front of the
    layer that is measured. BatchNorm uses batch statistics in both. On smooth features s_k = factor^|k|, which is
    ``rediscretize``; on features with the same statistics on both meshes all s_k are equal, which is ``copy`` up to a
    constant. A term that vanishes, or does not fit into the features, gets s_k = 1.

    A layer that is used more than once, as in a block with fewer controls than steps, is measured at its first use,
    then as the average over all uses. As the input of a later use depends on the converted stencil itself, the scales
    are found by a fixed-point iteration, which is accurate to a few per cent.

    ``calibrated_full`` preserves the covariance C of all terms, not only its diagonal: with C = L Lᵀ (Cholesky, terms
    sorted by total order) M = A L_new⁻ᵀ L_oldᵀ A⁻¹, so that the response to every combination of terms keeps its size.

    Args:
        model: the network to be converted; it is not changed.
        factor: new size / old size, one number or one per axis.
        images: a few hundred normalised images on the finer of the two meshes, as a tensor or as a batch of a loader;
            cell averages give the coarser ones. Images in uint8 are normalised by the description of the model.
        method: ``"calibrated"`` or ``"calibrated_full"``.

    Raises:
        ValueError: the method is another one, the images are not on the finer mesh, or stencils are too wide.
    """
    if method not in CALIBRATED:
        raise ValueError(f"method must be one of {', '.join(CALIBRATED)} to be calibrated, got {method!r}")
    images = network_inputs(model, images, "calibration")
    factors = check_factor(factor, images.dim() - 2)
    for layer in stencil_layers(model).values():
        basis = StencilBasis(layer.kernel_size, len(layer.kernel_size))
        check_condition(basis.axis_matrices, factors, f"the basis of the {method} map")
    old_size, new_size = _sizes(model, factors, images)
    uses = _covariances(WatchedCopy(model), resize_images(images, old_size))
    covariances = _means(uses)
    new, x = WatchedCopy(model), resize_images(images, new_size)

    def adapt(name: str, old: Tensor, covariance: Tensor) -> None:
        for member in new.groups[name]:
            layer = new.layers[member]
            matrix, _ = _match(old, covariance, layer, new.reactions[member], method)
            layer.weight.copy_(map_stencil(matrix, new.weights[member]))

    measured = _means(_covariances(new, x, lambda name, covariance: adapt(name, uses[name][0], covariance)))
    if any(len(found) > 1 for found in uses.values()):  # later uses need iteration
        for _ in range(SHARED_SWEEPS):
            for name, covariance in measured.items():
                adapt(name, covariances[name], covariance)
            measured = _means(_covariances(new, x))
    scales, matrices = {}, {}
    for name, group in new.groups.items():
        for member in group:
            layer, reaction = new.layers[member], new.reactions[member]
            if name in measured:
                matrices[member], scales[member] = _match(covariances[name], measured[name], layer, reaction, method)
            else:  # the images do not reach this layer
                scales[member] = torch.full(layer.kernel_size, torch.nan, dtype=torch.float64)
                matrices[member] = torch.eye(scales[member].numel(), dtype=torch.float64)
    return Calibration(factors, scales, matrices)


def tap_covariance(x: Tensor, width: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The means C (n, n) of x(p + a) x(p + b) over images, channels and interior pixels p, for all taps a and b.

    The response of a stencil θ to x (N, C, *size) has the mean square θᵀ C θ. C is nan if no pixel is interior.
    """
    dim, num = len(width), math.prod(width)
    reach = [(w - 1) * d for w, d in zip(width, dilation, strict=True)]
    inner = [s - r for s, r in zip(x.shape[2:], reach, strict=True)]
    if min(inner) < 1:
        return torch.full((num, num), torch.nan, dtype=torch.float64)
    offsets = StencilBasis(tuple(width), dim).orders  # the taps in the order of the stencil
    starts = [[o * d for o, d in zip(offset, dilation, strict=True)] for offset in offsets]
    windows = [(..., *(slice(s, s + n) for s, n in zip(start, inner, strict=True))) for start in starts]
    total = torch.zeros(num, num, dtype=torch.float64)
    for chunk in x.split(max(1, 2**22 // (num * x[0].numel()))):
        values = precise(chunk)
        taps = torch.stack([values[window].flatten() for window in windows])
        total += (taps @ taps.mH).real
    return total / (len(x) * x.shape[1] * math.prod(inner))


def _covariances(
    copy_: WatchedCopy, images: Tensor, seen: Callable[[str, Tensor], None] | None = None
) -> dict[str, list[Tensor]]:
    """The covariances of the taps of every group of layers, one for each use; ``seen`` is called at the first."""
    uses: dict[str, list[Tensor]] = {}

    def watch(name: str, layer: _ConvNd, x: Tensor) -> None:
        covariance = tap_covariance(x, layer.kernel_size, layer.dilation)
        if name not in uses and seen is not None:
            seen(name, covariance)
        uses.setdefault(name, []).append(covariance)

    with one_batch("calibration"):
        copy_.run(images, watch, batch_statistics=True)
    return uses


def _means(uses: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(covariances).mean(0) for name, covariances in uses.items()}


def _match(old: Tensor, new: Tensor, layer: _ConvNd, reaction: str, method: str) -> tuple[Tensor, Tensor]:
    """The map M of the taps and the scales s of a layer, from the covariances of the taps at its input."""
    basis = StencilBasis(layer.kernel_size, len(layer.kernel_size), 1.0, reaction)
    a = basis.matrix
    c_old, c_new = a.T @ old @ a, a.T @ new @ a
    rounding = 1e-15 * a.abs().sum(0).square()
    responds = (c_old.diagonal() > rounding * old.trace()) & (c_new.diagonal() > rounding * new.trace())
    ratio = torch.where(responds, c_old.diagonal() / c_new.diagonal(), torch.nan)  # nan means no response
    scales = ratio.sqrt().view(layer.kernel_size)
    if method == "calibrated" or not bool(responds.all()):
        return scaling_matrix(scales.nan_to_num(1.0), reaction), scales
    order = torch.tensor(sorted(range(len(a)), key=lambda k: (sum(basis.orders[k]), basis.orders[k])))
    lower = [_cholesky(c[order][:, order]) for c in (c_old, c_new)]
    by_order = torch.linalg.solve_triangular(lower[1].T, lower[0].T, upper=True)
    terms = torch.empty_like(by_order)
    terms[order[:, None], order] = by_order
    return torch.linalg.solve(a.T, (a @ terms).T).T, scales


def _cholesky(c: Tensor) -> Tensor:
    """The factor L of L Lᵀ = c; correlations are reduced just enough to make c numerically positive definite."""
    root = c.diagonal().sqrt()
    correlation = c / root / root[:, None]
    ridge = 1e-9
    while True:
        lower, info = torch.linalg.cholesky_ex((correlation + ridge * torch.eye(len(c), dtype=c.dtype)) / (1 + ridge))
        if not info:
            return root[:, None] * lower
        ridge *= 10


def _exponent(scales: Tensor, factor: Sequence[float]) -> float:
    orders = StencilBasis(tuple(scales.shape), scales.dim()).orders
    x = scales.new_tensor([sum(k * math.log(f) for k, f in zip(order, factor, strict=True)) for order in orders])
    y = scales.log().flatten()
    x, y = x[y.isfinite()], y[y.isfinite()]
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x)) if bool(x.any()) else math.nan


def _sizes(model: nn.Module, factor: Sequence[float], images: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Old and new size; raise ValueError unless the images are on the finer mesh along every axis."""
    got, spec = tuple(images.shape[2:]), find_spec(model)
    sizes = spec.image_sizes if spec else [s / max(1.0, f) for s, f in zip(got, factor, strict=True)]
    old = tuple(float(s) for s in sizes)
    new = tuple(s * f for s, f in zip(old, factor, strict=True))
    finer = tuple(round(max(o, n)) for o, n in zip(old, new, strict=True))
    if any(abs(s - round(s)) > 1e-6 for s in (*old, *new)):
        sides = f"{' x '.join(f'{s:g}' for s in old)} and {' x '.join(f'{s:g}' for s in new)}"
        raise ValueError(f"calibration must have whole pixels on both meshes, got {sides} for images of {got}")
    if got != finer:
        raise ValueError(
            f"calibration must hold images on the finer mesh, {finer} pixels for a factor {tuple(factor)}, got {got}"
        )
    return tuple(round(s) for s in old), tuple(round(s) for s in new)
