"""Operator norms |K| and the norms of Jacobians along data, by power iteration."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multipde.mesh.modes import eval_mode, hooked
from multipde.networks.dynamics import Block, Force
from multipde.networks.inputs import network_inputs
from multipde.networks.layers import CONVOLVE, CONVOLVE_TRANSPOSED, SymmetricLayer
from multipde.networks.reversible import StepForce


@torch.no_grad()
def operator_norm(
    stencils: Tensor, size: int | Sequence[int], *, tolerance: float = 1e-6, num_iterations: int = 1000, seed: int = 0
) -> float:
    """Compute the norm |K| of a convolution with zero padding on a mesh of the given size, by power iteration on KᵀK.

    Args:
        stencils: the weight of the convolution.
        size: number of pixels of the mesh, one or one per axis.
        tolerance: relative change of the norm at which the iteration stops.
        num_iterations: largest number of iterations.
        seed: seed of the random vector with which the iteration starts.

    Shape:
        - stencils: (out channels, in channels, *width), odd widths

    Returns:
        The largest singular value of K, computed in float64 and approximated from below.
    """
    dim = stencils.dim() - 2
    weight = stencils.detach().to("cpu", torch.float64)
    padding = [w // 2 for w in weight.shape[2:]]
    sizes = (size,) * dim if isinstance(size, int) else tuple(size)
    x = torch.randn(1, weight.shape[1], *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x /= x.norm()
    norm = 0.0
    for _ in range(num_iterations):
        y = CONVOLVE[dim](x, weight, padding=padding)
        previous, norm = norm, y.norm().item()
        if norm == 0 or abs(norm - previous) <= tolerance * norm:
            break
        x = CONVOLVE_TRANSPOSED[dim](y, weight, padding=padding)
        x /= x.norm()
    return norm


@dataclass(frozen=True)
class StepNorms:
    """The norms of the layers F of one time step: of their operators K, and of their Jacobians ∂F/∂y along data.

    Args:
        norms: |K| of the step's layers with zero padding; sqrt(|K1| |K2|) for resnet, so that for every dynamics the
            square is a bound on |∂F/∂y| for layers without norm.
        jacobians: for each layer |∂F/∂y| at its input for every image, with norm and activation, estimated from below.
    """

    block: int
    step: int
    dt: float
    norms: tuple[float, ...]
    jacobians: tuple[tuple[float, ...], ...]


def step_norms(model: nn.Module, batch: Tensor, *, num_iterations: int = 15, seed: int = 0) -> list[StepNorms]:
    """|K| and |∂F/∂y| of every time step of a network, the latter by power iteration on JᵀJ for about ten images."""
    steps: list[StepNorms] = []
    with eval_mode(model):
        for k, block, features in block_inputs(model, batch):
            state = block.scheme.start(features)
            for j, forces in enumerate(block.forces()):
                inputs: list[Tensor] = []
                recording = tuple(_recording(force, inputs) for force in forces)
                with torch.no_grad():
                    state = block.scheme.step(state, recording, block.dt)
                pairs = list(zip(forces, inputs, strict=True))
                jacobians = tuple(tuple(jacobian_norm(f, x, num_iterations, seed)) for f, x in pairs)
                norms = tuple(_layer_norm(f, x) for f, x in pairs)
                steps.append(StepNorms(k, j, block.dt, norms, jacobians))
    return steps


def _layer_norm(force: StepForce, y: Tensor) -> float:
    first = operator_norm(force.controls[0], y.shape[2:])
    if isinstance(force.layer, SymmetricLayer):
        return first
    return math.sqrt(first * operator_norm(force.controls[-1], y.shape[2:]))


def block_inputs(model: nn.Module, batch: Tensor) -> list[tuple[int, Block, Tensor]]:
    """The number, the block and the input of every block.

    ValueError for a model that is no `PDENet`, and for a batch that is none of images for it.
    """
    if not all(isinstance(block, Block) for block in getattr(model, "blocks", [None])):
        raise ValueError(f"model must be a PDENet, got {type(model).__name__}")
    batch = network_inputs(model, batch, "batch")
    if not len(batch):
        raise ValueError("batch must hold images, got none")
    found: list[Tensor] = []
    handles = (
        block.register_forward_pre_hook(lambda m, inputs: found.append(inputs[0].detach()))
        for block in model.blocks  # pyright: ignore
    )
    with hooked(handles), torch.no_grad():
        model(batch)
    return [(k, block, x) for k, (block, x) in enumerate(zip(model.blocks, found, strict=True))]  # pyright: ignore


def _recording(force: Force, inputs: list[Tensor]) -> Force:
    """A layer that appends its inputs to a list."""

    def call(y: Tensor, factor: float) -> Tensor:
        inputs.append(y)
        return force(y, factor)

    return call


def jacobian_norm(force: Callable[[Tensor], Tensor], y: Tensor, num_iterations: int, seed: int) -> list[float]:
    """|∂F/∂y| for each image, from below, by power iteration on JᵀJ; one iteration gives |J v|/|v| for a random v."""
    v = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    norms = torch.ones(len(y), dtype=y.dtype, device=y.device)
    with torch.inference_mode(False), torch.enable_grad():
        y, v, norms = y.detach().clone().requires_grad_(), v.clone(), norms.clone()
        out = force(y)
        u = torch.zeros_like(out, requires_grad=True)
        (vjp,) = torch.autograd.grad(out, y, u, create_graph=True)  # Jᵀu, linear in u: its derivative gives J v
        for _ in range(num_iterations):
            v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *(1,) * (v.dim() - 1))
            (jv,) = torch.autograd.grad(vjp, u, v, retain_graph=True)
            norms = jv.flatten(1).norm(dim=1)
            (v,) = torch.autograd.grad(out, y, jv, retain_graph=True)
    return norms.tolist()
