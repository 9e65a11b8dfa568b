"""The level that begins with dilated blocks: nothing drops at the switch, and it ends with a plain network."""

from dataclasses import replace

import pytest
import torch

from multipde import (
    Level,
    NetworkConfig,
    Schedule,
    TrainSettings,
    carry_optimizer_state,
    count_flops,
    evaluate,
    load,
    resume,
    train,
    with_detail,
)
from multipde.conversions.convert import Conversion
from multipde.networks.external import external_model
from multipde.networks.model_spec import spec_of
from multipde.runtime.signals import Interrupted
from multipde.training.schedule import level_flops, levels_from_lists
from tests.fixtures import load_unfinished

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8)
PLAN = Schedule([Level(8, 1, batch=30, detail=2), Level(16, 2, batch=30, a_trous=2)])


def run(directory, plan=PLAN, **settings):
    settings = TrainSettings(**{"calibration_images": 60, "precise_images": 60, "device": "cpu"} | settings)
    data = {"num_train": 150, "num_test": 40}
    return train(NETWORK, plan, "shapes", directory, settings=settings, data_options=data, quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("a_trous") / "a")


def test_it_ends_as_a_plain_network_with_the_wide_opening(finished):
    spec = spec_of(load(finished.directory))
    assert spec == replace(spec_of(finished.model), size=16, detail=1, opening_width=6, dilation=1)
    move = finished.result["moves"][0]
    assert (move["method"], move["from"], move["to"], move["images"]) == ("a trous", 8, 16, [16, 16])
    flops = level_flops(PLAN.levels[1], spec)
    assert flops == count_flops(replace(spec, dilation=2), training=True) == PLAN.of(NETWORK).flops()[1]
    larger = Schedule([*PLAN.levels, Level(32, 1, batch=30)], NETWORK).configs()
    assert [(c.size, c.opening_width, c.dilation) for c in larger] == [(8, None, 1), (16, 6, 1), (32, 6, 1)]


@pytest.mark.parametrize(("step", "dilation"), [(5, 2), (7, (1, 2))])
def test_resumed_bit_for_bit(finished, step, dilation, tmp_path, signal_at_step):
    """From between the moments at which the blocks lose their dilation, 2 and 4 of 8 steps after the switch."""
    signal_at_step(step)
    with pytest.raises(Interrupted, match="size 16 after"):
        run(tmp_path / "b")
    signal_at_step(None)
    assert spec_of(load_unfinished(tmp_path / "b")).dilation == dilation
    again = resume(tmp_path / "b", quiet=True)
    assert (again.directory / "model.safetensors").read_bytes() == (
        finished.directory / "model.safetensors"
    ).read_bytes()
    assert again.result["test_accuracy"] == finished.result["test_accuracy"]


def test_best_weights_are_those_of_the_plain_network(tmp_path, monkeypatch):
    """Even if an earlier epoch, with dilated blocks, was better."""
    from multipde.training.trainer import Trainer

    plan = Schedule([PLAN.levels[0], replace(PLAN.levels[1], epochs=3)])
    validate, measured = Trainer.validate, iter([0.3, 0.9, 0.9, 0.9, 0.9, 0.4, 0.2])

    def known(self, num=None, interruptible=False, net=None):
        return replace(validate(self, num, interruptible, net), accuracy=next(measured))

    monkeypatch.setattr(Trainer, "validate", known)
    done = run(tmp_path / "a", plan)
    assert [row["validation_accuracy"] for row in done.metrics] == [0.3, 0.9, 0.4, 0.2]
    assert done.result["levels"][1]["validation_accuracy"] == 0.4


@pytest.mark.parametrize(("most", "dilation"), [(0, 2), (1, (1, 2))])
def test_blocks_may_keep_their_dilation(most, dilation, tmp_path):
    """The network is stored, loaded, tested and extended as any other."""
    done = run(tmp_path / "a", Schedule([replace(PLAN.levels[0], epochs=0.4), replace(PLAN.levels[1], a_trous=most)]))
    spec = spec_of(load(done.directory))
    assert (spec.size, spec.dilation, spec.size_multiple) == (16, dilation, 4)
    assert repr(done.model).endswith(f"dilation of the blocks: {', '.join(map(str, spec.block_dilation))}")
    seen = evaluate(load(done.directory), "shapes", data_options={"num_train": 150, "num_test": 40}, device="cpu")
    assert seen.accuracy == done.result["test_accuracy"]
    if most:
        longer = resume(done.directory, extend=[(32, 0.4)], quiet=True)
        assert (spec_of(longer.model).size, spec_of(longer.model).dilation) == (32, dilation)


def test_momentum_stays():
    torch.manual_seed(0)
    net = with_detail(NETWORK.build(), 2)
    old = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3, 16, 16)).square().sum().backward()
    old.step()
    move = Conversion(a_trous=True)
    new_net = move(net)
    new = torch.optim.SGD(new_net.parameters(), lr=0.1, momentum=0.9)
    carry_optimizer_state(move, net, old, new_net, new)
    for p, q in zip(net.parameters(), new_net.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(old.state[p]["momentum_buffer"], new.state[q]["momentum_buffer"])


def test_levels_from_lists_and_refusals():
    lists = {"detail": [1, 2, 1, 1], "epochs": [1, 1, 1, 1]}
    levels = levels_from_lists([8, 8, 16, 32], **lists, a_trous=1)
    assert [level.a_trous for level in levels] == [None, None, 1, None]
    assert all(level.a_trous is None for level in levels_from_lists([8, 8, 16, 32], **lists))
    with pytest.raises(
        ValueError, match=r"a_trous must be left out for sizes without one such as 16:32 before 32, got"
    ):
        levels_from_lists([8, 16], epochs=[1, 1], a_trous=0)
    for changed in ({"detail": 2}, {"epochs": None}, {"crop": 8}, {"mixed": ((8, 0.5), (16, 0.5))}):
        with pytest.raises(ValueError, match="a_trous must be left out for levels with mixed, detail, crop or epochs"):
            Level(**({"size": 16, "epochs": 1, "a_trous": 0} | changed))
    for levels in ([Level(16, 1, a_trous=1)], [Level(8, 1, detail=2), Level(32, 1, a_trous=2)]):
        with pytest.raises(ValueError, match="a_trous must follow a level such as 16:32 at the size 32, got 8"):
            Schedule(levels, NETWORK)
    with pytest.raises(ValueError, match=r"a_trous must lie between 0 and the number of blocks \(2\), got 3"):
        Schedule([PLAN.levels[0], replace(PLAN.levels[1], a_trous=3)], NETWORK)
    with pytest.raises(
        ValueError, match="a_trous must be left out for networks other than those of PDEs, got resnet18"
    ):
        Schedule(PLAN.levels, external_model("resnet18", size=8))
