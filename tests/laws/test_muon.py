"""Orthogonalised momentum in float64: what a step does to stencils as matrices, and to the convolution."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from multipde import (
    Muon,
    NetworkConfig,
    PDENet,
    bake,
    make_optimizer,
    operator_norm,
    reparametrize,
    set_mesh_size,
)
from multipde.training import orthogonal
from multipde.training.optimizers import optimizer_flops
from multipde.training.orthogonal import ITERATIONS, _polynomial, orthogonal_stencils, orthogonalized

LARGEST = 1.21
"""Largest singular value after five iterations."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(p: torch.Tensor, grads: list[torch.Tensor], **options) -> torch.Tensor:
    """A parameter after a step along each of the gradients."""
    q = nn.Parameter(p.clone())
    optimizer = Muon([q], **options)
    for grad in grads:
        q.grad = grad.clone()
        optimizer.step()
    return q.detach()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 40), (40, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_by_torch(shape, nesterov):
    p, grads = draw(*shape), [draw(*shape, seed=i) for i in (1, 2, 3)]
    own = moved(p, grads, lr=0.1, momentum=0.6, nesterov=nesterov, weight_decay=0.3)
    q = nn.Parameter(p.clone())
    optimizer = torch.optim.Muon([q], lr=0.1, momentum=0.6, nesterov=nesterov, weight_decay=0.3)
    for grad in grads:
        q.grad = grad.clone()
        optimizer.step()
    size = 3 * 0.1 * math.sqrt(max(1, shape[0] / shape[1]))  # torch rounds to bf16, which has three digits
    assert (own - q.detach()).norm() < 0.03 * size * math.sqrt(min(shape))


def test_the_iteration_on_the_small_matrices_is_newton_schulz():
    for m, n in ((6, 7), (6, 9), (6, 10), (6, 60), (1, 9)):
        x = draw(3, m, n)
        expected = x / x.flatten(1).norm(dim=1).view(-1, 1, 1)
        for _ in range(ITERATIONS):
            expected = _polynomial(expected @ expected.mT) @ expected
        torch.testing.assert_close(orthogonalized(x), expected, rtol=1e-10, atol=1e-10)


def test_singular_vectors_stay_and_singular_values_come_near_one():
    u, s, vt = torch.linalg.svd(draw(4, 12, 60), full_matrices=False)
    s = torch.logspace(0, -1.5, 12, dtype=torch.float64).expand_as(s)
    found = u.mT @ orthogonalized(u @ torch.diag_embed(s) @ vt) @ vt.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert (found - torch.diag_embed(values)).abs().max() < 1e-10
    assert values.min() > 0.68
    assert values.max() < LARGEST


@pytest.mark.parametrize("shape", [(3, 6, 54), (2, 12, 12)])
def test_in_bf16_as_on_a_gpu_it_is_the_same_up_to_rounding(shape, monkeypatch):
    x = draw(*shape).float()
    expected = orthogonalized(x)
    monkeypatch.setattr(orthogonal, "in_bf16", lambda x: True)
    found = orthogonalized(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).flatten(1).norm(dim=1).max() < 0.05 * math.sqrt(shape[1])


def test_a_vanishing_gradient_moves_nothing():
    p = draw(4, 4, 3, 3)
    assert torch.equal(moved(p, [torch.zeros_like(p)]), p)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((4, 4, 3, 3), 16), ((8, 2, 3, 3), 16), ((3, 6, 5), 40), ((3, 2, 3, 3, 3), 6), ((6, 4, 1, 1), 8)],
)
def test_a_step_moves_the_operator_within_its_bound_which_equal_taps_attain(shape, size):
    rate, dim, width = 0.05, len(shape) - 2, shape[-1]
    columns = math.prod(shape[1:])
    bound = LARGEST * width ** (dim / 2) * math.sqrt(max(1, shape[0] / columns)) * rate
    p = 0.3 * draw(*shape)
    for grad in (draw(*shape, seed=1), draw(*shape[:2], *(1,) * dim, seed=2).expand(shape)):
        step = moved(p, [grad], lr=rate) - p
        norm = operator_norm(step, size)
        assert norm < bound
        before, after = operator_norm(p, size), operator_norm(p + step, size)  # dt |K|², from below to 1e-6
        assert abs(after**2 - before**2) <= norm * (2 * before + norm) * (1 + 1e-4)
    matrix = torch.linalg.svdvals(step.flatten(1))[0].item()
    i = torch.arange(size)
    sums = torch.linalg.eigvalsh(((i - i[:, None]).abs() <= width // 2).double())[-1].item()  # w without a boundary
    assert norm == pytest.approx(matrix * width ** (dim / 2) * (sums / width) ** dim, rel=1e-4)


def test_batches_are_as_one_by_one():
    shapes = [(4, 2, 3, 3), (4, 6, 3), (18, 4, 1, 1), (4, 18, 1), (8, 2, 3, 3), (4, 2, 3, 3)]
    stencils = [(draw(*shape, seed=i), 1) for i, shape in enumerate(shapes)]
    together = orthogonal_stencils(stencils)
    for found, stencil in zip(together, stencils, strict=True):
        assert found.shape == stencil[0].shape
        torch.testing.assert_close(found, orthogonal_stencils([stencil])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_a_grouped_convolution_is_a_matrix_per_group(groups):
    net = nn.Sequential(nn.Conv2d(6, 12, 3, groups=groups, bias=False)).double()
    weight = net[0].weight
    optimizer, before = make_optimizer(net, "muon", weight_decay=0), weight.detach().clone()
    weight.grad = draw(*weight.shape)
    optimizer.step()
    for part, old, grad in zip(weight.chunk(groups), before.chunk(groups), weight.grad.chunk(groups), strict=True):
        torch.testing.assert_close(part, moved(old, [grad], lr=0.05), rtol=1e-10, atol=1e-12)


def test_layouts_do_not_matter():
    p, grad = draw(4, 6, 3, 3), draw(4, 6, 3, 3, seed=1)
    expected = moved(p, [grad, 2 * grad])
    last = {"memory_format": torch.channels_last}
    q = nn.Parameter(p.contiguous(**last))
    r = nn.Parameter(torch.empty(4, 6, 3, 5, dtype=torch.float64)[..., ::2].copy_(p))
    for parameter in (q, r):
        optimizer = Muon([parameter])
        for k in (1, 2):
            parameter.grad = (k * grad).contiguous(**last) if parameter is q else k * grad
            optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)
    assert q.is_contiguous(**last)
    assert not r.is_contiguous()


def test_what_is_no_stencil_moves_by_sgd():
    torch.manual_seed(0)
    net = PDENet(NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8)).double()
    twin = copy.deepcopy(net)
    stencils = {name for name, p in net.named_parameters() if p.dim() == 4}
    own, plain = make_optimizer(net, "muon", 0.01), make_optimizer(twin, "sgd", 0.01, nesterov=True)
    for seed in (0, 1):
        x, labels = draw(8, 3, 8, 8, seed=seed), torch.arange(8) % 10
        nn.functional.cross_entropy(twin(x), labels).backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = q.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
        for optimizer in (own, plain):
            optimizer.step()
        plain.zero_grad()
        twin_values = dict(twin.named_parameters())
        for name, p in net.named_parameters():
            if name not in stencils:
                torch.testing.assert_close(p, twin_values[name], rtol=1e-12, atol=1e-14)
        assert all(not torch.equal(p, twin_values[name]) for name, p in net.named_parameters() if name in stencils)


@pytest.mark.parametrize(("coordinates", "size"), [("beta", 8), ("beta", 16), ("stencil", 8)])
def test_stencils_move_alike_in_all_coordinates_and_on_every_mesh(coordinates, size):
    torch.manual_seed(0)
    net = reparametrize(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 5)).double(), 1 / 16, coordinates=coordinates
    )
    set_mesh_size(net, 1 / size)
    twin = bake(copy.deepcopy(net))
    optimizers = [make_optimizer(module, "muon") for module in (net, twin)]
    for seed in (1, 2, 3):
        for module, optimizer in zip((net, twin), optimizers, strict=True):
            module(draw(2, 3, 8, 8, seed=seed)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for i in (0, 2):
        torch.testing.assert_close(net[i].weight, twin[i].weight, rtol=1e-8, atol=1e-8)


def test_its_work_is_what_torch_counts():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 9, 1), nn.Flatten(), nn.Linear(9, 2)
    )
    optimizer = make_optimizer(net, "muon")
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == optimizer_flops(optimizer) > 0
    assert optimizer_flops(make_optimizer(net, "sgd")) == 0
