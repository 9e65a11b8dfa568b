"""The finish of a network for several sizes: every batch is seen at all of them."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional

import multipde
from multipde import AllSizes, load, load_data, save, share_stencils
from multipde.cli.main import main
from multipde.data.datasets import split_indices
from multipde.mesh.reparametrize import stored_parameter
from multipde.runtime.device import Compute
from multipde.storage.stored_sizes import SIZES
from multipde.training.budget import Budget
from multipde.training.every_size import seen
from multipde.training.finish import Finish, FinishSettings
from multipde.training.monitor import DivergenceError
from tests.training.teacher import teacher

SETTINGS = FinishSettings(Budget(200, "images"), batch=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of image files in folders of their classes."""
    root, drawn = tmp_path_factory.mktemp("data"), load_data("shapes", size=8, num_train=150, num_test=40)
    for part in ("train", "test"):
        images = getattr(drawn, part)
        for k, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            place = root / part / drawn.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def data(folder):
    return load_data("folder", root=folder, size=8)


@pytest.fixture(scope="module")
def old(data):
    return teacher(data)


def finish(data, old, sizes=(4, 6, 8), settings=SETTINGS) -> Finish:
    parts = split_indices(len(data.train), 0)
    return Finish(share_stencils(old, sizes), old, data.train, *parts, Compute.of("cpu"), settings)


@torch.no_grad()
def distances(net, old, data) -> list[float]:
    """At every size the mean divergence between the answers of the old network and those of the new one."""
    x = data.train.images.float()
    taught = old.eval()(seen(old, x)).log_softmax(1)
    answers = [each.eval()(seen(each, x)).log_softmax(1) for each in net.networks]
    return [functional.kl_div(each, taught, log_target=True, reduction="batchmean").item() for each in answers]


