"""The finish of a conversion: the old network teaches the converted one."""

import itertools
import re
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional

import multipde
from multipde import convert, load_data
from multipde.cli.main import main
from multipde.data.datasets import split_indices
from multipde.data.unlabelled import load_unlabelled
from multipde.runtime.device import Compute
from multipde.runtime.signals import PendingSignals
from multipde.storage.stored_network import save
from multipde.training.budget import Budget
from multipde.training.finish import Finish, FinishSettings, answers, finish_budget
from tests.training.teacher import teacher

SETTINGS = FinishSettings(Budget(200, "images"), batch=20)


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=8, num_train=150, num_test=60)


@pytest.fixture(scope="module")
def old(data):
    return teacher(data)


def finish(data, old, settings=SETTINGS, signals=None) -> Finish:
    return finish_of(convert(old, size=4), data, old, settings, signals)


def finish_of(net, data, old, settings=SETTINGS, signals=None) -> Finish:
    return Finish(net, old, data.train, *split_indices(len(data.train), 0), Compute.of("cpu"), settings, signals)


def test_the_networks_agree_better_and_the_same_seed_gives_the_same_weights(data, old):
    first, second = finish(data, old).run(), finish(data, old).run()
    assert first.after > first.before
    assert first.num_images == 200
    assert [images for images, _, _ in first.rounds] == [200]
    assert all(torch.equal(a, b) for a, b in zip(*(f.net.state_dict().values() for f in (first, second)), strict=True))
    settings = {"budget": "200images", "batch": 20, "device": "cpu"}
    labelled = multipde.finish(convert(old, size=4), old, data, **settings)
    unlabelled = multipde.finish(convert(old, size=4), old, data.train.images.numpy(), **settings)
    assert unlabelled.after == first.after == finish_of(first.net, data, old).share_right()
    assert (unlabelled.old, unlabelled.labelled) == (1.0, False)
    assert labelled.labelled
    right = data.train.take(split_indices(len(data.train), 0)[1])
    for net, share in ((labelled.net, labelled.after), (old, labelled.old)):
        named = answers(net, right, None, Compute.of("cpu"))
        assert share == (named == right.labels).double().mean().item()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_least_at_the_old_answers_and_scaled_as_at_temperature_one(data, old, temperature):
    trained = finish(data, old, replace(SETTINGS, temperature=temperature))
    taught, direction = torch.randn(5, 10, dtype=torch.float64), torch.randn(5, 10, dtype=torch.float64)
    target = functional.softmax(taught / temperature, 1)
    scores = taught.clone().requires_grad_()
    slope = torch.autograd.grad(trained._loss(scores, target), scores, create_graph=True)[0]
    assert slope.abs().max() < 1e-15
    flat = (0 * taught).requires_grad_()  # at equal scores the curvature does not depend on the temperature
    slope = torch.autograd.grad(trained._loss(flat, torch.full_like(taught, 0.1)), flat, create_graph=True)[0]
    curvature = torch.autograd.grad(slope, flat, direction)[0]
    torch.testing.assert_close(curvature, (direction - direction.mean(1, keepdim=True)) / 50)


def test_labels_alone_do_not_ask_the_old_network(data, old, monkeypatch):
    trained = finish(data, old, replace(SETTINGS, label_share=1.0, budget=Budget(40, "images")))
    monkeypatch.setattr(trained.teacher, "forward", lambda x: pytest.fail("the old network was asked"))
    x, labels = next(trained._batches(0))
    assert torch.equal(trained._target(x, labels), functional.one_hot(labels, 10).float())
    assert x.min() > -1e-3
    assert x.max() < 255.001


def test_a_signal_keeps_the_best_weights_and_a_time_ends(data, old, monkeypatch):
    pending = PendingSignals()
    pending.receive(signal.SIGINT)
    stopped = finish(data, old, signals=pending).run()
    assert (stopped.num_images, stopped.rounds, stopped.stopped) == (0, [], signal.SIGINT)
    assert stopped.after == stopped.before
    clock = itertools.count()  # every look at the clock takes a second, and a step looks twice
    monkeypatch.setattr("multipde.training.finish.time.perf_counter", lambda: next(clock))
    assert finish(data, old, replace(SETTINGS, budget=Budget(11.0, "seconds"))).run().num_images == 80
    assert finish(data, old, replace(SETTINGS, budget=None, longest=0.0)).run().num_images == 0


def test_it_ends_by_itself_where_nothing_is_gained(data, old, monkeypatch):
    trained = finish(data, old, replace(SETTINGS, budget=None))
    monkeypatch.setattr("multipde.training.finish.FIRST_ROUND", 40)
    found = iter([0.2, 0.5, 0.7, 0.701])
    monkeypatch.setattr(trained, "share_right", lambda: next(found))
    done = trained.run()
    assert [images for images, _, _ in done.rounds] == [40, 120, 280]
    assert (done.before, done.after) == (0.2, 0.701)


