"""Conversion of whole networks, and of the optimizer with them."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import copy
import itertools
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from multipde import (
    NetworkConfig,
    PDENet,
    bake,
    carry_optimizer_state,
    conversion,
    convert,
    describe,
    load,
    mesh_size,
    recalibrate,
    reparametrize,
    save,
    transfer_stencil,
)
from multipde.mesh.reparametrize import set_reference, stencil_layers, stored_parameter, stored_stencils
from multipde.networks.cost import count_flops
from multipde.networks.model_spec import with_meshes

METHODS = ("copy", "rediscretize", "galerkin")


def network(**options) -> PDENet:
    torch.manual_seed(0)
    arguments = {"dynamics": "hamiltonian", "channels": (4, 6), "out_channels": 6, "size": 16} | options
    return PDENet(NetworkConfig(**arguments)).double().eval()


def images(num: int = 4, size: int = 16) -> torch.Tensor:
    return torch.randn(num, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("method", "coordinates", "reference", "size"),
    [
        *itertools.product(METHODS, ["stencil", "beta"], [None, 32], [24]),
        *itertools.product(METHODS, ["stencil"], [None], [8, 64]),
    ],
)
def test_there_and_back_gives_the_same_function(method, coordinates, reference, size):
    net = network(coordinates=coordinates, reference=reference)
    away = convert(net, size=size, method=method)
    assert (away.config.size, mesh_size(away)) == (size, 1 / size)
    assert away(images(size=size)).shape == (4, 10)
    torch.testing.assert_close(convert(away, size=16, method=method)(images()), net(images()))


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
@pytest.mark.parametrize("method", METHODS)
def test_every_stencil_moves_by_the_map_and_copy_keeps_the_numbers(method, coordinates):
    net = network(coordinates=coordinates)
    new = convert(net, factor=0.5, method=method)
    for name, layer in stencil_layers(net).items():
        moved = new.get_submodule(name)
        torch.testing.assert_close(moved.weight, transfer_stencil(layer.weight, method, 0.5))
        if method == "copy":
            assert torch.equal(stored_parameter(moved), stored_parameter(layer))


def test_conversion_is_never_in_place():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    convert(net, size=8, method="galerkin", steps=6)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.config.size == 16


def test_any_module_plain_or_reparametrised():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1))
    known = reparametrize(copy.deepcopy(plain), 1 / 32)
    for method in METHODS:
        by_factor, by_size = convert(plain, factor=2, method=method), convert(known, size=64, method=method)
        assert mesh_size(by_size) == 1 / 64
        for a, b in zip(by_factor, by_size, strict=True):
            torch.testing.assert_close(a.weight, b.weight)
        assert torch.equal(by_factor.get_parameter("2.weight"), plain.get_parameter("2.weight"))
    anisotropic = convert(plain, factor=(2.0, 1.0), method="rediscretize")
    torch.testing.assert_close(anisotropic[1].weight, transfer_stencil(plain[1].weight, "rediscretize", (2.0, 1.0)))


def test_more_steps_keep_the_final_time_and_the_old_controls():
    net = network(dynamics="parabolic")
    finer = convert(net, steps=(6, 9))
    assert finer.config.final_times == pytest.approx(net.config.final_times)
    for old, new, ratio in zip(net.blocks, finer.blocks, (2, 3), strict=True):
        for j, node in enumerate(old.controls):
            assert torch.equal(node[0].conv.weight, new.controls[ratio * j][0].conv.weight)
    coarser = convert(finer, steps=3)
    torch.testing.assert_close(coarser(images()), net(images()))


def test_explicit_controls_stay_when_steps_change():
    net = network(steps=4, controls=2)
    finer = convert(net, steps=8)
    assert [len(b.controls) for b in finer.blocks] == [2, 2]
    assert finer.config.block_dt == (0.5, 0.5)


@pytest.mark.parametrize("coordinates", ["stencil", "beta"])
@pytest.mark.parametrize("method", METHODS)
def test_a_momentum_step_and_the_conversion_commute(method, coordinates):
    def optimizer(net):
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    net = network(coordinates=coordinates, reference=32)
    old = optimizer(net)
    for _ in range(2):
        old.zero_grad()
        net(images()).square().mean().backward()
        old.step()
    move = conversion(net, size=32, method=method, steps=6)
    moved = move(net)
    new = optimizer(moved)
    carry_optimizer_state(move, net, old, moved, new)
    for step, module in ((old, net), (new, moved)):  # a step of pure momentum: zero gradient
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        step.step()
    for a, b in zip(move(net).parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def moved_momentum(net: PDENet, move, rule: str) -> tuple[dict, dict]:
    """Momentum of every parameter before and after a move."""
    old = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(images()).square().mean().backward()
    old.step()
    moved = move(net)
    new = torch.optim.SGD(moved.parameters(), lr=0.1, momentum=0.9)
    carry_optimizer_state(move, net, old, moved, new, rule)
    before = {name: old.state[p]["momentum_buffer"] for name, p in net.named_parameters()}
    after = {name: new.state.get(p, {}).get("momentum_buffer") for name, p in moved.named_parameters()}
    return before, after


@pytest.mark.parametrize("method", ["galerkin", "calibrated", "calibrated_full"])
def test_momentum_by_each_rule(method):
    net = network()
    calibration = images(8, 32) if method != "galerkin" else None
    move = conversion(net, size=32, method=method, calibration=calibration)
    for rule in ("map", "dual", "reset"):
        before, after = moved_momentum(net, move, rule)
        for name in stencil_layers(net):
            v = before[f"{name}.parametrizations.weight.original"]
            got = after[f"{name}.parametrizations.weight.original"]
            if rule == "reset":
                assert got is None
                continue
            units = torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3)
            own = None if move.calibration is None else move.calibration.matrices[name]
            matrix = transfer_stencil(units, "galerkin", 2.0).view(9, 9).T if own is None else own
            matrix = matrix if rule == "map" else torch.linalg.inv(matrix).T
            torch.testing.assert_close(got.flatten(2), v.flatten(2) @ matrix.T)
        if rule != "reset":
            torch.testing.assert_close(after["classifier.weight"], before["classifier.weight"])
    with pytest.raises(ValueError, match="steps must stay for the dual map, got 6"):
        moved_momentum(net, conversion(net, steps=6), "dual")
    with pytest.raises(ValueError, match="rule must be one of map, dual, reset, got 'keep'"):
        moved_momentum(net, move, "keep")


def test_keeping_the_reference_is_rediscretisation_and_block_scales_multiply():
    net = network(reference=32)
    kept = replace(conversion(net, size=32), keep_reference=True)(net)
    for name, layer in stencil_layers(net).items():
        moved = kept.get_submodule(name)
        torch.testing.assert_close(moved.weight, transfer_stencil(layer.weight, "rediscretize", 2.0))
        assert torch.equal(stored_parameter(moved), stored_parameter(layer))
    assert (kept.config.references, mesh_size(kept)) == ((32, 32), 1 / 32)
    scaled = replace(conversion(net, size=32, method="galerkin"), block_scales=(0.5, 0.25))(net)
    plain = convert(net, size=32, method="galerkin")
    for name, layer in stencil_layers(plain).items():
        scale = 1.0 if name.startswith("opening") else (0.5, 0.25)[int(name.split(".")[1])]
        torch.testing.assert_close(scaled.get_submodule(name).weight, scale * layer.weight)


@pytest.mark.parametrize("method", ["copy", "galerkin", "rediscretize"])
def test_adam_goes_on_as_if_it_had_seen_the_gradients_of_the_new_network(method):
    """Gradients are mapped by P to the minus T, here of one tap per stencil, for which the squares are exact, too."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 1, 3)).double()
    move = conversion(net, factor=2, method=method)
    moved, dual = move(net), move.dual(copy.deepcopy(net))
    optimizers = [torch.optim.Adam(m.parameters()) for m in (net, moved, dual)]
    state = copy.deepcopy(net.state_dict())
    for _ in range(3):
        gradients = [torch.zeros_like(p) for p in net.parameters()]
        for g in gradients:
            g.view(-1)[:: g[0, 0].numel() if g.dim() > 1 else 1].normal_()  # the first tap
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.grad = g
        optimizers[0].step()
        holder = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 1, 3)).double()
        holder.load_state_dict(dict(zip(state, gradients, strict=True)))
        for p, g in zip(dual.parameters(), move.dual(holder).parameters(), strict=True):
            p.grad = g.detach()
        optimizers[2].step()
    carry_optimizer_state(move, net, optimizers[0], moved, optimizers[1])
    for p, q in zip(moved.parameters(), dual.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(optimizers[1].state[p][key], optimizers[2].state[q][key])


def test_entries_that_no_rule_maps_are_told_and_start_anew():
    net = network()
    old = torch.optim.Rprop(net.parameters())
    net(images()).square().mean().backward()
    old.step()
    for method in ("copy", "galerkin"):
        move = conversion(net, size=8, method=method)
        moved = move(net)
        new = torch.optim.Rprop(moved.parameters())
        told = r"^\d+ parameters begin without the state of Rprop, of which no rule maps prev, step_size: opening"
        with pytest.warns(UserWarning, match=told) if method == "galerkin" else nullcontext():
            carry_optimizer_state(move, net, old, moved, new)
        assert bool(new.state.get(moved.opening[0].parametrizations.weight.original)) == (method == "copy")
        assert "prev" in new.state[moved.classifier.weight]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *((kind, {"size": 8, "method": "galerkin"}) for kind in ("Adam", "AdamW", "RMSprop", "Adagrad")),
        *(("Adam", arguments) for arguments in ({"steps": 6}, {"size": 8})),
    ],
)
def test_any_optimizer_goes_on_after_a_conversion(kind, arguments):
    net = network()
    old = getattr(torch.optim, kind)(net.parameters())
    net(images()).square().mean().backward()
    old.step()
    move = conversion(net, **arguments)
    moved = move(net)
    new = getattr(torch.optim, kind)(moved.parameters())
    carry_optimizer_state(move, net, old, moved, new)
    moved(images(size=moved.config.size)).square().mean().backward()
    new.step()
    assert all(p.isfinite().all() for p in moved.parameters())


