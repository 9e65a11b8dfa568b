"""Ways from coarse to fine within a training: what each does, and that it survives an interruption."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import pytest
import torch

from multipde import NetworkConfig, Schedule, TrainSettings, load, mesh_size, resume, save, train
from multipde.mesh.reparametrize import stencil_layers, stencil_parametrization, stored_parameter
from multipde.networks.layers import SymmetricLayer
from multipde.runtime.signals import Interrupted
from multipde.training.schedule import levels_from_lists
from multipde.training.trainer import Trainer

OPTIONS = {"num_train": 400, "num_test": 60}
NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16)

RECIPES = {
    "calibrated": ({"epochs": [1, 1]}, {"transfer": "calibrated"}),
    "calibrated_full": ({"epochs": [1, 1]}, {"transfer": "calibrated_full"}),
    "dual": ({"epochs": [1, 1]}, {"transfer": "galerkin", "momentum_rule": "dual"}),
    "reset": ({"epochs": [1, 1]}, {"momentum_rule": "reset"}),
    "finest": ({"epochs": [1, 1]}, {"coordinates": "finest"}),
    "mixed": ({"epochs": [1, 1], "mixed": True}, {}),
    "mixed finest": ({"epochs": [1, 1], "mixed": True}, {"coordinates": "finest"}),
    "part": ({"epochs": [1.5, 0.5]}, {}),
    "auto steps": ({"epochs": [1, 1]}, {"auto_steps": True, "transfer": "rediscretize"}),
    "auto epochs": ({"auto": True}, {"budget": "5GFLOPs"}),
}


def run(directory, recipe, **others):
    levels, settings = RECIPES[recipe]
    plan = Schedule(levels_from_lists([8, 16], batch=[60], policy="across", **levels))
    chosen = TrainSettings(device="cpu", calibration_images=120, **settings, **others)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True)


@pytest.fixture(scope="module", params=RECIPES)
def finished(request, tmp_path_factory):
    return request.param, run(tmp_path_factory.mktemp("recipe") / "a", request.param)


def test_interruptions_change_nothing(finished, tmp_path, signal_at_step):
    recipe, undisturbed = finished
    signal_at_step(3)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", recipe)
    signal_at_step(5)
    with pytest.raises(Interrupted):
        resume(tmp_path / "b", quiet=True)
    signal_at_step(None)
    resume(tmp_path / "b", quiet=True)
    expected = (undisturbed.directory / "model.safetensors").read_bytes()
    assert (tmp_path / "b/model.safetensors").read_bytes() == expected


def test_what_is_recorded_is_what_was_done(finished):
    recipe, found = finished
    net = load(found.directory)
    assert (net.config.size, mesh_size(net)) == (16, 1 / 16)
    assert found.result["test_accuracy"] > 0
    work = sum(r["total_flops"] for r in found.result["levels"][-1:])
    assert work == found.result["flops"]
    moves = found.result["moves"]
    assert len(moves) == (0 if "mixed" in recipe else 1)
    if recipe in ("calibrated", "calibrated_full"):
        assert set(moves[0]["exponents"]) == set(stencil_layers(net))
    if recipe == "part":
        assert [(r["size"], r["epochs"]) for r in found.result["levels"]] == [(8, 1.5), (16, 0.5)]
        images = [r["total_flops"] for r in found.metrics]
        assert (images[1] - images[0]) / images[0] == pytest.approx(2 / 5)  # half of five batches, rounded to even
    if recipe == "auto steps":
        assert moves[0]["steps"] == list(net.config.block_steps)
        assert net.config.final_times == (2.0, 2.0)
        assert all(n in (2, 3, 4) for n in net.config.block_steps)
        assert min(moves[0]["block_scales"] or [1.0]) <= 1.0


def test_with_the_finest_mesh_nothing_moves_at_a_switch(tmp_path, monkeypatch):
    seen = {}
    original = Trainer._next_level

    def spy(self):
        held = {n: p.detach().clone() for n, p in self.net.named_parameters()}
        momentum = {n: self.step.optimizer.state[p]["momentum_buffer"].clone() for n, p in self.net.named_parameters()}
        original(self)
        for name, p in self.net.named_parameters():
            assert torch.equal(p, held[name])
            assert torch.equal(self.step.optimizer.state[p]["momentum_buffer"], momentum[name])
        seen["mesh"] = mesh_size(self.net)

    monkeypatch.setattr(Trainer, "_next_level", spy)
    done = run(tmp_path / "a", "finest")
    assert seen["mesh"] == 1 / 16
    for layer in done.model.modules():
        if isinstance(layer, SymmetricLayer):
            assert stored_parameter(layer.conv).abs().max() <= 1
            assert stencil_parametrization(layer.conv).reference == (1 / 16, 1 / 16)


def test_a_budget_is_kept(tmp_path):
    done = run(tmp_path / "a", "auto epochs")
    assert done.result["flops"] == pytest.approx(5e9, rel=0.1)
    assert [r["size"] for r in done.result["levels"]] == [8, 16]


@pytest.mark.parametrize("coordinates", ["level", "finest"])
def test_a_checkpoint_is_taken_up_on_any_mesh(tmp_path, coordinates):
    first = run(tmp_path / "a", "calibrated")
    save(first.model, tmp_path / "net")
    plan = Schedule(levels_from_lists([8, 16], epochs=[1, 1], batch=[60]))
    settings = TrainSettings(device="cpu", coordinates=coordinates, transfer="calibrated", calibration_images=120)
    done = train(
        None, plan, "shapes", tmp_path / "b", settings=settings, init=tmp_path / "net", data_options=OPTIONS, quiet=True
    )
    references = {stencil_parametrization(layer).reference for layer in stencil_layers(done.model).values()}
    assert references == {(1 / 16, 1 / 16)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinates": "coarsest"}, "coordinates must be one of level, finest, got 'coarsest'"),
        ({"conditioning": 2.0}, r"conditioning must lie in \[0, 1\], got 2.0"),
        ({"momentum_rule": "keep"}, "momentum_rule must be one of map, dual, reset, got 'keep'"),
        ({"transfer": "magic"}, "transfer must be one of copy, .*calibrated_full, got 'magic'"),
        ({"budget": "much"}, "budget must be a number with min, h, GFLOPs or TFLOPs"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)
