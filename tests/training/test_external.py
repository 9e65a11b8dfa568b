"""Networks that multipde did not make go the same way: trained coarse to fine, resumed, loaded, extended."""

# pyright: reportOptionalMemberAccess=false

import json
import os
import re
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import Level, Schedule, TrainSettings, count_flops, evaluate, load, load_data, report, resume, train
from multipde.cli.main import main
from multipde.evaluation.errors import examine
from multipde.runtime.device import Compute
from multipde.runtime.signals import Interrupted
from multipde.storage.run_directory import newest_checkpoint
from multipde.training.checkpoint import read_checkpoint
from tests.fixtures import rows_without_times, weights, write_folder

OPTIONS = {"num_train": 150, "num_test": 40}
PLAN = Schedule([Level(8, 2, batch=30), Level(16, 1, batch=30)])


class Small(nn.Module):
    """A network of a user, with a 5x5 opening and a depthwise layer."""

    def __init__(self, num_classes: int = 10, width: int = 6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Pair(nn.Module):
    """A network that gives no scores."""

    def forward(self, x):
        return x, x


def run(model, directory, plan=PLAN, settings=None, **options):
    chosen = TrainSettings(device="cpu", calibration_images=60, **(settings or {}))
    return train(model, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.manual_seed(0)
    return run(Small, tmp_path_factory.mktemp("run") / "a").directory


def test_a_run_is_resumed_bit_for_bit_by_the_same_factory(finished, tmp_path, signal_at_step):
    signal_at_step(9, signal.SIGTERM)
    with pytest.raises(Interrupted, match="go on with"):
        run(Small, tmp_path / "b")
    signal_at_step(None)
    resume(tmp_path / "b", model=Small, quiet=True)
    assert weights(tmp_path / "b") == weights(finished)
    assert rows_without_times(tmp_path / "b") == rows_without_times(finished)


class WithDropout(Small):
    """A network that draws random numbers of its own while it is trained."""

    def forward(self, x):
        return self.classifier(functional.dropout(self.features(x).mean((2, 3)), 0.5, self.training))


def test_dropout_is_drawn_by_the_place_in_the_training(tmp_path, signal_at_step):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = run(WithDropout, tmp_path / "a").directory
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    signal_at_step(9, signal.SIGTERM)
    with pytest.raises(Interrupted, match="go on with"):
        run(WithDropout, tmp_path / "b")
    signal_at_step(None)
    resume(tmp_path / "b", model=WithDropout, quiet=True)
    assert weights(tmp_path / "b") == weights(whole)
    other = run(WithDropout, tmp_path / "c", settings={"seed": 1})
    assert weights(other.directory) != weights(whole)


def test_a_module_is_the_start_and_stays_as_it_is(tmp_path):
    model = Small()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    done = run(model, tmp_path / "a")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert type(done.model) is Small
    assert set(done.model.state_dict()) == set(before)  # plain: it leaves the house by load_state_dict
    assert not torch.equal(done.model.classifier.weight, before["classifier.weight"])
    again = run(model, tmp_path / "b")
    assert weights(again.directory) == weights(done.directory)
    slow = Schedule([Level(8, 0.3, batch=30, learning_rate=1e-12)])
    kept = run(model, tmp_path / "c", slow).model
    assert all(torch.allclose(t, before[name]) for name, t in kept.named_parameters())


def test_a_record_imports_nothing(finished, tmp_path):
    record = json.loads((finished / "config.json").read_text())["network"]
    assert (record["arch"], record["size"], record["classes"]) == ("python:Small", 16, 10)
    assert "factory" not in record
    line = r"network must be given again, got a record of one that was made by python:Small; pass model= in Python"
    with pytest.raises(ValueError, match=line):
        load(finished)
    with pytest.raises(ValueError, match=r"must hold the weights that config.json describes, got an unknown tensor"):
        load(finished, model=Pair)
    with pytest.raises(ValueError, match="model must be the one of the record, python:Small, got torchvision"):
        load(finished, model="resnet18")
    assert torch.equal(load(finished, model=Small()).classifier.weight, load(finished, model=Small).classifier.weight)
    net = load(finished, model=Small)
    found = evaluate(net, "shapes", device="cpu", data_options=OPTIONS)
    assert found.accuracy == json.loads((finished / "result.json").read_text())["test_accuracy"]
    assert found.flops == count_flops(net.multipde_spec)


def test_stencils_follow_the_mesh_and_the_penalty_is_weight_decay(finished):
    moves = json.loads((finished / "result.json").read_text())["moves"]
    assert [(m["from"], m["to"], m["method"]) for m in moves] == [(8, 16, "calibrated")]
    assert set(moves[0]["exponents"]) == {"features.0", "features.3"}
    assert (moves[0]["steps"], moves[0]["step_ratios"]) == ([], [])
    net = load(finished, model=Small)
    penalty = net.multipde_spec.penalty(net, 1.0, 0.5)
    penalty.add()
    for name, p in net.named_parameters():
        if p.dim() > 1:
            torch.testing.assert_close(p.grad, 0.5 * p.detach())
        else:
            assert p.grad is None, name


def test_its_report_has_every_level_every_switch_and_the_confusion(finished, tmp_path):
    page = report(finished, tmp_path / "page.html", model=Small, device="cpu").read_text()
    cells = re.findall(r"<td>(\d+)</td><td>(\d+)</td><td>([\d.]+)</td><td>(\d+)</td>", page)
    assert cells == [("1", "8", "0.12500", "30"), ("2", "16", "0.06250", "30")]
    words = re.findall(r"<td class=word>([^<]*)</td>", page)
    assert words == ["8 → 16 pixels", "calibrated"]
    (move,) = json.loads((finished / "result.json").read_text())["moves"]
    for key in ("accuracy_before", "accuracy_moved", "accuracy_recalibrated"):
        assert f">{100 * move[key]:.1f}</text>" in page
    seen = examine(load(finished, model=Small), load_data("shapes", size=16, **OPTIONS), Compute.of("cpu"))
    wrong = (seen.metrics.confusion - seen.metrics.confusion.diag().diag()).flatten().sort(descending=True).values
    shown = re.findall(r'<td class="word">\w+</td><td class="word">\w+</td><td>(\d+)</td>', page)
    assert [int(num) for num in shown] == [num for num in wrong.tolist() if num][: len(shown)]
    assert len(shown) == min(10, int((wrong > 0).sum()))
    assert {f'id="stencils-{i}-figure_1"' in page for i in range(2)} == {True}


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Small(num_classes=7), r"Small must give a score per class, \(2, 10\) for two images, got \(2, 7\)"),
        (Pair, r"Pair must give a score per class, \(2, 10\) for two images, got tuple"),
        ("resnet81", r"arch must be a classifier of torchvision \(resnet18, .*\), got 'resnet81'"),
        (
            "nowhere:net",
            r"arch must name a function that can be imported, got 'nowhere:net' \(No module named",
        ),
        ("math:nothing", r"arch must name a function that can be imported, got 'math:nothing' \(module 'math' has no"),
        ("math:pi", r"arch must name a function, got 'math:pi', a float"),
        ("os:getcwd", r"arch must name a function that returns an nn.Module, got str"),
        ("resnet18(depth=5)", r"arch must have arguments that it accepts, got torchvision:resnet18 \(.*'depth'"),
        (
            "mobilenet_v2(width_mult=1e308)",
            r"arch must have arguments that it accepts, got .* \(cannot convert float inf",
        ),
        ("mobilenet_v2(width_mult={1: 2})", r"arguments must be constants such as 2 or \(1, 2\), got"),
        ("resnet18(1)", r"arch must have arguments such as \(width=2\), got 'resnet18\(1\)'"),
        ("resnet18(weights='DEFAULT')", r"arguments must not name files or weights, got weights; type --weights FILE"),
        ("no such thing!", r"arch must be NAME, timm:NAME or package.module:function, got 'no such thing!'"),
        (3, r"config must be a network or its description, got int"),
    ],
    ids=str,
)
def test_networks_that_will_not_do_are_told_in_one_line(model, line, tmp_path):
    with pytest.raises(ValueError, match=line) as told:
        run(model, tmp_path / "a")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "a").exists()


