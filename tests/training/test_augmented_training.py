"""Label smoothing and augmentation by names or by a function: what they change, and that they are resumed."""

import json
import re

import pytest
import torch
from torch.nn import functional

from multipde import Level, NetworkConfig, Schedule, TrainSettings, evaluate, load_data, resume, train
from multipde.runtime.signals import Interrupted
from multipde.training.objective import Objective
from multipde.training.state import TrainState

NETWORK = NetworkConfig("second_order", (4,), 6, steps=1, size=8)
OPTIONS = {"num_train": 100, "num_test": 20}


def run(directory, loss=None, **settings):
    plan = Schedule([Level(4, 1, batch=20), Level(8, 1, batch=20)])
    chosen = TrainSettings(device="cpu", calibration_images=20, transfer="copy", **settings)
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, loss=loss, quiet=True)


def darker(images):
    return images * torch.rand(len(images), 1, 1, 1)


def test_label_smoothing_spreads_a_share_of_the_label_evenly():
    scores, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    log_p, s = scores.log_softmax(1), 0.2
    wanted = functional.one_hot(labels, 4) * (1 - s) + s / 4
    torch.testing.assert_close(Objective().training_loss(scores, labels, s), -(wanted * log_p).sum(1).mean())
    torch.testing.assert_close(Objective().training_loss(scores, wanted), -(wanted * log_p).sum(1).mean())
    assert torch.equal(Objective().training_loss(scores, labels), functional.cross_entropy(scores, labels))


def test_only_the_training_loss_is_smoothed(tmp_path):
    smoothed = run(tmp_path / "a", label_smoothing=0.9)
    found = evaluate(smoothed.model, load_data("shapes", size=8, **OPTIONS), device="cpu")
    assert found.loss == pytest.approx(smoothed.result["test_loss"], rel=1e-6)
    assert smoothed.metrics[0]["train_loss"] != run(tmp_path / "b").metrics[0]["train_loss"]


def test_accuracy_of_mixed_images_counts_the_class_with_the_largest_share():
    state = TrainState()
    state.count(torch.tensor(1.0), torch.eye(3), torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]]))
    assert state.record()["num_correct"] == 2


@pytest.mark.parametrize("augment", ["flip,crop,randaugment,cutout,mixup,cutmix", darker], ids=["names", "own"])
def test_an_augmented_training_is_resumed_bit_for_bit(augment, tmp_path, signal_at_step):
    settings, again = {"label_smoothing": 0.1, "augment": augment}, {"augment": augment} if callable(augment) else {}
    done = run(tmp_path / "a", **settings)
    signal_at_step(6)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", **settings)
    signal_at_step(None)
    record = json.loads((tmp_path / "b/run.json").read_text())
    if callable(augment):
        assert (record["settings"]["augment"], record["objective"]["augment"]) == (None, "darker")
        with pytest.raises(ValueError, match="augment must be that of the run, darker, got none; pass augment= as"):
            resume(tmp_path / "b", quiet=True)
    else:
        assert record["settings"]["augment"] == augment
    resumed = resume(tmp_path / "b", quiet=True, **again)
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), resumed.model.parameters(), strict=True))
    assert [r["train_loss"] for r in done.metrics] == [r["train_loss"] for r in resumed.metrics]


def test_a_loss_of_the_user_knows_no_shares_of_classes(tmp_path):
    message = "augment must not mix labels with a loss of your own, got flip,mixup; leave out"
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path / "a", loss=functional.cross_entropy, augment="flip,mixup")
    assert not (tmp_path / "a").exists()
    run(tmp_path / "a", loss=functional.cross_entropy, label_smoothing=0.2)
    assert json.loads((tmp_path / "a/run.json").read_text())["settings"]["label_smoothing"] == 0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\), got 1"):
        TrainSettings(label_smoothing=1)
    with pytest.raises(ValueError, match="augment must be off or different names among .*, got 'blur'"):
        TrainSettings(augment="blur")
