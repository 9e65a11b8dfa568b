"""torch.export and torch.compile see one whole graph in every network, stored and baked, with the same numbers."""

import copy

import pytest
import torch

from multipde import NetworkConfig, PDENet, bake, with_detail
from multipde.networks.a_trous import a_trous

SMALL = {"channels": (2,), "out_channels": 4, "steps": 1, "size": 4}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def exported(net, size):
    batch = torch.export.Dim("batch", min=1)
    images = torch.randn(2, 3, *size)
    return torch.export.export(net.eval(), (images,), dynamic_shapes=({0: batch},)).module()


def loss_and_gradients(net, images):
    loss = net(images).square().sum()
    return loss, torch.autograd.grad(loss, list(net.parameters()))


def compiled_as(net, images, fullgraph=True):
    """Whether a training step and an evaluation have the numbers of a copy that is not compiled."""
    plain, graph = copy.deepcopy(net), torch.compile(net, fullgraph=fullgraph, backend="eager")
    expected, found = loss_and_gradients(plain.train(), images), loss_and_gradients(graph.train(), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if fullgraph:
        with torch.no_grad():
            torch.testing.assert_close(graph.eval()(images), plain.eval()(images))


@pytest.mark.parametrize(("dynamics", "baked"), [("hamiltonian", False), ("second_order", True), ("resnet", False)])
def test_a_network_is_one_graph_for_export_and_for_training(dynamics, baked):
    net = PDENet(NetworkConfig(dynamics, **SMALL, coordinates="stencil" if baked else "beta"))
    net = bake(net) if baked else net
    images = torch.randn(5, 3, 4, 4)
    program = exported(net, (4, 4))
    with torch.no_grad():
        torch.testing.assert_close(program(images), net(images), rtol=1e-4, atol=1e-6)
    compiled_as(net, images[:3])


@pytest.mark.parametrize("detail", [2, "a_trous"])
def test_networks_with_a_detail_are_exported_for_any_batch(detail):
    net = with_detail(PDENet(NetworkConfig("hamiltonian", **SMALL)), 2)
    net = a_trous(net) if detail == "a_trous" else net
    program, images = exported(net, (8, 8)), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(images), net(images), rtol=1e-4, atol=1e-6)


def test_the_image_size_of_a_network_with_weights_between_its_nodes_in_time_may_be_free():
    net = PDENet(NetworkConfig("parabolic", **SMALL | {"channels": (2, 4), "steps": (3, 1), "controls": (2, 1)})).eval()
    images = torch.randn(2, 3, 4, 4)
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program, larger = torch.export.export(net, (images,), dynamic_shapes=(free,)).module(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(larger), net(larger), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own access, which it hides elsewhere
@pytest.mark.parametrize(("memory", "fullgraph"), [("checkpoint", True), ("reversible", False)])
def test_recomputed_states_have_the_same_gradients_where_the_step_is_compiled(memory, fullgraph):
    net = PDENet(NetworkConfig("second_order", **SMALL, memory=memory))
    compiled_as(net, torch.randn(3, 3, 4, 4), fullgraph)
