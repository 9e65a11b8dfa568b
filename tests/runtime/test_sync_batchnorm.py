"""BatchNorm over processes: with one process it is that of torch."""

import pytest
import torch
from torch import nn

from multipde.runtime.sync_batchnorm import _forward


@pytest.mark.parametrize("affine", [True, False])
def test_one_process_computes_what_torch_does(affine):
    ours, theirs = (nn.BatchNorm2d(3, affine=affine).double() for _ in range(2))
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64) + 2
    torch.testing.assert_close(_forward(ours, x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
