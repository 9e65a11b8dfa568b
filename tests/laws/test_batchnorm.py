"""BatchNorm, ReLU and mean in one: values, derivatives and what is remembered are those of the three by themselves."""

# pyright: reportOptionalMemberAccess=false

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde.conversions.recalibration import frozen_running_statistics
from multipde.networks import layers
from multipde.networks.kernels.batch_norm import is_fused, pooled_batch_norm
from multipde.networks.layers import Connector, Opening

pytestmark = pytest.mark.usefixtures("compiler")


def features(dtype=torch.float64, shape=(3, 4, 6, 8), mean=0.0):
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def batch_norm(channels=4, dtype=torch.float64, **options):
    norm = nn.BatchNorm2d(channels, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.3 * torch.randn(channels, generator=generator, dtype=dtype))
    return norm


def by_torch(x, norm, side=2):
    return functional.avg_pool2d(norm(x).relu(), side)


@pytest.mark.parametrize(
    ("momentum", "side", "in_", "compiled"),
    [(0.1, 2, "double", True), (None, 1, "double", False), (0.1, 1, "float", True)],
)
def test_values_gradients_and_statistics_are_those_of_torch(momentum, side, in_, compiled, request):
    """In double precision by torch.compile or as it is written, in single precision in C++."""
    if not compiled:
        request.getfixturevalue("nothing_compiled_by_torch")
    dtype, atol = {"double": (torch.float64, 1e-12), "float": (torch.float32, 2e-6)}[in_]
    norm = batch_norm(momentum=momentum, dtype=dtype)
    other = copy.deepcopy(norm)
    for _ in range(3):
        x = features(dtype)
        assert is_fused(norm, x, side)
        found, expected = pooled_batch_norm(x, norm, side), by_torch(x, other, side)
        torch.testing.assert_close(found, expected, rtol=atol, atol=atol)
        assert found.is_contiguous(memory_format=torch.channels_last)
        g = torch.randn_like(found)
        for a, b in zip(
            torch.autograd.grad(found, (x, *norm.parameters()), g),
            torch.autograd.grad(expected, (x, *other.parameters()), g),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=100 * atol, atol=atol)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer, rtol=atol, atol=atol)


def test_of_gradients_there_are_no_gradients():
    norm, x = batch_norm(), features()
    with pytest.raises(RuntimeError, match="second derivatives need layers that are not compiled"):
        torch.autograd.grad(pooled_batch_norm(x, norm).square().sum(), x, create_graph=True)


def test_a_mean_large_beside_the_deviation_cancels(either_kernels, nothing_compiled_by_torch):
    norm, x = batch_norm(dtype=torch.float32), features(torch.float32, mean=1000.0)
    exact = by_torch(x.detach().double(), copy.deepcopy(norm).double())
    torch.testing.assert_close(pooled_batch_norm(x, norm).double(), exact, rtol=1e-3, atol=1e-3)


def test_sums_are_kept_in_float32_where_features_are_in_bfloat16(either_kernels):
    norm, x = batch_norm(dtype=torch.float32), features(torch.bfloat16)
    other, exact = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    y = pooled_batch_norm(x, norm)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    by_torch(exact, other).square().sum().backward()
    pairs = [(x, exact), *zip(norm.parameters(), other.parameters(), strict=True)]
    for found, expected in pairs:
        assert (found.grad.double() - expected.grad).norm() < 0.02 * expected.grad.norm()
    assert norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_var.double(), other.running_var, rtol=1e-3, atol=1e-3)


def test_a_constant_channel_stays_finite(either_kernels, nothing_compiled_by_torch):
    norm, x = batch_norm(dtype=torch.float32), features(torch.float32).detach()
    x[:, 0] = 3.0
    x.requires_grad_()
    y = pooled_batch_norm(x, norm)
    y.sum().backward()
    torch.testing.assert_close(y[:, 0], norm.bias[0].relu().expand_as(y[:, 0]))
    assert x.grad.isfinite().all()


def test_it_is_left_to_torch_where_it_would_not_be_the_same():
    norm, x = batch_norm(), features()
    assert is_fused(norm, x)
    assert not is_fused(norm, x.contiguous())
    assert not is_fused(norm, features(shape=(3, 4, 5, 8)))
    assert is_fused(norm, features(shape=(3, 4, 5, 8)), side=1)
    assert not is_fused(norm, features(shape=(1, 4, 1, 1)), side=1)
    assert not is_fused(norm.eval(), x)
    norm.train()
    for other in (nn.SyncBatchNorm(4), batch_norm(affine=False)):
        assert not is_fused(other.train(), x)
    handle = norm.register_forward_hook(lambda *_: None)
    assert not is_fused(norm, x)
    handle.remove()
    assert is_fused(norm, x)
    norm.forward = norm.forward  # as `synchronised` puts the batch of all processes in its place
    assert not is_fused(norm, x)


@pytest.mark.parametrize("kind", [Opening, Connector])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_compiled_opening_is_the_usual_one(kind, size, frozen, monkeypatch, nothing_compiled_by_torch):
    torch.manual_seed(0)
    layer = kind(4, 6).double().to(memory_format=torch.channels_last).train()
    other = copy.deepcopy(layer)
    other.compiled = True
    x = features(shape=(3, 4, *size))
    fused = []
    monkeypatch.setattr(layers, "pooled_batch_norm", lambda *args: fused.append(args[2]) or pooled_batch_norm(*args))
    for pool in (False, True):
        with frozen_running_statistics(layer, frozen), frozen_running_statistics(other, frozen):
            found, expected = other(x, pool), layer(x, pool)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        g = torch.randn_like(found)
        for a, b in zip(
            torch.autograd.grad(found, (x, *other.parameters()), g),
            torch.autograd.grad(expected, (x, *layer.parameters()), g),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert fused == ([1, 2] if size == (6, 8) else [1])
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(other.get_buffer(name), buffer, rtol=1e-12, atol=1e-13)
    assert (layer[1].num_batches_tracked == 0) == frozen
    torch.testing.assert_close(other.eval()(x, True), layer.eval()(x, True))


def test_a_compiler_around_a_compiled_opening_sees_its_parts():
    layer = Opening(4, 6).to(memory_format=torch.channels_last).train()
    layer.compiled = True
    other, x = copy.deepcopy(layer), features(torch.float32)
    torch._dynamo.reset()
    found = torch.compile(layer, backend="eager", fullgraph=True)(x, True)
    torch._dynamo.reset()
    torch.testing.assert_close(found, other(x, True), rtol=1e-5, atol=1e-5)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(other.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