def test_every_size_learns_the_old_answers_and_the_same_seed_gives_the_same_bytes(data, old, tmp_path):
    trainings = [finish(data, old), finish(data, old)]
    trainings[0]._recalibrate()  # which a training step does not see
    before = distances(trainings[0].new, old, data)
    first, second = (each.run(keep_last=True) for each in trainings)
    assert isinstance(first.net, AllSizes)
    after = distances(first.net, old, data)
    assert all(a < 0.9 * b for a, b in zip(after, before, strict=True))
    for name, done in (("first", first), ("second", second)):
        save(done.net, tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_stencils_stay_shared_and_every_size_has_learned_its_own_layers(data, old):
    before = share_stencils(old, (4, 8))
    net = finish(data, old, (4, 8)).run(keep_last=True).net
    for size in (4, 8):
        conv = net.at(size).blocks[0].controls[0][0].conv
        assert stored_parameter(conv) is stored_parameter(net.at(8).blocks[0].controls[0][0].conv)
        for own in ("weight", "running_mean"):
            values = [getattr(each.at(size).opening[1], own) for each in (net, before)]
            assert not torch.equal(*values)
    assert not torch.equal(stored_parameter(net.at(8).opening[0]), stored_parameter(old.opening[0]))


def test_the_public_function_trains_a_copy(data, old):
    net = share_stencils(old, (4, 8))
    done = multipde.finish(net, old, data, budget="100images", batch=20, device="cpu")
    assert isinstance(done.net, AllSizes)
    assert (done.num_images, done.num_held_back) == (100, 30)
    assert all(torch.equal(t, old.state_dict()[name]) for name, t in net.at(8).state_dict().items())


def test_one_size_learns_as_a_converted_network_does(data, old):
    both = [finish(data, old, (4,)), finish(data, old, (4,))]
    converted = multipde.convert(old, size=4)
    both[1] = Finish(converted, old, data.train, *split_indices(len(data.train), 0), Compute.of("cpu"), SETTINGS)
    first, second = (each.run() for each in both)
    assert first.after == second.after
    state = second.net.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in first.net.at(4).state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_target_is_the_old_answer_and_below_the_largest_size_the_mean_of_all_sizes_too(data, old, share):
    trained = finish(data, old, settings=replace(SETTINGS, ensemble=share))
    scores = torch.randn(3 * 5, 10, dtype=torch.float64).requires_grad_()
    target = functional.softmax(torch.randn(5, 10, dtype=torch.float64), 1)
    t, own = 2.0, functional.softmax(scores.detach() / 2, 1)
    mixed = (1 - share) * target + share * (own[:5] + own[5:10] + own[10:]) / 3
    wanted = torch.cat([mixed, mixed, target])
    slope = torch.autograd.grad(trained._loss(scores, target), scores)[0]
    torch.testing.assert_close(slope, t * (own - wanted) / 15)  # T² CE has the slope T (p - q) / number


def test_every_network_sees_the_batch_at_its_own_size(data, old):
    trained = finish(data, old)
    x, _ = next(trained._batches(0))
    assert x.shape[-1] == 8
    assert [seen(net, x).shape[-1] for net in trained.networks] == [4, 6, 8]
    weights = trained.networks[0].opening[1].weight
    with torch.no_grad():
        weights[0] = torch.nan
    with pytest.raises(DivergenceError, match=r"size 4: weights opening.1.weight; size 6: "):
        trained.run()


def test_a_bad_share_is_named():
    with pytest.raises(ValueError, match=r"ensemble must lie in \[0, 1\)"):
        FinishSettings(ensemble=1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory, folder, old):
    """A checkpoint for one size and one for three, which the command has converted and finished on image files."""
    root = tmp_path_factory.mktemp("sizes")
    save(old, root / "one")
    command = ["convert", str(root / "one"), "--sizes", "4", "6", "8", "--images", str(folder / "train")]
    main([*command, "--finish", "500images", "--out", str(root / "net"), "--device", "cpu", "--quiet"])
    return root


def test_convert_writes_one_checkpoint_with_its_report(place):
    report = json.loads((place / "net" / "report.json").read_bytes())
    assert (report["size"], report["sizes"]) == (8, [4, 6, 8])
    assert [(row["name"], row["size"]) for row in report["candidates"][:3]] == [
        ("original at 8", 8),
        ("shared, recalibrated", 4),
        ("shared, recalibrated", 6),
    ]
    assert [row["size"] for row in report["candidates"][3:]] in ([4, 6, 8], [])
    assert load(place / "net").sizes == (4, 6, 8)
    assert (place / "net" / SIZES).exists()


def test_commands_take_the_size_that_they_are_given(place, folder, data, capsys):
    net = place / "net"
    main(["evaluate", str(net), "--data", "folder", "--root", str(folder), "--json", "--device", "cpu"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["size"], row["method"]) for row in rows] == [(4, "-"), (6, "-"), (8, "-")]
    assert rows[1]["accuracy"] == multipde.evaluate(load(net), data, 6, device="cpu").accuracy
    with Image.open(next((folder / "test").rglob("*.png"))) as image:
        image.resize((7, 7)).save(place / "seven.png")
    for fit, size in (("net", 6), ("image", 8)):
        main(["predict", str(net), str(place / "seven.png"), "--fit", fit, "--json", "--device", "cpu"])
        assert json.loads(capsys.readouterr().out)["size"] == size
    main(["export", str(net), "--size", "6", "--format", "state_dict", "--out", str(place / "six.pt")])
    assert "(batch, 3, 6, 6)" in capsys.readouterr().out
    main(["inspect", str(net)])
    text = capsys.readouterr().out
    assert "One network for several sizes" in text
    assert "PDENet hamiltonian, 3 channels of 8x8 pixels" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate NET --data shapes --sizes 5", "size must be one that was trained, 4, 6, 8, got 5"),
        ("evaluate NET --data shapes --method galerkin", "method must be left out for a checkpoint of several sizes"),
        ("evaluate NET --data shapes --robustness", "network must be of one size, got a checkpoint of the sizes 4, 6"),
        ("export NET --out NEW.onnx --format pt2", "size must be given for a network of the sizes 4, 6, 8"),
        ("export NET --out NEW.onnx --format pt2 --size 5", "size must be one that was trained, 4, 6, 8, got 5"),
        ("convert NET --size 4 --out NEW", "network must be of one size, got a checkpoint of the sizes 4, 6, 8"),
        ("convert NET --sizes 4 --out NEW", "network must be of one size, got a checkpoint of the sizes 4, 6, 8"),
        ("train --init NET --sizes 8 --epochs 1 --run NEW", "network must be of one size, got a checkpoint of the"),
        ("report NET", "run must be a directory with"),
        ("convert ONE --sizes 4 --size 4 --out NEW", "size must be left out with --sizes, got 4"),
        ("convert ONE --sizes 4 --rivals --out NEW", "rivals must be left out with --sizes, got True"),
        ("convert ONE --sizes 4 7 --out NEW", "size must be a positive multiple of 2"),
        ("convert ONE --sizes 4 4 --out NEW", "sizes must be different positive numbers of pixels, got 4, 4"),
        ("convert ONE --sizes 4", "out must be given; type --out DIR"),
        ("convert ONE --sizes 4 --finish 2min --out NEW", "finish 2min must have images, got none"),
        ("convert --sizes 4 --out NEW", "sizes must come with a checkpoint or --arch, got neither"),
        ("train --all-sizes 8 8 --run NEW", "sizes must be different positive numbers of pixels, got 8, 8"),
        ("train --all-sizes 9 --run NEW", "size must be a positive multiple of"),
        ("train --all-sizes 8 --finish-share 2 --run NEW", "finish_share must be above 0 and at most 1, got 2"),
        ("train --finish-share 0.2 --run NEW", "finish_share must come with --all-sizes, got 0.2"),
    ],
)
@pytest.mark.usefixtures("few_shapes")
def test_bad_input_is_one_line_and_nothing_is_written(place, command, message, capsys):
    names = {"NET": place / "net", "ONE": place / "one", "NEW": place / "new"}
    words = [str(names.get(word, word)).replace("NEW.", f"{place}/new.") for word in command.split()]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(place.glob("new*"))


