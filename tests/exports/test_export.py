"""Exported networks: the same scores in onnxruntime and in plain PyTorch, and one line for what cannot be exported."""

import json
import runpy
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from multipde import (
    NetworkConfig,
    PDENet,
    describe,
    export,
    external_model,
    folded,
    reparametrize,
    save,
    with_detail,
)
from multipde.cli.main import main
from multipde.exports import measured
from multipde.exports.measured import noise
from multipde.exports.onnx_model import OnnxNetwork
from multipde.networks.a_trous import a_trous
from multipde.networks.dynamics import DYNAMICS
from multipde.networks.inputs import Normalize
from multipde.networks.normalized import Normalized

SMALL = {"channels": (2, 4), "out_channels": 4, "steps": 2, "dt": 0.3, "size": 8}
GREY = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def trained(net):
    """With running statistics, scales and biases as a training leaves them."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point() and "_extra_state" not in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return net.eval()


def pde_net(dynamics="hamiltonian", **changed):
    return trained(PDENet(NetworkConfig(dynamics, **(SMALL | changed))))


def scores_without_multipde(folders):
    """The scores of the module net.py in each folder for its images.npy, by one process that cannot import multipde."""
    text = (
        "import importlib, os, sys; sys.modules['multipde'] = None\n"
        "import numpy, torch\n"
        "for folder in sys.argv[1:]:\n"
        "    os.chdir(folder); sys.path[0] = folder; sys.modules.pop('net', None)\n"
        "    scores = importlib.import_module('net').load()(torch.from_numpy(numpy.load('images.npy')))\n"
        "    numpy.save('scores.npy', scores.detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", text, *map(str, folders)], check=True, env={})
    return [torch.from_numpy(np.load(folder / "scores.npy")) for folder in folders]


CASES = [{}, {"controls": 1}, {"coordinates": "beta", "reference": 16}, {"dim": 1}, {"norm": "none", "eps": 0.1}]


@pytest.mark.parametrize("changed", CASES, ids=str)
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_folded_network_computes_the_same(dynamics, changed):
    net = pde_net(dynamics, **changed).double()
    images = torch.randn(3, 3, *(8,) * net.config.dim, dtype=torch.float64)
    torch.testing.assert_close(folded(net)(images), net(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilated", [False, True])
def test_a_folded_network_keeps_detail_and_dilation(dilated):
    net = with_detail(pde_net(), 2)
    net = a_trous(net) if dilated else net
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(folded(net)(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [{}, GREY, {"standardize": True}], ids=str)
def test_the_normalisation_in_front_of_a_network_is_that_of_its_description(given):
    spec = NetworkConfig("parabolic", **SMALL, detail=2, **given)
    front = Normalized(torch.nn.Identity(), spec.mean, spec.std, 2, spec.standardize, spec.detail)
    grey = noise(spec, 3)
    torch.testing.assert_close(front(grey), Normalize.of(spec)(grey.float()), rtol=1e-5, atol=1e-5)


def test_the_command_writes_onnx_that_normalises_and_computes_with_integers(tmp_path, folder, capsys):
    names, out = ("disc", "ring", "square"), tmp_path / "net.onnx"
    net = with_detail(pde_net(channels=(4,), steps=1, class_names=names, classes=3, **GREY), 2)
    save(net, tmp_path / "net")
    options = ["--normalize", "--int8", "--data", "folder", "--root", str(folder), "--out", str(out)]
    main(["export", str(tmp_path / "net"), *options])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("largest difference / largest score: ") for line in lines)
    assert [line.split()[0] for line in lines[-4:]] == ["name", "torch", "exported", "int8"]
    model = onnx.load(out)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["class_names"]) == list(names)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    grey = noise(net.config, 5)
    exact = net(Normalize.of(net.config)(grey.float()))
    assert 0 < (OnnxNetwork(out.read_bytes())(grey) - exact).abs().max() < 0.1 * exact.abs().max()


def test_onnxruntime_agrees_for_batches_of_any_length(tmp_path):
    net, out = pde_net("second_order", channels=(4,), steps=1), tmp_path / "net.onnx"
    result = export(net, out, size=12)
    assert result.files == (out,)
    assert result.difference < 1e-5
    assert set(result.images_per_second) == {"torch", "exported"}
    run = OnnxNetwork(out.read_bytes())
    for num in (1, 3):
        images = torch.randn(num, 3, 12, 12)
        torch.testing.assert_close(run(images), folded(net)(images), rtol=1e-4, atol=1e-5)


def test_programs_and_state_dicts_need_nothing_of_the_library(tmp_path):
    program, state = tmp_path / "program", tmp_path / "state"
    program.mkdir()
    state.mkdir()
    net, images = pde_net("second_order", channels=(4,), steps=1), torch.randn(3, 3, 8, 8)
    assert export(net, program / "net.pt2", format="pt2").difference < 1e-5
    (program / "net.py").write_text("import torch\nload = lambda: torch.export.load('net.pt2').module()\n")
    other, out = trained(a_trous(with_detail(pde_net(**GREY), 2))), state / "net.safetensors"
    result = export(other, out, format="state_dict", normalize=True)
    assert result.files == (out, state / "net.py")
    grey = noise(other.config, 3)
    for folder, given in ((program, images), (state, grey)):
        np.save(folder / "images.npy", given.numpy())
    found = scores_without_multipde([program, state])
    torch.testing.assert_close(found[0], net(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], other(Normalize.of(other.config)(grey.float())), rtol=1e-4, atol=1e-5)


def test_a_state_dict_may_have_any_name_but_that_of_a_module(tmp_path):
    net = pde_net()
    export(net, tmp_path / 'a\\Users"""x.pt', format="state_dict")
    for name in ("torch.pt", "json.pt", "torch.safetensors"):
        with pytest.raises(ValueError, match=f"out must not have the name of a module of Python, got {name}"):
            export(net, tmp_path / name, format="state_dict")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pt", ".py"]


