"""The network whose answers the finished networks of the tests learn."""

from dataclasses import replace

import torch
from torch.nn import functional

from multipde import NetworkConfig, PDENet
from multipde.data.image_data import ImageData
from multipde.networks.inputs import Normalize


def teacher(data: ImageData) -> PDENet:
    """A small network that has learned these images of 8 pixels."""
    torch.manual_seed(1)
    config = NetworkConfig("hamiltonian", (4, 6), 8, steps=1, size=8, class_names=data.class_names)
    net = PDENet(replace(config, mean=data.mean, std=data.std)).train()
    optimizer, x = torch.optim.Adam(net.parameters(), 0.02), Normalize.of(data)(data.train.images.float())
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), data.train.labels).backward()
        optimizer.step()
    return net.eval()
