"""ResNet-18 as it is trained by the same scheduler: torchvision's, its variant for small images, and half of it."""

from torch import Tensor, nn

from multipde.networks.external import PYTHON, ExternalModel, external_model


def resnet18_model(size: int, classes: int, images: Tensor | None = None) -> ExternalModel:
    """torchvision's ResNet-18 as it is, whose opening and pooling coarsen the image by a factor of four."""
    return external_model("resnet18", size=size, classes=classes)


def small_resnet18_model(size: int, classes: int, images: Tensor | None = None) -> ExternalModel:
    """ResNet-18 with a 3x3 opening of stride one and no pooling after it, as is usual on CIFAR-10."""
    return ExternalModel(f"{PYTHON}:resnet18_3x3", classes=classes, size=size, factory=resnet18_3x3)


def resnet18_3x3(num_classes: int) -> nn.Module:
    """The network of `small_resnet18_model`."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return net


def half_resnet18_model(size: int, classes: int) -> ExternalModel:
    """`small_resnet18_model` with half of its channels, and so a quarter of its work."""
    return ExternalModel(f"{PYTHON}:half_resnet18", classes=classes, size=size, factory=HalfResNet18)


class HalfResNet18(nn.Module):
    """The network of `half_resnet18_model`: eight blocks of torchvision, of 32, 64, 128 and 256 channels."""

    def __init__(self, num_classes: int):
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        blocks, before = [], 32
        for width in (32, 64, 128, 256):
            stride = 1 if width == before else 2
            smaller = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            blocks += [BasicBlock(before, width, stride, None if stride == 1 else smaller), BasicBlock(width, width)]
            before = width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(before, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.bn1(self.conv1(x)).relu()).mean((2, 3)))