@pytest.mark.parametrize(("before", "rounds"), [(0.595, 0), (0.585, 1)])
def test_it_begins_only_where_more_than_a_point_is_missing_to_the_old_network(data, old, monkeypatch, before, rounds):
    trained = finish(data, old, replace(SETTINGS, budget=None))
    trained.share_of_old, found = 0.6, iter([before, before])
    monkeypatch.setattr("multipde.training.finish.FIRST_ROUND", 40)
    monkeypatch.setattr(trained, "share_right", lambda: next(found))
    assert len(trained.run().rounds) == rounds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: finish_budget("3apples"), "budget must be a number with s, min or images, or auto"),
        (lambda: FinishSettings(Budget(1.0, "flops")), "finish must be a time or a number of images"),
        (lambda: FinishSettings(temperature=0.0), "temperature must be positive"),
        (lambda: FinishSettings(label_share=2.0), r"label_share must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_one_class_are_refused(data, old):
    new, one = convert(old, size=4), torch.zeros(20, dtype=torch.long)
    with pytest.raises(ValueError, match="images must show more than one class"):
        Finish(new, old, data.train, torch.arange(100), one, Compute.of("cpu"), SETTINGS)


def folder(tmp_path, data, num: int = 60, side: int = 8):
    for k, image in enumerate(data.train.images[:num, :, :side, :side]):
        where = tmp_path / "images" / ("" if k % 2 else "some")
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(where / f"{k}.png")
    return tmp_path / "images"


def test_a_folder_without_labels_is_enough(tmp_path, data, old, capsys):
    save(old, tmp_path / "net")
    arguments = ["convert", str(tmp_path / "net"), "--size", "4", "--images", str(folder(tmp_path, data, 150))]
    main([*arguments, "--finish", "1000images", "--method", "copy", "--out", str(tmp_path / "out"), "--device", "cpu"])
    text = capsys.readouterr().out
    assert "the images have no labels: accuracy is the agreement with the old network" in text
    assert re.search(r"original at 8 +8 +100.0%", text)
    assert "copy, finished" in text
    assert re.search(r"finish: the networks agree on [.0-9]+% of \d+ held-back images, and on [.0-9]+%", text)


def test_where_there_are_labels_the_command_names_the_accuracy_of_both(tmp_path, old, capsys, few_shapes):
    save(old, tmp_path / "net")
    arguments = ["convert", str(tmp_path / "net"), "--size", "4", "--data", "shapes", "--method", "copy"]
    main([*arguments, "--finish", "200images", "--out", str(tmp_path / "out"), "--device", "cpu"])
    said = r"finish: (nothing gained, )?[.0-9]+% of \d+ held-back images are right, [.0-9]+% before it, and [.0-9]+% of"
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("num", "side", "message"),
    [
        (1, 8, "images must be at least 50, got 1"),
        (20, 8, "images must be at least 50, got 20"),
        (50, 6, "images must have at least the network's 8 pixels"),
    ],
)
def test_few_and_small_images_are_refused(tmp_path, data, num, side, message):
    with pytest.raises(ValueError, match=message):
        load_unlabelled(folder(tmp_path, data, num, side), 8)


def test_what_is_left_out_of_a_folder_is_said(tmp_path, data):
    root = folder(tmp_path, data)
    (root / "readme.txt").write_text("photographs")
    with pytest.warns(UserWarning, match="left out of .*: 1 with the ending .txt"):
        assert len(load_unlabelled(root, 8)) == 60


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="images must be at least 50, got 0"):
        load_unlabelled(tmp_path, 8)


@pytest.mark.filterwarnings("default:skipped as bad")
def test_images_of_a_folder_that_cannot_be_read_are_left_out_on_demand(tmp_path, data, old, capsys):
    root = folder(tmp_path, data)
    (root / "bad.png").write_text("no image")
    save(old, tmp_path / "net")
    words = f"convert {tmp_path}/net --size 4 --images {root} --finish 20images --out {tmp_path}/out --device cpu"
    with pytest.raises(SystemExit):
        main(words.split())
    assert "bad.png: cannot identify" in (error := capsys.readouterr().err)
    assert "type --skip-bad" in error
    main([*words.split(), "--skip-bad"])
    assert "note: skipped as bad: 1 image, 60 images are left" in capsys.readouterr().err
    assert (tmp_path / "out/report.json").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_gradients_are_switched_off_around_it(mode, data, old):
    settings = {"budget": "200images", "batch": 20, "device": "cpu"}
    with mode():
        found = multipde.finish(convert(old, size=4), old, data, **settings)
    assert found.after == multipde.finish(convert(old, size=4), old, data, **settings).after
