"""Numbers that go wrong are noticed within the step, placed, and rolled back if so wished."""

import json
from dataclasses import replace

import pytest
import torch

from multipde import Level, NetworkConfig, PDENet, Schedule, TrainSettings, train
from multipde.networks.regularization import Box
from multipde.runtime.device import Compute
from multipde.training.monitor import DivergenceError, Monitor, check_finite, locate_nonfinite
from multipde.training.step import TrainStep
from multipde.training.trainer import Trainer
from tests.fixtures import load_unfinished

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8)
OPTIONS = {"num_train": 150, "num_test": 40}


def run(directory, rate=0.1, **settings):
    plan = Schedule([Level(4, 1, batch=30, learning_rate=rate), Level(8, 1, batch=30, learning_rate=rate)])
    chosen = TrainSettings(device="cpu", calibration_images=60, **settings)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS)


def test_a_sound_training_is_left_alone():
    net = PDENet(NETWORK)
    watch = Monitor(net, Box(net, 1.0))
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8))
        watch.look(torch.tensor(2.3))
    watch.settle()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_noticed(loss):
    net = PDENet(NETWORK)
    with pytest.raises(DivergenceError, match="loss must stay finite, got"):
        Monitor(net, Box(net, 1.0)).look(torch.tensor(loss))


@torch.no_grad()
def test_stencils_are_noticed_when_more_than_half_of_their_taps_are_at_the_box():
    net = PDENet(NETWORK)
    watch = Monitor(net, Box(net, 0.5))
    flat = torch.cat([w.flatten() for w in watch.stencils])
    for share, is_bad in ((0.45, False), (0.55, True)):
        at_box = torch.rand(len(flat), generator=torch.Generator().manual_seed(0)) < share
        values = torch.where(at_box, 0.5 * flat.sign(), 0.49 * flat.sign())  # rms alone would not tell
        for w, part in zip(watch.stencils, values.split([w.numel() for w in watch.stencils]), strict=True):
            w.copy_(part.view_as(w))
        if is_bad:
            with pytest.raises(DivergenceError, match=r"stencils must stay inside the box 0.5, got 5\d% of the taps"):
                watch.look(torch.tensor(1.0))
        else:
            watch.look(torch.tensor(1.0))


def test_stencils_of_the_finest_mesh_may_lie_at_the_box():
    net, compute = NETWORK.build(), Compute(torch.device("cpu"))
    found = [TrainStep(net, TrainSettings(coordinates=c), compute).monitor.stencils for c in ("level", "finest")]
    assert [bool(stencils) for stencils in found] == [True, False]


def test_exploding_activations_are_noticed_in_their_step_and_placed_beside_their_bound():
    net = PDENet(replace(NETWORK, norm="none", activation="identity", steps=6)).train()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "blocks.1.controls" in name and p.dim() > 1:
                p.fill_(1.0)
    step = TrainStep(net, TrainSettings(box=0.0), Compute(torch.device("cpu")))
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(
        DivergenceError, match=r"activations must stay moderate, got a variance of \S+ in blocks.1"
    ) as e:
        step(torch.randn(6, 3, 8, 8), torch.arange(6), 0.1)
    assert "block 1 has dt 1, its bound without norm is 0." in str(e.value)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_bad_weight_is_named():
    net = PDENet(NETWORK)
    with torch.no_grad():
        net.connectors[0][0].weight[0, 0] = float("nan")
    assert locate_nonfinite(net, torch.zeros(2, 3, 8, 8)) == "weights connectors.0.0.weight"
    with pytest.raises(DivergenceError, match=r"weights must stay finite, got nan or inf in connectors.0.0.weight"):
        check_finite(net, {})


def test_a_resnet_has_no_bound():
    net = PDENet(replace(NETWORK, dynamics="resnet"))
    assert "bound" not in locate_nonfinite(net, torch.randn(2, 3, 8, 8))


def test_the_policy_is_to_stop_with_place_and_advice(tmp_path):
    message = (
        r"stencils must stay inside the box 1, got \d+% of the taps at it in .* at size 4, epoch 1, step \d; type "
    )
    with pytest.raises(ValueError, match=message + "a smaller --learning-rate than 1e.06, or --on-divergence rollback"):
        run(tmp_path / "a", rate=1e6)
    assert load_unfinished(tmp_path / "a").config.size == 4


def test_rollbacks_end_after_three_times_and_are_told(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"after 3 rollbacks; type a smaller --learning-rate than 125000. What was"):
        run(tmp_path / "a", rate=1e6, on_divergence="rollback")
    out = capsys.readouterr().out
    assert [line.rpartition("rate ")[2] for line in out.splitlines() if "back to checkpoint-" in line] == [
        f"{rate} from here" for rate in ("500000", "250000", "125000")
    ]


@pytest.mark.parametrize(("part", "calls"), [("validation", "validate"), ("test", "test")])
def test_a_loss_that_is_not_finite_at_the_end_is_no_success(part, calls, tmp_path, monkeypatch):
    original = getattr(Trainer, calls)
    evaluated = Trainer._evaluate

    def measured(self, *args, **options):
        with pytest.MonkeyPatch.context() as patch:
            nan = lambda *given: replace(evaluated(*given), loss=float("nan"))  # noqa: E731
            patch.setattr(Trainer, "_evaluate", nan)
            return original(self, *args, **options)

    monkeypatch.setattr(Trainer, calls, measured)
    with pytest.raises(ValueError, match=f"{part} loss must be finite, got nan.*; type a smaller --learning-rate"):
        run(tmp_path / "a")
    assert not (tmp_path / "a/result.json").exists()
    assert "NaN" not in "".join(file.read_text() for file in (tmp_path / "a").glob("*.json*"))


def test_after_a_rollback_the_rate_is_halved_and_the_run_is_finished(tmp_path, monkeypatch):
    original, rates = TrainStep.__call__, []

    def step(self, x, labels, rate, own_statistics=True):
        rates.append(rate)
        if len(rates) == 8:  # the fourth step of the second level
            raise DivergenceError("loss must stay finite, got nan in a test")
        return original(self, x, labels, rate, own_statistics)

    monkeypatch.setattr(TrainStep, "__call__", step)
    result = run(tmp_path / "a", on_divergence="rollback").result
    assert len(rates) == 12  # four, then four of which one failed, then four again
    assert rates[8:] == [r / 2 for r in rates[4:8]]
    (rollback,) = result["rollbacks"]
    assert rollback["learning_rate"] == 0.05
    assert "at size 8, epoch 1, step" in rollback["error"]
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [(r["size"], r["epoch"]) for r in rows] == [(4, 1), (8, 1)]


def test_a_move_records_its_step_ratios_and_the_steps_that_meet_the_bound(tmp_path, capsys):
    result = run(tmp_path / "a").result
    (move,) = result["moves"]
    assert len(move["step_ratios"]) == 2
    for ratio, steps, stable in zip(move["step_ratios"], move["steps"], move["stable_steps"], strict=True):
        assert (ratio > 1) == (stable > steps)
    assert "warning" not in capsys.readouterr().out
