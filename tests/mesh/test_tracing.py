"""Meshes of layers: strides are traced as strides, and convolutions that are no stencils in space are found."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torchvision import models

from multipde import convert, mesh_size, reparametrize, set_mesh_size, skipped_layers, stencil_layers
from multipde.mesh.modes import hooked
from multipde.mesh.tracing import trace_meshes


def strides(net: nn.Module, *shape: int) -> dict[str, tuple[float, ...] | str]:
    torch.manual_seed(0)
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    return {name: found for name, found in trace_meshes(net, torch.zeros(2, *shape)).items() if name in convs}


@pytest.mark.parametrize("size", [32, 65, 224])
def test_strides_of_resnet18_are_powers_of_two_at_any_size(size):
    found = strides(models.resnet18(), 3, size, size)
    assert found["conv1"] == (1, 1)
    for k in (1, 2, 3, 4):
        assert found[f"layer{k}.1.conv2"] == (2.0 ** (k + 1),) * 2
    assert found["layer4.0.conv1"] == (16, 16)


def test_unpadded_convolutions_have_no_stride():
    net = nn.Sequential(*(nn.Conv2d(1, 1, 7) for _ in range(3)))
    assert set(strides(net, 1, 32, 32).values()) == {(1.0, 1.0)}


def test_inception_at_its_native_size_and_its_auxiliary_classifier():
    with torch.device("meta"):
        net = models.inception_v3(init_weights=False, num_classes=10)
    found = strides(net, 3, 299, 299)
    assert found["Mixed_7c.branch3x3_2a.conv"] == (32, 32)
    assert found["AuxLogits.conv1.conv"] == (48, 48)  # reached in training alone, behind a mean of stride 3
    assert not [name for name, value in found.items() if value == "not reached by the example"]


class Everything(nn.Module):
    """Operations that move pixels: slices, shuffles, windows, tokens, interpolation to the size of another mesh."""

    def __init__(self):
        super().__init__()
        names = (
            "sliced",
            "shuffled",
            "unshuffled",
            "window",
            "token",
            "skip",
            "transposed",
            "pooled",
            "channels",
            "flat",
        )
        channels = {"shuffled": 4, "unshuffled": 1, "channels": 1, "flat": 1}
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.after, self.unpooled = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        for name in names:
            c = channels.get(name, 1 if name in ("shuffled",) else 4)
            conv = nn.Conv1d if name in ("channels", "flat") else nn.Conv2d
            setattr(self, name, conv(c, c, 3, padding=1))
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        self.sliced(x[:, :, 1::2, ::2])
        self.shuffled(functional.pixel_unshuffle(x[:, :1], 2))
        self.unshuffled(functional.pixel_shuffle(x, 2))
        windows = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
        self.window(windows)
        pooled = functional.max_pool2d(x, 3, 2, padding=1)
        tokens = pooled.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens[:, :1], functional.layer_norm(tokens, (c,)) @ torch.eye(c, device=x.device)], 1)[
            :, 1:
        ]
        self.skip(pooled + functional.interpolate(functional.avg_pool2d(pooled, 2), pooled.shape[2:]))
        self.token((pooled.flatten(2).mT @ torch.eye(c, device=x.device)).mT.unflatten(2, pooled.shape[2:]))
        self.transposed(self.up(pooled))
        self.after(self.circular(pooled))
        apart = x.new_zeros(n, c, 2 * h, 2 * w)
        apart[:, :, ::2, ::2] = x
        self.unpooled(apart)
        self.pooled(functional.adaptive_avg_pool2d(x, 1))
        self.channels(x.mean((2, 3))[:, None])
        self.flat(x[:, :1].flatten(2))
        return tokens


def test_operations_that_move_pixels_are_followed():
    found = strides(Everything(), 4, 16, 16)
    assert found["sliced"] == found["shuffled"] == found["token"] == found["skip"] == (2, 2)
    assert found["unshuffled"] == (0.5, 0.5)
    assert found["window"] == found["transposed"] == (1, 1)
    assert found["circular"] == found["after"] == (2, 2)
    assert found["unpooled"] == "its mesh cannot be traced"  # nobody knows what an empty tensor is filled with
    assert found["pooled"] == "not along the axes of the images"
    assert found["channels"] == found["flat"] == "1-D, where the images are 2-D"


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardised at use, as StdConv2d of timm."""

    def forward(self, x: Tensor) -> Tensor:
        weight = functional.batch_norm(self.weight.flatten(1)[None], None, None, training=True).view_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """A convolution that pads by itself and uses its weight as it is, as Conv2dSame of timm."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Attention(nn.Module):
    """Attention along the channels by a convolution of one axis, as ECA has it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()


