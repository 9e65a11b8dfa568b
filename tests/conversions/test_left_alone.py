"""What a conversion leaves alone, wrappers around networks, hooks, and what a host program has set."""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from multipde import NetworkConfig, PDENet, convert, describe, load, mesh_size, reparametrize, save, set_mesh_size
from multipde.conversions.state_dict import convert_state_dict, network_with_weights, read_state_dict
from multipde.mesh.randomness import OwnRandomness
from multipde.runtime.device import determinism


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 3)))


def small_net() -> PDENet:
    torch.manual_seed(0)
    return PDENet(NetworkConfig(dynamics="parabolic", channels=(4,), out_channels=4, size=8, steps=1))


@pytest.mark.parametrize("skip", ["2.0", ["2.0"], "*.0"])
def test_skipped_stencils_keep_their_numbers_with_and_without_a_mesh(skip):
    for net in (plain(), reparametrize(plain(), 1 / 16)):
        new = convert(net, factor=2, method="rediscretize", skip=skip)
        assert torch.equal(new[2][0].weight, net[2][0].weight)
        assert not torch.equal(new[2][1].weight, net[2][1].weight)
    assert mesh_size(new) == 1 / 32
    assert "left_alone" not in vars(new[2][0])
    with pytest.raises(ValueError, match=r"skip must name layers with stencils \(.*\), got 'stem'"):
        convert(net, factor=2, skip="stem")
    with pytest.raises(ValueError, match="got 3 left out by skip"):
        convert(net, factor=2, skip="*")


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)), "1 even width"),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.Conv2d(8, 8, 1)), "1 transposed, 1 1x1"),
        (nn.Linear(2, 2), "no convolution of torch.nn at all"),
        (nn.Sequential(nn.LazyConv2d(4, 3)), "1 not initialised yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_conversion_that_would_move_nothing_is_refused(net, reason):
    with pytest.raises(ValueError, match=f"odd stencils wider than one on its mesh, got {reason}"):
        convert(net, factor=2)


def test_what_wraps_a_network_is_converted_right_or_refused():
    net = describe(plain(), size=16, classes=4)
    net.forward = None  # not run
    average = AveragedModel(plain())
    average.update_parameters(plain())
    moved = convert(average, factor=2, method="galerkin")
    assert isinstance(moved, AveragedModel)
    assert int(moved.n_averaged) == 1
    assert torch.equal(moved.module[0].weight, convert(plain(), factor=2, method="galerkin")[0].weight)
    assert convert(AveragedModel(small_net()), size=16).module.config.size == 16
    for wrapped, message in (
        (torch.compile(plain(), backend="eager"), "before it is wrapped, got OptimizedModule; pass its ._orig_mod"),
        (nn.DataParallel(plain()), "before it is wrapped, got DataParallel; pass its .module"),
        (nn.Sequential(nn.Identity(), small_net()), "got a Sequential around it; convert its .1"),
    ):
        for call in (lambda w=wrapped: convert(w, factor=2), lambda w=wrapped: convert(w, size=16)):
            with pytest.raises(ValueError, match=message):
                call()


def test_a_network_that_was_converted_under_inference_mode_can_be_trained():
    with torch.inference_mode():
        new = convert(plain(), factor=2, method="rediscretize")
        grown = convert(small_net(), size=16, steps=2, method="galerkin")
    for net, x in ((new, torch.randn(2, 3, 16, 16)), (grown, torch.randn(2, 3, 16, 16))):
        net(x).square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_reparametrize_keeps_what_hooks_the_gradients_of_its_parameters():
    """As DistributedDataParallel does; with torch's own registration its second backward pass failed."""
    net, fired = plain(), []
    for name, p in net.named_parameters():
        node = p.expand_as(p).grad_fn.next_functions[0][0]
        node.register_hook(lambda *_, name=name, node=node: fired.append(name))
    num = len(list(net.parameters()))
    reparametrize(net, 1 / 16, reference=1 / 8, coordinates="beta")
    for _ in range(2):
        net(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert len(fired) == 2 * num


def test_hooks_of_users_do_not_fire_while_calibrating():
    net, fired = plain(), []
    net[0].register_forward_hook(lambda *_: fired.append("after"))
    net[2].register_forward_pre_hook(lambda *_: fired.append("before"))
    new = convert(net, factor=2, calibration=torch.randn(4, 3, 32, 32))
    assert fired == []
    new(torch.randn(2, 3, 32, 32))
    assert fired == ["after", "before"]


def test_a_size_given_as_mesh_size_is_told():
    with pytest.warns(UserWarning, match=r"mesh_size should be 1 / size in pixels, got 224; use 1 / 224") as caught:
        net = reparametrize(plain(), 224)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="got 32; use 1 / 32") as caught:
        set_mesh_size(net, 32)
    assert caught[0].filename == __file__


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module._orig_mod.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_weights_of_other_trainers_are_read_without_their_wrappers(tmp_path, prefix, key):
    state = {prefix + name: t for name, t in plain().state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt")) == list(plain().state_dict())


def test_a_part_of_a_network_that_is_called_module_keeps_its_name(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))\n"
    )
    pytest.MonkeyPatch().syspath_prepend(tmp_path)
    from own import Net  # pyright: ignore[reportMissingImports]

    torch.save({"state_dict": {f"module.{k}": v for k, v in Net().state_dict().items()}}, tmp_path / "w.pt")
    read = network_with_weights("own:Net", tmp_path / "w.pt", size=8)
    assert torch.equal(read.model[0].weight, torch.load(tmp_path / "w.pt")["state_dict"]["module.model.0.weight"])


