"""A layer in one pass over the images computes what its parts compute, with fewer roundings; so do its gradients."""

import contextlib
import copy

import pytest
import torch

from multipde.networks.compilation import compile_layers
from multipde.networks.dynamics import DYNAMICS, Block
from multipde.networks.kernels import fused_layer
from multipde.networks.kernels.native import blocks, build, convolutions
from multipde.networks.recurrence import Recurrence
from multipde.runtime.device import cpu_has
from multipde.studies.bench.vectors import VECTORS

WAYS = ["float32", "float32 by AVX2", "bf16", "bf16 without tiles"]
"""What everything holds in, as far as the processor has it."""
SHAPES = [(16, 8, 8), (24, 6, 6), (12, 1, 1), (40, 3, 5), (64, 5, 9), (112, 4, 4), (6, 2, 37)]


def block_and_images(way, dynamics, channels, *size, **changed):
    """A block whose stencils are numbers in bfloat16, and features in the precision of a way."""
    torch.manual_seed(0)
    block = Block(dynamics, channels, steps=3, dt=0.7, **changed).to(memory_format=torch.channels_last).train()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape) if p.dim() == 1 else p.bfloat16())
    x = torch.randn(5, channels, *size).bfloat16().to(memory_format=torch.channels_last)
    return block, x if way.startswith("bf16") else x.float()


def autocast(x):
    """Autocast for features in bfloat16 alone."""
    return torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16)


def outputs(block, x, autocast=autocast):
    """The result of a block and the gradients of a function of it, of its argument and its parameters."""
    x = x.detach().clone().requires_grad_()
    block.zero_grad()
    with autocast(x):
        y = block(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    (y * weights + y.square()).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in block.parameters())]


def errors(found, exact):
    return [((a.double() - b).norm() / b.norm().clamp_min(1e-9)).item() for a, b in zip(found, exact, strict=True)]