def test_a_network_of_torchvision_with_a_detail_leaves_as_the_library_has_it(tmp_path):
    spec = external_model("resnet18", size=8, classes=5, reference=8)
    net = with_detail(trained(spec.build()), 2)
    export(net, tmp_path / "net.pt", format="state_dict")
    stored = torch.load(tmp_path / "net.pt", weights_only=True)
    assert set(stored) == set(spec.call()[0](num_classes=5).state_dict())
    assert "multipde" not in (tmp_path / "net.py").read_text()
    images, found = torch.randn(2, 3, 16, 16), runpy.run_path(str(tmp_path / "net.py"))["load"]()
    torch.testing.assert_close(found(images), net(images), rtol=1e-4, atol=1e-4)


def test_another_module_leaves_as_onnx(tmp_path):
    small = ConvNeXt([CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)], num_classes=5)
    net = describe(reparametrize(small, 1 / 16).eval(), size=16, classes=5)
    assert export(net, tmp_path / "net.onnx").difference < 1e-5
    with pytest.raises(ValueError, match="format must be onnx or pt2 for a network that was given in Python"):
        export(net, tmp_path / "net.pt", format="state_dict")


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, x):
        scores = self.conv(x).mean((2, 3))
        return scores if scores.sum() > 0 else -scores


def test_a_network_that_torch_cannot_follow_gives_one_line(tmp_path):
    net = describe(Branching().eval(), size=8, classes=5)
    with pytest.raises(ValueError, match="network must be one that torch.export can follow, got Branching"):
        export(net, tmp_path / "net.pt2", format="pt2")


WRONG = [
    (["--opset", "9"], "opset must be between 18 and "),
    (["--size", "9"], "size must be a positive multiple of 2"),
    (["--format", "pt2", "--int8"], "int8 must come with the format onnx, got pt2"),
    (["--int8"], "int8 must have images for the quantisation, got none; type --data NAME"),
    (["--format", "state_dict"], "out must end in .pt or .safetensors for a state_dict"),
    (["--out", "nowhere/net.onnx"], "out must be a file in a directory that exists"),
    (["--out", "net"], "out must be a new file, got net, which exists"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_what_cannot_be_exported_gives_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(pde_net(), tmp_path / "net")
    with pytest.raises(SystemExit, match="2"):
        main(["export", "net", *(options if "--out" in options else [*options, "--out", "net.onnx"])])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"got no onnxruntime; type pip install 'multipde\[export\]'"):
        export(pde_net(), tmp_path / "net.onnx")


def test_nothing_is_written_where_the_scores_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "LARGEST_DIFFERENCE", -1)
    with pytest.raises(ValueError, match="exported network must agree within -1 of the largest score"):
        export(pde_net(), tmp_path / "net.pt", format="state_dict")
    assert not list(tmp_path.iterdir())
