"""The gradient of a stencil that is wider than the image: taps that meet no pixel have the gradient zero.

oneDNN leaves these entries undefined in bf16, in two dimensions where the stride is larger than one: they hold whatever
was in memory before. A network that goes to small images comes there: the last block of ResNet-18 has maps of one pixel
at size 16.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

Node = Any
"""A node of the graph of autograd; those of convolutions have attributes that torch's class `Node` does not name."""


def zero_unmet_taps(loss: Tensor) -> int:
    """Set the gradients of unmet taps to zero in the backward pass of a loss, of all its convolutions.

    Returns:
        The number of convolutions with such taps.
    """
    seen: set[Node] = set()
    left, num = [loss.grad_fn], 0
    while left:
        node: Node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [before for before, _ in node.next_functions]
        if node.name() == "ConvolutionBackward0" and (unmet := _unmet(node)).any():
            node.register_hook(partial(_zeroed, unmet))
            num += 1
    return num


@lru_cache(maxsize=1024)
def unmet_taps(
    sides: Sequence[int],
    results: Sequence[int],
    widths: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The taps t of a convolution for which no pixel s r - p + d t of the image exists, for any pixel r of the result.

    Of a transposed convolution, image and result are exchanged.

    Args:
        sides, results: the sides of image and result.
        widths: the widths of the stencil.

    Shape:
        - result: (*widths), boolean
    """
    met = torch.ones((), dtype=torch.bool)
    for side, num, width, s, p, d in zip(sides, results, widths, stride, padding, dilation, strict=True):
        pixels = s * torch.arange(num).view(-1, 1) - p + d * torch.arange(width)
        met = met.unsqueeze(-1) & ((pixels >= 0) & (pixels < side)).any(0)
    return ~met


def _unmet(node: Node) -> Tensor:
    """The unmet taps of the convolution of a node."""
    sides, widths = tuple(node._saved_input.shape[2:]), tuple(node._saved_weight.shape[2:])
    steps = tuple(map(tuple, (node._saved_stride, node._saved_padding, node._saved_dilation)))
    each = zip(sides, widths, *steps, strict=True)
    if node._saved_transposed:
        more = node._saved_output_padding
        whole = tuple((n - 1) * s - 2 * p + d * (w - 1) + 1 + m for (n, w, s, p, d), m in zip(each, more, strict=True))
        return unmet_taps(whole, sides, widths, *steps)
    return unmet_taps(sides, tuple((n + 2 * p - d * (w - 1) - 1) // s + 1 for n, w, s, p, d in each), widths, *steps)


def _zeroed(unmet: Tensor, gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
    """The gradients of image, stencil and bias, with zeros at the unmet taps."""
    image, stencil, *bias = gradients
    return image, None if stencil is None else stencil.masked_fill(unmet, 0), *bias
