"""Fine-tuning: frozen parts stay and move with the mesh, groups have their rates, files give the weights."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

import json
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from multipde import (
    Level,
    NetworkConfig,
    PDENet,
    Schedule,
    TrainSettings,
    convert,
    load,
    recalibrate,
    resume,
    set_mesh_size,
    train,
)
from multipde.conversions.recalibration import frozen_running_statistics
from multipde.networks.external import given_model
from multipde.runtime.signals import Interrupted
from multipde.training.fine_tuning import FineTuning, Frozen
from multipde.training.optimizers import make_optimizer
from multipde.training.parameter_groups import head_name, names_in
from multipde.training.run import WeightsFile
from multipde.training.trainer import Trainer
from tests.fixtures import rows_without_times, weights

OPTIONS = {"num_train": 150, "num_test": 40}
PLAN = Schedule([Level(8, 1, batch=30), Level(16, 1, batch=30)])
WEIGHTS = tuple(1 + k / 10 for k in range(10))


class Small(nn.Module):
    """A network of a user, whose head is made before its body."""

    def __init__(self, num_classes: int = 10, width: int = 6):
        super().__init__()
        self.scores = nn.Linear(width, num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU())
        self.body1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return self.scores(self.body1(self.stem(x)).mean((2, 3)))


def run(directory, model=Small, plan=PLAN, kwargs=None, **settings):
    chosen = TrainSettings(device="cpu", calibration_images=60, **{"transfer": "rediscretize"} | settings)
    options = {"settings": chosen, "data_options": OPTIONS, "quiet": True} | (kwargs or {})
    return train(model, plan, "shapes", directory, **options)


@pytest.fixture(scope="module")
def given():
    """A network with weights and statistics of its own."""
    torch.manual_seed(3)
    net = Small()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for name, buffer in net.named_buffers():
        if "num" not in name:
            buffer.data = 0.5 + torch.rand_like(buffer)
    return net


def test_frozen_stencils_move_with_the_mesh_and_frozen_batchnorm_keeps_its_statistics(given, tmp_path):
    done = run(tmp_path / "a", given, freeze=("stem", "body1.1"), precise_images=60)
    expected = convert(given_model(given, size=8).build(), size=16, method="rediscretize")
    found = done.model.state_dict()
    for name, t in expected.state_dict().items():
        is_frozen = name.startswith(("stem", "body1.1"))
        assert torch.equal(found[name], t) == is_frozen, name
    assert not torch.equal(expected.stem[0].weight, given.stem[0].weight)
    assert all(p.requires_grad for p in done.model.parameters())


def test_a_run_that_thaws_is_resumed_bit_for_bit(given, tmp_path, signal_at_step):
    settings = {
        "optimizer": "adamw", "freeze": ("body",), "thaw": 2, "rate": {"scores": 0.05, "body": 0.02},
        "accumulate": 3, "clip_norm": 0.5, "class_weights": WEIGHTS, "balance": True,
    }  # fmt: skip
    whole = run(tmp_path / "a", given, **settings).directory
    signal_at_step(2, signal.SIGTERM)  # in the first level
    with pytest.raises(Interrupted):
        run(tmp_path / "b", given, **settings)
    signal_at_step(3, signal.SIGTERM)  # after the first step of the second
    with pytest.raises(Interrupted):
        resume(tmp_path / "b", model=given, quiet=True)
    signal_at_step(None)
    resume(tmp_path / "b", model=given, quiet=True)
    assert weights(tmp_path / "b") == weights(whole)
    assert rows_without_times(tmp_path / "b") == rows_without_times(whole)
    recorded = json.loads((whole / "run.json").read_text())["settings"]
    assert (recorded["freeze"], recorded["thaw"]) == (["body"], 2)
    assert recorded["rate"] == ["scores=0.05", "body=0.02"]
    assert [recorded[k] for k in ("accumulate", "clip_norm", "class_weights", "balance")] == [
        3,
        0.5,
        list(WEIGHTS),
        True,
    ]


def test_a_level_thaws_what_was_frozen_and_nothing_that_the_user_froze(tmp_path, monkeypatch):
    def frozen_by_the_user():
        net = Small()
        net.stem[0].bias.requires_grad_(False)
        return net

    trained, begin = [], Trainer.begin

    def note(self, net, index=None):
        begin(self, net, index)
        trained.append({name for name, p in net.named_parameters() if p.requires_grad})

    monkeypatch.setattr(Trainer, "begin", note)
    run(tmp_path / "a", frozen_by_the_user, freeze=("stem",), thaw=2)
    names = {name for name, _ in Small().named_parameters()}
    stem = {name for name in names if name.startswith("stem")}
    assert trained == [names - stem, names - {"stem.0.bias"}]


def test_thawed_parameters_begin_without_momentum_and_the_others_go_on(given, tmp_path, monkeypatch):
    held, original = [], Trainer._next_level

    def note(self):
        original(self)
        held.append(set(self.step.state()))

    monkeypatch.setattr(Trainer, "_next_level", note)
    run(tmp_path / "a", given, optimizer="sgd", freeze=("body",), thaw=2)
    assert held == [{"scores.weight", "scores.bias"}]


def test_rates_multiply_those_of_the_schedule_and_of_the_kind_of_parameter():
    net = given_model(Small, size=8).build()
    levels = [Level(8, 1, learning_rate=0.4), Level(16, 1, learning_rate=0.2)]
    settings = TrainSettings(rate={"stem": 0.01, "head": 0.02, "body": 0.1})
    tuning = FineTuning.of(settings, levels, 0)
    assert tuning.factors == pytest.approx({"stem": 0.05, "head": 0.1, "body": 0.5})
    names = {id(p): name for name, p in net.named_parameters()}
    for kind, stencils, others in (("sgd", 1, 1), ("adamw", 0.04, 0.04), ("muon", 0.5, 1)):
        groups = make_optimizer(net, kind, rates=tuning.rates(net)).param_groups
        found = {names[id(p)]: group["rate_factor"] for group in groups for p in group["params"]}
        assert found["scores.weight"] == pytest.approx(0.1 * others)
        assert found["stem.0.weight"] == pytest.approx(0.05 * stencils)  # a pattern counts more than body
        assert found["body1.0.weight"] == pytest.approx(0.5 * stencils)
        assert set(found) == {name for name, _ in net.named_parameters()}


def test_the_same_rate_everywhere_is_another_learning_rate(given, tmp_path):
    slow = Schedule([replace(level, learning_rate=0.05) for level in PLAN.levels])
    one = run(tmp_path / "a", given, slow, optimizer="sgd")
    # factors are multiplied: 0.1 (0.05/0.1) is 0.05 exactly
    two = run(tmp_path / "b", given, optimizer="sgd", rate={"head": 0.05, "body": 0.05})
    assert weights(one.directory) == weights(two.directory)


def test_nothing_is_projected_or_penalised_that_is_frozen():
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=1, size=8)
    net = PDENet(config)
    frozen = Frozen(net, ("blocks.0", "opening"))
    stencils = [p for name, p in net.named_parameters() if name.startswith("blocks.") and "conv" in name]
    for p in stencils:
        p.data.fill_(3.0)
    config.box(net, 1.0).project()
    assert [p.detach().amax().item() for p in stencils] == [3.0] * (len(stencils) // 2) + [1.0] * (len(stencils) // 2)
    config.penalty(net, 0.1, 0.1).add()
    assert all((p.grad is None) != p.requires_grad for p in net.parameters())
    before = net.opening[1].running_mean.clone()
    assert recalibrate(net, [torch.randn(6, 3, 8, 8)]) == 2
    assert torch.equal(net.opening[1].running_mean, before)
    frozen.train_mode()
    assert [m.training for m in (net, net.opening[0], net.opening[1])] == [True, True, False]
    assert re.fullmatch(
        r"\d+ of [0-9,]+ weights of hamiltonian are frozen, and the statistics of 1 Batch.*", str(frozen)
    )


def test_frozen_batchnorm_normalises_by_its_statistics_where_others_take_those_of_the_batch():
    net = given_model(Small, size=8, classes=10).build().double()
    net.stem[1].running_mean.fill_(0.3)
    frozen, x = Frozen(net, ("stem",)), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = net.eval().stem(x)
        frozen.train_mode()
        with frozen_running_statistics(net):
            torch.testing.assert_close(net.stem(x), expected, rtol=0, atol=0)
            assert net.body1[1].running_mean is None
    assert [m.training for m in (net.stem[1], net.body1[1])] == [False, True]
    assert net.stem[1].running_mean[0] == 0.3
    Frozen(net, ()).train_mode()  # thawed
    assert recalibrate(net, [x]) == 2
    assert net.stem[1].running_mean[0] != 0.3


def test_the_head_is_the_layer_that_gives_the_scores_wherever_it_was_made():
    assert head_name(given_model(Small, size=8, classes=10).build()) == "scores"
    assert head_name(PDENet(NetworkConfig("resnet", (4, 6), 8, steps=1, size=8))) == "classifier"
    with pytest.raises(ValueError, match="head must be a last layer with 7 outputs, got none in <lambda>"):
        head_name(given_model(lambda: Small(), size=8, classes=7).build())


def test_the_network_is_run_once_to_find_its_head(tmp_path, monkeypatch):
    calls = []

    def counted(net):
        calls.append(net)
        return head_name(net)

    monkeypatch.setattr("multipde.training.parameter_groups.head_name", counted)
    monkeypatch.setattr("multipde.training.weights_file.head_name", counted)
    spec = given_model(Small, size=8, classes=10)
    found = names_in(spec.build(), ("stem", "head", "body"), "rate")
    assert found["head"] == {"scores.weight", "scores.bias"}
    assert len(found["body"]) == 8
    assert len(calls) == 1
    assert names_in(spec.build(), ("stem",), "rate").keys() == {"stem"}
    assert len(calls) == 1
    WeightsFile(stored(Small(num_classes=4), tmp_path / "w.pt")).start(spec, 0, print)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"freeze": ("stm",)}, "freeze must match parameters of Small, got 'stm'; type head, body, .* such as stem"),
        ({"rate": {"haed": 0.1}}, "rate must match parameters of Small, got 'haed'; type head, body, or a name or"),
        ({"freeze": ("head", "body")}, "freeze must leave something to train, got head body"),
        ({"freeze": ("head",), "thaw": 3}, "thaw must be the number of a level, 2 to 2, got 3"),
    ],
)
def test_wrong_groups_are_refused_before_anything_is_written(settings, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        run(tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


def test_an_optimizer_of_the_user_gets_what_is_not_frozen_and_has_rates_of_its_own(tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, momentum=0.9)

    given = Small()
    done = run(
        tmp_path / "a", given, plan=Schedule([Level(8, 0.3, batch=30)]), freeze=("stem",), kwargs={"optimizer": sgd}
    )
    same = [torch.equal(p, q) for p, q in zip(done.model.parameters(), given.parameters(), strict=True)]
    assert [name for (name, _), is_same in zip(given.named_parameters(), same, strict=True) if is_same] == [
        name for name, _ in given.named_parameters() if name.startswith("stem")
    ]
    with pytest.raises(ValueError, match="rate must be left out with an optimizer of your own, got head=0.1"):
        run(tmp_path / "b", given, rate={"head": 0.1}, kwargs={"optimizer": sgd})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rate": ("head=0",)}, "rate must be GROUP=RATE .* got 'head=0'; type --freeze head"),
        ({"rate": ("head=1", "head=2")}, "rate must name each group once, got 'head' twice"),
        ({"thaw": 2}, "thaw must come with freeze, got 2"),
        ({"thaw": 1, "freeze": ("head",)}, "thaw must be the number of a level after the first, got 1"),
    ],
)
def test_wrong_settings_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        TrainSettings(**options)


def stored(net, file, prefix=""):
    state = {f"{prefix}{name}": t.clone() for name, t in net.state_dict().items()}
    save_file(state, file) if file.suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    return file


def told(capsys, directory, kwargs, **settings):
    run(directory, kwargs={"quiet": False} | kwargs, plan=Schedule([Level(8, 0.3, batch=30)]), **settings)
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: "))


def test_weights_of_other_classes_get_a_new_head(tmp_path, capsys):
    torch.manual_seed(5)
    net = Small(num_classes=4)
    file = stored(net, tmp_path / "w.pt", "module._orig_mod.")
    line = told(capsys, tmp_path / "a", {"weights": file}, freeze=("body",))
    assert line == (
        f"weights: 14 of 16 tensors of Small from {file}, read under state_dict, without the prefix module._orig_mod., "
        "new head scores for 10 classes instead of 4"
    )
    found = load(tmp_path / "a", model=Small).state_dict()
    for name, t in net.state_dict().items():
        assert torch.equal(found[name], t) == (not name.startswith("scores")), name


def test_weights_of_as_many_classes_keep_their_head_and_a_training_that_was_killed_begins_again(tmp_path, capsys):
    file = stored(given := Small(), tmp_path / "w.safetensors")
    line = told(capsys, tmp_path / "a", {"weights": file}, freeze=("scores",))
    assert line == f"weights: 16 of 16 tensors of Small from {file}, head scores is kept for its 10 classes"
    assert torch.equal(load(tmp_path / "a", model=Small).scores.weight, given.scores.weight)
    whole = weights(tmp_path / "a")
    for checkpoint in (tmp_path / "a").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for name in ("result.json", "SHA256SUMS"):
        (tmp_path / "a" / name).unlink()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resume(tmp_path / "a", model=Small, quiet=True)
    assert weights(tmp_path / "a") == whole
    stored(Small(), file)
    with pytest.raises(ValueError, match="weights must be those with which the run began, got another file at"):
        resume(tmp_path / "b", model=Small, quiet=True)


def test_weights_are_converted_from_the_size_for_which_they_were_trained(tmp_path):
    file = stored(given := Small(), tmp_path / "w.pt")
    done = run(tmp_path / "a", plan=Schedule([Level(16, 0.3, batch=30)]), freeze=("stem", "body1"),
               kwargs={"weights": file, "from_size": 8})  # fmt: skip
    expected = convert(given_model(given, size=8).build(), size=16, method="rediscretize")
    assert torch.equal(done.model.stem[0].weight, expected.stem[0].weight)
    assert torch.equal(done.model.stem[1].running_var, given.stem[1].running_var)


def test_weights_of_a_pde_network_fit_one_on_any_mesh(tmp_path):
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=1, size=8, classes=4)
    torch.manual_seed(7)
    file = stored(net := PDENet(config), tmp_path / "w.pt", "model.")
    wanted, lines = replace(config.on_mesh(16), classes=10), []
    start = WeightsFile(file).start(wanted, 0, lines.append).net
    for name, p in net.named_parameters():
        assert torch.equal(dict(start.named_parameters())[name], p) == ("classifier" not in name), name
    assert start.config.size == 16
    assert lines[0].endswith("new head classifier for 10 classes instead of 4")
    set_mesh_size(net, 1 / 16)
    with pytest.raises(ValueError, match=r"weights must be stencils on their own mesh, .*; type --init DIR"):
        WeightsFile(stored(net, tmp_path / "w.pt")).start(config, 0, print)


def without(net, name):
    return {key: t for key, t in net.state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (lambda: without(Small(), "stem.0.bias"), r"1 of its 16 tensors are missing \(stem.0.bias\)"),
        (
            lambda: Small(width=8).state_dict(),
            r"13 have another shape \(scores.weight: \(10, 8\) instead of \(10, 6\)\)",
        ),
        (lambda: {**Small().state_dict(), "more.weight": torch.ones(2)}, r"1 are of no layer of it \(more.weight\)"),
        (
            lambda: nn.Linear(2, 3).state_dict(),
            r"14 of its 16 tensors are missing \(body1.0.bias, body1.0.weight, ...\), 2 are of no layer of it",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused_by_their_tensors(state, line, tmp_path):
    torch.save(state(), tmp_path / "w.pt")
    spec = given_model(Small, size=8, classes=10)
    with pytest.raises(ValueError, match=line):
        WeightsFile(tmp_path / "w.pt").start(spec, 0, print)
    with pytest.raises(ValueError, match=r"weights must be those of Small, got .*w.pt, in which "):
        run(tmp_path / "a", kwargs={"weights": tmp_path / "w.pt"})
    assert not (tmp_path / "a").exists()


def test_weights_that_are_not_finite_or_of_two_networks_or_no_file_are_refused(tmp_path):
    spec, bad = given_model(Small, size=8, classes=10), Small()
    bad.stem[0].weight.data[0] = torch.nan
    both = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in Small().state_dict().items()}
    torch.save(both, tmp_path / "both.pt")
    for file, line in (
        (stored(bad, tmp_path / "bad.pt"), "weights must be finite, got nan or inf in stem.0.weight"),
        (tmp_path / "both.pt", "weights must be of one network, got student. and teacher. in .*; save one alone"),
        (tmp_path / "none.pt", "weights must be a file, got"),
    ):
        with pytest.raises(ValueError, match=line):
            WeightsFile(file).start(spec, 0, print)
    for options, line in (
        ({"from_size": 8}, "from_size must come with weights, got 8"),
        ({"weights": "w.pt", "init": "run"}, "weights must be left out with init, got w.pt"),
        ({"weights": "w.pt", "from_size": 0}, "from_size must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(line)):
            run(tmp_path / "a", kwargs=options)
