"""The TV norm's own derivatives against the formula, in every layout and precision."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false

import pytest
import torch

from multipde.networks.normalization import _plain, tv_norm

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def inputs(dim=2, dtype=torch.float64, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 4, *(5,) * dim, generator=generator, dtype=torch.float64).to(dtype)
    y = y.contiguous(memory_format=layout).requires_grad_()
    scale = (1 + 0.3 * torch.randn(4, generator=generator, dtype=torch.float64)).requires_grad_()
    return y, scale, (0.3 * torch.randn(4, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_the_formula(layout, relu):
    y, scale, bias = inputs(layout=layout)
    found, expected = tv_norm(y, scale, bias, 1e-3, relu), _plain(y, scale, bias, 1e-3, relu)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=layout)
    g = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, (y, scale, bias), g),
        torch.autograd.grad(expected, (y, scale, bias), g),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gradients_of_both_orders_are_those_of_differences(dim):
    small = [t.detach()[:1, :2, :2].clone().requires_grad_() if t.dim() > 1 else t for t in inputs(dim)]
    y, scale, bias = small[0], *(t.detach()[:2].clone().requires_grad_() for t in small[1:])
    assert torch.autograd.gradcheck(lambda *args: tv_norm(*args, 1e-1), (y, scale, bias))
    assert torch.autograd.gradgradcheck(lambda *args: tv_norm(*args, 1e-1), (y, scale, bias))


def test_what_needs_no_gradient_gets_none():
    y, scale, bias = inputs()
    (grad,) = torch.autograd.grad(tv_norm(y, scale.detach(), bias.detach(), 1e-3).square().sum(), y, create_graph=True)
    (plain,) = torch.autograd.grad(_plain(y, scale.detach(), bias.detach(), 1e-3, False).square().sum(), y)
    torch.testing.assert_close(grad, plain)
    assert grad.requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_kept_in_float32_where_features_are_in_less(layout):
    y, scale, bias = inputs(dtype=torch.bfloat16, layout=layout)
    scale, bias = (t.detach().float().requires_grad_() for t in (scale, bias))
    out = tv_norm(y, scale, bias, 1e-3, relu=True)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (y, scale, bias)]
    _plain(*exact, 1e-3, True).square().sum().backward()
    assert scale.grad.dtype == torch.float32
    for a, b in zip((y, scale, bias), exact, strict=True):
        assert (a.grad.double() - b.grad).norm() < 0.02 * b.grad.norm()