def test_pickled_and_scripted_networks_are_refused_with_what_to_do_instead(tmp_path):
    torch.save(plain(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"save its weights: torch.save\(torch.load\(FILE, weights_only=False\).state_"
    ):
        read_state_dict(tmp_path / "w.pt")


def test_bare_state_dicts_move_weights_of_convolutions_only():
    state = dict(plain().state_dict())
    others = {
        "pos_embed": torch.randn(1, 4, 7, 7),
        "conv.weight_v": torch.randn(4, 4, 3, 3),
        "conv.parametrizations.weight.original1": torch.randn(4, 4, 3, 3),
        "norm.weight": torch.randn(4, 7, 7),
        "norm.bias": torch.randn(4, 7, 7),
        "eca.conv.weight": torch.randn(1, 1, 3),
    }
    new, moved = convert_state_dict(state | others, 2, "galerkin")
    assert moved == ["0.weight", "2.0.weight", "2.1.weight"]
    assert all(new[name] is t for name, t in others.items())
    assert convert_state_dict(state, 2, "galerkin", skip=["2"])[1] == ["0.weight"]
    with pytest.raises(ValueError, match="weights must hold stencils of odd width above one, got none among 6 tensors"):
        convert_state_dict({**others, "eca.conv.weight": torch.randn(1, 1, 2)}, 2)
    known = reparametrize(plain(), 1 / 16)
    new, moved = convert_state_dict(dict(known.state_dict()), 2, "galerkin")
    assert len(moved) == 3
    with pytest.warns(UserWarning, match="mesh size follows the state dict"):
        known.load_state_dict(new)
    assert mesh_size(known) == 1 / 32
    torch.testing.assert_close(known[0].weight, convert(plain(), factor=2, method="galerkin")[0].weight)


def test_own_randomness_gives_the_numbers_of_a_seed_and_moves_no_generator():
    def drawn() -> list[torch.Tensor]:
        x = torch.randn(3)
        like = torch.randn_like(x)
        layer = nn.Linear(2, 2)
        return [x, like, layer.weight.detach(), torch.randperm(5), torch.distributions.Beta(0.5, 0.5).sample((2,))]

    torch.manual_seed(7)
    expected = drawn()
    torch.manual_seed(3)
    before, elsewhere = torch.get_rng_state(), []
    with OwnRandomness(7):
        got = drawn()
        thread = threading.Thread(target=lambda: elsewhere.append(torch.randn(2)))
        thread.start()
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(elsewhere[0], torch.randn(2))  # another thread still draws from the global generator


def test_what_the_host_has_set_stays_and_does_not_leak_in(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    with determinism(True):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    net, images = plain(), torch.randn(4, 3, 32, 32)
    expected = convert(net, factor=0.5, calibration=images)
    small = small_net()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        save(small, tmp_path / "net")
        moved, read = convert(net, factor=0.5, calibration=images), load(tmp_path / "net")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(moved[0].weight, expected[0].weight)
    assert {(p.dtype, p.device.type) for p in read.parameters()} == {(torch.float32, "cpu")}
