"""Coarse to fine in a training loop of one's own: images are resized, and the network grows in place."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multipde.conversions.convert import conversion
from multipde.conversions.in_place import Optimizers, convert_
from multipde.conversions.new_size import size_after
from multipde.conversions.recalibration import recalibrate
from multipde.mesh.modes import averaged
from multipde.mesh.pyramid import resize_images
from multipde.mesh.reparametrize import mesh_parametrizations
from multipde.mesh.transfer import CALIBRATED, check_method
from multipde.networks.cost import model_flops
from multipde.networks.inputs import IMAGE_KEYS
from multipde.networks.model_spec import ModelSpec, check_whole, find_spec
from multipde.runtime.processes import num_processes, over_processes
from multipde.training.level import Level
from multipde.training.schedule import Schedule

UNITS = ("epochs", "images", "steps", "flops", "reports")


class CoarseToFine:
    """The levels of a training that somebody else's loop runs.

    >>> growing = CoarseToFine([(16, 3), (32, 5)], num_images=50_000)   # three epochs at 16 pixels, then 32
    >>> growing.begin(model, optimizer)                                  # doctest: +SKIP
    >>> for batch in loader:                                             # doctest: +SKIP
    ...     images, labels = growing.step(batch)                         # resized; the network grows when it is time

    The network grows by `convert_`: its parameters stay the same objects, so that optimizer, scheduler and scaler go
    on. BatchNorm is measured anew on the batch with which a level begins. With several processes every one of them
    takes the same steps; the method must then be one that needs no images.

    Args:
        schedule: a `Schedule`, or for every level a `Level`, or a pair of the shorter side of its images in pixels and
            its length. The length of the last level does not matter.
        unit: what lengths count: ``"epochs"`` of ``num_images`` images, ``"images"``, ``"steps"``, ``"flops"`` (three
            forward passes per image), or ``"reports"`` of a metric in a row that do not exceed the largest one so far.
        num_images: images in an epoch, of this process.
        method: how stencils are moved, as for `convert`; calibrated ones are measured on the batch.
        rule: what happens to the state of the optimizer, see `carry_optimizer_state`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        schedule: Schedule | Sequence[Level | tuple[int, float]],
        unit: str = "epochs",
        *,
        num_images: int | None = None,
        method: str = "calibrated",
        rule: str = "map",
    ):
        levels = schedule.levels if isinstance(schedule, Schedule) else schedule
        pairs = [(level.size, level.epochs) if isinstance(level, Level) else level for level in levels]
        if not pairs:
            raise ValueError("schedule must have at least one level, got none")
        self.sizes, self.lengths = [size for size, _ in pairs], [length for _, length in pairs]
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
        if unit == "epochs" and not num_images:
            raise ValueError(f"num_images must be the number of images in an epoch, got {num_images}")
        if any(not (isinstance(size, int) and size > 0) for size in self.sizes):
            raise ValueError(f"schedule must have positive whole sizes, got {', '.join(map(str, self.sizes))}")
        if any(length is None or not length > 0 for length in self.lengths[:-1]):
            raise ValueError(f"schedule must have positive lengths, got {', '.join(map(str, self.lengths))}")
        check_method(method)
        self.unit, self.num_images, self.method, self.rule = unit, num_images, method, rule
        self.level, self.spent, self.best = 0, 0.0, None
        self.moves: list[dict[str, Any]] = []
        self._held: tuple[nn.Module, Optimizers, nn.Module | None] | None = None
        self._cost: float | None = None

    @property
    def size(self) -> int:
        """Shorter side of the images of the present level in pixels."""
        return self.sizes[self.level]

    def begin(self, model: nn.Module, optimizer: Optimizers = None, ema: nn.Module | None = None) -> None:
        """Take the network and what holds its parameters, as for `convert_`.

        A network that carries its description is put on the mesh of the present level; its stencils stay. Where a
        checkpoint has put them there already, the network takes the description of that level.

        Raises:
            ValueError: the network cannot grow, as for `convert_`; or levels that another network has used are not
                those of a checkpoint.
        """
        if self.method in CALIBRATED and num_processes() > 1:
            raise ValueError(f"method must need no images with several processes, such as 'copy', got {self.method!r}")
        if self._held is not None and self._held[0] is not model and (self.level or self.spent):
            raise ValueError("levels must be those of one network, got another one; make a new CoarseToFine for it")
        net = averaged(model) or model
        check_whole(net)
        spec = find_spec(net)
        if spec is not None and min(spec.image_sizes) != self.size:
            factor = self.size / min(spec.image_sizes)
            if _is_on_mesh(net, level := spec.on_mesh(size_after(spec, factor))):
                for each in (net, *([] if ema is None else [averaged(ema) or ema])):
                    each.multipde_spec = level  # pyright: ignore[reportArgumentType]
            else:
                convert_(model, optimizer=optimizer, ema=ema, factor=factor, method="copy")
        if (following := next((s for s in self.sizes[self.level :] if s != self.size), None)) is not None:
            conversion(model, factor=following / self.size, method="copy")(net)  # now, and not when the level is over
        self._held = model, optimizer, ema

    def step(self, batch: Any) -> Any:
        """The batch with its images on the present level; before that, the next level begins if it is time.

        Args:
            batch: images (N, C, *size), or a tuple or list that begins with them, or a mapping with an entry of them.
        """
        if self._held is None:
            raise ValueError("begin must be called before step")
        while self.level + 1 < len(self.sizes) and self.spent >= self._length():
            self._advance(_images(batch))
        images = self._at(_images(batch), self.size)
        self.spent += self._price(images)
        return _with_images(batch, images)

    def resized(self, batch: Any) -> Any:
        """The batch with its images on the present level, for a validation; nothing else happens."""
        return _with_images(batch, self._at(_images(batch), self.size))

    def report(self, metric: float) -> None:
        """Tell a metric that should grow, such as validation accuracy; only the unit ``"reports"`` looks at it.

        Several processes must all tell theirs, and the mean counts, so that all of them grow at the same time.
        """
        if self.unit == "reports":
            told = over_processes(float(metric))
            metric = sum(told) / len(told)
            is_better = math.isfinite(metric) and (self.best is None or metric > self.best)
            self.best, self.spent = (metric, 0.0) if is_better else (self.best, self.spent + 1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides those of network and optimizer."""
        return {"level": self.level, "spent": self.spent, "best": self.best, "moves": list(self.moves)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; call it before `begin`, and load the state of network and optimizer after `begin`.

        Raises:
            ValueError: the state belongs to another schedule.
        """
        if not 0 <= state["level"] < len(self.sizes):
            raise ValueError(f"state must be that of one of {len(self.sizes)} levels, got level {state['level']}")
        self.level, self.spent, self.best = state["level"], state["spent"], state["best"]
        self.moves, self._cost, self._held = list(state["moves"]), None, None

    def _length(self) -> float:
        length = self.lengths[self.level]
        assert length is not None
        return length * (self.num_images or 0) if self.unit == "epochs" else length

    def _price(self, images: Tensor) -> float:
        """What a batch adds to the length of its level."""
        if self.unit == "flops":
            assert self._held is not None
            if self._cost is None:
                self._cost = 3.0 * model_flops(self._held[0], (1, *images.shape[1:]))
            return self._cost * len(images)
        return {"epochs": len(images), "images": len(images), "steps": 1.0, "reports": 0.0}[self.unit]

    def _advance(self, images: Tensor) -> None:
        """Begin the next level: convert the network on a batch, and measure BatchNorm there."""
        assert self._held is not None
        model, optimizer, ema = self._held
        old, new = self.sizes[self.level], self.sizes[self.level + 1]
        if new != old:
            finer, fit = self._at(images, max(old, new)), self._at(images, new)
            calibration = finer if self.method in CALIBRATED else None
            held = {"optimizer": optimizer, "ema": ema, "rule": self.rule}
            convert_(model, factor=new / old, method=self.method, calibration=calibration, **held)
            for net in (model, *([] if ema is None else [averaged(ema) or ema])):
                recalibrate(net, [fit])
        self.moves.append({"from": old, "to": new, "after": self.spent, "unit": self.unit})
        self.level, self.spent, self.best, self._cost = self.level + 1, 0.0, None, None

    def _at(self, images: Tensor, size: int) -> Tensor:
        axes = images.shape[2:]
        if min(axes) < size:
            raise ValueError(f"images must be at least as large as the level, {size} pixels, got {tuple(axes)}")
        sides = [round(side * size / min(axes)) for side in axes]
        return images if sides == list(axes) else resize_images(images, sides)


def _is_on_mesh(net: nn.Module, spec: ModelSpec) -> bool:
    """Whether all stencils are on the mesh of a description, as those of a checkpoint are on that of its level."""
    meshes = {p.mesh_size for p in mesh_parametrizations(net).values()}
    return bool(meshes) and all(abs(h * s - 1) < 1e-9 for mesh in meshes for h, s in zip(mesh, spec.sizes, strict=True))


def _images(batch: Any) -> Tensor:
    found = [batch]
    if isinstance(batch, Mapping):
        found = [batch[key] for key in IMAGE_KEYS if key in batch] or [None]
    elif isinstance(batch, tuple | list) and batch:
        found = list(batch)
    images, *others = found
    if not isinstance(images, Tensor) or images.dim() < 3 or not images.is_floating_point():
        got = f"{tuple(images.shape)} in {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"batch must begin with normalised images (N, C, *size), got {got}")
    if any(isinstance(each, Tensor) and each.shape[2:] == images.shape[2:] for each in others):
        raise ValueError("batch must hold one tensor of images, got several of the same size; step through each alone")
    return images


def _with_images(batch: Any, images: Tensor) -> Any:
    if isinstance(batch, Tensor):
        return images
    if isinstance(batch, Mapping):
        new: Any = copy.copy(batch)  # of the same type
        new[next(key for key in IMAGE_KEYS if key in batch)] = images
        return new
    make: Callable[[Any], Any] = getattr(batch, "_make", list if isinstance(batch, list) else tuple)
    return make([images, *batch[1:]])
