"""``multipde inspect``: the description of a network, and the coefficients of its stencils."""

from torch import nn

from multipde.mesh.reparametrize import stencil_layers
from multipde.mesh.spectrum import order_rms
from multipde.networks.all_sizes import AllSizes, shared_names
from multipde.networks.cost import count_flops, num_weights
from multipde.networks.detail import with_detail
from multipde.networks.model_spec import spec_of, with_meshes
from multipde.runtime.console import Log


def inspect_network(net: nn.Module, physical: bool, log: Log) -> None:
    """Print the description of a network, its cost, and the root mean squares of its coefficients, see `order_rms`.

    Of a network for several sizes the sizes are listed, and then the network of the largest one is described.
    """
    if isinstance(net, AllSizes):
        log.table([_size_row(each) for each in net.networks], "One network for several sizes, which share the stencils")
        net = net.networks[-1]
    spec = spec_of(net)
    for line in spec.summary(net).splitlines():
        log.say(line)
    flops = count_flops(spec), count_flops(spec, training=True)
    log.say(f"{flops[0] / 1e6:.1f} MFLOPs per image, {flops[1] / 1e6:.1f} in training")
    if spec.class_names:
        log.say(f"classes: {', '.join(spec.class_names)}")
    if spec.detail > 1:
        mesh = "x".join(str(s) for s in spec.sizes)
        log.say(f"detail {spec.detail}: the mesh has {mesh} pixels; below, the opening is averaged back to it")
    if not stencil_layers(net):
        return
    unit = "unit square" if physical else "the layer's mesh"
    found = order_rms(with_meshes(with_detail(net, 1)), physical)
    orders = range(max(len(rms) for rms in found.values()))
    rows = [
        {"layer": layer} | {f"order {k}": f"{rms[k]:.3g}" if k < len(rms) else "-" for k in orders}
        for layer, rms in found.items()
    ]
    log.table(rows, f"rms of β by total order of derivative, lengths in units of {unit}")


def _size_row(net: nn.Module) -> dict[str, str]:
    spec, names = spec_of(net), shared_names(net)
    shared = sum(p.numel() for name, p in net.named_parameters() if name in names)
    row = {"size": str(spec.image_sizes[0]), "shared weights": f"{shared:,}", "own": f"{num_weights(net) - shared:,}"}
    return row | {"MFLOPs/image": f"{count_flops(spec) / 1e6:.1f}"}
