"""Robustness of a network: accuracy under corruptions and attacks, and growth of perturbations in its blocks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData
from multipde.data.feed import Feed
from multipde.evaluation.attacks import Scores, ascent, fgsm, pgd, random_start
from multipde.evaluation.corruptions import CORRUPTIONS, corrupt
from multipde.evaluation.metrics import check_classes, check_square
from multipde.mesh.modes import eval_mode, ordinary_tensors
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.stability.energy import StateEnergy, state_energies
from multipde.stability.growth import HYPERBOLIC, BlockGrowth, growth_report

FGSM, PGD = "FGSM", "PGD"
ATTACKS = {FGSM: (1.0, 2.0, 4.0), PGD: (1.0, 2.0)}
"""ε in units of 1/255 of the pixel range, from weak to strong."""

GROWTH_IMAGES = 8
"""Number of test images along which growth and energy are measured."""

BATCH = 125

Accuracies = tuple[tuple[float, float], ...]
"""Pairs of a strength and the accuracy at it."""


@dataclass(frozen=True)
class Robustness:
    """The result of `robustness` for one network.

    Args:
        num_images: number of test images.
        clean: accuracy on the unchanged images, in [0, 1].
        accuracy: for every corruption and attack by name, the pairs (strength, accuracy at this strength).
        growth: growth of perturbations through every block, see `growth_report`; empty for other networks than PDENet.
        energy: energy along time, see `state_energies`; empty unless the dynamics is hyperbolic.
    """

    num_images: int
    clean: float
    accuracy: dict[str, Accuracies]
    growth: list[BlockGrowth]
    energy: list[StateEnergy]

    def record(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        return asdict(self)


@ordinary_tensors()
def robustness(
    net: nn.Module,
    images: ImageData,
    *,
    num_images: int | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Robustness:
    """Measure accuracy on corrupted and attacked test images, and growth and energy inside the network, in float32.

    Corruptions and attacks change pixels in [0, 1]. The images are normalised behind them, as a part of the network, so
    that gradients go through the normalisation. Accuracy under PGD at ε is the share of the images that are classified
    correctly when clean, under PGD at ε, and under PGD at every smaller ε of the list.

    Args:
        net: a network that carries its description.
        images: data set whose test images are used.
        num_images: use only this many test images, a fixed random subset; None for all.
        device: device, as in `evaluate`; the network is moved there.
        seed: seed of the noise, the starts of PGD and the random perturbations; the same seed for networks that are to
            be compared.
        advance: function that is called with the number of images after each batch, for a progress bar.

    Raises:
        ValueError: classes, channels or size of the images do not suit the network, or they are no pictures.

    Reference: Hendrycks & Dietterich (2019), for accuracy under corruptions.
    """
    spec: Any = spec_of(net)
    check_classes(spec, images)
    check_square(spec)
    compute, dtype = Compute.of(device), next(net.parameters()).dtype
    compute.place(net)
    scores, size = pixel_scores(net), spec.image_sizes[0]
    indices = drawn_indices(len(images.test), num_images, (0, "test"))
    batches = Feed(images.test, Normalize((), ()), compute).evaluation(indices, size, BATCH)
    counts: dict[tuple[str, float], int] = {}
    clean = 0
    with eval_mode(net):
        for chosen, (pixels, labels) in zip(indices.split(BATCH), batches, strict=True):
            x = pixels.to(dtype)
            right = _right(scores, x, labels)
            clean += int(right.sum())
            found = _corrupted(scores, x, labels, chosen, seed) | _attacked(scores, x, labels, right, chosen, seed)
            counts = {key: counts.get(key, 0) + int(value.sum()) for key, value in found.items()}
            if advance is not None:
                advance(len(chosen))
    few = Feed(images.test, Normalize.of(spec), compute).evaluation(indices[:GROWTH_IMAGES], size)
    sample = torch.cat([x for x, _ in few]).to(dtype)
    num = len(indices)
    return Robustness(
        num,
        clean / num,
        {
            kind: tuple((strength, counts[kind, strength] / num) for strength in strengths)
            for kind, strengths in KINDS.items()
        },
        growth_report(net, sample, seed=seed) if spec.has_energy else [],
        state_energies(net, sample) if spec.has_energy and spec.label in HYPERBOLIC else [],
    )


KINDS: dict[str, tuple[float, ...]] = {name: c.strengths for name, c in CORRUPTIONS.items()} | ATTACKS
"""The strengths at which corruptions and attacks are measured, by name."""


def pixel_scores(net: nn.Module) -> Scores:
    """The network as a function of pixels in [0, 1], which normalises them itself."""
    normalize = Normalize.of(spec_of(net))
    return lambda x: net(normalize(255 * x))


@torch.no_grad()
def _right(scores: Scores, x: Tensor, labels: Tensor) -> Tensor:
    return scores(x).argmax(1) == labels


def _corrupted(
    scores: Scores, x: Tensor, labels: Tensor, indices: Tensor, seed: int
) -> dict[tuple[str, float], Tensor]:
    """For every corruption and strength, which images are classified correctly."""
    return {
        (name, strength): _right(scores, corrupt(x, name, strength, indices=indices, seed=seed), labels)
        for name, corruption in CORRUPTIONS.items()
        for strength in corruption.strengths
    }


def _attacked(
    scores: Scores, x: Tensor, labels: Tensor, right: Tensor, indices: Tensor, seed: int
) -> dict[tuple[str, float], Tensor]:
    """For every attack and strength, which images are classified correctly."""
    uphill = ascent(scores, x, labels)
    found = {
        (FGSM, eps): _right(scores, fgsm(scores, x, labels, eps / 255, direction=uphill), labels)
        for eps in ATTACKS[FGSM]
    }
    start, standing = random_start(x, indices, seed), right
    for eps in ATTACKS[PGD]:
        left = standing.nonzero().flatten()
        standing = torch.zeros_like(standing)
        if len(left):
            attacked = pgd(scores, x[left], labels[left], eps / 255, start=start[left])
            standing[left] = _right(scores, attacked, labels[left])
        found[PGD, eps] = standing
    return found
