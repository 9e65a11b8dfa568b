"""Levels whose images are finer than their mesh: the switch changes nothing, and everything else goes on as always."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from multipde import (
    ExternalModel,
    Level,
    NetworkConfig,
    Schedule,
    TrainSettings,
    bake,
    carry_optimizer_state,
    conversion,
    convert,
    count_flops,
    describe,
    evaluate,
    load,
    load_data,
    mesh_size,
    preset,
    restrict_images,
    resume,
    save,
    train,
    with_detail,
)
from multipde.networks.detail import composed_taps
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.runtime.signals import Interrupted
from multipde.training.level import parsed_size, size_text
from multipde.training.plan import extended
from multipde.training.schedule import level_flops, levels_from_lists
from multipde.training.switch import check_moves
from tests.fixtures import load_unfinished

NETWORK = NetworkConfig("hamiltonian", (4,), 6, steps=1, size=8)
PLAN = Schedule([Level(8, 1, batch=30), Level(8, 2, batch=30, detail=2), Level(16, 1, batch=30)])
OPTIONS = {"num_train": 150, "num_test": 40}


def small_module(num_classes=10):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convolutions = nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
    return nn.Sequential(*convolutions, nn.ReLU(), pooled, nn.Linear(6, num_classes))


def run(model, directory, plan=PLAN, **options):
    settings = TrainSettings(
        **{"calibration_images": 60, "precise_images": 0, "optimizer": "sgd", "device": "cpu"}
        | options.pop("settings", {})
    )
    return train(model, plan, "shapes", directory, settings=settings, data_options=OPTIONS, quiet=True, **options)


@pytest.fixture(scope="module", params=["network", "module"])
def finished(request, tmp_path_factory):
    model = NETWORK if request.param == "network" else small_module
    return model, run(model, tmp_path_factory.mktemp("detail") / "a")


def test_the_switch_changes_no_answer_and_the_work_is_counted(finished):
    done = finished[1]
    into, out = done.result["moves"]
    assert into["accuracy_before"] == into["accuracy_moved"] == into["accuracy_recalibrated"]
    assert (into["from"], into["to"], into["images"], into["method"]) == (8, 8, [8, 16], "composing the opening")
    assert (out["from"], out["to"], out["images"], out["method"]) == (8, 16, [16, 16], "calibrated")
    found = [(row["size"], row.get("image_size"), row["epoch"]) for row in done.metrics]
    assert found == [(8, None, 1), (8, 16, 1), (8, 16, 2), (16, None, 1)]
    spec = spec_of(done.model)
    assert (spec.size, spec.detail) == (16, 1)
    flops = [count_flops(spec.on_mesh(size, detail), training=True) for size, detail in ((8, 1), (8, 2), (16, 1))]
    total = sum(f * 120 * level.num_epochs for f, level in zip(flops, PLAN.levels, strict=True))
    assert done.result["flops"] == total


def test_resumed_bit_for_bit(finished, tmp_path, signal_at_step):
    """From within the level with a detail."""
    model, done = finished
    signal_at_step(7)
    with pytest.raises(Interrupted, match="size 8:16 after"):
        run(model, tmp_path / "b")
    signal_at_step(None)
    given = None if model is NETWORK else model
    spec = spec_of(load_unfinished(tmp_path / "b", given))
    assert (spec.size, spec.detail) == (8, 2)
    again = resume(tmp_path / "b", model=given, quiet=True)
    assert (again.directory / "model.safetensors").read_bytes() == (done.directory / "model.safetensors").read_bytes()
    assert again.result["flops"] == done.result["flops"]


def test_a_run_may_end_at_a_detail_and_go_on_from_there(tmp_path):
    """It is tested, evaluated and loaded on its images; extended, or a start, on the full mesh."""
    done = run(NETWORK, tmp_path / "a", Schedule(PLAN.levels[:2]))
    spec = spec_of(load(done.directory))
    assert (spec.size, spec.detail, spec.image_sizes) == (8, 2, (16, 16))
    seen = evaluate(done.model, "shapes", data_options=OPTIONS, device="cpu")
    assert seen.accuracy == done.result["test_accuracy"]
    assert seen.flops == count_flops(spec)
    longer = resume(done.directory, extend=[(16, 1)], quiet=True)
    assert (spec_of(longer.model).size, spec_of(longer.model).detail) == (16, 1)
    from_it = run(None, tmp_path / "b", Schedule([Level(8, 1, batch=30, detail=4)]), init=done.directory)
    assert spec_of(from_it.model).image_sizes == (32, 32)


def test_momentum_moves_as_the_opening_does():
    """A step of momentum and the composition commute, v' = C v."""
    torch.manual_seed(0)
    net = NETWORK.build()
    old = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3, 8, 8)).square().sum().backward()
    old.step()
    move = conversion(net, detail=2)
    new_net = move(net)
    new = torch.optim.SGD(new_net.parameters(), lr=0.1, momentum=0.9)
    carry_optimizer_state(move, net, old, new_net, new)
    stored = net.opening[0].parametrizations.weight.original
    expected = composed_taps(old.state[stored]["momentum_buffer"], 2)
    assert torch.equal(new.state[new_net.opening[0].weight]["momentum_buffer"], expected)
    moved, kept = dict(new_net.named_parameters()), dict(net.named_parameters())
    for name in kept.keys() & moved.keys():
        assert torch.equal(new.state[moved[name]]["momentum_buffer"], old.state[kept[name]]["momentum_buffer"])
    back = conversion(new_net, detail=1)
    third_net = back(new_net)
    third = torch.optim.SGD(third_net.parameters(), lr=0.1, momentum=0.9)
    carry_optimizer_state(back, new_net, new, third_net, third)
    returned = third_net.opening[0].parametrizations.weight.original
    assert torch.equal(third.state[returned]["momentum_buffer"], old.state[stored]["momentum_buffer"])


