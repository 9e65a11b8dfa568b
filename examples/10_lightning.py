"""A ResNet-18 in a Lightning Trainer that grows from 16 to 32 pixels in the middle of ``fit``.

torchvision's ResNet-18 with a 3x3 opening learns images of 32 pixels: first averaged to 16, then as they are, beside
the same module at 32 pixels alone for the same number of floating point operations. A ``fit`` that was stopped goes on
from Lightning's own checkpoint, before or after the growth. The callback is all that is added:

    python examples/10_lightning.py                                          # embedded images, a few minutes
    python examples/10_lightning.py --root data/cifar10 --num-train 20000 --passes 2

A pass over 10,000 images has 100 steps, too few to learn much. What it reaches on CIFAR-10 with one thread and
``--num-train 10000 --num-test 4000 --seeds 2``:

    plan           seed  passes  accuracy
    16, then 32       0     2.5     43.5%
    32 alone          0       1     17.5%
    16, then 32       1     2.5     43.4%
    32 alone          1       1     24.2%
"""

import argparse
import logging
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from multipde import CoarseToFine, load_data
from multipde.integrations.lightning import GrowingNetwork


class Classifier(pl.LightningModule):
    """A LightningModule as anybody writes it; it knows nothing of sizes."""

    def __init__(self, steps: int):
        super().__init__()
        net: Any = torchvision.models.resnet18(num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        self.net, self.steps = net, steps

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels, label_smoothing=0.1)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fitted(levels: list[tuple[int, float]], images: Tensor, labels: Tensor, batch: int, seed: int) -> Classifier:
    """The module after passes over the images at the sizes of the levels."""
    pl.seed_everything(seed, verbose=False)
    passes, growing = sum(length for _, length in levels), CoarseToFine(levels, num_images=len(images), method="copy")
    module = Classifier(int(passes * (len(images) // batch)))
    trainer = pl.Trainer(
        callbacks=[GrowingNetwork(growing, "net")],  # added
        max_steps=module.steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    )
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch, shuffle=True, drop_last=True))
    return module.eval()


def main(
    root: str | None = None, num_train: int = 4000, num_test: int = 1000, passes: float = 1.0, seeds: int = 1
) -> None:
    """Train both ways for the work of so many passes at 32 pixels."""
    data = load_data("folder" if root else "shapes", root=root, size=32, num_train=num_train, num_test=num_test)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:num_train]
    sets: Any = data.train.take(chosen), data.test.take(torch.arange(min(num_test, len(data.test))))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (data.mean, data.std))
    (images, labels), (test, expected) = (((part.images.float() - mean) / std, part.labels) for part in sets)
    print(f"{'plan':<14}{'seed':>5}{'passes':>8}{'accuracy':>10}")
    for seed in range(seeds):  # a pass at 16 pixels has a quarter of the operations
        for plan, levels in (("16, then 32", [(16, 2 * passes), (32, passes / 2)]), ("32 alone", [(32, passes)])):
            net = fitted(levels, images, labels, 100, seed)
            with torch.no_grad():
                found = torch.cat([net.net(part).argmax(1) for part in test.split(100)])
            right, total = (found == expected).float().mean().item(), sum(length for _, length in levels)
            print(f"{plan:<14}{seed:>5}{total:>8g}{right:>10.1%}", flush=True)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # Lightning warns of few workers and of much else
    parser = argparse.ArgumentParser(description="A ResNet-18 in Lightning, coarse to fine.")
    parser.add_argument("--root", help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=1000)
    parser.add_argument("--passes", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    main(**vars(parser.parse_args()))
