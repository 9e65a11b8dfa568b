"""The parameter on the finest mesh: what a step does to the stencils, and BatchNorm between meshes."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet, reparametrize, set_mesh_size, set_reference
from multipde.conversions.recalibration import frozen_running_statistics
from multipde.mesh.reparametrize import stencil_layers, stencil_parametrization, stored_parameter
from multipde.training.preconditioner import Preconditioner


def layer(coordinates: str = "stencil", coarse: float = 1 / 8) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False)).double()
    reparametrize(module, 1 / 32, coordinates=coordinates)
    set_mesh_size(module, coarse)
    return module


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_step_changes_the_stencils_by_the_power_of_g_gt(coordinates, power):
    module = layer(coordinates)
    wanted = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    before = module[0].weight.detach().clone()
    (module[0].weight * wanted).sum().backward()  # the gradient of the stencils is `wanted`
    Preconditioner(power)(module)
    stored = stored_parameter(module[0])
    with torch.no_grad():
        stored -= 1e-3 * stored.grad
    step = (before - module[0].weight) / 1e-3
    g = stencil_parametrization(module[0]).tap_matrix()
    values, vectors = torch.linalg.eigh(g @ g.T)
    expected = wanted.flatten(2) @ (vectors @ torch.diag(values ** (1 - power)) @ vectors.T)
    torch.testing.assert_close(step.flatten(2), expected, rtol=1e-6, atol=1e-8)
    if power == 1:  # as if there were no other mesh
        torch.testing.assert_close(step, wanted, rtol=1e-6, atol=1e-8)


def test_on_the_reference_mesh_gradients_stay():
    module = layer(coarse=1 / 32)
    module(torch.randn(1, 2, 8, 8).double()).sum().backward()
    before = stored_parameter(module[0]).grad.clone()
    Preconditioner(1.0)(module)
    assert torch.equal(stored_parameter(module[0]).grad, before)


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
def test_another_reference_keeps_the_stencils(coordinates):
    module = layer(coordinates)
    before = module[0].weight.detach().clone()
    set_reference(module, 1 / 64)
    torch.testing.assert_close(module[0].weight, before)
    assert stencil_parametrization(module[0]).reference == (1 / 64, 1 / 64)
    set_mesh_size(module, 1 / 64)
    torch.testing.assert_close(
        stencil_parametrization(module[0]).reference_stencil(stored_parameter(module[0])), module[0].weight
    )


def test_frozen_statistics_remember_nothing_and_use_the_batch():
    torch.manual_seed(0)
    net = PDENet(NetworkConfig("parabolic", (4, 4), 4, size=8)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(5, 3, 8, 8)
    with frozen_running_statistics(net):
        frozen = net(x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(frozen, net(x))
    assert not torch.equal(net.opening[1].running_mean, before["opening.1.running_mean"])


def test_layers_of_width_one_and_plain_layers_are_passed_over():
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1))
    module(torch.randn(1, 2, 4, 4)).sum().backward()
    grads = [p.grad.clone() for p in module.parameters()]
    Preconditioner(1.0)(module)
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), grads, strict=True))
    assert set(stencil_layers(module)) == {"0"}
