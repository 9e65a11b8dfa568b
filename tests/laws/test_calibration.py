"""Laws of the calibrated transfer: rediscretisation on smooth data, copying on scale-invariant data."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import functools
import math

import pytest
import torch
from torch import nn

from multipde import NetworkConfig, PDENet, calibrate, conversion, convert, recalibrate, restrict_images
from multipde.conversions.calibration import tap_covariance
from multipde.mesh.reparametrize import stencil_layers
from multipde.mesh.stencil import order_powers
from multipde.mesh.transfer import CALIBRATED
from multipde.studies.bench.consistency import band_limited

SIZE = 64


@functools.cache
def smooth_images(num: int = 40, frequencies: int = 2, size: int = SIZE) -> torch.Tensor:
    """Cell averages of random trigonometric polynomials on the unit square."""
    return band_limited(num, 2, size, frequencies)


@functools.cache
def pink_images(num: int = 400, size: int = SIZE) -> torch.Tensor:
    """Gaussian noise with power 1/|k|², which cell averages leave the same in two dimensions."""
    generator = torch.Generator().manual_seed(0)
    fine = 8 * size  # rendered on a finer mesh, so that the mesh itself leaves no trace
    k = torch.fft.fftfreq(fine, 1 / fine)
    radius = (k[:, None] ** 2 + k[None] ** 2).sqrt()
    radius[0, 0] = math.inf
    images = []
    for _ in range(num // 20):
        noise = torch.randn(1, 1, fine, fine, generator=generator)
        images.append(restrict_images(torch.fft.ifft2(torch.fft.fft2(noise) / radius).real, size))
    return torch.cat(images).double()


def layer(channels: int = 2, width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 3, width, padding=width // 2)).double()


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_it_is_rediscretisation_on_smooth_data_and_gets_closer_as_h_does(method, factor):
    def distance(size: int) -> float:
        images = smooth_images(size=size)
        new = convert(layer(), factor=factor, method=method, calibration=images)[0].weight
        exact = convert(layer(), factor=factor, method="rediscretize")[0].weight
        return ((new - exact).norm() / exact.norm()).item()

    assert distance(64) < 0.1
    assert distance(64) / distance(128) == pytest.approx(4, rel=0.1)


def test_its_exponents_are_one_on_smooth_data_and_its_scales_the_powers_of_the_factor():
    found = calibrate(layer(), 2.0, smooth_images(size=128))
    assert found.exponents()["0"] == pytest.approx(1, abs=0.02)
    wanted = torch.outer(*order_powers((3, 3), (2.0, 2.0), 1))
    torch.testing.assert_close(found.scales["0"], wanted, rtol=0.03, atol=0)


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_it_is_copying_on_scale_invariant_noise(method, factor):
    images, net = pink_images(), layer(1)
    new = convert(net, factor=factor, method=method, calibration=images)[0].weight
    assert ((new - net[0].weight).norm() / net[0].weight.norm()).item() < 0.08
    assert calibrate(net, factor, images).exponents()["0"] == pytest.approx(0, abs=0.05)


def test_white_noise_is_copied_up_to_its_amplitude():
    images = torch.randn(200, 2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = layer()
    new = convert(net, factor=0.5, calibration=images)[0].weight  # averages over four pixels: half the amplitude
    torch.testing.assert_close(new, 2 * net[0].weight, rtol=0.03, atol=3e-3)


def test_the_terms_respond_on_the_new_mesh_as_on_the_old_and_with_full_covariance_every_stencil():
    images = smooth_images(frequencies=12)
    coarse = restrict_images(images, SIZE // 2)
    covariances = [tap_covariance(x, (3, 3), (1, 1)) for x in (images, coarse)]
    for method in CALIBRATED:
        net = layer()
        matrix = calibrate(net, 0.5, images, method).matrices["0"]
        matched = matrix.T @ covariances[1] @ matrix
        if method == "calibrated_full":
            torch.testing.assert_close(matched, covariances[0], rtol=1e-5, atol=1e-7 * float(covariances[0].max()))
        else:
            a = stencil_basis()
            torch.testing.assert_close((a.T @ matched @ a).diagonal(), (a.T @ covariances[0] @ a).diagonal())


def stencil_basis() -> torch.Tensor:
    from multipde import StencilBasis

    return StencilBasis(3, 2).matrix


@pytest.mark.parametrize(("width", "dilation"), [((3, 3), (1, 1)), ((5, 3), (1, 2))])
def test_the_covariance_gives_the_mean_square_of_any_response(width, dilation):
    torch.manual_seed(0)
    x = torch.randn(7, 2, 12, 13, dtype=torch.float64)
    stencil = torch.randn(width, dtype=torch.float64)
    flat = stencil.flatten()
    response = nn.functional.conv2d(x.flatten(0, 1)[:, None], stencil[None, None], dilation=dilation)
    expected = flat @ tap_covariance(x, width, dilation) @ flat
    torch.testing.assert_close(expected, response.square().mean())
    assert bool(tap_covariance(x[..., :2, :], width, dilation).isnan().all())


def network(dynamics: str = "hamiltonian", **options) -> PDENet:
    torch.manual_seed(0)
    arguments = {"channels": (4, 6), "out_channels": 6, "size": 32, "in_channels": 2} | options
    return PDENet(NetworkConfig(dynamics, **arguments)).double().eval()


@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
def test_every_layer_of_a_network_is_measured_in_the_order_of_execution(dynamics):
    net, images = network(dynamics), smooth_images(8, size=32, frequencies=6)
    found = calibrate(net, 0.5, images)
    assert set(found.matrices) == set(stencil_layers(net))
    assert all(bool((s > 0).all()) for s in found.scales.values())
    new = conversion(net, size=16, calibration=images)(net)
    again = calibrate(new, 2.0, images)  # and back: what the new net answers is what the old one did
    for name, scales in found.scales.items():
        torch.testing.assert_close(again.scales[name], 1 / scales, rtol=1e-10, atol=0)


def test_the_first_steps_use_their_own_input():
    """Hamiltonian: K1 is measured at z, K2 at the updated y; here from the definition."""
    net, images = network(norm="none", steps=1, channels=(4,)), smooth_images(size=32, frequencies=6)
    scales = calibrate(net, 0.5, images).scales
    state = {}
    for size, model in ((32, net), (16, convert(net, size=16, calibration=images))):
        recalibrate(model, [restrict_images(images, size)])
        features = nn.functional.batch_norm(
            model.opening[0](restrict_images(images, size)), None, None, training=True
        ).relu()
        y, z = features.chunk(2, 1)
        y = y + model.blocks[0].controls[0][0](z)
        state[size] = y, z
    a = stencil_basis()
    for i, name in ((1, "blocks.0.controls.0.0.conv"), (0, "blocks.0.controls.0.1.conv")):
        rms = [(a.T @ tap_covariance(state[s][i], (3, 3), (1, 1)) @ a).diagonal().sqrt() for s in (32, 16)]
        torch.testing.assert_close(scales[name].flatten(), rms[0] / rms[1], rtol=1e-6, atol=0)


def test_shared_controls_have_one_map_pooled_over_the_steps():
    net, images = network(steps=4, controls=2), smooth_images(8, size=32, frequencies=6)
    found = calibrate(net, 0.5, images)
    for k in range(2):
        for i in range(2):
            first, second = (found.matrices[f"blocks.{k}.controls.{j}.{i}.conv"] for j in range(2))
            assert torch.equal(first, second)


@pytest.mark.parametrize("method", ["calibrated", "galerkin", "rediscretize"])
@pytest.mark.parametrize(
    ("coordinates", "reference"), [("stencil", None), ("beta", None), ("stencil", 64), ("beta", 64)]
)
def test_the_dual_map_keeps_inner_products_of_parameters_and_gradients(method, coordinates, reference):
    p, v = (network(coordinates=coordinates, reference=reference) for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for value in v.parameters():
            value.normal_()
    images = smooth_images(8, size=32, frequencies=6) if method == "calibrated" else None
    move = conversion(p, size=16, method=method, calibration=images)
    before = sum((a * b).sum() for a, b in zip(p.parameters(), v.parameters(), strict=True))
    moved = zip(move(p).parameters(), move.dual(v).parameters(), strict=True)
    torch.testing.assert_close(sum((a * b).sum() for a, b in moved), before)


def test_calibration_leaves_the_network_as_it_was():
    net, images = network().train(), smooth_images(size=32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    calibrate(net, 0.5, images)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert all(getattr(m, "watch", None) is None for m in net.modules())


def test_any_module_strided_grouped_and_dilated():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 7, stride=2, padding=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2),
        nn.Conv2d(4, 4, 1),
    ).double()
    images = smooth_images(size=64)
    found = calibrate(net, 0.5, images)
    assert set(found.exponents()) == {"0", "3"}
    assert found.exponents()["0"] == pytest.approx(1, abs=0.15)
    assert convert(net, factor=0.5, calibration=images)(restrict_images(images, 32)).shape == (40, 4, 16, 16)


def test_features_smaller_than_the_stencil_are_copied():
    net = network(size=8, channels=(4, 4, 4))
    found = calibrate(net, 0.5, smooth_images(size=8))
    assert bool(found.scales["blocks.2.controls.0.0.conv"].isnan().all())
    torch.testing.assert_close(found.matrices["blocks.2.controls.0.0.conv"], torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "calibrated"}, "calibration must hold images for the method 'calibrated', got None"),
        ({"calibration": torch.zeros(2, 2, 16, 16)}, r"calibration must hold images on the finer mesh, \(32, 32\)"),
    ],
)
def test_bad_calibrations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(network().float(), size=16, **arguments)
    with pytest.raises(ValueError, match="method must be one of calibrated, calibrated_full to be calibrated, got"):
        calibrate(network(), 0.5, torch.zeros(2, 2, 32, 32), "copy")


class Recurrent(nn.Module):
    """A network that uses two layers six times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.opening, self.a, self.b = (nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 4))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.opening(x).relu()
        for _ in range(6):
            x = x + self.b(self.a(x).relu())
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("net", [network(steps=4, controls=1), network(steps=4, controls=3), Recurrent().double()])
def test_a_conversion_to_the_same_mesh_changes_nothing_where_layers_are_used_more_than_once(net, method):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)  # later uses of a layer have larger inputs
    images = smooth_images(12, size=32, frequencies=6)
    found = calibrate(net, 1.0, images, method)
    for matrix in found.matrices.values():
        torch.testing.assert_close(matrix, torch.eye(9, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("controls", "distance"), [(1, 2e-3), (2, 1e-3)])
def test_shared_controls_are_nearly_a_fixed_point(controls, distance):
    """One map for several steps cannot suit each of them exactly, but suits them better than copying does."""
    net, images = network(steps=4, controls=controls), smooth_images(12, size=32, frequencies=6)
    scales = calibrate(net, 0.5, images).scales

    def farthest(converted: PDENet) -> float:
        back = calibrate(converted, 2.0, images).scales
        return max(float((s * back[name]).log().abs().max()) for name, s in scales.items())

    assert farthest(convert(net, size=16, calibration=images)) < distance < farthest(convert(net, size=16))


def test_nearly_degenerate_data_do_not_stop_the_full_covariance():
    s = torch.sin(2 * math.pi * (torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    x = (s[:, None] * s[None]).expand(1, 2, 64, 64).clone()
    found = calibrate(layer(), 0.5, x, "calibrated_full")
    assert bool(found.matrices["0"].isfinite().all())
