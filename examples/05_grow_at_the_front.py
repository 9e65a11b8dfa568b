"""Growing a network at its front: the inner blocks are trained first, on the mesh that they keep.

Half the work goes to a network without the finest block, on images half as wide. Then it gets a new opening and a new
finest block near the identity in front, and is trained on at the full size; nothing has to be moved to another mesh.
The rivals with the same work are the whole network, copied from the coarse mesh to the fine one, and the fine mesh
alone. Takes about two minutes on two cores. What it reaches on the embedded shapes at 16 pixels:

    plan                  GFLOPs  test accuracy
    grown at the front       873          38.2%
    copied                   874          92.3%
    fine only                874          66.7%

So what the inner blocks have learnt behind another front is of little use behind the new one.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from multipde import (
    ImageData,
    Level,
    NetworkConfig,
    PDENet,
    Run,
    Schedule,
    TrainSettings,
    count_flops,
    load,
    load_data,
    preset,
    save,
    train,
)


def grown(inner: PDENet) -> PDENet:
    """The whole network around one that lacks its finest block; the new block starts with stencils near zero."""
    config = inner.config
    net = PDENet(replace(config, channels=(config.channels[0] // 2, *config.channels), size=2 * config.sizes[0]))
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    with torch.no_grad():
        for stencil in net.blocks[0].parameters():
            if stencil.dim() > 1:
                stencil.mul_(0.1)
        for name, tensor in [*inner.named_parameters(), *inner.named_buffers()]:
            part, _, rest = name.partition(".")
            if part in ("blocks", "connectors"):
                number, _, rest = rest.partition(".")
                own[f"{part}.{int(number) + 1}.{rest}"].copy_(tensor)
            elif part == "classifier":
                own[name].copy_(tensor)
    return net


def epochs(share: float, budget: float, config: NetworkConfig, whole: NetworkConfig) -> float:
    """So many epochs of a network are this share of that many epochs of the whole one."""
    return share * budget * count_flops(whole, training=True) / count_flops(config, training=True)


def trained(config: NetworkConfig | None, levels: list[Level], data: ImageData, run: Path, **options) -> Run:
    return train(config, Schedule(levels), data, run, quiet=True, **options)


def main(
    data: str = "shapes", root: str | None = None, size: int = 16, budget: float = 4, seed: int = 0, **more
) -> None:
    images = load_data(data, size=size, **({"root": root} if root else {}), **more)
    options = {"settings": TrainSettings(seed=seed, amp="auto")}
    whole = replace(preset("shapes-hamiltonian" if data == "shapes" else "cifar10-hamiltonian"), size=size)
    coarse = whole.on_mesh(size // 2)
    inner = replace(coarse, channels=whole.channels[1:])
    fine = Level(size, budget / 2)
    with tempfile.TemporaryDirectory() as place:
        runs, first = Path(place), replace(fine, size=size // 2)
        level = replace(first, epochs=epochs(0.5, budget, inner, whole))
        begun = trained(inner, [level], images, runs / "inner", **options)
        torch.manual_seed(seed)
        save(grown(load(begun.directory)), runs / "grown")
        ended = trained(None, [fine], images, runs / "front", init=runs / "grown", **options)
        flops = {"grown at the front": begun.result["flops"] + ended.result["flops"]}
        accuracies = {"grown at the front": ended.result["test_accuracy"]}
        plans = {
            "copied": [replace(first, epochs=epochs(0.5, budget, coarse, whole)), fine],
            "fine only": [replace(fine, epochs=budget)],
        }
        for name, levels in plans.items():
            result = trained(whole, levels, images, runs / name, **options).result
            flops[name], accuracies[name] = result["flops"], result["test_accuracy"]
    print(f"{'plan':<20}{'GFLOPs':>8}{'test accuracy':>15}")
    for name, accuracy in accuracies.items():
        print(f"{name:<20}{flops[name] / 1e9:>8.0f}{accuracy:>15.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Growing a network at its front, beside copying.")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--root", help="directory of the data set")
    parser.add_argument("--size", type=int, default=16, help="full image side in pixels")
    parser.add_argument("--budget", type=float, default=4, help="work of every plan in epochs at the full size")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
