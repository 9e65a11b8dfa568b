"""One level of a schedule: its mesh, its number of epochs, its learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from multipde.networks.limits import BATCH, EPOCHS, SIDE


def _one_cycle(fraction: float, rise: float = 0.25) -> float:
    """A function that rises linearly from 1/10 to 1 over a share of [0, 1], and falls as half a cosine to zero."""
    if fraction < rise:
        return 0.1 + 0.9 * fraction / rise
    return 0.5 * (1 + math.cos(math.pi * (fraction - rise) / (1 - rise)))


def _fifths(*ends: float) -> Callable[[float], float]:
    """A function that is 1 at first and is divided by five at each of these fractions."""
    return lambda fraction: 0.2 ** sum(fraction >= end for end in ends)


def _warm_up(fraction: float) -> float:
    """A function that rises linearly from 1/10 to 1 over the first tenth, and is then constant."""
    return min(1.0, 0.1 + 9 * fraction)


POLICIES: dict[str, Callable[[float], float]] = {
    "one_cycle": _one_cycle,
    "piecewise": _fifths(0.6, 0.8),
    "piecewise_long": _fifths(0.3, 0.5, 0.7, 0.9),
    "across": _one_cycle,
    "warm_up": _warm_up,
    "constant": lambda fraction: 1.0,
    "cool_down": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
}
"""Learning rate / peak as a function of the share of the level that is done, in [0, 1); for ``across`` the share of the
work of all levels. The paper uses ``piecewise`` for STL-10 and CIFAR-10, and ``piecewise_long`` for CIFAR-100."""

CYCLES = ("across", "one_cycle")


@dataclass(frozen=True)
class Level:
    """One level of a schedule: a mesh on which the network is trained for a number of epochs.

    Args:
        size: side of the mesh in pixels, at least 1.
        epochs: number of passes over the training images, positive; 2.5 stands for two and a half. None to end the
            level when more work gains too little accuracy, within `TrainSettings.budget`.
        steps: number of time steps, one or one per block; None keeps those of the previous level, or of the network.
        batch: images per optimizer step, of all processes together.
        learning_rate: peak of the learning rate, positive.
        policy: the learning rate divided by its peak, during the level: ``"one_cycle"`` rises linearly from 1/10 to 1
            over ``warm_up`` and falls as half a cosine to 0; ``"across"`` is this cycle once over the work of all
            levels; ``"piecewise"`` is 1, 1/5, 1/25 for 60, 20, 20 % of the epochs; ``"piecewise_long"`` is 1, 1/5,
            1/25, 1/125, 1/625 for 30, 20, 20, 20, 10 %; ``"warm_up"`` rises linearly from 1/10 to 1 over the first
            tenth and stays there; ``"constant"`` is 1; ``"cool_down"`` falls as half a cosine from 1 to 0.
        mixed: pairs of a size and its share of the batches, for batches whose size is drawn at random; the shares sum
            to 1 and the largest size is that of the level. Empty for batches of one size.
        warm_up: share of the cycle, in [0, 1), in which the learning rate of ``"across"`` or ``"one_cycle"`` rises.
        detail: side of the images / side of the mesh. Above 1 the network sees finer images than its mesh, through an
            opening that is composed with a mean, see `with_detail`.
        crop: side of random square windows of the training images on which the level trains instead of whole images;
            mesh size h and stencils stay those of ``size``. None for whole images. Validation sees whole images.
        a_trous: on the mesh of the images of the previous level, whose detail is above 1: begin with its opening and
            with blocks at this dilation, which nearly keeps its function, see `a_trous`; so many blocks, from the
            finest on, get the dilation 1 in the first half of the level, one after the other, and the others keep it.
            None to average the opening and convert all stencils.

    Raises:
        ValueError: a value is outside its range.
    """

    size: int
    epochs: float | None
    steps: int | tuple[int, ...] | None = None
    batch: int = 125
    learning_rate: float = 0.1
    policy: str = "across"
    mixed: tuple[tuple[int, float], ...] = ()
    warm_up: float = 0.25
    detail: int = 1
    crop: int | None = None
    a_trous: int | None = None

    def __post_init__(self):
        if isinstance(self.steps, list):
            object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "mixed", tuple((int(size), float(share)) for size, share in self.mixed))
        for name, most in (("size", SIDE), ("batch", BATCH), ("detail", SIDE // max(1, self.size))):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most:,}, got {getattr(self, name)}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.epochs is not None and not EPOCHS[0] <= self.epochs <= EPOCHS[1]:
            raise ValueError(f"epochs must lie between {EPOCHS[0]:g} and {EPOCHS[1]:g}, got {self.epochs}")
        if self.mixed and self.detail > 1:
            raise ValueError(f"detail must be 1 for mixed levels, got {self.detail}")
        if self.crop is not None and (self.mixed or self.detail > 1 or not 1 <= self.crop <= self.size):
            raise ValueError(f"crop must lie between 1 and size {self.size}, without mixed or detail, got {self.crop}")
        if self.a_trous is not None and (self.mixed or self.detail > 1 or self.crop is not None or self.epochs is None):
            raise ValueError("a_trous must be left out for levels with mixed, detail, crop or epochs auto, got a value")
        if self.mixed:
            sizes, shares = zip(*self.mixed, strict=True)
            if max(sizes) != self.size or len(set(sizes)) != len(sizes):
                raise ValueError(f"mixed must name each size once, the largest {self.size}, got {sizes}")
            if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"mixed must have positive shares that sum to 1, got {shares}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must lie in [0, 1), got {self.warm_up}")
        if self.warm_up != 0.25 and self.policy not in CYCLES:
            raise ValueError(f"warm_up must be left out with the policy {self.policy}, got {self.warm_up}")

    def rate(self, fraction: float) -> float:
        """The learning rate after this share of the cycle or of the level."""
        if self.policy in CYCLES:
            return self.learning_rate * _one_cycle(fraction, self.warm_up)
        return self.learning_rate * POLICIES[self.policy](fraction)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.size * self.detail

    @property
    def sides(self) -> dict[str, int]:
        """Mesh and images as the metrics have them; the latter only where they are finer."""
        return {"size": self.size} | ({} if self.detail == 1 else {"image_size": self.image_size})

    @property
    def label(self) -> str:
        """The size as text: that of the mesh, and after a colon that of the images where it is another one."""
        return size_text(self.size, self.image_size) + (f" crop {self.crop}" if self.crop else "")

    @property
    def sizes(self) -> tuple[tuple[int, float], ...]:
        """The sizes of the images of the batches, or of their windows, each with its share."""
        return self.mixed or ((self.crop or self.image_size, 1.0),)

    @property
    def crops_per_image(self) -> float:
        """Work of a whole image / work of a window of it; 1 for a level without windows."""
        return (self.image_size / (self.crop or self.image_size)) ** 2

    @property
    def num_epochs(self) -> int:
        """Number of epochs, rounded up; 0 where it is not known beforehand."""
        return 0 if self.epochs is None else math.ceil(self.epochs - 1e-9)

    def share_of_epoch(self, epoch: int) -> float:
        """The share of the images that an epoch uses: 1, or less for the last epoch."""
        return 1.0 if self.epochs is None else min(1.0, self.epochs - epoch)


def size_text(mesh: int, image: int | None = None) -> str:
    """The size of a level as text, ``mesh:image`` where the images are finer than the mesh."""
    return str(mesh) if image in (None, mesh) else f"{mesh}:{image}"


def parsed_size(text: int | str) -> tuple[int, int]:
    """Mesh and detail of a level from ``SIZE`` or ``MESH:IMAGE``; ValueError for anything else.

    >>> parsed_size("16:32")
    (16, 2)
    """
    mesh, colon, image = str(text).partition(":")
    try:
        size, side = int(mesh), int(image if colon else mesh)
    except ValueError:
        raise ValueError(f"sizes must be SIZE or MESH:IMAGE such as 16 or 16:32, got {text!r}") from None
    if size < 1 or side < size or side % size:
        raise ValueError(f"size must be positive, and an image a whole multiple of its mesh, got {text}")
    return size, side // size


def steps_text(steps: int | tuple[int, ...] | None) -> str:
    """The numbers of time steps as text, a single one where all blocks have the same."""
    if not steps:
        return "-"
    blocks = (steps,) if isinstance(steps, int) else steps
    return ",".join(str(s) for s in (blocks[:1] if len(set(blocks)) == 1 else blocks))
