"""The gradient of a stencil that is wider than the image: taps that meet no pixel have the gradient zero.

oneDNN leaves these entries undefined in bf16 where the stride is larger than one; they hold whatever was in memory
before. A network that goes to small images comes there: the last block of ResNet-18 has maps of one pixel at size 16.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Node = Any
"""A node of the graph of autograd; those of convolutions have attributes that torch's class `Node` does not name."""


def zero_unmet_taps(loss: Tensor) -> int:
    """Set the gradients of unmet taps to zero in the backward pass of a loss, of all its strided convolutions.

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
        if node.name() != "ConvolutionBackward0" or node._saved_transposed or max(node._saved_stride) == 1:
            continue
        sides, widths = node._saved_input.shape[2:], node._saved_weight.shape[2:]
        unmet = unmet_taps(sides, widths, node._saved_stride, node._saved_padding, node._saved_dilation)
        if unmet.any():
            node.register_hook(partial(_zeroed, unmet))
            num += 1
    return num


def unmet_taps(
    sides: Sequence[int],
    widths: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Which taps (*widths) of a convolution meet a pixel of an image with these sides for no pixel of the result."""
    met = torch.ones((), dtype=torch.bool)
    for side, width, s, p, d in zip(sides, widths, stride, padding, dilation, strict=True):
        results = torch.arange((side + 2 * p - d * (width - 1) - 1) // s + 1)
        pixels = s * results.view(-1, 1) - p + d * torch.arange(width)
        met = met.unsqueeze(-1) & ((pixels >= 0) & (pixels < side)).any(0)
    return ~met


def _zeroed(unmet: Tensor, gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
    """The gradients of image, stencil and bias, with zeros at the unmet taps."""
    image, stencil, *bias = gradients
    return image, None if stencil is None else stencil.masked_fill(unmet, 0), *bias