def forget_library():
    """Makes the next use of the kernels take a library that is compiled as the environment says."""
    own = blocks._function, blocks._order, blocks.is_available, blocks.multiple
    for known in (build._built, convolutions._panel, convolutions._layer, convolutions._convolution_relu, *own):
        known.cache_clear()


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each way that this processor has, with AMX also without its tiles, and with AVX-512 also without that."""
    if request.param in ("float32", "bf16"):
        if not blocks.is_available(torch.bfloat16 if request.param == "bf16" else torch.float32):
            pytest.skip("needs a C++ compiler, and for bf16 a processor with AVX-512 or AMX for it")
        yield request.param
        return
    if not cpu_has("amx_bf16" if request.param.startswith("bf16") else "avx512_f"):
        pytest.skip("the processor has nothing else")
    if request.param.startswith("bf16"):
        for name, value in VECTORS["avx512"].items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    forget_library()
    yield request.param
    monkeypatch.undo()
    forget_library()


@pytest.fixture(autouse=True)
def _any_channels(request, monkeypatch):
    if "own_share" not in request.fixturenames:
        monkeypatch.setattr(fused_layer, "SHARE_USED", 0.0)


@pytest.fixture
def own_share():
    """Leaves the share of channels from which on the kernels are used as it is."""


@pytest.fixture
def used(monkeypatch):
    """A list of the shapes of the features for which layers were fused."""
    shapes, own = [], blocks.layers
    monkeypatch.setattr(blocks, "layers", lambda a, x, *rest: shapes.append(tuple(x.shape)) or own(a, x, *rest))
    return shapes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_results_and_gradients_are_as_precise_as_those_of_the_parts(way, dynamics, shape, used, monkeypatch):
    """For nearly all tensors; rounding may put single features on the other side of the ReLU, so there for most."""
    for activation, share in (("identity", 0.9), ("relu", 0.6)):
        block, x = block_and_images(way, dynamics, *shape, activation=activation)
        exact = outputs(copy.deepcopy(block).double(), x.double())
        compile_layers(block)
        with monkeypatch.context() as without:
            fused, num = errors(outputs(block, x), exact), len(used)
            without.setattr("multipde.networks.layers.is_worthwhile", lambda *_: False)
            parts = errors(outputs(block, x), exact)
        assert num == len(used) > 0
        factor, floor, bound = (1.4, 0.002, 0.01) if way.startswith("bf16") else (2.2, 2e-8, 6e-7)
        precise = [own < factor * other + floor for own, other in zip(fused, parts, strict=True)]
        assert sum(precise) >= share * len(precise)
        assert precise[0]
        assert fused[0] < bound


def test_sums_over_many_images_are_more_precise_than_those_of_the_parts(way, monkeypatch):
    block, x = block_and_images(way, "parabolic", 16, 16, 16, activation="identity")
    x = torch.cat([x.roll(i, 3) for i in range(12)]).contiguous(memory_format=torch.channels_last)
    exact = outputs(copy.deepcopy(block).double(), x.double())
    compile_layers(block)
    fused = errors(outputs(block, x), exact)
    monkeypatch.setattr("multipde.networks.layers.is_worthwhile", lambda *_: False)
    parts = errors(outputs(block, x), exact)
    stencils = range(2, len(exact), 3)
    assert all(fused[i] < parts[i] for i in stencils)


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("memory", ["store", "checkpoint"])
def test_other_settings_are_fused_too(way, activation, memory, used):
    block, x = block_and_images(way, "hamiltonian", 32, 6, 6, activation=activation, memory=memory, controls=2)
    exact = outputs(copy.deepcopy(block).double(), x.double())
    compile_layers(block)
    assert max(errors(outputs(block, x), exact)) < 0.05
    assert used


def test_results_repeat_bit_for_bit_and_do_not_depend_on_the_threads_beyond_rounding(way):
    block, x = block_and_images(way, "parabolic", 32, 7, 7)
    compile_layers(block)
    own, before = outputs(block, x), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = outputs(block, x)
        again = outputs(block, x)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(several, again, strict=True))
    assert torch.equal(own[0], several[0])
    torch.testing.assert_close(own[2:], several[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num", "size"), [(40, (8, 8)), (3, (40, 33)), (11, (16, 5))], ids=str)
def test_images_do_not_depend_on_those_beside_them(way, num, size):
    """However many go through the layers together; gradients of controls are sums over the images."""
    block, x = block_and_images(way, "hamiltonian", 32, *size)
    compile_layers(block)
    x = x[:1].repeat(num, 1, 1, 1) * torch.linspace(0.5, 2, num).bfloat16().view(-1, 1, 1, 1)
    y, dx, *grads = outputs(block, x.contiguous(memory_format=torch.channels_last))
    alone = []
    for i in range(num):
        image = x[i : i + 1].contiguous(memory_format=torch.channels_last).requires_grad_()
        block.zero_grad()
        with autocast(image):
            own = block(image)
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)[i : i + 1].to(own.dtype)
        (own * weights + own.square()).sum().backward()
        assert torch.equal(own[0], y[i])
        assert image.grad is not None
        assert torch.equal(image.grad[0], dx[i])
        alone.append([p.grad for p in block.parameters()])
    for found, single in zip(grads, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(single).sum(0), rtol=1e-4, atol=1e-3 * found.abs().max().item())


def test_frozen_stencils_and_second_derivatives(way, monkeypatch):
    block, x = block_and_images(way, "second_order", 16, 4, 4)
    compile_layers(block)
    block.controls[1][0].requires_grad_(False)
    assert [g is None for g in outputs(block, x)[2:]] == [False] * 3 + [True] * 3 + [False] * 3

    def second(y):
        y = y.detach().requires_grad_()
        with autocast(y):
            (g,) = torch.autograd.grad(block(y).float().square().sum(), y, create_graph=True)
        return torch.autograd.grad(g.float().square().sum(), y)[0]

    found = second(x)
    monkeypatch.setattr("multipde.networks.layers.is_worthwhile", lambda *_: False)
    assert errors([found], [second(x).double()])[0] < 0.05


@pytest.mark.usefixtures("own_share")
def test_layers_that_would_fill_little_of_a_tile_keep_their_parts(way, used):
    quarter = blocks.multiple(torch.bfloat16 if way.startswith("bf16") else torch.float32) // 4
    for quarters, is_fused in ((2, False), (3, True), (4, True), (5, False), (6, True)):
        channels = quarters * quarter
        block, x = block_and_images(way, "parabolic", channels, 5, 5)
        compile_layers(block)
        used.clear()
        outputs(block, x)
        assert bool(used) == is_fused


def test_a_network_in_the_precision_of_its_images_is_fused_without_autocast(way, used):
    block, x = block_and_images(way, "parabolic", 16, 5, 5)
    compile_layers(block.to(x.dtype))
    found = outputs(block, x, lambda _: contextlib.nullcontext())
    assert used
    assert {g.dtype for g in found} == {x.dtype}


@pytest.mark.parametrize(
    "changed", [{"width": 5}, {"activation": "tanh"}, {"norm": "none"}, {"memory": "reversible"}], ids=str
)
def test_layers_that_the_kernels_do_not_know_keep_their_parts(way, changed, used):
    """Among them those of reversible memory in bf16, whose states are in float32."""
    block, x = block_and_images(way, "second_order", 16, 5, 5, **changed)
    compile_layers(block)
    outputs(block, x)
    assert bool(used) == ("memory" in changed and x.dtype == torch.float32)


@pytest.mark.parametrize("dynamics", ["hamiltonian", "second_order"])
def test_reversible_memory_in_single_precision_is_fused_on_the_way_back_too(way, dynamics, used):
    block, x = block_and_images(way, dynamics, 32, 6, 6, memory="reversible")
    x = x.float()
    exact = outputs(copy.deepcopy(block).double(), x.double())
    compile_layers(block)
    assert max(errors(outputs(block, x), exact)) < 1e-5
    assert len(used) == 2 * block.steps * block.scheme.num_layers - (dynamics == "hamiltonian") * block.steps


def test_layers_in_several_precisions_out_of_training_or_without_compilation_keep_their_parts(way, used):
    block, x = block_and_images(way, "parabolic", 16, 5, 5)
    outputs(block, x)
    compile_layers(block)
    outputs(block, x.float(), lambda _: torch.autocast("cpu", torch.bfloat16))
    with torch.autocast("cpu", torch.float16):
        block(x)
    block.eval()
    outputs(block, x)
    assert not used


def test_sums_without_kernels():
    change, a, x = (torch.full((2,), v) for v in (1.0, 10.0, 100.0))
    steps = Recurrence(-1, 2, lambda dt: (dt,)), Recurrence(0, 1, lambda dt: (dt,))
    (found, _), (single,) = (
        step.advance(state, [(lambda y, factor: factor * change,)], 1)
        for step, state in zip(steps, ((x, a), (x,)), strict=True)
    )
    assert found.tolist() == [191, 191]
    assert single.tolist() == [101, 101]
