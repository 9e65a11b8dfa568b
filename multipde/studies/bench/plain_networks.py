"""ResNet-18 as a rival that is trained by the same scheduler: torchvision's, and its variant for small images."""

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
