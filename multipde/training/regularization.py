"""The regulariser (13) as quadratures in time, and the box constraint."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.mesh.reparametrize import stencil_parametrization, stored_parameter
from multipde.networks.dynamics import Block
from multipde.networks.layers import SymmetricLayer
from multipde.networks.network import PDENet


@dataclass(frozen=True)
class Regularizer:
    """R = α1 Σ_j dt Σ_i φ((θ_{j+1,i} - θ_{j,i})/dt) + α2/2 (Σ_j dt |θ_j|² + |W|² + |μ|²), eq. (13).

    θ_j are the controls of a block at the nodes of their grid, dt the distance of the nodes, and φ(x) = sqrt(x² + τ) -
    sqrt(τ). As quadratures the sums mean the same on every time grid: the first is invariant under linear refinement of
    the controls, the second under constant refinement. Stencils count as they are on the reference mesh. Opening and
    connectors enter the second term only, without dt.

    Args:
        alpha1: weight of the total variation in time.
        alpha2: weight of the squares.
        tau: smoothing of the absolute value.

    Raises:
        ValueError: a negative weight, a smoothing that is not positive.

    Reference: Ruthotto & Haber (2018), eq. (13).
    """

    alpha1: float = 2e-4
    alpha2: float = 2e-4
    tau: float = 1e-3

    def __post_init__(self):
        for name in ("alpha1", "alpha2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.tau > 0:
            raise ValueError(f"tau must be positive, got {self.tau}")

    def __call__(self, net: PDENet) -> Tensor:
        blocks: list[Block] = list(net.blocks)  # pyright: ignore[reportAssignmentType]
        result = sum(self.block(block) for block in blocks)
        others = [p.flatten() for part in (net.opening, net.connectors, net.classifier) for p in _references(part)]
        return result + self.alpha2 / 2 * torch.cat(others).square().sum()

    def block(self, block: Block) -> Tensor:
        """The contribution of one block."""
        theta = torch.stack([torch.cat([t.flatten() for t in _references(node)]) for node in block.controls])
        dt = block.dt * block.steps / len(theta)
        squares = self.alpha2 / 2 * dt * theta.square().sum()
        if len(theta) == 1 or not self.alpha1:
            return squares
        slopes = torch.diff(theta, dim=0) / dt
        variation = (slopes.square() + self.tau).sqrt().sum() - slopes.numel() * math.sqrt(self.tau)
        return self.alpha1 * dt * variation + squares


def boxed_stencils(net: PDENet) -> list[Tensor]:
    """The stored parameters that `project_to_box` keeps within the box as they are: those that are stencils."""
    layers = [layer.conv for layer in net.modules() if isinstance(layer, SymmetricLayer)]
    found = [(stencil_parametrization(conv), conv) for conv in layers]
    return [
        conv.weight if p is None else stored_parameter(conv)  # pyright: ignore[reportReturnType]
        for p, conv in found
        if p is None or p.coordinates == "stencil"
    ]


@torch.no_grad()
def project_to_box(net: PDENet, bound: float = 1.0) -> None:
    """Project the stencils of the symmetric layers to [-bound, bound] on their reference mesh, in place.

    Reference: Ruthotto & Haber (2018), section 4.
    """
    for layer in net.modules():
        if not isinstance(layer, SymmetricLayer):
            continue
        p = stencil_parametrization(layer.conv)
        if p is None:
            layer.conv.weight.clamp_(-bound, bound)  # pyright: ignore[reportCallIssue]
            continue
        original = stored_parameter(layer.conv)
        if p.coordinates == "stencil":
            original.clamp_(-bound, bound)
        else:
            original.copy_(p.reference_parameter(p.reference_stencil(original).clamp_(-bound, bound)))


def _references(module: nn.Module) -> list[Tensor]:
    """All parameters of a module, stencils as they are on the reference mesh."""
    result = []
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                result.append(_reference(part, name, p))
    return result


def _reference(part: nn.Module, name: str, p: Tensor) -> Tensor:
    if name != "original" or not isinstance(part, nn.utils.parametrize.ParametrizationList):
        return p
    return part[0].reference_stencil(p)  # pyright: ignore[reportCallIssue]
