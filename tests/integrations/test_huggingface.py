"""A network grows in the middle of ``train()`` and goes on from the trainer's own checkpoint."""

import shutil

import pytest
import torch
from torch import nn

from multipde import CoarseToFine, NetworkConfig, PDENet

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES, LABELS = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10


@pytest.fixture(autouse=True)
def _transformers():
    """Imported by the process that runs these tests, and not by all that collect them: it takes seconds."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))
        self.seen = []

    def forward(self, pixel_values, labels=None):
        self.seen.append(pixel_values.shape[-1] if self.training else -pixel_values.shape[-1])
        logits = self.net(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


DATA = [{"pixel_values": x, "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)]


def fit(place, steps, growing, checkpoint=None, parts=None, model=None, named=None, **options):
    import transformers

    from multipde.integrations.huggingface import GrowingNetwork

    torch.manual_seed(0)
    model = model or Classifier()
    arguments = transformers.TrainingArguments(
        str(place), max_steps=steps, per_device_train_batch_size=10, save_steps=3, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=0.01, lr_scheduler_type="constant", logging_strategy="no",
        eval_strategy="steps" if "monitor" in options else "no", eval_steps=2, seed=1,
        resume_from_checkpoint=named,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=DATA, eval_dataset=parts or DATA[:10],
        callbacks=[GrowingNetwork(growing, **options)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    if "monitor" in options:
        trainer.evaluate(DATA[:10], metric_key_prefix="test")  # after the training, without the metric
    return model


def levels(method="calibrated"):
    return CoarseToFine([(8, 4), (16, 4)], "steps", method=method)


@pytest.mark.parametrize("method", ["calibrated", "copy"])
def test_the_network_grows_and_goes_on_from_a_checkpoint(method, tmp_path):
    growing = levels(method)
    whole = fit(tmp_path / "a", 8, growing)
    assert [side for side in whole.seen if side > 0][:4] == [8] * 4
    assert whole.seen[-4:] == [16] * 4
    assert [move["to"] for move in growing.moves] == [16]
    for step in (3, 6):
        resumed = fit(tmp_path / "a", 8, levels(method), str(tmp_path / f"a/checkpoint-{step}"))
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_without_the_state_of_the_levels_is_refused(tmp_path):
    fit(tmp_path / "a", 6, levels())
    moved = tmp_path / "elsewhere/checkpoint-6"
    shutil.copytree(tmp_path / "a/checkpoint-6", moved)
    with pytest.raises(
        ValueError, match="levels must go on from step 6 as they were, got no .*b/checkpoint-6/coarse_to"
    ):
        fit(tmp_path / "b", 8, levels(), str(moved))


def test_the_checkpoint_that_is_named_is_the_one_whose_levels_go_on(tmp_path):
    fit(tmp_path / "a", 3, levels())
    fit(tmp_path / "b", 3, CoarseToFine([(8, 1), (16, 4)], "steps"))  # an older one of the same name
    named = str(tmp_path / "a/checkpoint-3")
    assert fit(tmp_path / "b", 8, levels(), named, named=named).seen[0] == 8


def test_the_network_inside_of_a_model_grows(tmp_path):
    model, growing = Classifier(), levels()
    model.net = PDENet(NetworkConfig("parabolic", (4, 6), 8, steps=1, size=16))
    fit(tmp_path, 8, growing, model=model, network="net")
    assert [move["to"] for move in growing.moves] == [16]
    assert model.net.multipde_spec.size == 16
    with pytest.raises(ValueError, match="network must name a module in Classifier, got 'body'"):
        fit(tmp_path / "b", 8, levels(), network="body")


def test_evaluations_of_other_images_are_not_asked_for_the_metric(tmp_path):
    growing = CoarseToFine([(8, 1), (16, 1)], "reports", method="copy")
    parts = {"a": DATA[:10], "b": DATA[10:20]}
    fit(tmp_path, 4, growing, parts=parts, monitor="eval_a_samples_per_second")
    assert growing.state_dict()["level"] >= 0


def test_a_metric_decides_and_evaluation_sees_the_level(tmp_path):
    growing = CoarseToFine([(8, 1), (16, 1)], "reports", method="copy")
    model = fit(tmp_path, 8, growing, monitor="eval_samples_per_second")
    assert {abs(side) for side in model.seen} <= {8, 16}
    with pytest.raises(ValueError, match=r"monitor must be a metric \(eval_loss, .*\), got 'eval_beauty'"):
        fit(tmp_path, 4, CoarseToFine([(8, 1), (16, 1)], "reports"), monitor="eval_beauty")
    from multipde.integrations.huggingface import GrowingNetwork

    with pytest.raises(ValueError, match="monitor must name a metric of an evaluation"):
        GrowingNetwork(CoarseToFine([(8, 1), (16, 1)], "reports"))


def test_a_training_that_was_interrupted_can_begin_anew():
    import transformers

    from multipde.integrations.huggingface import GrowingNetwork

    model, growing = Classifier(), GrowingNetwork(levels("copy"))
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    for _ in range(2):  # the first one had no end
        growing.on_train_begin(transformers.TrainingArguments("x"), transformers.TrainerState(), None, **given)
        assert len(model._forward_pre_hooks) == 1
