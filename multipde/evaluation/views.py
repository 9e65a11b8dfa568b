"""Several views of an image: the mean of the scores of the image and of its mirror image."""

from torch import Tensor, nn

VIEWS = (1, 2)


class TwoViews(nn.Module):
    """A classifier whose scores, before the softmax, are the mean over an image and its mirror image.

        scores(x) = (net(x) + net(mirrored x)) / 2,   where left and right are exchanged; this takes twice the work

    Shape:
        - x: (N, C, *size)
        - result: (N, classes)
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) + self.net(x.flip(-1))) / 2


def with_views(net: nn.Module, views: int) -> nn.Module:
    """The network itself for one view, `TwoViews` of it for two; ValueError for another number."""
    if views not in VIEWS:
        raise ValueError(f"views must be 1 or 2, got {views}")
    return TwoViews(net) if views == 2 else net
