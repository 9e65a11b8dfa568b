"""A trained network for several image sizes at once: one set of stencils, and normalisation layers for every size."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from multipde.conversions.convert import conversion
from multipde.mesh.modes import copied, ordinary_tensors
from multipde.mesh.reparametrize import mesh_parametrizations
from multipde.networks.all_sizes import AllSizes, check_sizes, share
from multipde.networks.cost import count_flops
from multipde.networks.model_spec import check_mesh, check_whole, spec_of


@ordinary_tensors()
def share_stencils(model: nn.Module, sizes: Sequence[int]) -> AllSizes:
    """Make one network for images of several sizes from a trained one; all sizes share its stencils.

    Every size has the taps of the model on its own mesh, as after ``convert(model, size=..., method="copy")``, and
    its own normalisation layers, which begin as those of the model. At the size of the model the outputs are those of
    the model. At other sizes `recalibrate` measures BatchNorm anew, and `finish` trains all sizes together:

        net = share_stencils(model, (16, 24, 32))
        done = finish(net, model, images, budget="20000images")

    Args:
        model: a trained network with a description, see `describe`; it is not changed.
        sizes: sides of the images in pixels, one network each; that of the model need not be among them.

    Raises:
        ValueError: the sizes are not different positive numbers, or the network cannot have one of them.
    """
    check_sizes(sizes)
    check_whole(model)
    check_mesh(model)
    spec: Any = spec_of(model)
    for size in sizes:
        count_flops(spec.for_images(size))  # raises for a size that the network cannot have
    own = copied(model)
    if not mesh_parametrizations(own):
        spec.put_on_mesh(own)
    networks = [
        own if spec.for_images(size) == spec else conversion(own, size=spec.for_images(size).size)(own)
        for size in sizes
    ]
    share([own, *networks])
    return AllSizes(networks)