def test_a_finish_that_diverges_is_given_up_and_said(place, folder, capsys, tmp_path, monkeypatch):
    def diverge(*given, **more):
        raise DivergenceError("loss must stay finite, got nan in size 4: opening")

    monkeypatch.setattr("multipde.training.finish.Finish.run", diverge)
    command = ["convert", str(place / "one"), "--sizes", "4", "8", "--data", "folder", "--root", str(folder)]
    main([*command, "--finish", "20images", "--out", str(tmp_path / "net"), "--device", "cpu"])
    assert "the finish is given up, and the network before it is kept: loss must" in capsys.readouterr().out
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "net")(x), load(place / "one")(x))


def test_without_images_nothing_is_finished_and_that_is_said(place, capsys, tmp_path):
    main(["convert", str(place / "one"), "--sizes", "4", "8", "--out", str(tmp_path / "net"), "--device", "cpu"])
    assert "no data: nothing is measured or finished" in capsys.readouterr().out
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "net")(x), load(place / "one")(x))


def test_a_training_ends_with_a_finish_at_all_sizes(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *given: None)
    run = tmp_path / "run"
    levels = ["--sizes", "8", "--epochs", "1", "--batch", "20", "--all-sizes", "4", "8", "--finish-share", "0.2"]
    main(["train", "--data", "folder", "--root", str(folder), "--run", str(run), "--device", "cpu", *levels])
    text = capsys.readouterr().out
    assert "each at 2 sizes, for 20 % of the work of the training" in text
    assert load(run / "all-sizes").sizes == (4, 8)
    assert not isinstance(load(run), AllSizes)
    main(["train", "--run", str(run), "--resume", "--all-sizes", "4", "8"])
    assert "is there already and stays" in capsys.readouterr().out