def test_an_input_size_that_a_network_cannot_take_is_told(tmp_path):
    plan = Schedule([Level(8, 1, batch=30), Level(16, 1, batch=30)])
    with pytest.raises(ValueError, match=r"size must be one that squeezenet1_0 can take with 3 channels, got 8 \("):
        run("squeezenet1_0", tmp_path / "a", plan)
    with pytest.raises(ValueError, match=r"steps must be left out for Small, which has no time steps, got 3"):
        run(Small, tmp_path / "a", Schedule([Level(8, 1, steps=3)]))
    with pytest.raises(ValueError, match=r"steps must be given where Small has no bound, got auto"):
        run(Small, tmp_path / "a", settings={"auto_steps": True})


def test_loss_metric_and_optimizer_of_the_user(tmp_path, signal_at_step):
    def smoothed(scores, labels):
        return functional.cross_entropy(scores, labels, label_smoothing=0.1)

    def confidence(scores, labels):
        return scores.softmax(1)[torch.arange(len(labels)), labels].mean()

    def adam(parameters):
        return torch.optim.AdamW(parameters, weight_decay=0.0)

    plan = Schedule([Level(8, 1, batch=30, learning_rate=0.01), Level(16, 1, batch=30, learning_rate=0.01)])
    wishes = {"loss": smoothed, "metric": confidence, "optimizer": adam}
    done = run(Small, tmp_path / "a", plan, **wishes)
    record = json.loads((done.directory / "run.json").read_text())["objective"]
    assert {k: v.rpartition(".")[2] for k, v in record.items() if v} == {k: f.__name__ for k, f in wishes.items()}
    found = [row["validation_metric"] for row in done.metrics]
    assert all(0 < value < 1 for value in found)
    signal_at_step(6, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(Small, tmp_path / "b", plan, **wishes)
    signal_at_step(None)
    state = read_checkpoint(newest_checkpoint(tmp_path / "b"), Small)[3]
    assert {name.partition(":")[2] for name in state} == {"exp_avg", "exp_avg_sq", "step"}
    with pytest.raises(ValueError, match="loss must be that of the run, .*smoothed, got none; pass loss= as when"):
        resume(tmp_path / "b", model=Small, quiet=True)
    resume(tmp_path / "b", model=Small, quiet=True, **wishes)
    assert weights(tmp_path / "b") == weights(tmp_path / "a")


def test_a_finished_run_is_trained_further(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "a")
    with pytest.raises(ValueError, match=r"size must be positive, got 0"):
        resume(tmp_path / "a", model=Small, extend=[(0, 1)], quiet=True)
    assert (tmp_path / "a/result.json").exists()
    done = resume(tmp_path / "a", model=Small, extend=[(16, 1), (24, 0.5)], quiet=True)
    assert [(row["size"], row["epoch"]) for row in done.metrics] == [(8, 1), (8, 2), (16, 1), (16, 1), (24, 1)]
    assert rows_without_times(tmp_path / "a")[:3] == rows_without_times(finished)
    assert len(done.result["levels"]) == 4
    assert done.model.multipde_spec.size == 24
    (tmp_path / "a/result.json").unlink()
    with pytest.raises(ValueError, match="run must be finished to be extended, got .*; type --resume instead"):
        resume(tmp_path / "a", model=Small, extend=[(16, 1)], quiet=True)


@pytest.mark.usefixtures("without_report")
def test_an_import_path_from_the_working_directory_by_the_command_line(tmp_path, monkeypatch, capsys, signal_at_step):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, width=4):\n"
        "    import mysibling\n"  # found in the working directory when it is called, too
        "    assert mysibling.here\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    (tmp_path / "mysibling.py").write_text("here = True")
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data")
    arguments = [
        "--data",
        "folder",
        "--root",
        "data",
        "--sizes",
        "8",
        "16",
        "--epochs",
        "0.3",
        "0.3",
        "--device",
        "cpu",
        "--quiet",
        "--run",
        "r",
    ]
    signal_at_step(1)
    with pytest.raises(SystemExit):
        main(["train", "--arch", "mynet:small(width=5)", *arguments])
    assert "go on with: multipde train --run r --resume --arch 'mynet:small(width=5)'" in capsys.readouterr().err
    signal_at_step(None)
    main(["train", "--run", "r", "--resume", "--arch", "mynet:small(width=5)", "--quiet"])
    main(["train", "--run", "r", "--resume", "--arch", "mynet:small(width=5)"])
    assert "finished" in capsys.readouterr().out
    main(["train", "--run", "r", "--extend", "16:0.3", "--arch", "mynet:small(width=5)", "--quiet"])
    for command in (["inspect", "r"], ["evaluate", "r", "--num-images", "20"]):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        line = capsys.readouterr().err
        assert "network must be given again, got a record of one that was made by mynet:small; type --arch" in line
        main([*command, "--arch", "mynet:small"])
        assert capsys.readouterr().out


