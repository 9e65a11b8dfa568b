"""``multipde inspect``: the description of a network, and the coefficients of its stencils."""

from typing import Any

from torch import nn

from multipde.mesh.reparametrize import stencil_layers
from multipde.mesh.spectrum import order_rms
from multipde.networks.all_sizes import AllSizes, shared_names
from multipde.networks.cost import count_flops, num_weights
from multipde.networks.detail import with_detail
from multipde.networks.model_spec import spec_of, with_meshes
from multipde.runtime.console import Log


def inspect_network(net: nn.Module, physical: bool, log: Log, *, as_json: bool = False) -> dict[str, Any]:
    """Print the description of a network, its cost, and the root mean squares of its coefficients, see `order_rms`.

    Args:
        physical: give the coefficients on the unit square instead of in units of each layer's mesh size.
        as_json: print the result as a line of JSON instead.

    Returns:
        The description, the number of weights, the FLOPs of an image in evaluation and in training, and per layer the
        root mean squares by order of the derivative. Of a network for several sizes they are those of the largest one,
        and ``sizes`` names all.
    """
    sizes = [_size_row(each) for each in net.networks] if isinstance(net, AllSizes) else []
    net = net.networks[-1] if isinstance(net, AllSizes) else net
    spec = spec_of(net)
    found = order_rms(with_meshes(with_detail(net, 1)), physical) if stencil_layers(net) else {}
    flops = count_flops(spec), count_flops(spec, training=True)
    result = {
        "network": spec.record(),
        "weights": num_weights(net),
        "flops": flops[0],
        "training_flops": flops[1],
        "coefficients": {layer: [float(v) for v in rms] for layer, rms in found.items()},
        "unit": "unit square" if physical else "mesh",
    }
    result |= {"sizes": [int(row["size"]) for row in sizes]} if sizes else {}
    if as_json:
        log.json(result)
        return result
    if sizes:
        log.table(sizes, "One network for several sizes, which share the stencils")
    for line in spec.summary(net).splitlines():
        log.say(line)
    log.say(f"{flops[0] / 1e6:.1f} MFLOPs per image, {flops[1] / 1e6:.1f} in training")
    if spec.class_names:
        log.say(f"classes: {', '.join(spec.class_names)}")
    if spec.detail > 1:
        mesh = "x".join(str(s) for s in spec.sizes)
        log.say(f"detail {spec.detail}: the mesh has {mesh} pixels; below, the opening is averaged back to it")
    if not found:
        return result
    unit = "unit square" if physical else "the layer's mesh"
    orders = range(max(len(rms) for rms in found.values()))
    rows = [
        {"layer": layer} | {f"order {k}": f"{rms[k]:.3g}" if k < len(rms) else "-" for k in orders}
        for layer, rms in found.items()
    ]
    log.table(rows, f"rms of β by total order of derivative, lengths in units of {unit}")
    return result


def _size_row(net: nn.Module) -> dict[str, str]:
    spec, names = spec_of(net), shared_names(net)
    shared = sum(p.numel() for name, p in net.named_parameters() if name in names)
    row = {"size": str(spec.image_sizes[0]), "shared weights": f"{shared:,}", "own": f"{num_weights(net) - shared:,}"}
    return row | {"MFLOPs/image": f"{count_flops(spec) / 1e6:.1f}"}
