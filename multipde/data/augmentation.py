"""Augmentation of training images, chosen by names: flips, crops, cutout, RandAugment, mixup, CutMix."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multipde.data.batches import shard_of
from multipde.data.images import Batch, Key, stream_seed
from multipde.mesh.randomness import OwnRandomness

NAMES = ("flip", "crop", "cutout", "mixup", "cutmix", "randaugment")
DEFAULT = ("flip", "crop")
MIXING = ("mixup", "cutmix")

ImageFunction = Callable[[Tensor], Tensor]


def augmentation_names(augment: Any) -> tuple[str, ...]:
    """The names in a setting; ValueError for text that is neither ``off`` nor names joined by commas.

    >>> augmentation_names("flip,crop,cutout"), augmentation_names(True), augmentation_names("off")
    (('flip', 'crop', 'cutout'), ('flip', 'crop'), ())
    """
    if augment is None or isinstance(augment, bool):
        return () if augment is False else DEFAULT
    if not isinstance(augment, str):
        raise ValueError(f"augment must be text, True, False or a function, got {augment!r}")
    found = () if augment == "off" else tuple(name.strip() for name in augment.split(","))
    if not set(found) <= set(NAMES) or len(set(found)) != len(found):
        raise ValueError(
            f"augment must be off or different names among {', '.join(NAMES)}, got {augment!r}; "
            f"type --augment {','.join(DEFAULT)}"
        )
    return found


@dataclass(frozen=True)
class Augmentation:
    """Random changes of every batch of training images, applied in this order:

        function    the user's function of the pixels
        randaugment two random operations on the pixels, of strength 9
                    (then the images are normalised)
        flip, crop  horizontal flip; padding by max(1, round(size/16)) pixels and a random crop to the size
        cutout      a square of 3/8 of the side is replaced
        mixup       λ x + (1-λ) x' with the image x' before x in the batch, λ from Beta(0.2, 0.2)
        cutmix      a rectangle of x' with about 1-λ of the pixels is pasted into x, λ from Beta(1, 1)

    Labels are mixed like the images and become shares of the classes. If both mixup and cutmix are named, every batch
    gets one of them. Padding and cutout fill with the mean, which is zero in normalised images. All random numbers
    depend only on the key, so that repeated and resumed runs, and runs with several processes, see the same images.

    Args:
        names: some of `NAMES`. All but mixup are for images with two axes.
        classes: number of classes, for labels that are mixed.
        function: a function of a batch of images on [0, 1] to a batch of the same shape, which may use torch's
            random functions, those with ``generator=`` and their ``_like`` forms.

    References:
        - Ruthotto & Haber (2018), section 5 (flip and crop).
        - DeVries & Taylor (2017), Improved Regularization of Convolutional Neural Networks with Cutout.
        - Cubuk et al. (2020), RandAugment.
        - Zhang et al. (2018), mixup. Yun et al. (2019), CutMix.
    """

    names: tuple[str, ...] = DEFAULT
    classes: int = 0
    function: ImageFunction | None = None

    @classmethod
    def of(cls, asked: Any, classes: int) -> "Augmentation | None":
        """The augmentation of a setting, see `augmentation_names`, or of a function; None for no augmentation."""
        if callable(asked):
            return cls((), classes, asked)  # pyright: ignore[reportArgumentType]
        names = augmentation_names(asked)
        return cls(names, classes) if names else None

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return bool(set(self.names) & set(MIXING))

    def rows(self, num: int, shard: tuple[int, int]) -> Tensor:
        """The indices of the images of a batch of ``num`` that a process needs for its slice, the slice itself last.

        For mixing it also needs the image before its slice, for a function all images.
        """
        rows = torch.arange(num)
        if shard == (0, 1):
            return rows
        own = shard_of(rows, shard)
        if self.function is not None:
            return rows.roll(num - 1 - int(own[-1]))
        return torch.cat([(own[:1] - 1) % num, own]) if self.mixes else own


class Augment:
    """An `Augmentation` for images of one size."""

    def __init__(self, size: int, augmentation: Augmentation | None = None):
        from kornia import augmentation as kornia
        from torchvision.transforms import v2

        self.augmentation = what = augmentation or Augmentation()
        self.padding, side = max(1, round(size / 16)), max(1, round(3 * size / 8)) / size
        crop = {"padding": self.padding, "cropping_mode": "slice"}
        erased = {"scale": (side**2, side**2), "ratio": (1.0, 1.0), "p": 1.0}
        made: dict[str, Callable[[], Any]] = {
            "flip": lambda: kornia.RandomHorizontalFlip(p=0.5),
            "crop": lambda: kornia.RandomCrop((size, size), **crop),
            "cutout": lambda: kornia.RandomErasing(**erased),
            "mixup": lambda: v2.MixUp(alpha=0.2, num_classes=what.classes),
            "cutmix": lambda: v2.CutMix(alpha=1.0, num_classes=what.classes),
            "randaugment": lambda: v2.RandAugment(num_ops=2, magnitude=9),
        }
        self.transforms = {name: make() for name, make in made.items() if name in what.names}

    def __call__(
        self, x: Tensor, labels: Tensor, normalize: ImageFunction, key: Key, num: int, shard: tuple[int, int] = (0, 1)
    ) -> Batch:
        """Normalised and augmented images of this process's slice, and their labels.

        Args:
            x: the images of `Augmentation.rows`, on 0..255; likewise their labels.
            num: number of images in the batch of all processes.

        Shape:
            - x: (N, C, *size)
            - result: images, labels (N,), or (N, classes) where they are mixed

        Raises:
            ValueError: images that do not have the two axes or the channels that a name needs.
        """
        self._check(x)
        rows = self.augmentation.rows(num, shard)
        if self.augmentation.function is not None:
            order = rows.argsort()  # the batch as it is without other processes
            with OwnRandomness(stream_seed(*key, "function")):
                x = (255 * _checked(self.augmentation.function(x[order] / 255), x))[rows]
        if "randaugment" in self.transforms:
            keys = [(*key, "randaugment", row) for row in rows.tolist()]
            x = torch.stack([self._randaugmented(*pair) for pair in zip(x, keys, strict=True)])
        x = normalize(x)
        with OwnRandomness(stream_seed(*key)):
            x = self._drawn_alone(("flip", "crop"), x, rows, num)
        if "cutout" in self.transforms:
            with OwnRandomness(stream_seed(*key, "cutout")):
                x = self._drawn_alone(("cutout",), x, rows, num)
        if self.augmentation.mixes:
            with OwnRandomness(stream_seed(*key, "mix")):
                x, labels = self._mixed(x, labels)
        first = len(x) - len(shard_of(torch.arange(num), shard))
        return x[first:], labels[first:]

    def _check(self, x: Tensor) -> None:
        flat = [name for name in self.transforms if name != "mixup"]
        if flat and x.dim() != 4:
            raise ValueError(f"augment must be off or mixup for images with {x.dim() - 2} axes, got {','.join(flat)}")
        if "randaugment" in flat and x.shape[1] not in (1, 3):
            raise ValueError(f"augment must leave out randaugment for images of {x.shape[1]} channels")

    def _drawn_alone(self, names: Iterable[str], x: Tensor, rows: Tensor, num: int) -> Tensor:
        """Transforms whose parameters are drawn for the whole batch, an entry per image, and taken for the rows."""
        for name in names:
            if (transform := self.transforms.get(name)) is not None:
                drawn = transform.forward_parameters(torch.Size((num, *x.shape[1:])))
                x = transform(x, {k: v if k == "forward_input_shape" else v[rows] for k, v in drawn.items()})
        return x

    def _randaugmented(self, image: Tensor, key: Key) -> Tensor:
        with OwnRandomness(stream_seed(*key)):
            return self.transforms["randaugment"](image.round().clamp(0, 255).to(torch.uint8)).float()

    def _mixed(self, x: Tensor, labels: Tensor) -> Batch:
        found = [self.transforms[name] for name in MIXING if name in self.transforms]
        chosen = found[int(torch.randint(len(found), ()))]
        mixed, labels = chosen(x if x.dim() == 4 else x.flatten(2)[..., None], labels)
        return mixed.view_as(x), labels


def _checked(images: Any, x: Tensor) -> Tensor:
    """What a function of the user's has made of the images x; ValueError unless they have the same shape."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.shape != x.shape:
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"augment must give floats of the shape of its images, {tuple(x.shape)}, got {got}")
    return images
