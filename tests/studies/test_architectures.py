"""`multipde bench architectures`: five of its networks, and what becomes of layers that depend on the image size."""

from dataclasses import replace

import pytest
import torch

from multipde import convert, convert_, describe, external_model, load, save
from multipde.cli.main import main
from multipde.networks.input_size import can_resize
from multipde.studies.bench.architecture_list import ARCHITECTURES, FACTORIES
from multipde.studies.bench.architecture_study import ALL_METHODS, architectures_study, tried

PLACED = ("reparametrize", "set_mesh_size", "state_dict", "bake")

NETWORKS = {
    "squeezenet1_1": 9,
    "timm:resnet26t": 11,
    "audio, dilated": 9,
    "mc3_18": 17,
    "audio M5": 4,
}
"""The five networks by the number of their stencils."""


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_move(name):
    entry = next(each for each in ARCHITECTURES if each.name == name)
    if name.startswith("timm:"):
        pytest.importorskip("timm")
        entry = replace(entry, name=f"{name}(channels=(8, 16, 32, 64))")
    if entry.dim > 1:
        size = 32 if entry.dim == 2 else 8
        entry = replace(entry, size=size, new_size=3 * size // 2)
    row = tried(entry)
    assert row["stencils"] == NETWORKS[name]
    assert row["input_size"] == "any"
    refused = {what: row[what] for what in (*PLACED, *ALL_METHODS) if row[what] != "ok"}
    if name == "audio M5":
        assert set(refused) == {"set_mesh_size", *ALL_METHODS} - {"copy"}
        assert all("must have an inverse in float64 for stencils of 79 taps" in why for why in refused.values())
    else:
        assert refused == {}


def test_there_are_forty_different_networks_of_every_kind():
    assert len({entry.name for entry in ARCHITECTURES}) == len(ARCHITECTURES) == 40
    assert {entry.kind for entry in ARCHITECTURES} == {"classification", "segmentation", "video", "audio"}


def test_the_command_keeps_its_rows_and_goes_on(tmp_path, capsys, monkeypatch):
    name, out = "timm:vit_tiny_patch16_224", tmp_path / "rows.jsonl"
    monkeypatch.setitem(FACTORIES, name, lambda classes: small_vit(img_size=64, patch_size=16, num_classes=classes))
    main(["bench", "architectures", "--arch", "audio, dilated", name, "--out", str(out)])
    text = capsys.readouterr().out
    assert "audio, dilated: 9 stencils\n" in text
    assert "timm:vit_tiny_patch16_224: 0 stencils; reparametrize: module must have a convolution with odd" in text
    again = architectures_study(out, arch=["audio, dilated"])
    assert len(again) == 2
    assert len(out.read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"arch must name networks of the list \(resnet18, .*\), got 'resnet19'"):
        architectures_study(arch=["resnet19"])


def small_vit(**how):
    timm = pytest.importorskip("timm")
    how = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3} | how
    return timm.create_model("vit_tiny_patch16_224", **how)


def test_timms_set_input_size_resizes_what_depends_on_the_size(tmp_path):
    net = describe(small_vit(), size=32, classes=3).eval()
    assert can_resize(net)
    with pytest.warns(UserWarning, match="no stencil moves; the network is resized by its own set_input_size"):
        new = convert(net, size=64)
    assert net.pos_embed.shape[1] == 17  # the old one is as it was
    assert new.pos_embed.shape[1] == 65
    assert new(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    back = load(save(new, tmp_path / "new"), small_vit())
    assert torch.equal(back.pos_embed, new.pos_embed)
    assert back.multipde_spec.size == 64


def test_windows_and_stencils_of_one_network_move_together(tmp_path):
    pytest.importorskip("timm")
    arch = "timm:maxvit_pico_rw_256(embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1))"
    spec = external_model(arch, size=64, classes=3)
    net = spec.build().eval()
    new = convert(net, size=32, method="rediscretize")
    assert new(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert any(not torch.equal(p, q) for p, q in zip(net.parameters(), new.parameters(), strict=True))
    loaded, x = load(save(new, tmp_path / "new")), torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), new(x))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_network_that_is_resized_in_place_goes_on_training(optimizer):
    net = describe(small_vit(), size=32, classes=3)
    how = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    own = optimizer(net.parameters(), lr=0.01, **how)
    position = net.pos_embed
    for size in (32, 64):
        if size == 64:
            with pytest.warns(UserWarning, match="no stencil moves"):
                convert_(net, optimizer=own, size=64)
        before = net.pos_embed.detach().clone()
        own.zero_grad()
        net(torch.randn(4, 3, size, size)).square().sum().backward()
        own.step()
        assert torch.isfinite(net.pos_embed).all()
        assert not torch.equal(net.pos_embed, before)
    assert net.pos_embed is position


def test_a_size_that_a_network_cannot_take_is_refused_in_one_line():
    pytest.importorskip("timm")
    net = external_model("timm:levit_128s", size=224, classes=3).build()
    with pytest.raises(ValueError, match="size must be one that levit_128s can take, got 112"):
        convert(net, size=112)


def test_modules_that_ask_for_their_version_are_read_again(tmp_path):
    net = external_model("mnasnet0_5", size=32, classes=3).build().eval()
    loaded, x = load(save(net, tmp_path / "net")), torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), net(x))
