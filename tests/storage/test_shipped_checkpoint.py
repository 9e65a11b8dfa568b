"""The network in examples/checkpoints: it loads, answers and converts as the pages say, and holds no images."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from multipde import PDENet, convert, count_flops, load, predict

PLACE = Path(__file__).parents[2] / "examples" / "checkpoints" / "cifar10-hamiltonian"


@pytest.fixture(scope="module")
def net():
    return load(PLACE)


def plane():
    """A drawing of an airplane from above, with the sky behind it."""
    picture = Image.new("RGB", (96, 96), (120, 170, 220))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(8, 48), (20, 43), (76, 44), (88, 48), (76, 52), (20, 53)], fill=(235, 235, 240))
    draw.polygon([(40, 48), (56, 12), (63, 12), (56, 48), (63, 84), (56, 84)], fill=(205, 208, 215))
    draw.polygon([(14, 48), (8, 30), (13, 30), (24, 48), (13, 66), (8, 66)], fill=(205, 208, 215))
    return picture


def test_it_is_the_network_of_the_card(net):
    card = (PLACE / "README.md").read_text(encoding="utf-8")
    assert isinstance(net, PDENet)
    assert f"{sum(p.numel() for p in net.parameters()):,} weights" in card
    assert (net.config.dynamics, net.config.size, net.config.classes) == ("hamiltonian", 32, 10)
    for name in net.config.class_names:
        assert name in card


def test_it_is_small_and_brings_no_images():
    files = list(PLACE.iterdir())
    assert {file.name for file in files} == {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}
    assert sum(file.stat().st_size for file in files) < 1.2e6


def test_it_sees_an_airplane_in_a_drawing_of_one(net):
    (found,) = predict(net, plane(), device="cpu")
    (name, probability), *_ = found.ranking
    assert name == "airplane"
    assert probability == pytest.approx(0.954, abs=0.002)


def test_at_half_the_side_it_has_the_same_weights_and_a_quarter_of_the_operations(net):
    small = convert(net, size=16)
    assert small.config.size == 16
    assert small.config.class_names == net.config.class_names
    assert sum(p.numel() for p in small.parameters()) == 264_106
    assert count_flops(small.config) == pytest.approx(count_flops(net.config) / 4, rel=0.01)
    again = convert(small, size=32)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert small.eval()(x[..., ::2, ::2]).shape == (2, 10)
        assert torch.equal(again.eval()(x), net.eval()(x))