class Unused(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training is None else self[0](x)


WRAPPED = {
    "old weight_norm": lambda: old_weight_norm(nn.Conv2d(4, 4, 3)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "old spectral_norm": lambda: old_spectral_norm(nn.Conv2d(4, 4, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
    "pruning": lambda: prune.random_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5),
    "standardised": lambda: Standardized(4, 4, 3),
    "lazy": lambda: nn.LazyConv2d(4, 3),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*weight_norm.*deprecated")
def test_weights_that_are_rewritten_are_left_alone_and_told(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), WRAPPED[kind](), Same(4, 4, 3))
    assert list(skipped_layers(net)) == ["1"]
    before = {k: v.clone() for k, v in net[1].state_dict().items() if kind != "lazy"}
    with pytest.warns(UserWarning, match=r"2 convolutions move, 1 stay as they are: 1 \("):
        new = convert(net, factor=2, method="rediscretize")
    assert all(torch.equal(v, before[k]) for k, v in new[1].state_dict().items() if kind != "lazy")
    for k in (0, 2):
        assert not torch.equal(new[k].weight, net[k].weight)
    with pytest.raises(ValueError, match="module must have a convolution with odd stencils .*, got 1 "):
        convert(nn.Sequential(net[1]), factor=2)


def test_another_parametrization_on_top_of_a_mesh_size_is_refused():
    net = reparametrize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)), 1 / 8)
    parametrizations.spectral_norm(net[1])
    for call in (lambda: set_mesh_size(net, 1 / 16), lambda: convert(net, size=16), lambda: mesh_size(net)):
        with pytest.raises(
            ValueError, match="layers must have their mesh size alone, got '1' parametrised otherwise too"
        ):
            call()


def test_what_is_no_stencil_in_space_is_left_alone_by_reparametrize_and_convert():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), Attention(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 3, padding=1)
    )
    example = torch.zeros(1, 3, 9, 9)
    reasons = {"1.conv": "1-D in a 2-D network", "4": "not along the axes of the images"}
    with pytest.warns(UserWarning, match="2 convolutions move, 2 stay as they are"):
        new = convert(net, factor=2, method="galerkin", example=example)
    assert torch.equal(new[4].weight, net[4].weight)
    assert torch.equal(new[1].conv.weight, net[1].conv.weight)
    assert not torch.equal(new[2].weight, net[2].weight)
    reparametrize(net, 1 / 9, example=example)
    assert skipped_layers(net) == reasons
    set_mesh_size(net, 1 / 18)
    assert list(stencil_layers(net)) == ["0", "2"]


def test_layers_that_are_never_reached_are_told():
    net = reparametrize(Unused(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), 1 / 8, example=torch.zeros(1, 3, 8, 8))
    assert skipped_layers(net) == {"1": "not reached by the example"}
    with pytest.raises(ValueError, match="got 1 not along the axes of the images"):
        reparametrize(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 1, 3, padding=1)),
            1 / 8,
            example=torch.zeros(1, 1, 8, 8),
        )


def test_no_hook_stays_where_registering_another_one_fails():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    seen: list[nn.Module] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(module)

    with hooked(m.register_forward_pre_hook(watch) for m in net):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(AttributeError, match="register"), hooked(m.register_forward_pre_hook(watch) for m in (*net, 1)):  # pyright: ignore
        pass
    net(torch.zeros(1, 3, 8, 8))
    assert seen == [*net]
    assert not any(m._forward_pre_hooks for m in net)


def test_methods_of_one_layer_say_nothing_about_its_class():
    torch.manual_seed(0)
    layers = [Watched(3, 4, 3) for _ in range(2)]
    layers[0]._conv_forward = lambda x, weight, bias: functional.conv2d(x, weight.square(), bias)
    plain = nn.Conv2d(3, 4, 3)
    plain._conv_forward = layers[0]._conv_forward
    assert skipped_layers(nn.Sequential(*layers, plain)) == dict.fromkeys(("0", "2"), "weight rewritten at use")


class Watched(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)


