"""Coarse to fine in a loop of timm's parts: its network, optimizer, scheduler, mixup, average and loss.

What ``train.py`` of timm does in every epoch, with three lines of multipde added. A narrow ResNet-10-T learns the
embedded shapes at 16 pixels, then at 32; beside it the same loop at 32 pixels alone, with about as many floating point
operations. It shows the mechanics: this network divides the side by 32, and learns little at 16 pixels. Needs
``pip install timm``.
"""

# pyright: reportPrivateImportUsage=false, reportOptionalMemberAccess=false

import argparse

import torch
from timm import create_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

from multipde import CoarseToFine, recalibrate, render_shapes


def trained(schedule: list[tuple[int, float]], images: torch.Tensor, labels: torch.Tensor, batch: int = 50) -> tuple:
    torch.manual_seed(0)
    net, updates = create_model("resnet10t", num_classes=10, channels=(16, 32, 64, 128)), len(images) // batch
    epochs = int(sum(length for _, length in schedule))
    optimizer = create_optimizer_v2(net, opt="lamb", lr=0.01, weight_decay=0.02)
    scheduler, epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=updates
    )
    mixup, loss_of = Mixup(mixup_alpha=0.1, label_smoothing=0.1, num_classes=10), SoftTargetCrossEntropy()
    ema = ModelEmaV3(net, decay=0.98)
    growing = CoarseToFine(schedule, num_images=updates * batch, method="copy")  # added
    growing.begin(net, optimizer, ema.module)  # added
    for epoch in range(epochs):
        net.train()
        losses = AverageMeter()
        for k, index in enumerate(torch.randperm(len(images))[: updates * batch].split(batch)):
            x, y = growing.step(mixup(images[index], labels[index]))  # added
            optimizer.zero_grad()
            loss = loss_of(net(x), y)
            loss.backward()
            optimizer.step()
            ema.update(net, step=epoch * updates + k)
            scheduler.step_update(epoch * updates + k + 1)
            losses.update(loss.item(), len(x))
        scheduler.step(epoch + 1)
    return net.eval(), ema.module.eval(), epochs


def main(num_train: int = 2000, num_test: int = 500, passes: float = 3.0) -> None:
    images, labels = render_shapes(num_train + num_test, 32, seed=0)
    images = (images.float() - images.float().mean()) / images.float().std()
    print(f"{'plan':<16}{'passes':>8}{'accuracy':>10}  accuracy of the average")
    coarse = [(16, 4 * passes / 2), (32, passes / 2)]  # a pass at 16 pixels costs a quarter of one at 32
    for plan, schedule in (("16, then 32", coarse), ("32 alone", [(32, passes)])):
        net, average, epochs = trained(schedule, images[:num_train], labels[:num_train])
        recalibrate(average, [images[:500]])
        with torch.no_grad():
            top = [accuracy(m(images[num_train:]), labels[num_train:])[0].item() for m in (net, average)]
        print(f"{plan:<16}{epochs:>8}{top[0]:>9.1f}%{top[1]:>24.1f}%")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Coarse to fine in a loop of timm's parts.")
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--passes", type=float, default=3.0)
    main(**vars(parser.parse_args()))
