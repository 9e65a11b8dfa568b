"""The TV norm's own derivatives against the formula, in every layout and precision."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multipde import NetworkConfig, PDENet
from multipde.networks.kernels.tv_norm import _over_channels, _plain, tv_norm
from multipde.runtime.device import Compute

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def inputs(dim=2, dtype=torch.float64, layout=torch.contiguous_format, channels=4):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, channels, *(5,) * dim, generator=generator, dtype=torch.float64).to(dtype)
    y = y.contiguous(memory_format=layout).requires_grad_()
    scale = (1 + 0.3 * torch.randn(channels, generator=generator, dtype=torch.float64)).requires_grad_()
    return y, scale, (0.3 * torch.randn(channels, generator=generator, dtype=torch.float64)).requires_grad_()


SHAPES = [(2, LAYOUTS[0]), (2, LAYOUTS[1]), (1, LAYOUTS[0]), (3, LAYOUTS[0])]
PLAIN = [(dim, layout, relu, False) for dim, layout in SHAPES for relu in (False, True)]
COMPILED = [(2, LAYOUTS[1], True, True)]  # of one dimension and three as of (N, C, pixels)


@pytest.mark.parametrize(("dim", "layout", "relu", "compiled"), [*PLAIN, *COMPILED])
def test_values_and_gradients_are_those_of_the_formula(dim, layout, relu, compiled, compiler):
    y, scale, bias = inputs(dim, layout=layout)
    found, expected = tv_norm(y, scale, bias, 1e-3, relu, compiled), _plain(y, scale, bias, 1e-3, relu)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=layout)
    g = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, (y, scale, bias), g),
        torch.autograd.grad(expected, (y, scale, bias), g),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dim", "compiled"), [(1, False), (2, False), (3, False), (2, True)])
def test_gradients_of_both_orders_are_those_of_differences(dim, compiled, compiler):
    small = [t.detach()[:1, :2, :2].clone().requires_grad_() if t.dim() > 1 else t for t in inputs(dim)]
    y, scale, bias = small[0], *(t.detach()[:2].clone().requires_grad_() for t in small[1:])
    assert torch.autograd.gradcheck(lambda *args: tv_norm(*args, 1e-1, compiled=compiled), (y, scale, bias))
    assert torch.autograd.gradgradcheck(lambda *args: tv_norm(*args, 1e-1, compiled=compiled), (y, scale, bias))


def test_what_needs_no_gradient_gets_none():
    y, scale, bias = inputs()
    (grad,) = torch.autograd.grad(tv_norm(y, scale.detach(), bias.detach(), 1e-3).square().sum(), y, create_graph=True)
    (plain,) = torch.autograd.grad(_plain(y, scale.detach(), bias.detach(), 1e-3, False).square().sum(), y)
    torch.testing.assert_close(grad, plain)
    assert grad.requires_grad


@pytest.mark.parametrize(
    ("by", "layout", "channels"),
    [
        *(("plain", layout, channels) for layout in LAYOUTS for channels in (1, 4, 16, 40)),
        *(("native", LAYOUTS[1], channels) for channels in (1, 4, 16, 40)),  # it has no kernels for the other layout
        ("torch", LAYOUTS[0], 40),
    ],
)
def test_sums_are_kept_in_float32_where_features_are_in_less(by, layout, channels, compiler, request):
    if by == "torch":
        request.getfixturevalue("kernels_by_torch")
    y, scale, bias = inputs(dtype=torch.bfloat16, layout=layout, channels=channels)
    scale, bias = (t.detach().float().requires_grad_() for t in (scale, bias))
    out = tv_norm(y, scale, bias, 1e-3, relu=True, compiled=by != "plain")
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (y, scale, bias)]
    _plain(*exact, 1e-3, True).square().sum().backward()
    assert scale.grad.dtype == torch.float32
    for a, b in zip((y, scale, bias), exact, strict=True):
        assert (a.grad.double() - b.grad).norm() < 0.02 * b.grad.norm() + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_per_pixel_are_written_out_without_error(dtype):
    """And only in bfloat16 with the channels innermost."""
    y = torch.zeros(2, 16, 3, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    r = torch.rand(2, 1, 3, 5).to(dtype)
    assert torch.equal(_over_channels(r, y).expand_as(y), r.expand_as(y))
    assert _over_channels(r, y).shape == (y.shape if dtype == torch.bfloat16 else r.shape)
    assert _over_channels(r, y.contiguous()) is r


class Layouts(TorchDispatchMode):
    """Notes the tensors of features that are made with channels not innermost, and the copies that change a layout."""

    def __init__(self, least):
        super().__init__()
        self.least, self.made, self.odd = least, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in result if isinstance(result, (tuple, list)) else [result]:
            is_new = isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known
            if is_new and t.dim() == 4 and t.numel() >= self.least:
                self.made += 1
                if not t.is_contiguous(memory_format=torch.channels_last) or "clone" in str(func):
                    self.odd.append(str(func))
        return result


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
def test_channels_stay_innermost_through_a_whole_training_step(dynamics, amp):
    compute, size = Compute.of("cpu", amp), 8
    net = compute.place(PDENet(NetworkConfig(dynamics, (8, 12), 16, steps=2, size=size))).train()
    x = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    with Layouts(4 * 6 * (size // 2) ** 2) as seen:
        with compute.autocast():
            scores = net(x)
        scores.float().square().sum().backward()
    halves = 4 if dynamics == "hamiltonian" else 0  # two in each block, in memory of their own
    assert seen.odd == ["aten.clone.default"] * halves
    assert seen.made > 50
