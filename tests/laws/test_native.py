"""The kernels in C++ do what those in Python say, for every number of channels, and the same again every time."""

import pytest
import torch

from multipde.networks.kernels import batch_norm as batchnorm
from multipde.networks.kernels import dispatch as kernels
from multipde.networks.kernels import native
from multipde.networks.kernels.tv_norm import tv_norm
from multipde.networks.layers import Opening

pytestmark = pytest.mark.usefixtures("compiler")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
CHANNELS = pytest.mark.parametrize("channels", [1, 3, 4, 6, 16, 24, 32, 48, 56, 64, 112, 128])


@pytest.fixture(params=[3], autouse=True)
def threads(request):
    """Several; one test takes others, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def lines(channels, dtype, num=40, width=14):
    """Of a little more than two runs of pixels."""
    return torch.randn(num, width, channels).to(dtype)


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        rounding = 5e-3 if a.dtype == torch.bfloat16 else 5e-6
        assert (a.float() - b.float()).norm() <= rounding * max(
            1.0, b.float().norm()
        )  # sums of terms of one may cancel


@DTYPES
@CHANNELS
@pytest.mark.parametrize("relu", [False, True])
def test_tv_norm(channels, relu, dtype):
    y, g, a, b = lines(channels, dtype), lines(channels, dtype), torch.rand(channels), torch.randn(channels)
    assert native.handles(y)
    expected = kernels.tv_forward(y, a, b, 1e-3, relu, -1)
    assert_alike(native.tv_forward(y, a, b, 1e-3, relu), expected)
    r = expected[1]
    assert_alike(native.tv_backward(g, y, r, a, b, relu), kernels.tv_backward(g, y, r, a, b, relu, -1))


@DTYPES
@CHANNELS
@pytest.mark.parametrize("side", [1, 2])
def test_pooled_batch_norm(side, channels, dtype):
    cells = torch.randn(40, side, 7, side, channels).to(dtype) + 3
    g, known = lines(channels, dtype, 40, 7), [torch.rand(channels) for _ in range(5)]
    assert_alike(native.moments(cells), batchnorm.moments(cells))
    forward, sums = (cells, *known[:3]), (g, cells, *known[:3])
    assert_alike([native.pooled_affine_relu(*forward)], [batchnorm.pooled_affine_relu(*forward)])
    assert_alike(native.gradient_sums(*sums), batchnorm.gradient_sums(*sums))
    backward = (*sums, *known[3:])
    assert_alike([native.pooled_affine_relu_backward(*backward)], [batchnorm.pooled_affine_relu_backward(*backward)])


@DTYPES
@pytest.mark.parametrize("channels", [6, 16])
@pytest.mark.parametrize("threads", [1, 700], indirect=True)
def test_one_thread_and_more_than_there_are_pixels(channels, dtype):
    test_tv_norm(channels, True, dtype)
    for side in (1, 2):
        test_pooled_batch_norm(side, channels, dtype)


def test_rounding_to_bfloat16_is_that_of_torch():
    """To the nearest, ties to even, infinity and what is not a number included."""
    y = torch.tensor([1.0, 1.00390625, 1.01171875, -3e38, float("inf"), -float("inf"), float("nan"), 0.0] * 2)
    a, b = torch.zeros(16), y
    (out, _) = native.tv_forward(torch.ones(1, 1, 16).bfloat16(), a, b, 1e-3, False)
    torch.testing.assert_close(out[0, 0], y.bfloat16(), rtol=0, atol=0, equal_nan=True)
    out, _ = native.tv_forward(torch.ones(1, 1, 8).bfloat16(), a[:8], b[:8], 1e-3, False)
    torch.testing.assert_close(out[0, 0], y[:8].bfloat16(), rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_what_is_not_a_number_passes_the_relu(dtype):
    y = lines(16, dtype)
    y[0, 0, 0] = float("nan")
    out, _ = native.tv_forward(y, torch.ones(16), torch.zeros(16), 1e-3, True)
    assert out[0, 0].isnan().all()
    assert out[0, 1:].isfinite().all()
    cells = torch.full((1, 2, 1, 2, 16), float("nan")).to(dtype)
    assert native.pooled_affine_relu(cells, *(torch.ones(16) for _ in range(3))).isnan().all()


def test_results_repeat_bit_for_bit():
    y, g, a, b = lines(32, torch.float32), lines(32, torch.float32), torch.rand(32), torch.randn(32)
    _, r = native.tv_forward(y, a, b, 1e-3, True)
    cells = torch.randn(40, 2, 7, 2, 32)
    pooled = lines(32, torch.float32, 40, 7)
    for kernel in (
        lambda: native.tv_backward(g, y, r, a, b, True),
        lambda: native.moments(cells),
        lambda: native.gradient_sums(pooled, cells, a, a, b),
    ):
        for x, again in zip(kernel(), kernel(), strict=True):
            assert torch.equal(x, again)


def test_sums_of_many_pixels_are_exact_to_rounding():
    y = torch.rand(2000, 64, 16) + 0.1
    found = native.tv_backward(torch.ones_like(y), y, torch.ones(2000, 64, 1), torch.ones(16), torch.ones(16), False)
    torch.testing.assert_close(found[1].double(), y.double().sum((0, 1)), rtol=2e-7, atol=0)


@pytest.mark.usefixtures("nothing_compiled_by_torch")
def test_they_are_taken_where_the_channels_are_innermost_in_a_type_that_they_know(monkeypatch):
    called = []

    def noted(kernel, original):
        return lambda *args: called.append(kernel) or original(*args)

    for name in ("tv_forward", "tv_backward", "moments", "gradient_sums"):
        monkeypatch.setattr(native, name, noted(name, getattr(native, name)))
    a, b = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    y = torch.randn(2, 4, 6, 6)
    tv_norm(y.double(), a.double(), b.double(), 1e-3, True, compiled=True).sum().backward()
    tv_norm(y, a, b, 1e-3, True, compiled=True).sum().backward()
    assert called == []
    tv_norm(y.to(memory_format=torch.channels_last), a, b, 1e-3, True, compiled=True).sum().backward()
    assert called == ["tv_forward", "tv_backward"]
    opening = Opening(4, 6).to(memory_format=torch.channels_last)
    opening.compiled = True
    opening(y.to(memory_format=torch.channels_last), pool=True).sum().backward()
    assert called[2:] == ["moments", "gradient_sums"]


@pytest.mark.usefixtures("nothing_compiled_by_torch")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_pixels_at_all_are_left_to_torch(layout):
    assert not native.handles(torch.zeros(0, 4, 16))
    y = torch.zeros(0, 4, 6, 6).contiguous(memory_format=layout).requires_grad_()
    out = tv_norm(y, torch.ones(4), torch.zeros(4), 1e-3, True, compiled=True)
    out.sum().backward()
    assert y.grad is not None
    assert out.shape == y.grad.shape == (0, 4, 6, 6)


def test_whole_numbers_and_one_number_for_all_channels_are_what_they_are_elsewhere():
    y = lines(4, torch.float32)
    expected = kernels.tv_forward(y, torch.ones(4), torch.zeros(4), 1.0, True, -1)
    assert_alike(native.tv_forward(y, torch.ones(1), torch.zeros(1).double(), 1, True), expected)
    with pytest.raises(RuntimeError, match="expand"):
        native.tv_forward(y, torch.ones(3), torch.zeros(4), 1e-3, True)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (3, 4, 1, 1), (1, 1, 1, 1)])
@pytest.mark.usefixtures("nothing_compiled_by_torch")
@pytest.mark.parametrize("strided", [False, True])
def test_layouts_that_are_the_same(shape, strided):
    """One channel or one pixel: the channels may be innermost or not."""
    base = torch.randn(shape[0], 2 * shape[1], *shape[2:])
    y = (base[:, : shape[1]] if strided else base[:, : shape[1]].clone()).requires_grad_()
    a, b = torch.rand(shape[1]), torch.randn(shape[1])
    found, expected = (tv_norm(y, a, b, 1e-3, True, compiled) for compiled in (True, False))
    torch.testing.assert_close(found, expected)
    g = torch.randn(shape)
    torch.testing.assert_close(torch.autograd.grad(found, y, g), torch.autograd.grad(expected, y, g))