def test_a_baked_network_takes_other_steps_and_stays_baked():
    net = network()
    expected = convert(net, steps=6)(images())
    baked = convert(bake(copy.deepcopy(net)), steps=6)
    torch.testing.assert_close(baked(images()), expected)
    assert not any("parametrizations" in name for name in baked.state_dict())


def test_a_shared_weight_is_refused():
    tied = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layers must not share a weight, got '0' and '1'"):
        convert(tied, factor=2)


def test_an_error_while_recalibrating_leaves_the_old_statistics():
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="batches must be images with 3 channels"):
        recalibrate(net, [images(), images()[:, :2]])
    torch.testing.assert_close(dict(net.state_dict()), dict(before))
    assert net.opening[1].momentum == 0.1


def test_recalibrate_measures_exactly_the_statistics_of_the_images():
    net = network()
    x = 3 + 2 * images(8)
    assert recalibrate(net, [x]) == 3
    y = net.opening[0](x)
    torch.testing.assert_close(net.opening[1].running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(net.opening[1].running_var, y.var((0, 2, 3)))
    assert not any(m.training for m in net.modules())
    assert net.opening[1].momentum == 0.1


def test_recalibrate_averages_over_batches_and_keeps_weights_and_flags():
    net = network().train()
    weights = {k: v.clone() for k, v in net.named_parameters()}
    parts = images(8).split(4)
    recalibrate(net, parts)
    means = torch.stack([net.opening[0](x).mean((0, 2, 3)) for x in parts]).mean(0)
    torch.testing.assert_close(net.opening[1].running_mean, means)
    assert all(torch.equal(v, weights[k]) for k, v in net.named_parameters())
    assert all(m.training for m in net.modules())


def test_recalibrate_without_images_is_refused_and_changes_nothing():
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="batches must hold at least one batch of images, got none"):
        recalibrate(net, [])
    torch.testing.assert_close(dict(net.state_dict()), dict(before))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "size, factor, steps or detail must be given, got none"),
        ({"size": 8, "factor": 0.5}, "factor must be left out where size is given"),
        (
            {"size": 8, "method": "magic"},
            "method must be one of copy, rediscretize, galerkin, calibrated, calibrated_full, got",
        ),
        ({"size": 7}, "size must be a positive multiple of 2"),
        ({"factor": 0.3}, "factor must give a whole number of pixels, got 0.3"),
        ({"factor": -1}, "factor must be positive, got -1"),
        ({"steps": 0}, "steps must be positive, one number or one per block"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(network(), **arguments)


def test_a_size_needs_a_known_mesh_and_steps_a_pdenet():
    with pytest.raises(ValueError, match="factor must be given for a plain module"):
        convert(nn.Conv2d(1, 1, 3), size=8)
    with pytest.raises(ValueError, match="steps must be left out for a model without a description"):
        convert(nn.Conv2d(1, 1, 3), factor=2, steps=4)


@pytest.mark.parametrize("steps", [None, 6])
def test_carried_momentum_has_the_layout_of_its_parameter(steps):
    """torch's fused SGD reads raw memory on the CPU: another layout would be a silently wrong step."""
    net = network().float().to(memory_format=torch.channels_last)
    old = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
    net(images().float()).square().mean().backward()
    old.step()
    move = conversion(net, size=32, method="galerkin", steps=steps)
    moved = move(net).to(memory_format=torch.channels_last)
    new = torch.optim.SGD(moved.parameters(), lr=0.1, momentum=0.9, fused=True)
    carry_optimizer_state(move, net, old, moved, new)
    for p in moved.parameters():
        assert new.state[p]["momentum_buffer"].stride() == p.stride()


def made_with_reference(kind: str) -> nn.Module:
    """A described network on a mesh of 32 pixels whose parameters belong to one of 64."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    if kind == "before":
        return describe(reparametrize(plain, 1 / 32, reference=1 / 64), size=32, classes=5)
    if kind == "given":
        return describe(reparametrize(plain, 1 / 32, reference=1 / 64), size=32, classes=5, reference=64)
    net = PDENet(NetworkConfig("parabolic", (4,), 4, size=32)) if kind == "pde" else None
    net = net or describe(reparametrize(plain, 1 / 32), size=32, classes=5)
    set_reference(net, 1 / 64)
    return net


@pytest.mark.parametrize("kind", ["before", "given", "after", "pde"])
def test_the_reference_of_the_parameters_is_kept(kind, tmp_path):
    net, x = made_with_reference(kind).eval(), torch.randn(2, 3, 32, 32)
    assert net.multipde_spec.references == (64, 64)
    for size in (32, 16):
        converted = convert(net, size=size, method="copy")
        assert converted.multipde_spec.references == (2 * size, 2 * size)
        torch.testing.assert_close(converted(x), net(x), rtol=1e-4, atol=1e-5)
    same = net.multipde_spec.build()
    assert same.state_dict().keys() == net.state_dict().keys()
    assert count_flops(net.multipde_spec) > 0
    save(net, tmp_path / "net")
    torch.testing.assert_close(load(tmp_path / "net", model=None if kind == "pde" else plain_twin())(x), net(x))


def plain_twin() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def test_a_reference_that_is_no_mesh_of_pixels_is_refused_for_a_described_network():
    net = made_with_reference("pde")
    with pytest.raises(ValueError, match="reference must be 1 / a whole number of pixels"):
        set_reference(net, 0.013)
    assert net.multipde_spec.references == (64, 64)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_described_networks_of_other_precisions_are_traced_in_theirs(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)).to(dtype)
    described = describe(net, size=32, classes=5)
    moved = convert(described, size=16, method="rediscretize")
    assert not torch.equal(moved[0].weight, net[0].weight)
    assert [p.stride for p in stored_stencils(with_meshes(described)).values()] == [(1, 1), (1, 1)]
