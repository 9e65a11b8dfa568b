"""The whitened opening: uncorrelated outputs of unit variance, with both signs, from the images that a key draws."""

import pytest
import torch
from torch import nn

from multipde import Level, NetworkConfig, PDENet, Schedule, TrainSettings, load, train
from multipde.networks.layers import CONV, CONVOLVE
from multipde.training.whitening import whiten_opening, whitening_stencils

NETWORK = NetworkConfig("second_order", (8, 8), 8, steps=2, size=8)


def correlated(dim: int, num: int = 400) -> torch.Tensor:
    """Images whose neighbouring pixels and channels resemble each other."""
    x = torch.randn(num, 2, *(6,) * dim, dtype=torch.float64)
    for axis in range(1, 2 + dim):
        x = x + 0.5 * x.roll(1, axis)
    return x / x.std()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_outputs_are_uncorrelated_and_of_unit_variance(dim):
    x = correlated(dim)
    stencils = whitening_stencils(x.split(150), (3,) * dim, 2, eps=0.0)
    y = CONVOLVE[dim](x, stencils).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(y.mT.cov(correction=0), torch.eye(len(stencils), dtype=torch.float64), atol=1e-6, rtol=0)
    norms = stencils.flatten(1).norm(dim=1)
    assert (norms.diff() >= -1e-9).all()  # the largest variance first
    damped = whitening_stencils([x], (3,) * dim, 2, eps=0.5)
    torch.testing.assert_close(damped.flatten(1).norm(dim=1), (norms**-2 + 0.5).rsqrt())


@pytest.mark.parametrize(("channels", "num"), [(8, 4), (9, 4), (40, 18)])
def test_an_opening_has_the_largest_directions_with_both_signs_and_the_rest_at_random(channels, num):
    torch.manual_seed(0)
    x, net = correlated(2).float(), nn.Sequential(nn.Conv2d(2, channels, 3))
    before = net[0].weight.detach().clone()  # pyright: ignore
    whiten_opening(net, [x])
    weight = net[0].weight.detach()  # pyright: ignore
    torch.testing.assert_close(weight[:num], whitening_stencils([x], (3, 3), 2)[:num].float())
    assert torch.equal(weight[num : 2 * num], -weight[:num])
    assert torch.equal(weight[2 * num :], before[2 * num :])


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
def test_an_opening_of_a_pde_network_is_whitened_in_its_coordinates(coordinates):
    config = NetworkConfig("hamiltonian", (8,), 8, in_channels=2, size=6, coordinates=coordinates)
    net, x = PDENet(config), correlated(2).float()
    whiten_opening(net, [x])
    expected = whitening_stencils([x], (3, 3), 2)[:4].float()
    torch.testing.assert_close(net.opening[0].weight.detach()[:4], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(3, 3), "got no convolution"),
        (nn.Conv2d(2, 8, 1), "got 8 channels of 1 taps in ''"),
        (nn.Conv2d(2, 1, 3), "got 1 channels of 9 taps in ''"),
        (nn.Conv2d(2, 8, 3, groups=2), "got a transposed, grouped or dilated convolution in ''"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 8, 3)), "got a parametrised convolution in ''"),
        (CONV[2](2, 8, 7), r"off for images smaller than the stencils, got \(6, 6\)"),
    ],
)
def test_an_opening_that_cannot_whiten_is_refused(net, message):
    with pytest.raises(ValueError, match=f"whiten must be .*{message}"):
        whiten_opening(net, [correlated(2)])


def test_a_training_starts_whitened_and_is_repeated_bit_for_bit(tmp_path):
    options = {"data_options": {"num_train": 60, "num_test": 20}, "quiet": True}
    plan, settings = Schedule([Level(8, 1, batch=20)]), TrainSettings(device="cpu", calibration_images=20, whiten=True)
    runs = [train(NETWORK, plan, "shapes", tmp_path / name, settings=settings, **options) for name in "ab"]
    a, b = (run.model.opening[0].weight.detach() for run in runs)
    assert torch.equal(a, b)
    cosine = nn.functional.cosine_similarity(a[:4].flatten(1), a[4:8].flatten(1))
    assert (cosine < -0.9).all()  # after three small steps
    again = train(load(tmp_path / "a"), plan, "shapes", tmp_path / "c", settings=settings, **options)
    assert '"whiten": false' in (again.directory / "run.json").read_text()
