"""Backpropagation that recomputes states: the gradients of storing them, 4/3 of the work, no memory per step."""

# pyright: reportAttributeAccessIssue=false

import copy

import pytest
import torch

from multipde import NetworkConfig, PDENet, count_flops
from multipde.networks.dynamics import Block
from multipde.networks.layers import SymmetricLayer

REVERSIBLE = ("hamiltonian", "second_order")


def pair(dynamics, memory, **options):
    """The same block, storing and otherwise, in float64."""
    torch.manual_seed(0)
    block = Block(dynamics, 4, **{"steps": 5, "dt": 0.4} | options).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other = copy.deepcopy(block)
    other.memory = memory
    return block, other


def gradients(block, y):
    y = y.detach().requires_grad_()
    out = block(y)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, torch.autograd.grad((out * weights).sum(), [y, *block.parameters()])


@pytest.mark.parametrize("controls", [5, 3, 1])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_recomputed_gradients_are_those_of_storing(dynamics, dim, controls):
    stored, recomputed = pair(dynamics, "reversible", dim=dim, controls=controls)
    y = torch.randn(2, 4, *(6,) * dim, dtype=torch.float64)
    (a, da), (b, db) = gradients(stored, y), gradients(recomputed, y)
    assert torch.equal(a, b)
    for g, h in zip(da, db, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("norm", "activation"), [("none", "identity"), ("none", "tanh"), ("tv", "tanh")])
@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_gradients_are_those_of_differences(dynamics, norm, activation):
    _, block = pair(dynamics, "reversible", norm=norm, activation=activation, steps=3, controls=2)
    names = [name for name, _ in block.named_parameters()]

    def call(y, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), y)

    y = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in block.parameters()]
    assert torch.autograd.gradcheck(call, (y, *parameters), fast_mode=True)


@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
def test_checkpoints_give_the_gradients_of_storing(dynamics):
    stored, recomputed = pair(dynamics, "checkpoint", controls=2)
    y = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    (a, da), (b, db) = gradients(stored, y), gradients(recomputed, y)
    assert torch.equal(a, b)
    assert all(torch.equal(g, h) for g, h in zip(da, db, strict=True))


def saved_bytes(block, y):
    """Bytes kept between the way there and the way back, parameters and stencils left out."""
    stencils = {c.data_ptr() for forces in block.forces() for f in forces for c in f.controls}
    own = {p.data_ptr() for p in block.parameters()} | stencils
    kept = {}

    def pack(t):
        if t.data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block(y)
    return sum(kept.values())


@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_memory_does_not_grow_with_the_number_of_steps(dynamics):
    y = torch.randn(4, 8, 16, 16, requires_grad=True)
    need = {}
    for memory in ("store", "reversible"):
        for steps in (2, 16):
            need[memory, steps] = saved_bytes(Block(dynamics, 8, steps, controls=1, memory=memory), y)
    assert need["reversible", 16] == need["reversible", 2] <= 2 * y.numel() * 4
    assert need["store", 16] > 6 * need["store", 2]


@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_every_layer_is_evaluated_once_on_the_way_back(dynamics, monkeypatch):
    calls, original = [], SymmetricLayer.force

    def force(self, y, controls, factor=1.0):
        calls.append(1)
        return original(self, y, controls, factor)

    monkeypatch.setattr(SymmetricLayer, "force", force)
    block = Block(dynamics, 4, steps=3, memory="reversible")
    out = block(torch.randn(1, 4, 6, 6, requires_grad=True))
    there = len(calls)
    assert there == (6 if dynamics == "hamiltonian" else 3)
    out.sum().backward()
    assert len(calls) == 2 * there


@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_the_work_of_a_training_step_is_four_thirds_in_the_blocks(dynamics):
    store, reversible = (
        count_flops(NetworkConfig(dynamics, (8,), 8, steps=6, size=16, memory=memory), training=True)
        for memory in ("store", "reversible")
    )
    assert store < reversible < 4 / 3 * store
    assert reversible > 1.3 * store


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_autocast_computes_layers_in_less_and_keeps_states_in_float32(dynamics, dtype):
    stored, recomputed = pair(dynamics, "reversible", steps=8, dt=0.2)
    stored, recomputed = stored.float(), recomputed.float()
    y = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", dtype):
        out, got = gradients(recomputed, y)
        usual = gradients(stored, y)[1]
    assert out.dtype == torch.float32
    exact = gradients(stored.double(), y.double())[1]

    def error(found):
        return sum((g - h).square().sum() for g, h in zip(found, exact, strict=True)).sqrt()

    assert error(got) <= 1.2 * error(usual)
    assert error(got) <= 0.1 * sum(h.square().sum() for h in exact).sqrt()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        state = recomputed.scheme.start(y)
        back = recomputed.inverse(recomputed.propagate(state))
    drift = max((a - b).norm() / b.norm() for a, b in zip(back, state, strict=True))
    assert drift < 1e-5


@pytest.mark.parametrize("memory", ["reversible", "checkpoint"])
def test_a_network_trains_alike_and_survives_copies_and_frozen_parts(memory):
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=4, size=8)
    torch.manual_seed(0)
    net = PDENet(config).double()
    other = PDENet(NetworkConfig("hamiltonian", (4, 6), 8, steps=4, size=8, memory=memory)).double()
    other.load_state_dict(net.state_dict())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for model in (net, other):
        for p in model.blocks[0].parameters():
            p.requires_grad_(False)
    for a, b in ((net, other), (net, copy.deepcopy(other))):
        for model in (a, b):
            model.zero_grad()
            model(x).square().sum().backward()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_reversed_is_told():
    with pytest.raises(ValueError, match="memory must be store or checkpoint for parabolic, which is not reversible"):
        NetworkConfig("parabolic", (4,), 4, size=8, memory="reversible")
    with pytest.raises(ValueError, match="memory must be one of store, reversible, checkpoint, got 'none'"):
        Block("hamiltonian", 4, memory="none")
    block = Block("hamiltonian", 4, memory="reversible").double()
    y = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives need memory 'store' or 'checkpoint', got reversible"):
        torch.autograd.grad(block(y).square().sum(), y, create_graph=True)
