"""A network grows in the middle of ``fit`` and goes on from Lightning's own checkpoint."""

import functools

import pytest
import torch
from torch import nn
from torchvision import models

from multipde import CoarseToFine
from tests.fixtures import run_example

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of few workers and of much else

IMAGES, LABELS = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10


@pytest.fixture(autouse=True)
def _lightning():
    """Imported by the process that runs these tests, and not by all that collect them: it takes seconds."""
    pytest.importorskip("lightning.pytorch")


def classifier():
    import lightning.pytorch as pl

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
            self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))
            self.seen = []

        def training_step(self, batch):  # without an index, which is allowed
            x, y = batch
            self.seen.append(x.shape[-1])
            return nn.functional.cross_entropy(self.net(x), y)

        def validation_step(self, batch, index):
            x, y = batch
            self.seen.append(-x.shape[-1])
            self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())
            self.log("constant", 0.5)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=16)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Classifier()


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), 10)


def fit(place, epochs, checkpoint=None, growing=None, validation=None, **options):
    import lightning.pytorch as pl

    from multipde.integrations.lightning import GrowingNetwork

    module = classifier()
    growing = growing or CoarseToFine([(8, 2), (16, 2)], num_images=40, method="galerkin")
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=place, num_sanity_val_steps=0,
        callbacks=[GrowingNetwork(growing, "net", **options)],
    )  # fmt: skip
    trainer.fit(module, loader(), validation, ckpt_path=checkpoint)
    return module, trainer, growing


def test_the_network_grows_and_goes_on_from_a_checkpoint(tmp_path):
    whole, _, growing = fit(tmp_path, 4)
    assert whole.seen == [8] * 8 + [16] * 8
    assert [move["to"] for move in growing.moves] == [16]
    for epochs in (1, 3):
        _, trainer, _ = fit(tmp_path, epochs)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        resumed, _, _ = fit(tmp_path, 4, tmp_path / "a.ckpt")
        assert resumed.seen == whole.seen[4 * epochs :]
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert "training_step" not in vars(whole)


def test_a_metric_decides_and_validation_sees_the_level(tmp_path):
    growing = CoarseToFine([(8, 1), (16, 1)], "reports", method="copy")
    module, _, _ = fit(tmp_path, 4, growing=growing, validation=loader(), monitor="constant")
    assert growing.moves
    assert {abs(side) for side in module.seen} == {8, 16}
    first = module.seen.index(16)
    assert all(abs(side) == 8 for side in module.seen[:first])
    assert all(abs(side) == 16 for side in module.seen[first:])


def test_validation_outside_of_fit_changes_nothing(tmp_path):
    import lightning.pytorch as pl

    from multipde.integrations.lightning import GrowingNetwork

    growing = CoarseToFine([(8, 1), (16, 1)], "reports", method="copy")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=tmp_path, callbacks=[GrowingNetwork(growing, "net", monitor="accuracy")],
    )  # fmt: skip
    trainer.validate(classifier(), loader(), verbose=False)
    assert growing.best is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"growing": CoarseToFine([(8, 1)], "reports")}, "monitor must name a logged metric where levels"),
        ({"ema": "average"}, "network must name an attribute of Classifier, got 'average'"),
        (
            {"monitor": "loss", "validation": True},
            r"monitor must be a logged metric \(accuracy, .*\), got 'loss'",
        ),
    ],
)
def test_wrong_names_are_told_in_one_line(options, line, tmp_path):
    if options.get("validation"):
        options = options | {"validation": loader()}
    with pytest.raises(ValueError, match=line):
        fit(tmp_path, 1, **options)


@pytest.mark.usefixtures("small_examples")
def test_the_example_grows(capsys, monkeypatch):
    half = functools.partial(models.ResNet, models.resnet.BasicBlock, [1, 1, 1, 1])  # a ResNet-18 has twice the layers
    monkeypatch.setattr(models, "resnet18", half)
    run_example("10_lightning.py", num_train=100, num_test=10)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-2] for row in rows[1:]] == ["2.5", "1"]
