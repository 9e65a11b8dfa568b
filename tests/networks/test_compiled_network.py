"""Compiled layers compute what the plain network computes, for all shapes, threads and dynamics."""

import pytest
import torch

from multipde import NetworkConfig, PDENet, evaluate, with_detail
from multipde.networks import compiled_network
from multipde.networks.a_trous import a_trous
from multipde.networks.compiled_network import CompiledNet, for_evaluation, for_use
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.kernels.native import build, convolutions
from multipde.networks.plain import PlainNet


@pytest.fixture(autouse=True)
def _kernels():
    if not build.is_available("convolutions"):
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("channels", [1, 5, 16, 28, 40])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4), (5, 13), (4, 33)])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_convolution_is_that_of_torch(channels, height, width, side):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, channels + 3, side, padding=side // 2)
    x = torch.randn(3, channels, height, width).to(memory_format=torch.channels_last)
    taps, bias = convolutions.packed(conv.weight.detach()), convolutions.per_panel(conv.bias.detach())
    expected = conv.double()(x.double()).relu()
    for cell in (1, 2):
        found = convolutions.convolution_relu(x, taps, bias, channels + 3, side, cell).double()
        means = torch.nn.functional.avg_pool2d(expected, cell) if cell <= min(height, width) else found
        torch.testing.assert_close(found, means, rtol=1e-5, atol=2e-6)


def net_with_statistics(dynamics, **changed):
    """A network whose norms, biases and running statistics are not those of the start."""
    torch.manual_seed(0)
    given = {"steps": 2, "size": 8} | changed
    net = PDENet(NetworkConfig(dynamics, (12, 20), 24, **given)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return net


@pytest.mark.parametrize(
    "changed",
    [{}, {"controls": 1}, {"norm": "none", "eps": 0.1}, {"width": 5}, {"activation": "identity"}, {"detail": 2}],
    ids=str,
)
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_compiled_network_computes_the_same(dynamics, changed):
    net = net_with_statistics(dynamics, **changed)
    compiled = for_use(net, 1000)
    assert isinstance(compiled, CompiledNet)
    images = torch.randn(5, 3, *net.config.image_sizes)
    scores = net(images).detach()
    torch.testing.assert_close(compiled(images), scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))


def test_an_answer_depends_neither_on_threads_nor_on_the_other_images(monkeypatch):
    compiled, images = for_use(net_with_statistics("hamiltonian"), 1000), torch.randn(6, 3, 8, 8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compiled(images))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    monkeypatch.setattr(compiled_network, "AT_ONCE", 1)  # one image after the other
    torch.testing.assert_close(compiled(images), found[0], rtol=1e-6, atol=1e-6)
    features = compiled.blocks[0](compiled.opening(images.to(memory_format=torch.channels_last)))
    alone = compiled.blocks[0](compiled.opening(images[3:4].to(memory_format=torch.channels_last)))
    assert torch.equal(features[3:4], alone)


def test_nothing_that_was_given_is_changed():
    net, images = net_with_statistics("second_order"), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    own, weights = images.clone(), {name: t.clone() for name, t in net.state_dict().items()}
    compiled = for_use(net, 1000)
    first = compiled(images)
    assert torch.equal(compiled(images), first)
    assert torch.equal(images, own)
    assert all(torch.equal(t, weights[name]) for name, t in net.state_dict().items())


def test_a_shifted_network_is_compiled_too():
    net = a_trous(with_detail(net_with_statistics("hamiltonian"), 2))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(for_use(net, 1000)(images), net(images), rtol=1e-4, atol=1e-5)


def test_where_gradients_or_other_precisions_are_wanted_the_plain_network_computes():
    net = net_with_statistics("parabolic")
    compiled, images = for_use(net, 1000), torch.randn(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(images).sum(), images)
    (expected,) = torch.autograd.grad(net(images).sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(images).dtype == torch.bfloat16
    assert compiled.double()(images.detach().double()).dtype == torch.float64


@pytest.mark.parametrize("changed", [{"dim": 1}, {"activation": "tanh"}], ids=str)
def test_other_networks_are_folded(changed):
    net = net_with_statistics("parabolic", **changed)
    assert isinstance(for_use(net, 1000), PlainNet)


def test_few_images_are_not_worth_compiling_for(monkeypatch, tmp_path):
    net = net_with_statistics("parabolic")
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path))
    assert isinstance(for_use(net, 10), PlainNet)
    monkeypatch.setattr(build, "is_kept", lambda source: True)
    assert isinstance(for_use(net, 10), CompiledNet)
    monkeypatch.setattr(build, "is_available", lambda source: False)
    assert isinstance(for_use(net, 1000), PlainNet)


def test_evaluate_takes_the_compiled_network_unless_somebody_watches(monkeypatch):
    net, seen = net_with_statistics("hamiltonian"), []
    plain = evaluate(net, "shapes", part="test", data_options={"num_train": 20, "num_test": 600}, amp="off")
    monkeypatch.setattr(CompiledNet, "_scores", lambda self, x: seen.append(x) or self.plain(x))
    again = evaluate(net, "shapes", part="test", data_options={"num_train": 20, "num_test": 600}, amp="off")
    assert len(seen) == 3
    assert again.accuracy == plain.accuracy
    assert again.loss == pytest.approx(plain.loss, rel=1e-6)
    net.classifier.register_forward_hook(lambda *_: None)
    assert for_evaluation(net, 1000) is net