def test_of_a_compiled_module_the_network_inside_is_trained(tmp_path):
    torch.manual_seed(0)
    net = Small()
    first, second = run(net, tmp_path / "a"), run(torch.compile(net), tmp_path / "b")
    assert weights(first.directory) == weights(second.directory)
    assert load(tmp_path / "b", torch.compile(net)).multipde_spec.arch == "python:Small"
    assert resume(tmp_path / "b", model=torch.compile(net), quiet=True).result == second.result


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be given before it is scripted or traced, got a ScriptModule"):
        run(torch.jit.trace(Small(), torch.zeros(1, 3, 8, 8)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_a_training(mode, tmp_path):
    with mode():
        found = run(Small, tmp_path / "a", Schedule([Level(8, 1, batch=30)]))
        os.utime(tmp_path / "a/run.json", (1e9, 1e9))  # when the run began
        more = resume(tmp_path / "a", extend=[(16, 1)], model=Small, quiet=True)
    assert more.metrics[: len(found.metrics)] == found.metrics
    assert os.stat(tmp_path / "a/run.json").st_mtime == 1e9


def test_images_that_are_enlarged_are_told(tmp_path, capsys):
    data = load_data("shapes", size=8, **OPTIONS)
    settings = TrainSettings(device="cpu", calibration_images=60)
    train(Small, [Level(8, 1, batch=30), Level(12, 1, batch=30)], data, tmp_path / "a", settings=settings)
    assert "note: images of 8 pixels are enlarged to 12" in capsys.readouterr().out
