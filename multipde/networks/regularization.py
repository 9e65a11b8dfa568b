"""The regulariser (13) with sums in time as quadratures, its gradient, the box constraint, and weight decay."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.mesh.parametrization import StencilParametrization
from multipde.mesh.reparametrize import stencil_parametrization, stored_parameter
from multipde.networks.layers import SymmetricLayer
from multipde.networks.network import PDENet


class Regularizer:
    """R = α1 Σ_j dt Σ_i φ((θ_{j+1,i} - θ_{j,i})/dt) + α2/2 (Σ_j dt |θ_j|² + |W|² + |μ|²), eq. (13).

    θ_j are the controls of a block at the nodes of their time grid, dt is the distance between nodes, and φ(x) =
    sqrt(x² + τ) - sqrt(τ). W and μ stand for all parameters of opening, connectors and classifier. The sums over j are
    quadratures, which approximate the same integrals on every time grid: linear refinement of the controls does not
    change the first, piecewise constant refinement not the second. Stencils are taken on the reference mesh.

    Calling it gives the value, and `add` adds the gradient, which is known in closed form:

        ∂R/∂θ_j = α1 (ψ((θ_j - θ_{j-1})/dt) - ψ((θ_{j+1} - θ_j)/dt)) + α2 dt θ_j,    ψ(x) = x/sqrt(x² + τ)

    Differences beyond the ends of the grid are zero. A parameter p with θ = S p gets the gradient Sᵀ ∂R/∂θ. The small
    tensors of a block are concatenated, which is faster than autograd, which takes them one by one.

    Args:
        net: the network, whose parameters are collected once and read again whenever the regulariser is used.
        alpha1: weight of the total variation in time.
        alpha2: weight of the sum of squares.
        tau: smoothing of the absolute value.

    Reference: Ruthotto & Haber (2018), eq. (13).
    """

    def __init__(self, net: PDENet, alpha1: float = 2e-4, alpha2: float = 2e-4, tau: float = 1e-3):
        for name, alpha in (("alpha1", alpha1), ("alpha2", alpha2)):
            if not alpha >= 0:
                raise ValueError(f"{name} must not be negative, got {alpha}")
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        self.alpha1, self.alpha2, self.tau = alpha1, alpha2, tau
        self.blocks: list[tuple[float, list[list[_Stored]]]] = []
        for block in net.blocks:
            nodes = [_stored(node) for node in block.controls]  # pyright: ignore
            self.blocks.append((block.dt * block.steps / len(nodes), nodes))  # pyright: ignore
        self.others = [s for part in (net.opening, net.connectors, net.classifier) for s in _stored(part)]

    def __call__(self) -> Tensor:
        result = sum(self.block(k) for k in range(len(self.blocks)))
        return result + self.alpha2 / 2 * _row(self.others).square().sum()

    def block(self, k: int) -> Tensor:
        """The part of the regulariser that belongs to block k."""
        dt, nodes = self.blocks[k]
        theta = torch.stack([_row(node) for node in nodes])
        squares = self.alpha2 / 2 * dt * theta.square().sum()
        if len(theta) == 1 or not self.alpha1:
            return squares
        slopes = torch.diff(theta, dim=0) / dt
        variation = (slopes.square() + self.tau).sqrt().sum() - slopes.numel() * math.sqrt(self.tau)
        return self.alpha1 * dt * variation + squares

    @torch.no_grad()
    def add(self) -> None:
        """Add the gradient; a missing gradient of a parameter counts as zero."""
        found = [(self.others, self.alpha2 * _row(self.others))]
        for dt, nodes in self.blocks:
            stored = [s for node in nodes for s in node]
            theta = _row(stored).view(len(nodes), -1)
            grad = self.alpha2 * dt * theta
            if len(nodes) > 1 and self.alpha1:
                slopes = torch.diff(theta, dim=0) / dt
                pull = self.alpha1 * slopes * (slopes.square() + self.tau).rsqrt_()
                grad[1:] += pull
                grad[:-1] -= pull
            found.append((stored, grad.flatten()))
        for stored, grads in found:
            _add(stored, grads)


def _add(stored: "list[_Stored]", grads: Tensor) -> None:
    """Add a vector, in which the gradients of all parameters follow each other, to these gradients."""
    old, new = [], []
    for s, grad in zip(stored, grads.split([s.parameter.numel() for s in stored]), strict=True):
        if s.parameter.requires_grad and s.parameter.grad is None:
            s.parameter.grad = torch.empty_like(s.parameter).copy_(s.pulled_back(grad))
        elif s.parameter.requires_grad:
            old.append(s.parameter.grad)
            new.append(s.pulled_back(grad))
    if old:
        torch._foreach_add_(old, new)  # pyright: ignore[reportPrivateImportUsage]


class Box:
    """The box constraint: all taps of the symmetric layers stay in [-bound, bound] on the reference mesh.

    Parameters that require no gradient are left as they are.

    Attributes:
        stencils: the stored parameters that are stencils themselves, not β coordinates of stencils.

    Reference: Ruthotto & Haber (2018), section 4.
    """

    def __init__(self, net: PDENet, bound: float = 1.0):
        convs = [layer.conv for layer in net.modules() if isinstance(layer, SymmetricLayer)]
        found = [_Stored(stored_parameter(conv), stencil_parametrization(conv)) for conv in convs]
        found = [s for s in found if s.parameter.requires_grad]
        self.bound = bound
        self.stencils = [s.parameter for s in found if s.is_itself]
        self._others = [(s.parameter, s.parametrization) for s in found if not s.is_itself]

    @torch.no_grad()
    def project(self) -> None:
        """Project the stencils, in place."""
        for stencil in self.stencils:
            stencil.clamp_(-self.bound, self.bound)
        for p, parametrization in self._others:
            assert parametrization is not None
            stencil = parametrization.reference_stencil(p).clamp_(-self.bound, self.bound)
            p.copy_(parametrization.reference_parameter(stencil))


class WeightDecay:
    """The penalty of an external model: weight decay on its stencils and matrices.

    R = α2/2 Σ |W|² over the parameters with more than one axis, which excludes biases and normalisation layers.
    """

    def __init__(self, alpha2: float, net: nn.Module):
        if not alpha2 >= 0:
            raise ValueError(f"alpha2 must not be negative, got {alpha2}")
        self.alpha2 = alpha2
        self.parameters = [p for p in net.parameters() if p.dim() > 1 and p.requires_grad]

    @torch.no_grad()
    def add(self) -> None:
        """Add α2 W to the gradients; a missing gradient counts as zero."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.parameters and self.alpha2:
            torch._foreach_add_([p.grad for p in self.parameters], self.parameters, alpha=self.alpha2)  # pyright: ignore