class Spectral(nn.Module):
    """A convolution of frequencies between two of pixels."""

    def __init__(self):
        super().__init__()
        self.before, self.inside, self.after = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        frequencies = torch.fft.rfft2(self.before(x))
        changed = torch.complex(self.inside(frequencies.real), frequencies.imag)
        return self.after(torch.fft.irfft2(changed, s=x.shape[-2:]))


def test_frequencies_are_no_pixels_until_they_are_transformed_back():
    found = trace_meshes(Spectral(), torch.zeros(1, 3, 16, 12))
    assert found == {"before": (1, 1), "inside": "not along the axes of the images", "after": (1, 1)}


def test_sorted_values_stand_nowhere():
    class Sorted(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sort(2).values)

    found = trace_meshes(Sorted(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, (1, 3))), torch.zeros(1, 3, 16, 12))
    assert found == {"0": "its mesh cannot be traced", "1": (1, 1)}


class Standardised(nn.Conv2d):
    """A convolution that divides its weight by its norm, or does not."""

    def __init__(self, *args, standardise, **settings):
        super().__init__(*args, **settings)
        self.standardise = standardise

    def forward(self, x):
        weight = self.weight / self.weight.norm() if self.standardise else self.weight
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_every_layer_of_a_class_answers_for_itself(order):
    net = nn.Sequential(*(Standardised(3, 3, 3, standardise=flag) for flag in order))
    assert list(stencil_layers(net)) == [str(k) for k, flag in enumerate(order) if not flag]


class Functional(nn.Module):
    """A convolution of torch.nn, and one whose weight is a parameter of the module."""

    def __init__(self):
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(4, 4, 3, 3))
        self.register_buffer("blur", torch.ones(4, 1, 3, 3))

    def forward(self, x):
        y = functional.conv2d(self.conv(x), self.blur, padding=1, groups=4)
        return functional.conv2d(y, self.kernel, padding=1)


def test_a_weight_of_no_layer_is_told():
    line = "stencils that belong to no convolution of torch.nn stay as they are: kernel"
    with pytest.warns(UserWarning, match=line):
        reparametrize(Functional(), 1 / 32, example=torch.zeros(1, 3, 32, 32))
    net = Functional()
    with pytest.warns(UserWarning, match=line):
        moved = convert(net, factor=2, method="rediscretize", example=torch.zeros(1, 3, 32, 32))
    assert torch.equal(moved.kernel, net.kernel)
    assert not torch.equal(moved.conv.weight, net.conv.weight)


class ToOneSize(nn.Sequential):
    """Upsampling to the size of the images, which is another one for other images."""

    def forward(self, x):
        small, large = self
        return large(functional.interpolate(small(x), size=x.shape[2:], mode="bilinear"))


@pytest.mark.parametrize(
    "fixed", [nn.Upsample(size=14), nn.Upsample(size=(14, 14), mode="bilinear"), nn.AdaptiveAvgPool2d(8)]
)
def test_maps_of_a_fixed_size_have_the_same_mesh_for_all_images(fixed):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), fixed, nn.Conv2d(3, 3, 3, padding=1))
    assert strides(net, 3, 16, 16) == {"0": (1, 1), "2": "its mesh does not follow the size of the images"}
    with pytest.warns(UserWarning, match=r"1 convolutions move, 1 stay as they are: 2 \(its mesh does not follow"):
        moved = convert(net, factor=2, method="rediscretize", example=torch.zeros(1, 3, 16, 16))
    assert torch.equal(moved[2].weight, net[2].weight)
    assert not torch.equal(moved[0].weight, net[0].weight)
    reparametrize(net, 1 / 16, example=torch.zeros(1, 3, 16, 16))
    assert list(stencil_layers(net)) == ["0"]


def test_maps_of_the_size_of_the_images_follow_it():
    found = strides(ToOneSize(nn.Conv2d(3, 3, 3, stride=3), nn.Conv2d(3, 3, 3)), 3, 16, 16)
    assert found == {"0": (1, 1), "1": (1, 1)}


def test_only_the_axis_whose_size_is_fixed_counts():
    net = nn.Sequential(nn.AdaptiveAvgPool2d((None, 4)), nn.Conv2d(3, 3, (3, 1)), nn.Conv2d(3, 3, 3))
    found = strides(net, 3, 16, 16)
    assert found == {"1": (1, 4), "2": "its mesh does not follow the size of the images"}
