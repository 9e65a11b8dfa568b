"""Any PyTorch network: a torchvision ResNet-18 gets mesh sizes, is moved, and goes back to plain convolutions.

The network has random weights, so this shows the mechanics and no accuracy. Takes about five seconds. What it reaches:

    reparametrised at h = 1/64, scores changed by 0.0e+00
    not converted: layer2.0.downsample.0 (1x1), layer3.0.downsample.0 (1x1), layer4.0.downsample.0 (1x1)
    17 stencils, the first with β of shape (64, 3, 7, 7)
    the last one lies on a mesh 32 times as wide
    converted to h = 1/128; the original is still at h = 1/64
    set_mesh_size gives the same stencils: True
    baked: 0 traces of the parametrization left
"""

import torch
from torchvision.models import resnet18

from multipde import bake, coefficients, convert, mesh_size, reparametrize, set_mesh_size, skipped_layers


def main() -> None:
    torch.manual_seed(0)
    net = resnet18(weights=None).eval()
    images = torch.rand(2, 3, 64, 64)
    before = net(images)

    reparametrize(net, mesh_size=1 / 64, example=images)
    print(f"reparametrised at h = 1/64, scores changed by {(net(images) - before).abs().max():.1e}")
    print(f"not converted: {', '.join(f'{name} ({why})' for name, why in skipped_layers(net).items())}")
    beta = coefficients(net)
    print(f"{len(beta)} stencils, the first with β of shape {tuple(beta['conv1'].shape)}")
    last = net.get_submodule("layer4.1.conv2.parametrizations.weight.0")
    print(f"the last one lies on a mesh {last.basis().mesh_size[0] * 64:.0f} times as wide")  # pyright: ignore

    fine = convert(net, size=128, method="rediscretize")
    sizes = [1 / float(mesh_size(each)) for each in (fine, net)]  # pyright: ignore
    print(f"converted to h = 1/{sizes[0]:.0f}; the original is still at h = 1/{sizes[1]:.0f}")
    set_mesh_size(net, 1 / 128)
    difference = (net.conv1.weight - fine.conv1.weight).abs().max() / fine.conv1.weight.abs().max()
    print(f"set_mesh_size gives the same stencils: {bool(difference < 1e-5)}")

    plain = bake(fine)
    print(f"baked: {sum('parametrizations' in name for name in plain.state_dict())} traces of the parametrization left")


if __name__ == "__main__":
    main()
