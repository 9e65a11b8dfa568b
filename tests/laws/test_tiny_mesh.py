"""On a mesh of at most two pixels per axis the matrix of a stencil does what its convolution does."""

import itertools

import pytest
import torch

from multipde.networks.compilation import compile_layers
from multipde.networks.dynamics import Block
from multipde.networks.kernels import tiny_mesh
from multipde.networks.layers import CONVOLVE, CONVOLVE_TRANSPOSED

SIZES = [size for dim in (1, 2, 3) for size in itertools.product((1, 2), repeat=dim)]


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_convolution(size, width):
    dim = len(size)
    y = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    stencil = torch.randn(2, 3, *(width,) * dim, dtype=torch.float64, requires_grad=True)
    matrix = tiny_mesh.matrix_of(stencil, size)
    z = tiny_mesh.product(y, matrix)
    found, expected = (
        (z, tiny_mesh.product(z, matrix.t())),
        (
            CONVOLVE[dim](y, stencil, padding=width // 2),
            CONVOLVE_TRANSPOSED[dim](CONVOLVE[dim](y, stencil, padding=width // 2), stencil, padding=width // 2),
        ),
    )
    g = torch.randn_like(found[1])
    for a, b in zip(
        (*found, *torch.autograd.grad(found[1], (y, stencil), g)),
        (*expected, *torch.autograd.grad(expected[1], (y, stencil), g)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", ["store", "reversible"])
@pytest.mark.parametrize("dynamics", ["parabolic", "hamiltonian", "second_order", "resnet"])
def test_compiled_layers_take_the_matrix_and_compute_the_same(dynamics, memory, monkeypatch, compiler):
    if memory == "reversible" and dynamics in ("parabolic", "resnet"):
        memory = "checkpoint"
    block = Block(dynamics, 4, steps=2, memory=memory).to(memory_format=torch.channels_last)  # pyright: ignore
    y = torch.randn(32, 4, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    products, real = [], tiny_mesh.product
    monkeypatch.setattr(tiny_mesh, "product", lambda *given: products.append(given) or real(*given))
    results = []
    for on in (False, True):
        compile_layers(torch.nn.Sequential(block), on)
        out = block(y)
        results.append((out, *torch.autograd.grad(out.square().sum(), (y, *block.parameters()))))
        assert bool(products) == on
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_a_batch_of_few_images_and_a_larger_mesh_are_convolved():
    stencil = torch.zeros(4, 4, 3, 3)
    is_taken = [tiny_mesh.is_worthwhile(torch.zeros(num, 4, *size), stencil) for num, size in CASES]
    assert is_taken == [True, False, False, True]
    assert not tiny_mesh.is_worthwhile(torch.zeros(32, 4, 2, 2), torch.zeros(4, 4, 1, 1))


CASES = [(32, (2, 2)), (31, (2, 2)), (32, (2, 4)), (32, (1, 1))]