def test_images_are_standardised_by_the_mean_and_deviation_of_their_average():
    x = 255 * torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine, coarse = (
        Normalize((), (), per_image=True, detail=2)(x),
        Normalize((), (), per_image=True)(restrict_images(x, 8)),
    )
    torch.testing.assert_close(restrict_images(fine, 8), coarse, rtol=1e-12, atol=1e-12)
    assert (fine.std() - 1).abs() > 0.1


def test_a_standardising_network_is_the_same_at_the_switch(tmp_path):
    network = replace(NETWORK, standardize=True)
    done = run(network, tmp_path / "a", Schedule(PLAN.levels[:2]))
    move = done.result["moves"][0]
    assert move["accuracy_before"] == move["accuracy_moved"] == move["accuracy_recalibrated"]
    coarse = run(network, tmp_path / "b", Schedule(PLAN.levels[:1])).model
    data = load_data("shapes", size=16, **OPTIONS)
    old, new = evaluate(coarse, data, device="cpu"), evaluate(with_detail(coarse, 2), data, device="cpu")
    assert abs(old.loss - new.loss) < 1e-5 * old.loss


def test_a_step_costs_a_few_per_cent_more():
    """At 16:32 the network of the paper for CIFAR-10 needs 3 % more than at 16, where 32 needs four times as much."""
    config = preset("cifar10-hamiltonian")
    coarse, detail, fine = (
        level_flops(level, config) for level in (Level(16, 1), Level(16, 1, detail=2), Level(32, 1))
    )
    assert 1.01 < detail / coarse < 1.05
    assert fine / coarse > 3.9


