"""The polar factors of many matrices at once, by the iteration of Newton and Schulz."""

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LEAST_NORM = 1e-12
"""A matrix of a smaller Frobenius norm is not scaled up to one."""


def orthogonal_stencils(stencils: list[tuple[Tensor, int]]) -> list[Tensor]:
    """orth of stencils, each given with its number of convolution groups, times sqrt(max(1, rows/columns)).

    All matrices of one shape, or of its transpose, are one batch.

    Shape:
        - stencils, result: (O, I, *taps) each
    """
    batches: dict[tuple, list[int]] = {}
    matrices = [u.movedim(1, -1).reshape(k, len(u) // k, -1) for u, k in stencils]  # the order of columns is free
    for i, x in enumerate(matrices):
        batches.setdefault((*sorted(x.shape[1:]), x.dtype, x.device), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(stencils)
    for numbers in batches.values():
        wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in (matrices[i] for i in numbers)]
        parts = orthogonalized(torch.cat(wide)).split([len(x) for x in wide])
        for i, part in zip(numbers, parts, strict=True):
            rows, columns = matrices[i].shape[1:]
            result = part if rows <= columns else part.mT * math.sqrt(rows / columns)
            num, channels, *taps = stencils[i][0].shape
            found[i] = result.reshape(num, *taps, channels).movedim(-1, 1)
    return found


def orthogonalized(x: Tensor) -> Tensor:
    """The polar factors U Vᵀ of matrices x = U S Vᵀ, up to singular values in about [0.68, 1.21] instead of one.

    After division by the Frobenius norm, five iterations of Newton-Schulz, whose coefficients raise small singular
    values as fast as possible:

        x ← (a + b A + c A²) x,   A = x xᵀ,   a = 3.4445, b = -4.7750, c = 2.0315

    The polynomials commute with A. For long rows all iterations are therefore computed on the small matrices A, and
    their product is applied once. In bf16, on a GPU, the rounding of A would grow, and x itself is iterated.

    Shape:
        - x, result: (k, m, n), m ≤ n

    Reference: Jordan et al. (2024); the iteration is that of Schulz (1933), Iterative Berechnung der reziproken Matrix.
    """
    x = x / x.flatten(1).norm(dim=1).clamp_min(LEAST_NORM).view(-1, 1, 1)
    dtype = x.dtype
    if in_bf16(x) or not _has_long_rows(*x.shape[1:]):
        x = x.bfloat16() if in_bf16(x) else x
        for _ in range(ITERATIONS):
            x = torch.bmm(_polynomial(torch.bmm(x, x.mT)), x)
        return x.to(dtype)
    gram, product = torch.bmm(x, x.mT), None
    for i in range(ITERATIONS):
        q = _polynomial(gram)
        product = q if product is None else torch.bmm(q, product)
        gram = torch.bmm(torch.bmm(q, gram), q) if i + 1 < ITERATIONS else gram
    return torch.bmm(product, x)  # pyright: ignore[reportArgumentType]


def _polynomial(gram: Tensor) -> Tensor:
    """a + b A + c A²."""
    a, b, c = COEFFICIENTS
    q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    q.diagonal(dim1=1, dim2=2).add_(a)
    return q


def _has_long_rows(m: int, n: int) -> bool:
    """Whether products of (m, m) matrices are cheaper than products with (m, n) in every iteration."""
    return 2 * n > 3 * m


def in_bf16(x: Tensor) -> bool:
    """Whether products are computed in bf16: on a GPU, unless in float64; on a processor float32 is faster."""
    return x.device.type == "cuda" and x.dtype != torch.float64


def matrix_flops(m: int, n: int, in_bf16: bool) -> int:
    """Floating point operations of `orthogonalized` for one matrix."""
    if _has_long_rows(m, n) and not in_bf16:
        return 2 * m * m * (2 * n + (4 * ITERATIONS - 3) * m)
    return 2 * m * m * (2 * n + m) * ITERATIONS
