"""How well a network bears what was not in its training: corruptions, attacks, and growth inside its blocks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multipde.data.batches import Normalize, drawn_indices
from multipde.data.datasets import ImageData
from multipde.data.feed import Feed
from multipde.evaluation.attacks import Scores, ascent, fgsm, pgd, random_start
from multipde.evaluation.corruptions import CORRUPTIONS, corrupt
from multipde.evaluation.metrics import check_classes
from multipde.mesh.modes import eval_mode
from multipde.networks.model_spec import spec_of
from multipde.runtime.device import Compute
from multipde.stability.energy import StateEnergy, state_energies
from multipde.stability.growth import HYPERBOLIC, BlockGrowth, growth_report

FGSM, PGD = "FGSM", "PGD"
ATTACKS = {FGSM: (1.0, 2.0, 4.0), PGD: (1.0, 2.0)}
"""ε in units of 1/255 of the pixel range, from weak to strong."""

GROWTH_IMAGES = 8
"""Test images along which growth and energy are measured."""

BATCH = 125

Accuracies = tuple[tuple[float, float], ...]
"""Pairs of a strength and the accuracy at it."""


@dataclass(frozen=True)
class Robustness:
    """What `robustness` finds for one network.

    Args:
        num_images: test images.
        clean: accuracy on them as they are.
        accuracy: at every strength of every kind in `CORRUPTIONS` and `ATTACKS`.
        growth: of perturbations through every block.
        energy: along time, for the hyperbolic dynamics.
    """

    num_images: int
    clean: float
    accuracy: dict[str, Accuracies]
    growth: list[BlockGrowth]
    energy: list[StateEnergy]

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def robustness(
    net: nn.Module,
    images: ImageData,
    *,
    num_images: int | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Robustness:
    """Accuracy on corrupted and attacked test images, in float32, with growth and energy inside the network.

    Everything happens to pixels in [0, 1]; the network's mean and standard deviation, constants of the training data,
    are applied inside, so that gradients go through them. Accuracy under PGD at ε is the share of images that are
    classified correctly when clean and under PGD at every ε of the list up to this one.

    Args:
        num_images: only so many test images, drawn at random but always the same.
        device: where to compute; the network is moved there.
        seed: of the noise, the starts of PGD and the random perturbations; equal for all networks to be compared.
        advance: told the number of images after each batch.

    Raises:
        ValueError: data that do not suit the network, or are no pictures.

    Reference: Hendrycks & Dietterich (2019), for accuracy under corruptions.
    """
    spec: Any = spec_of(net)
    check_classes(spec, images)
    compute, dtype = Compute.of(device), next(net.parameters()).dtype
    compute.place(net)
    scores, size = pixel_scores(net), spec.sizes[0]
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
"""Strengths of everything that is measured."""


def pixel_scores(net: nn.Module) -> Scores:
    """The network as a function of pixels in [0, 1]: normalised inside."""
    normalize = Normalize.of(spec_of(net))
    return lambda x: net(normalize(255 * x))


@torch.no_grad()
def _right(scores: Scores, x: Tensor, labels: Tensor) -> Tensor:
    return scores(x).argmax(1) == labels


def _corrupted(
    scores: Scores, x: Tensor, labels: Tensor, indices: Tensor, seed: int
) -> dict[tuple[str, float], Tensor]:
    """Which images are classified right after each corruption."""
    return {
        (name, strength): _right(scores, corrupt(x, name, strength, indices=indices, seed=seed), labels)
        for name, corruption in CORRUPTIONS.items()
        for strength in corruption.strengths
    }


def _attacked(
    scores: Scores, x: Tensor, labels: Tensor, right: Tensor, indices: Tensor, seed: int
) -> dict[tuple[str, float], Tensor]:
    """Which images are classified right after each attack."""
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
