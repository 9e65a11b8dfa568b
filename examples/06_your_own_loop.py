"""Coarse to fine in a plain PyTorch loop: three lines are added, everything else stays as it is.

A small convolutional network of one's own learns the embedded shapes at 16 pixels, then at 32. Optimizer, scheduler and
average are those with which the loop began: the network grows in place. Beside it the same loop at 32 pixels alone,
with the same number of floating point operations:

    plan              passes  accuracy  accuracy of the average
    16, then 32            8     91.2%                    91.2%
    32 alone               4     81.7%                    81.5%

Takes about half a minute. With two threads; with one, rounding alone makes it 89.7 and 82.2 %.
"""

import argparse

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from multipde import CoarseToFine, recalibrate, render_shapes


def network() -> nn.Module:
    parts: list[nn.Module] = []
    for old, new in ((3, 16), (16, 32), (32, 64)):
        parts += [nn.Conv2d(old, new, 3, padding=1, bias=False), nn.BatchNorm2d(new), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(schedule: list[tuple[int, float]], images: torch.Tensor, labels: torch.Tensor, batch: int = 50) -> tuple:
    torch.manual_seed(0)
    net, passes = network(), int(sum(length for _, length in schedule))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    total = passes * (len(images) // batch)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=total)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    growing = CoarseToFine(schedule, num_images=len(images) // batch * batch)  # added
    growing.begin(net, optimizer, ema)  # added
    for _ in range(passes):
        for index in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            x, y = growing.step((images[index], labels[index]))  # added
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            scheduler.step()
            ema.update_parameters(net)
    return net.eval(), ema.module.eval(), passes


def main(num_train: int = 4000, num_test: int = 1000) -> None:
    images, labels = render_shapes(num_train + num_test, 32, seed=0)
    images = (images.float() - images.float().mean()) / images.float().std()
    print(f"{'plan':<16}{'passes':>8}{'accuracy':>10}  accuracy of the average")
    for plan, schedule in (("16, then 32", [(16, 5.333), (32, 2.667)]), ("32 alone", [(32, 4.0)])):
        net, average, passes = trained(schedule, images[:num_train], labels[:num_train])
        recalibrate(average, [images[:500]])
        found = [(m(images[num_train:]).argmax(1) == labels[num_train:]).float().mean().item() for m in (net, average)]
        print(f"{plan:<16}{passes:>8}{found[0]:>10.1%}{found[1]:>25.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Coarse to fine in a plain PyTorch loop.")
    parser.add_argument("--num-train", type=int, default=4000)
    main(**vars(parser.parse_args()))
