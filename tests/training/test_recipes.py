"""Ways from coarse to fine within a training: what each does, and that it survives an interruption."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

from dataclasses import replace

import pytest
import torch

from multipde import (
    PDENet,
    Schedule,
    TrainSettings,
    evaluate,
    load,
    load_data,
    mesh_size,
    resume,
    save,
    train,
)
from multipde.data.shapes import CLASS_NAMES
from multipde.mesh.reparametrize import stencil_layers, stencil_parametrization, stored_parameter
from multipde.networks.layers import SymmetricLayer
from multipde.runtime.signals import Interrupted
from multipde.training.schedule import levels_from_lists
from multipde.training.trainer import Trainer
from tests.faults.exact import NETWORK, OPTIONS, RECIPES, start
from tests.faults.kill import same_run

OWN_STATE = ("calibrated_full", "dual", "mixed finest", "part", "auto steps", "auto epochs", "bf16")
"""Recipes of which each keeps something between steps that no other does; ``tests/faults`` goes through all. Muon is
interrupted in the tests of runs, and AdamW in those of fine-tuning."""


@pytest.fixture(scope="module", params=OWN_STATE)
def finished(request, tmp_path_factory):
    return request.param, start(tmp_path_factory.mktemp("recipe") / "a", request.param)


def test_interruptions_change_nothing(finished, tmp_path, signal_at_step):
    recipe, undisturbed = finished
    signal_at_step(2)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", recipe)
    signal_at_step(3)
    with pytest.raises(Interrupted):
        resume(tmp_path / "b", quiet=True)
    signal_at_step(None)
    resume(tmp_path / "b", quiet=True)
    assert same_run(tmp_path / "b", undisturbed.directory)


def test_what_is_recorded_is_what_was_done(finished):
    recipe, found = finished
    net = load(found.directory)
    assert (net.config.size, mesh_size(net)) == (16, 1 / 16)
    tested = evaluate(
        net, load_data("shapes", size=16, **OPTIONS), device="cpu", amp=RECIPES[recipe][1].get("amp", "off")
    )
    assert tested.accuracy == found.result["test_accuracy"]
    work = sum(r["total_flops"] for r in found.result["levels"][-1:])
    assert work == found.result["flops"]
    moves = found.result["moves"]
    assert len(moves) == (0 if "mixed" in recipe else 1)
    if recipe == "calibrated_full":
        assert set(moves[0]["exponents"]) == set(stencil_layers(net))
    if recipe == "part":
        assert [(r["size"], r["epochs"]) for r in found.result["levels"]] == [(8, 1.5), (16, 0.5)]
        images = [r["total_flops"] for r in found.metrics]
        assert (images[1] - images[0]) / images[0] == pytest.approx(2 / 3)  # half of three batches, rounded to even
    if recipe == "auto steps":
        assert moves[0]["steps"] == list(net.config.block_steps)
        assert net.config.final_times == (2.0, 2.0)
        assert all(n in (2, 3, 4) for n in net.config.block_steps)
        assert all(0 < scale <= 1 for scale in moves[0]["block_scales"])
    if recipe == "auto epochs":
        assert found.result["flops"] == pytest.approx(8e8, rel=0.1)
        assert [r["size"] for r in found.result["levels"]] == [8, 16]


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
    done = start(tmp_path / "a", "finest")
    assert seen["mesh"] == 1 / 16
    for layer in done.model.modules():
        if isinstance(layer, SymmetricLayer):
            assert stored_parameter(layer.conv).abs().max() <= 1
            assert stencil_parametrization(layer.conv).reference == (1 / 16, 1 / 16)


@pytest.mark.parametrize("coordinates", ["level", "finest"])
def test_a_checkpoint_is_taken_up_on_any_mesh(tmp_path, coordinates):
    save(PDENet(replace(NETWORK, class_names=CLASS_NAMES)), tmp_path / "net")
    plan = Schedule(levels_from_lists([8, 16], epochs=[1, 1], batch=[60]))
    settings = TrainSettings(device="cpu", coordinates=coordinates, transfer="calibrated", calibration_images=60)
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
