"""The plan of a coarse-to-fine training: levels, their learning rates, and what each costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from multipde.networks.cost import count_flops
from multipde.networks.limits import LEVELS
from multipde.networks.model_spec import ModelSpec
from multipde.runtime.table import table_lines
from multipde.training.level import Level, size_text, steps_text

LEAST_STEPS = 16
"""Least number of steps that an epoch of a coarse level keeps when its batch is enlarged."""


@dataclass(frozen=True)
class Schedule:
    """The levels of a training in their order, which tables number 1, 2, ...

    ``print(schedule)`` shows them with their share of the work, which is counted in FLOPs if the network is given, and
    estimated as epochs · pixels · steps otherwise.

    >>> print(Schedule([Level(16, epochs=4, steps=3), Level(32, epochs=1, steps=3)]))
    level  size        h  steps  epochs  batch  learning rate  MFLOPs/image  share
        1    16  0.06250      3       4    125            0.1             -   50 %
        2    32  0.03125      3       1    125            0.1             -   50 %

    Args:
        levels: at least one.
        network: description of the network to be trained, whose size and steps are replaced by those of each level;
            not needed for `train`, which adds it.

    Raises:
        ValueError: there is no level, an entry is none, or the network cannot have the size or steps of a level.
    """

    levels: tuple[Level, ...]
    network: ModelSpec | None = None

    def __init__(self, levels: Sequence[Level], network: ModelSpec | None = None):
        listed = isinstance(levels, Sequence)
        wrong = [each for each in levels if not isinstance(each, Level)] if listed else [levels]
        if wrong:
            got = type(wrong[0]).__name__
            raise ValueError(f"levels must be a list of Level, got {got}; type [Level(16, epochs=2), ...]")
        object.__setattr__(self, "levels", tuple(levels))
        object.__setattr__(self, "network", network)
        if not self.levels:
            raise ValueError("levels must name at least one level, got none")
        if len(self.levels) > LEVELS:
            raise ValueError(f"levels must be at most {LEVELS}, got {len(self.levels)}")
        if network is not None:
            self.configs()

    @property
    def image_size(self) -> int:
        """Side of the largest images that are needed."""
        return max(level.image_size for level in self.levels)

    def of(self, network: ModelSpec) -> "Schedule":
        """The same levels for a network."""
        return Schedule(self.levels, network)

    def balanced(self, num_images: int, multiple: int = 1) -> "Schedule":
        """The same levels with batches of as many pixels as on the finest level, and learning rates in proportion.

            batch' = batch · (finest size / size)ᵈ,    learning rate' = learning rate · batch'/batch

        The gradient of a batch that is k times larger is the mean of k small ones, and an epoch has k times fewer
        steps, so k times the learning rate moves the weights as far. An epoch keeps at least 16 steps, unless the batch
        of the finest level allows fewer. ValueError for mixed levels.

        Args:
            multiple: batches are rounded down to a multiple of this number.

        Reference: Goyal et al. (2017), Accurate, Large Minibatch SGD, section 2.1.
        """
        if any(level.mixed for level in self.levels):
            raise ValueError("batch must be given for mixed levels, got auto")
        finest, dim = max(self.levels, key=lambda level: level.size), self.network.dim if self.network else 2
        levels = []
        for level in self.levels:
            wanted = min(round(finest.batch * (finest.size / level.size) ** dim), num_images // LEAST_STEPS)
            batch = max(1, max(finest.batch, wanted) // multiple) * multiple
            levels.append(replace(level, batch=batch, learning_rate=level.learning_rate * batch / level.batch))
        return Schedule(levels, self.network)

    def of_work(
        self, shares: Sequence[float], budget: float, parts: Sequence[int], step_flops: float = 0.0
    ) -> "Schedule":
        """The same levels with as many epochs as cost their shares of a budget.

            epochs = share/sum(shares) · budget / (FLOPs per image + FLOPs per optimizer step / batch)

        Args:
            shares: work of each level in proportion to the others, positive.
            budget: floating point operations per training image, of all levels together.
            parts: for each level, the number of parts of an epoch; the epochs are rounded to whole parts, at least one.
            step_flops: floating point operations of the optimizer in one step, see `optimizer_flops`.

        Raises:
            ValueError: there is not one positive share per level, the levels are mixed, or there is no network.
        """
        if len(shares) != len(self.levels) or not all(math.isfinite(s) and s > 0 for s in shares):
            given = " ".join(f"{s:g}" for s in shares)
            raise ValueError(f"work must be a positive share for each of the {len(self.levels)} levels, got {given}")
        if any(level.mixed for level in self.levels):
            raise ValueError("work must be left out for mixed levels; give their epochs")
        costs = [f + step_flops / level.batch for f, level in zip(self.flops(), self.levels, strict=True)]
        wanted = [s / sum(shares) * budget / cost for s, cost in zip(shares, costs, strict=True)]
        epochs = [max(1, round(e * n)) * (1 / n) for e, n in zip(wanted, parts, strict=True)]
        return Schedule([replace(level, epochs=e) for level, e in zip(self.levels, epochs, strict=True)], self.network)

    def configs(self) -> list[ModelSpec]:
        """The network of each level, all with the final time T of the first; ValueError without a network."""
        if self.network is None:
            raise ValueError("network must be given to know the levels' networks, got None; use schedule.of(network)")
        first = self.levels[0]
        config = self.network
        if first.steps is not None:  # keeps dt of the network, so T changes
            has_steps = bool(config.block_steps)
            config = replace(config, steps=first.steps) if has_steps else config.with_steps(first.steps)
        configs = []
        for level in self.levels:
            if level.a_trous is not None:
                if config.detail == 1 or config.image_sizes != (level.size,) * config.dim:
                    sizes = size_text(config.sizes[0], config.image_sizes[0])
                    raise ValueError(f"a_trous must follow a level such as 16:32 at the size 32, got {sizes}")
                config = config.a_trous().plain(level.a_trous)
            config = config.on_mesh(level.size, level.detail)
            config = config if level.steps is None else config.with_steps(level.steps)
            for size, _ in level.mixed:
                config.on_mesh(size)  # raises for a size that a mixed level cannot have
            configs.append(config)
        return configs

    def flops(self) -> list[float]:
        """Floating point operations of each level per image, forward and backward pass together."""
        return [level_flops(level, config) for level, config in zip(self.levels, self.configs(), strict=True)]

    def work(self) -> list[float]:
        """Work of each level for one training image: FLOPs, or epochs · pixels · steps without a network."""
        if self.network is not None:
            return [(level.epochs or 0) * float(f) for level, f in zip(self.levels, self.flops(), strict=True)]
        work, steps = [], 1.0
        for level in self.levels:  # steps None: those of the level before
            if level.steps is not None:
                blocks = (level.steps,) if isinstance(level.steps, int) else level.steps
                steps = sum(blocks) / len(blocks)
            pixels = sum(share * float(size // level.detail) ** 2 for size, share in level.sizes)
            work.append((level.epochs or 0) * pixels * steps)
        return work

    def rate(self, index: int, fraction: float) -> float:
        """Learning rate of the index-th level when this fraction of it is done."""
        level, fraction = self.levels[index], min(1.0, fraction)
        if level.policy == "across":
            work = [w if other.policy == "across" else 0.0 for w, other in zip(self.work(), self.levels, strict=True)]
            fraction = (sum(work[:index]) + fraction * work[index]) / sum(work)
        return level.rate(fraction)

    def rows(self) -> list[dict[str, str]]:
        """The table as text, a row per level."""
        work, known = self.work(), sum(level.epochs is not None for level in self.levels)
        configs = self.configs() if self.network is not None else [None] * len(self.levels)
        flops = self.flops() if self.network is not None else [None] * len(self.levels)
        return [
            {
                "level": str(i + 1),
                "size": "+".join(str(size) for size, _ in level.mixed) or level.label,
                "h": f"{1 / level.size:.5f}",
                "steps": steps_text(config.block_steps if config else level.steps),
                "epochs": "auto" if level.epochs is None else f"{level.epochs:g}",
                "batch": str(level.batch),
                "learning rate": f"{level.learning_rate:g}",
                "MFLOPs/image": "-" if f is None else f"{f / 1e6:.1f}",
                "share": "-" if known < len(work) else f"{100 * w / sum(work):.0f} %",
            }
            for i, (level, config, f, w) in enumerate(zip(self.levels, configs, flops, work, strict=True))
        ]

    def __str__(self) -> str:
        return "\n".join(table_lines(self.rows()))


def level_flops(level: Level, config: ModelSpec) -> float:
    """Floating point operations per image of a level, forward and backward pass together."""
    own = replace(config, reference=None)
    plain = [(own.on_mesh(size // level.detail, level.detail), share) for size, share in level.sizes]
    return sum(share * count_flops(network, training=True) for network, share in plain)


def levels_from_lists(
    sizes: Sequence[int],
    epochs: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    batch: Sequence[int] = (Level.batch,),
    learning_rate: Sequence[float] = (Level.learning_rate,),
    policy: str = Level.policy,
    mixed: bool = False,
    auto: bool = False,
    warm_up: float = Level.warm_up,
    detail: Sequence[int] | None = None,
    a_trous: int | None = None,
) -> list[Level]:
    """Levels from a list per property, as long as that of the sizes; batch and learning rate may have one entry.

    >>> [level.epochs for level in levels_from_lists([8, 16, 32])]
    [5, 5, 1]

    Args:
        epochs: None for 5 on each level and 1 on the last.
        mixed: join the levels to one whose batches have random sizes, in proportion to the epochs.
        auto: find the numbers of epochs while training; the learning rate rises on the first level and falls on the
            last.
        warm_up: share of the cycle of the learning rate in which it rises.
        detail: side of the images / side of the mesh; None for 1.
        a_trous: see `Level`, for every level without a detail that follows one with a detail.
    """
    num = len(sizes)
    if not num:
        raise ValueError("sizes must name at least one level, got none")
    lists = {
        "epochs": (None,) * num if auto else [*(5,) * (num - 1), 1] if epochs is None else epochs,
        "steps": (None,) * num if steps is None else steps,
        "batch": tuple(batch) * num if len(batch) == 1 else batch,
        "learning_rate": tuple(learning_rate) * num if len(learning_rate) == 1 else learning_rate,
        "detail": (1,) * num if detail is None else detail,
    }
    details = lists["detail"]
    follows = [i > 0 and details[i] == 1 < details[i - 1] for i in range(len(details))]
    lists["a_trous"] = [a_trous if after else None for after in follows]
    if a_trous is not None and not any(follows):
        raise ValueError(f"a_trous must be left out for sizes without one such as 16:32 before 32, got {tuple(sizes)}")
    for name, values in lists.items():
        if len(values) != num:
            advice = f"; type --{name} {' '.join([f'{values[0]:g}'] * num)}" if len(values) == 1 else ""
            raise ValueError(f"{name} must have one entry per size ({num}), got {len(values)}: {tuple(values)}{advice}")
    policies = [policy] * num
    if auto:
        policies = ["one_cycle"] if num == 1 else ["warm_up", *["constant"] * (num - 2), "cool_down"]
    rows = zip(sizes, policies, *lists.values(), strict=True)
    levels = [
        Level(size, policy=policy, warm_up=warm_up, **dict(zip(lists, row, strict=True))) for size, policy, *row in rows
    ]
    return [mixed_level(levels)] if mixed and num > 1 else levels


def mixed_level(levels: Sequence[Level]) -> Level:
    """One level whose batches have the sizes of several ones at random, in proportion to their epochs.

    Raises:
        ValueError: the levels differ in more than size and epochs, have a detail, or do not give their epochs.
    """
    finest = max(levels, key=lambda level: level.size)
    if any(level.epochs is None for level in levels):
        raise ValueError("epochs must be given for mixed levels, got auto")
    if any(level.detail > 1 for level in levels):
        raise ValueError(f"detail must be 1 for mixed levels, got {max(level.detail for level in levels)}")
    if any(replace(level, size=finest.size, epochs=finest.epochs) != finest for level in levels):
        raise ValueError("levels must have the same steps, batch and learning rate to be mixed, got different ones")
    total = sum(level.epochs or 0 for level in levels)
    shares = tuple((level.size, (level.epochs or 0) / total) for level in levels)
    return replace(finest, epochs=total, mixed=shares)
