"""Running statistics measured anew: every image counts as much as any other, whatever the batches."""

import pytest
import torch
from torch import nn

from multipde import recalibrate

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def network(dim, norm=None):
    return nn.Sequential(CONVS[dim](3, 4, 3), (norm or NORMS[dim])(4)).double()


def images(dim, num=26, mean=0.0):
    return mean + torch.randn(num, 3, *(5,) * dim, dtype=torch.float64)


@pytest.mark.parametrize("norm", [None, nn.SyncBatchNorm])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_unequal_batches_are_as_one_batch(dim, norm):
    net, x = network(dim, norm), images(dim)
    y = net[0](x).movedim(1, 0).flatten(1)
    for sizes in ([26], [25, 1], [1, 3, 22], [13, 13]):
        assert recalibrate(net, x.split(sizes)) == 1
        torch.testing.assert_close(net[1].running_mean, y.mean(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net[1].running_var, y.var(1), rtol=1e-12, atol=1e-12)
        assert net[1].num_batches_tracked == len(sizes)


def test_statistics_survive_a_mean_far_above_the_deviation():
    net, x = nn.Sequential(nn.BatchNorm1d(3)), 1e4 + torch.randn(4000, 3)
    x[0] = 9990.0
    recalibrate(net, x.split([1300, 2698, 2]))
    torch.testing.assert_close(net[0].running_mean, x.double().mean(0).float())
    torch.testing.assert_close(net[0].running_var, x.double().var(0).float(), rtol=1e-3, atol=0)


def test_a_layer_that_is_called_twice_has_the_statistics_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3).double()

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 1)

    net, x = Twice(), images(2)
    recalibrate(net, x.split([20, 6]))
    both = torch.cat([x, 3 * x + 1]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(net.norm.running_mean, both.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.norm.running_var, both.var(1), rtol=1e-12, atol=1e-12)


def test_a_layer_that_is_not_called_keeps_its_statistics_and_no_hook_stays():
    net = network(2)
    net.add_module("unused", nn.BatchNorm2d(4))
    net.unused.running_mean.fill_(7.0)
    net.forward = lambda x: net[1](net[0](x))
    assert recalibrate(net, [images(2)]) == 1
    assert net.unused.running_mean.tolist() == [7.0] * 4
    assert not any(m._forward_hooks for m in net.modules())
    assert net[1].momentum == 0.1


class FrozenNorm(nn.BatchNorm2d):
    """A layer that is never in training mode, the usual way of freezing one."""

    def train(self, mode=True):
        return super().train(False)


def test_a_layer_that_freezes_itself_keeps_its_statistics():
    net = network(2)
    net.add_module("frozen", FrozenNorm(4).double())
    net.frozen.running_mean.fill_(3.0)
    net.frozen.running_var.fill_(5.0)
    assert recalibrate(net, images(2).split(13)) == 1
    assert net.frozen.running_mean.tolist() == [3.0] * 4
    assert net.frozen.running_var.tolist() == [5.0] * 4