def test_a_level_as_text():
    plan = Schedule(levels_from_lists([8, 8], detail=[1, 2], epochs=[1, 1]))
    assert [row["size"] for row in plan.rows()] == ["8", "8:16"]
    assert [row["share"] for row in plan.rows()] == ["50 %", "50 %"]
    assert plan.image_size == 16
    assert [parsed_size(text) for text in (8, "8", "8:8", "8:24")] == [(8, 1), (8, 1), (8, 1), (8, 3)]
    assert (size_text(8), size_text(8, 8), size_text(8, 24)) == ("8", "8", "8:24")
    assert [level.detail for level in extended(plan, [(16, 1)]).levels] == [1, 2, 1]
    assert Level(**json.loads(json.dumps({"size": 8, "epochs": 1}))).detail == 1


@pytest.mark.parametrize("text", ["8:12", "8:4", "8:0", "0:8", "-8", "8:16:32", "8:", ":8", "a"])
def test_a_size_that_is_none(text):
    with pytest.raises(ValueError, match="sizes? must be"):
        parsed_size(text)


def test_what_cannot_be_is_refused_before_training():
    with pytest.raises(ValueError, match="detail must be 1 for mixed levels, got 2"):
        Level(16, 1, mixed=((8, 0.5), (16, 0.5)), detail=2)
    with pytest.raises(ValueError, match="detail must be 1 for mixed levels, got 2"):
        levels_from_lists([8, 8], epochs=[1, 1], detail=[1, 2], mixed=True)
    with pytest.raises(ValueError, match="detail must be positive, got 0"):
        Level(8, 1, detail=0)
    for name, value in (("momentum_rule", "dual"), ("coordinates", "finest")):
        with pytest.raises(ValueError, match=f"{name} must be .* for levels with a detail, got {value} and detail 2"):
            check_moves(PLAN.of(NETWORK), TrainSettings(**{name: value}))

    class Two(nn.Module):
        def __init__(self, num_classes=10):
            super().__init__()
            self.net, self.other = small_module(num_classes), nn.Linear(3, num_classes)

        def forward(self, x):
            return self.net(x) + self.other(x.mean((2, 3)))

    with pytest.raises(ValueError, match="detail must be 1 where anything but one convolution reads the images"):
        run(Two, "never")


def test_stored_at_a_detail(tmp_path):
    """A checkpoint holds mesh and detail; one without the field has detail 1; a baked one is plain."""
    torch.manual_seed(0)
    net = NETWORK.build()
    x = torch.randn(2, 3, 16, 16)
    new = with_detail(net, 2)
    save(new, tmp_path / "fine")
    save(bake(with_detail(net, 2)), tmp_path / "baked")
    for name in ("fine", "baked"):
        found = load(tmp_path / name)
        assert found.config == new.config
        assert torch.equal(found(x), new.eval()(x))
        torch.testing.assert_close(convert(found, detail=1).opening[0].weight, net.opening[0].weight)
    record = {k: v for k, v in NETWORK.record().items() if k != "detail"}
    assert NetworkConfig(**record) == NETWORK


@pytest.mark.parametrize("baked", [False, True])
def test_a_module_is_stored_at_a_detail(baked, tmp_path):
    """Its stencils have the mesh of its size, whether it is baked or not, and its opening gets it on the way back."""
    torch.manual_seed(0)
    net = ExternalModel("python:small_module", factory=small_module, classes=10, size=8, reference=8).build().eval()
    x = torch.randn(2, 3, 16, 16)
    new = with_detail(net, 2)
    save(bake(copy.deepcopy(new)) if baked else new, tmp_path / "a")
    found = load(tmp_path / "a", small_module)
    assert torch.equal(found(x), new(x))
    assert (mesh_size(found), spec_of(found).image_sizes) == (1 / 8, (16, 16))
    back = convert(found, detail=1)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), net.parameters(), strict=True))
    assert mesh_size(convert(found, size=16, detail=1, method="rediscretize")) == 1 / 16
    described = describe(with_detail(small_module(), 2, example=x), size=8, classes=10)
    assert spec_of(described).image_sizes == (16, 16)
