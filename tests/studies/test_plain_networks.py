"""The rivals' networks: the work and the weights that their authors name, and a whitened opening."""

import pytest
import torch

from multipde.networks.cost import count_flops, num_weights
from multipde.studies.bench.airbench import WIDTHS, airbench, airbench_model, whitening_filters
from multipde.studies.bench.plain_networks import resnet18_model, small_resnet18_model


def test_airbench_has_its_published_weights_and_work():
    spec = airbench_model(32, 10)
    assert num_weights(spec.build()) == pytest.approx(1.97e6, rel=0.01)
    assert 50_000 * 9.9 * count_flops(spec, training=True) == pytest.approx(360e12, rel=0.03)


def test_the_opening_of_airbench_whitens_patches():
    images = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    filters = whitening_filters(images)
    found = torch.nn.functional.conv2d(images, filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[:12] @ found[:12].T / found.shape[1], torch.eye(12).double(), atol=0.02, rtol=0)
    assert (filters[12:] == -filters[:12]).all()
    assert torch.equal(airbench(10, filters)[0].filters, filters)


def test_the_groups_of_airbench_pass_their_input_on():
    net = airbench(10, torch.zeros(24, 3, 2, 2))
    first = net[2]
    x = torch.rand(1, 24, 8, 8)
    torch.testing.assert_close(first(x)[:, :24], x)
    assert first.out_channels == WIDTHS[0]
    assert all(not layer.weight.requires_grad for layer in net if isinstance(layer, torch.nn.BatchNorm2d))


def test_the_small_resnet18_keeps_the_mesh_of_its_image():
    plain, small = resnet18_model(32, 10), small_resnet18_model(32, 10)
    assert num_weights(small.build()) == 11_173_962
    assert count_flops(small) > 14 * count_flops(plain)
    assert small.build()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
