"""Forty networks of torchvision, timm and audio, with the sizes at which `multipde bench architectures` tries them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multipde.networks.external import describe, external_model


@dataclass(frozen=True)
class Architecture:
    """A network with random weights, the size for which it is made, and the size to which it is converted.

    Args:
        name: as after ``--arch``, or the name of a segmentation or audio network of `FACTORIES`.
        kind: classification, segmentation, video or audio.
        size, new_size: sides of the images in pixels, or their number of samples.
        dim, in_channels, classes: as in `multipde.ExternalModel`.
    """

    name: str
    kind: str = "classification"
    size: int = 64
    new_size: int = 96
    dim: int = 2
    in_channels: int = 3
    classes: int = 10

    def build(self) -> nn.Module:
        """The network in evaluation mode, with weights from torch's generator and with its description."""
        make = FACTORIES.get(self.name)
        fields = {"size": self.size, "classes": self.classes, "in_channels": self.in_channels, "dim": self.dim}
        if make is None:
            return external_model(self.name, **fields).build().eval()
        return describe(make(self.classes), **fields).eval()  # pyright: ignore[reportArgumentType]


class AudioNet(nn.Module):
    """Sound (N, 1, samples) by five convolutions in time, as in the networks "M5" of Dai et al. (2017).

    The first stencil has 79 taps or another width; every convolution is followed by BatchNorm, ReLU and a pool.
    """

    def __init__(self, classes: int, first: int = 79, width: int = 3, channels: int = 32):
        super().__init__()
        layers, before = [], 1
        for k, after in enumerate((channels, channels, 2 * channels, 4 * channels)):
            taps, stride = (first, 4) if k == 0 else (width, 1)
            layers += [nn.Conv1d(before, after, taps, stride, padding=taps // 2, bias=False)]
            layers += [nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(4)]
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(-1))


class DilatedAudioNet(nn.Module):
    """Sound (N, 1, samples) by residual convolutions of growing dilation, as in WaveNet (van den Oord et al., 2016)."""

    def __init__(self, classes: int, channels: int = 32, depth: int = 8):
        super().__init__()
        self.opening = nn.Conv1d(1, channels, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, 3, padding=2**k, dilation=2**k) for k in range(depth)
        )
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.opening(x)
        for layer in self.layers:
            value, gate = layer(y).chunk(2, 1)
            y = y + torch.tanh(value) * torch.sigmoid(gate)
        return self.classifier(y.mean(-1))


def _torchvision(name: str, **options: Any) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=classes, **options)

    return make


SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
FACTORIES: dict[str, Callable[[int], nn.Module]] = {
    **{name: _torchvision(name, weights_backbone=None) for name in SEGMENTATION},
    **{name: _torchvision(name) for name in ("r3d_18", "mc3_18")},
    "audio M5": AudioNet,
    "audio, 9 taps": lambda classes: AudioNet(classes, first=9, width=9),
    "audio, dilated": DilatedAudioNet,
}
"""Networks that ``--arch`` does not name: they give no scores per class, or their images are no pictures."""

SMALL = (
    "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "squeezenet1_1", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "regnet_x_400mf",
    "timm:mobilenetv4_conv_small", "convnext_tiny", "vgg11_bn", "alexnet",
    "timm:resnet50d", "timm:resnet26t", "timm:seresnext26d_32x4d", "timm:convnextv2_atto", "timm:rexnet_100",
    "timm:ghostnet_100", "timm:dla34", "timm:hrnet_w18_small", "timm:repvgg_a0", "timm:nf_regnet_b0",
    "timm:pvt_v2_b0",
)  # fmt: skip
FIXED = (
    "swin_t", "vit_b_16(image_size=64)", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224",
    "timm:maxvit_pico_rw_256",
)  # fmt: skip
"""Networks of windows and positions, some of whose layers depend on the size of the images."""

ARCHITECTURES = (
    *[Architecture(name) for name in SMALL],
    *[Architecture(name, new_size=128) for name in FIXED],
    *[Architecture(name, "segmentation") for name in SEGMENTATION],
    *[Architecture(name, "video", size=16, new_size=24, dim=3) for name in ("r3d_18", "mc3_18")],
    *[
        Architecture(name, "audio", size=2048, new_size=4096, dim=1, in_channels=1)
        for name in ("audio M5", "audio, 9 taps", "audio, dilated")
    ],
)