@dataclass(frozen=True, eq=False)
class _Stored:
    """A stored parameter p and its parametrization as a stencil, if it has one."""

    parameter: nn.Parameter
    parametrization: StencilParametrization | None

    @property
    def is_itself(self) -> bool:
        """Whether the value of p on the reference mesh is p itself."""
        return self.parametrization is None or self.parametrization.coordinates == "stencil"

    def flat(self) -> Tensor:
        """The value of p on the reference mesh as a vector, channels last, as they usually lie in memory."""
        p = self.parameter if self.is_itself else self.parametrization.reference_stencil(self.parameter)  # pyright: ignore
        return p.movedim(1, -1).flatten() if p.dim() > 1 else p

    def pulled_back(self, grad: Tensor) -> Tensor:
        """The gradient with respect to p from the gradient with respect to `flat`."""
        if self.parameter.dim() > 1:
            num, channels, *width = self.parameter.shape
            grad = grad.view(num, *width, channels).movedim(-1, 1)
        return grad if self.is_itself else self.parametrization.reference_gradient(grad)  # pyright: ignore


def _row(stored: Iterable[_Stored]) -> Tensor:
    """The values of all parameters on the reference mesh, concatenated."""
    return torch.cat([s.flat() for s in stored])


def _stored(module: nn.Module) -> list[_Stored]:
    """All parameters of a module with their parametrizations."""
    result = []
    for part in module.modules():
        for name, p in part._parameters.items():
            own = name == "original" and isinstance(part, nn.utils.parametrize.ParametrizationList)
            if p is not None:
                result.append(_Stored(p, part[0] if own else None))  # pyright: ignore
    return result
