"""Wide stencils: there and back is the identity wherever float64 allows it; beyond that there is one clear line."""

import pytest
import torch
from torch import nn

from multipde import bake, convert, reparametrize, set_mesh_size, transfer_stencil
from multipde.mesh.tracing import trace_meshes


@pytest.mark.parametrize(
    ("method", "width", "dim"),
    [("rediscretize", w, 2) for w in (3, 7, 11, 15)]
    + [("rediscretize", w, 1) for w in (17, 27, 31)]
    + [("galerkin", w, 2) for w in (3, 9)],
)
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.5])
def test_there_and_back_is_the_identity(width, dim, factor, method):
    torch.manual_seed(0)
    stencil = torch.randn(20, *(width,) * dim, dtype=torch.float64)
    back = transfer_stencil(transfer_stencil(stencil, method, factor, dim), method, 1 / factor, dim)
    lost = float((back - stencil).norm() / stencil.norm())
    # stored in float64, stencils of width 31 lose 1.4e-8 even where the maps are computed exactly
    assert lost < (5e-8 if width == 31 else 1e-8)


@pytest.mark.parametrize("factor", [2, 0.5])
@pytest.mark.parametrize("width", [17, 21, 31])
def test_wider_stencils_are_refused_with_the_condition_number(width, factor):
    net = nn.Sequential(nn.Conv2d(1, 1, width))
    message = rf"stencils of {width}x{width} taps, got the condition number \de\+\d\d; use method 'copy', or skip="
    for call in (
        lambda: convert(net, factor=factor, method="rediscretize"),
        lambda: convert(net, factor=2, calibration=torch.zeros(2, 1, 64, 64)),
        lambda: set_mesh_size(reparametrize(nn.Sequential(nn.Conv2d(1, 1, width)), 1 / 64), 1 / (64 * factor)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(convert(net, factor=factor)[0].weight, net[0].weight)
    wide = nn.Sequential(nn.Conv2d(1, 1, 3), net[0])
    assert torch.equal(convert(wide, factor=factor, method="rediscretize", skip="1")[1].weight, net[0].weight)


def test_the_stem_of_a_residual_network_moves_far():
    """7x7 taps at a factor of 7, as from 224 to 32 pixels: its map there and back is still accurate."""
    stencil = torch.randn(20, 7, 7, dtype=torch.float64)
    back = transfer_stencil(transfer_stencil(stencil, "rediscretize", 1 / 7), "rediscretize", 7)
    torch.testing.assert_close(back, stencil, rtol=0, atol=1e-5)


def test_single_precision_weights_are_mapped_in_double_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 2, 15)).double()
    exact = convert(net, factor=2, method="rediscretize")[0].weight.detach()
    single = convert(net.float(), factor=2, method="rediscretize")[0].weight
    moved = reparametrize(net, 1 / 16)
    set_mesh_size(moved, 1 / 32)
    scale = exact.abs().max()
    for weight in (single, moved[0].weight, bake(moved)[0].weight):
        assert weight.dtype == torch.float32
        assert float(((weight.detach() - exact) / scale).abs().max()) < 1e-6


def test_complex_stencils_keep_their_imaginary_part():
    torch.manual_seed(0)
    real, imaginary = nn.Conv2d(2, 3, 3).double(), nn.Conv2d(2, 3, 3).double()
    net = nn.Sequential(nn.Conv2d(2, 3, 3, dtype=torch.complex128))
    net[0].weight.data = torch.complex(real.weight.data, imaginary.weight.data)
    new = convert(net, factor=2, method="galerkin")[0].weight
    parts = [convert(nn.Sequential(layer), factor=2, method="galerkin")[0].weight for layer in (real, imaginary)]
    torch.testing.assert_close(new, torch.complex(*parts))
    known = reparametrize(net, 1 / 8)
    set_mesh_size(known, 1 / 16)
    torch.testing.assert_close(known[0].weight.imag, transfer_stencil(imaginary.weight, "rediscretize", 2))
    assert trace_meshes(bake(known), torch.zeros(1, 2, 8, 8, dtype=torch.complex128)) == {"0": (1, 1)}
